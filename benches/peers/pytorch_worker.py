"""One measurement of PyTorch on a model directory; prints one JSON line.

    python pytorch_worker.py MODEL_DIR {prefill,decode,full,lora} --dtype float32 --threads 2 --runs 3

prefill: a forward pass over 512 tokens with the logits of the last position (--all-logits: of every position).
decode: 64 tokens each of --batch sequences, a token of all of them in each step, through transformers' cache.
full, lora: one step on 4 x 512 tokens: forward, backward, AdamW; LoRA has r=8 on all seven projections.
"""

import argparse
import json
import time

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("test", choices=["prefill", "decode", "full", "lora"])
parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
parser.add_argument("--batch", type=int, default=1)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--runs", type=int, default=3)
parser.add_argument("--all-logits", action="store_true")
args = parser.parse_args()

import torch
import transformers

DECODED = 64

torch.set_num_threads(args.threads)
torch.manual_seed(0)
model = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype))
vocab = model.config.vocab_size

if args.test == "prefill":
    model.eval()
    ids = torch.randint(0, vocab, (1, 512))
    tokens = ids.numel()

    def run():
        with torch.inference_mode():
            model(ids, use_cache=False, logits_to_keep=0 if args.all_logits else 1)

elif args.test == "decode":
    model.eval()
    ids = torch.randint(0, vocab, (args.batch, 1))
    tokens = args.batch * DECODED

    def run():
        cache = transformers.DynamicCache(config=model.config)
        with torch.inference_mode():
            for _ in range(DECODED):
                model(ids, past_key_values=cache, use_cache=True)

else:
    if args.test == "lora":
        import peft

        names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        config = peft.LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=names, task_type="CAUSAL_LM")
        model = peft.get_peft_model(model, config)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    ids = torch.randint(0, vocab, (4, 512))
    tokens = ids.numel()

    def run():
        optimizer.zero_grad(set_to_none=True)
        model(ids, labels=ids, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


run()
samples = []
for _ in range(args.runs):
    start = time.perf_counter()
    run()
    samples.append(tokens / (time.perf_counter() - start))
print(json.dumps({"samples_ts": samples, "torch": torch.__version__, "transformers": transformers.__version__}))
