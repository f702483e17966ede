#!/usr/bin/env python3
"""Directories that ratoon wrote load in transformers and peft, unchanged, with the logits that ratoon computes.

    python tests/transformers_load.py MODEL... [--adapter BASE ADAPTER]...

A MODEL is what init, convert, prune, merge and finetune --full write; an ADAPTER is what finetune writes, BASE its model.
ratoon's side is `cargo run --example logits` ($RATOON_LOGITS names a built one). Needs torch, transformers and, for adapters, peft.

Both sides compute in float32 on the same weights, so they differ by rounding alone: 2e-3 over a model of 30 blocks, whose logits
reach 30, is some 500 units in the last place of the largest; a wrong tensor, rotation or scale moves logits by far more. That an
adapter is really applied is checked apart: peft with it must differ from its base by more than the tolerance.
"""
import argparse, json, os, pathlib, subprocess, sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('models', nargs='*')
parser.add_argument('--adapter', nargs=2, action='append', default=[], metavar=('BASE', 'ADAPTER'))
parser.add_argument('--tolerance', type=float, default=2e-3, help='largest difference of a logit')
args = parser.parse_args()
if not args.models and not args.adapter:
    parser.error('no directory is named')
ROOT = pathlib.Path(__file__).resolve().parent.parent
TEXTS = ['The capital of Italy is', 'Two and  12 make', 'It was']


def ratoon_logits(model, ids, adapter=None):
    program = os.environ.get('RATOON_LOGITS')
    command = [program] if program else ['cargo', 'run', '-q', '--release', '--example', 'logits', '--']
    paths = [str(pathlib.Path(p).resolve()) for p in (model, adapter) if p]
    done = subprocess.run([*command, paths[0], json.dumps(ids), *paths[1:]], cwd=ROOT, stdout=subprocess.PIPE)
    if done.returncode:
        sys.exit(f'{command[0]} failed on {" ".join(paths)}')
    return torch.tensor(json.loads(done.stdout))


def load(model):
    found, info = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation='eager',
                                                       output_loading_info=True)
    for kind in ('missing_keys', 'unexpected_keys', 'mismatched_keys'):
        if info[kind]:
            sys.exit(f'{model}: {kind}: {info[kind]}')
    return found.eval()


def ids_for(model, vocab_size):
    """Texts in the model's own tokens; a random model of `ratoon init` has a tokenizer too, whose ids may be fewer."""
    if (pathlib.Path(model) / 'tokenizer.json').exists():
        return [AutoTokenizer.from_pretrained(model)(text).input_ids for text in TEXTS]
    return [[(7 * i + 3 * n) % vocab_size for i in range(n)] for n in (5, 9, 2)]


def torch_logits(model, ids):
    with torch.no_grad():
        return torch.stack([model(torch.tensor([sequence])).logits[0, -1] for sequence in ids])


def close(what, ours, theirs):
    difference = (ours - theirs).abs().max().item()
    good = difference <= args.tolerance
    print(f'{"ok" if good else "DIFFERS"}: {what}: largest difference {difference:.2e} over {theirs.numel()} logits, '
          f'the largest {theirs.abs().max().item():.3g}')
    return good


results = []
for model in args.models:
    theirs = load(model)
    ids = ids_for(model, theirs.config.vocab_size)
    results.append(close(model, ratoon_logits(model, ids), torch_logits(theirs, ids)))
for base, adapter in args.adapter:
    from peft import PeftModel
    theirs = load(base)
    ids = ids_for(base, theirs.config.vocab_size)
    without = torch_logits(theirs, ids)
    adapted = torch_logits(PeftModel.from_pretrained(theirs, adapter).eval(), ids)
    moved = (adapted - without).abs().max().item()
    results.append(close(f'{base} + {adapter} (moves logits by {moved:.2g})', ratoon_logits(base, ids, adapter), adapted))
    if moved <= args.tolerance:
        print(f'DIFFERS: {adapter}: peft with it is the same as without it')
        results.append(False)
sys.exit(0 if all(results) else 1)
