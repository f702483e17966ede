#!/usr/bin/env python3
"""Directories that ratoon wrote load in transformers and peft, unchanged, with the logits that ratoon computes.

    python tests/transformers_load.py MODEL...                        # pruned, merged, converted, trained directories
    python tests/transformers_load.py --adapter BASE ADAPTER MERGED   # peft(BASE, ADAPTER) against ratoon's MERGED
Runs `cargo run --example logits` for ratoon's side ($RATOON_LOGITS names a built one). Needs torch and transformers, for --adapter
also peft; without them it says so and ends well, since the other tests do not need them.
"""
import argparse, json, os, pathlib, subprocess, sys

try:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
except ImportError as missing:
    print(f'skipped: {missing}')
    sys.exit(0)

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('models', nargs='*')
parser.add_argument('--adapter', nargs=3, action='append', default=[], metavar=('BASE', 'ADAPTER', 'MERGED'))
parser.add_argument('--tolerance', type=float, default=2e-3, help='largest difference of a logit (float32 on both sides)')
args = parser.parse_args()
ROOT = pathlib.Path(__file__).resolve().parent.parent
TEXTS = ['The capital of Italy is', 'Two and  12 make', 'It was']


def ratoon_logits(model, ids):
    program = os.environ.get('RATOON_LOGITS')
    command = [program] if program else ['cargo', 'run', '-q', '--release', '--example', 'logits', '--']
    done = subprocess.run([*command, str(pathlib.Path(model).resolve()), json.dumps(ids)], cwd=ROOT, check=True, capture_output=True)
    return torch.tensor(json.loads(done.stdout))


def load(model):
    found, info = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation='eager',
                                                       output_loading_info=True)
    for kind in ('missing_keys', 'unexpected_keys', 'mismatched_keys'):
        assert not info[kind], f'{model}: {kind}: {info[kind]}'
    return found.eval()


def ids_for(model, vocab_size):
    if (pathlib.Path(model) / 'tokenizer.json').exists():
        return [AutoTokenizer.from_pretrained(model)(text).input_ids for text in TEXTS]
    return [[(7 * i + 3 * n) % vocab_size for i in range(n)] for n in (5, 9, 2)]


def compare(what, torch_model, directory):
    ids = ids_for(directory, torch_model.config.vocab_size)
    with torch.no_grad():
        want = torch.stack([torch_model(torch.tensor([sequence])).logits[0, -1] for sequence in ids])
    difference = (ratoon_logits(directory, ids) - want).abs().max().item()
    verdict = 'ok' if difference <= args.tolerance else 'DIFFERS'
    print(f'{verdict}: {what}: largest difference {difference:.2e} over {want.numel()} logits')
    return difference <= args.tolerance


good = [compare(model, load(model), model) for model in args.models]
for base, adapter, merged in args.adapter:
    from peft import PeftModel
    good.append(compare(f'{base} + {adapter}', PeftModel.from_pretrained(load(base), adapter).eval(), merged))
sys.exit(0 if all(good) else 1)
