#!/usr/bin/env python3
"""SHA-256 of every tensor's bytes in a model.safetensors, as JSON on stdout.

    python make_smollm2.py OUT && python make_tensor_sums.py OUT > smollm2_tensors.json
make_smollm2.py is the converter that shares nothing with the program under test. Needs only the standard library.
"""
import hashlib, json, struct, sys

with open(sys.argv[1] + '/model.safetensors', 'rb') as f:
    header = json.loads(f.read(struct.unpack('<Q', f.read(8))[0]))
    data = f.read()
sums = {name: {'dtype': t['dtype'], 'shape': t['shape'], 'sha256': hashlib.sha256(data[slice(*t['data_offsets'])]).hexdigest()}
        for name, t in sorted(header.items()) if name != '__metadata__'}
print(json.dumps(sums, indent=0))
