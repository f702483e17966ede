"""Times of PyTorch beside those of `ratoon bench --operations`: reads its JSON, adds `torch_microseconds` and prints the table.

    python3 benches/gpu_torch.py kernels.json with_torch.json

On a CUDA card; TORCH_DEVICE=cpu for a try. The same shapes, N(0, 1) numbers in bf16, several sets of buffers in turn, the median
of 20 rounds. What PyTorch has no single call for is left out.
"""

import json
import os
import re
import sys
import time

import torch
import torch.nn.functional as F

DEVICE = os.environ.get("TORCH_DEVICE", "cuda")
ROUNDS = 20
SPREAD, MOST_SETS = 256 << 20, 8


def random(*shape, dtype=torch.bfloat16):
    return torch.randn(*shape, device=DEVICE, dtype=torch.float32).to(dtype)


def heads_of(shape):
    tokens, n_kv_heads, n_heads, head_dim = map(int, re.findall(r"\d+", shape))
    return tokens, n_heads, n_kv_heads, head_dim


def attention(shape, backward):
    tokens, n_heads, n_kv_heads, head_dim = heads_of(shape)
    q = random(1, n_heads, tokens, head_dim).requires_grad_(backward)
    k, v = (random(1, n_kv_heads, tokens, head_dim).requires_grad_(backward) for _ in range(2))
    forward = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    if not backward:
        return forward
    y, dy = forward(), random(1, n_heads, tokens, head_dim)
    return lambda: torch.autograd.grad(y, (q, k, v), dy, retain_graph=True)


def cross_entropy(tokens, vocab, hidden):
    x, head = random(tokens, hidden).requires_grad_(), random(vocab, hidden)
    targets = torch.randint(vocab, (tokens,), device=DEVICE)
    return lambda: torch.autograd.grad(F.cross_entropy(F.linear(x, head).float(), targets), x)


def adamw(rows, columns):
    p = random(rows, columns, dtype=torch.float32).requires_grad_()
    p.grad = random(rows, columns, dtype=torch.float32)
    return torch.optim.AdamW([p], fused=DEVICE == "cuda").step


def product(transpose_a, transpose_b, m, n, k):
    a = random(k, m).T if transpose_a else random(m, k)
    b = random(n, k).T if transpose_b else random(k, n)
    return lambda: a @ b


def call(operation, shape):
    """One call on buffers of its own, or None."""
    if operation.startswith("attention"):
        return attention(shape, operation.endswith("backward"))
    sizes = [int(n) for n in re.findall(r"\d+", shape)]
    if operation == "matmul nt":
        return product(False, True, *sizes)
    if operation == "matmul nn":
        return product(False, False, *sizes)
    if operation == "matmul tn":
        return product(True, False, *sizes)
    if operation == "rmsnorm":
        x, w = random(*sizes), random(sizes[1])
        return lambda: F.rms_norm(x, (sizes[1],), w, 1e-5)
    if operation == "swiglu":
        gate, up = random(*sizes), random(*sizes)
        return lambda: F.silu(gate) * up
    if operation == "linear_cross_entropy":
        return cross_entropy(*sizes)
    if operation == "adamw":
        return adamw(*sizes)
    if operation == "grad_norm":
        g = random(*sizes, dtype=torch.float32)
        return lambda: torch.linalg.vector_norm(g)
    return None


def microseconds(row):
    """Median time of a call; None where PyTorch has none."""
    first = call(row["operation"], row["shape"])
    if first is None:
        return None
    sets = max(1, min(MOST_SETS, SPREAD // max(1, row["bytes"])))
    calls = [first] + [call(row["operation"], row["shape"]) for _ in range(sets - 1)]
    flush = torch.empty(64 << 20, dtype=torch.uint8, device=DEVICE)
    times = []
    for round in range(ROUNDS + 2):
        if DEVICE == "cpu":
            start = time.perf_counter()
            for one in calls:
                one()
            elapsed = time.perf_counter() - start
        else:
            torch.cuda.synchronize()
            # Writes over the card's cache, and keeps the card busy until all calls are queued.
            for _ in range(4):
                flush.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for one in calls:
                one()
            end.record()
            torch.cuda.synchronize()
            elapsed = start.elapsed_time(end) * 1e-3
        if round > 1:  # The first ones choose kernels.
            times.append(elapsed / len(calls))
    return sorted(times)[len(times) // 2] * 1e6


def main():
    rows = json.load(open(sys.argv[1]))
    print("| operation | shape | us | TFLOP/s | GB/s | of floor | PyTorch us | x PyTorch |\n|-|-|-|-|-|-|-|-|")
    for row in rows:
        theirs = row["torch_microseconds"] = microseconds(row)
        ratio = ["", ""] if theirs is None else [f"{theirs:.1f}", f"{theirs / row['microseconds']:.2f}"]
        own = [f"{row['microseconds']:.1f}", f"{row['flops_per_second'] * 1e-12:.1f}"]
        own += [f"{row['bytes_per_second'] * 1e-9:.0f}", f"{100 * row['floor_share']:.1f} %"]
        print("| " + " | ".join([row["operation"], row["shape"], *own, *ratio]) + " |", flush=True)
    json.dump(rows, open(sys.argv[2], "w"), indent=1)


main()
