#!/usr/bin/env python3
"""Quantised blocks and the float32 values that the gguf package of the llama.cpp project reads from them.

    pip install gguf numpy && python make_blocks.py > blocks.json
For each format: random bytes with sane float16 scales, three blocks; values as the hexadecimal of their float32 bits, little-endian.
"""
import json
import numpy as np
from gguf import GGMLQuantizationType as T
from gguf.quants import dequantize

rng = np.random.default_rng(7)
# name: (bytes of a block, offsets of its float16 scales)
FORMATS = {'F32': (4, None), 'F16': (2, [0]), 'BF16': (2, None), 'Q4_0': (18, [0]), 'Q4_1': (20, [0, 2]), 'Q8_0': (34, [0]),
           'Q4_K': (144, [0, 2]), 'Q6_K': (210, [208])}
out = {}
for name, (size, scales) in FORMATS.items():
    n = 3 if size > 4 else 8
    blocks = rng.integers(0, 256, (n, size), dtype=np.uint8)
    if scales is None:
        values = rng.normal(size=n).astype('<f4').view(np.uint8).reshape(n, 4)
        blocks = values if name == 'F32' else np.ascontiguousarray(values[:, 2:])
    else:
        for at in scales:
            blocks[:, at:at + 2] = rng.normal(size=(n, 1)).astype('<f2').view(np.uint8)
    values = blocks.view('<f2').astype('<f4') if name == 'F16' else dequantize(blocks, T[name])
    out[name] = {'bytes': blocks.tobytes().hex(), 'values': np.ascontiguousarray(values, '<f4').tobytes().hex()}
print(json.dumps(out, indent=0))
