#!/usr/bin/env python3
"""Stand-ins for the CUDA libraries that the Python index's PyTorch for x86-64 Linux is linked against.

That build is for CUDA and needs 3 GB of libraries merely to be imported. On the CPU none of their functions is called, but the
loader wants every one of them by name and version. So this compiles one library with a function for each that answers 100
(cudaErrorNoDevice), and puts it under the missing libraries' names beside PyTorch's own, where the loader looks first.
Run by the interpreter whose PyTorch is meant; needs a C compiler with binutils.
"""
import collections, importlib.util, pathlib, re, subprocess

CUDA_LIBRARY = r'lib(?:cu|nv|nccl)\w*\.so[.\d]*'
CUDA_FUNCTION = r'(?:cu[A-Z]|cuda[A-Z]|cudnn|cusparseLt|nccl|nvshmem)'

lib = pathlib.Path(importlib.util.find_spec('torch').submodule_search_locations[0]) / 'lib'


def read(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


libraries, functions = set(), collections.defaultdict(set)
own = sorted(path for path in lib.glob('*.so') if not path.is_symlink())
for path in own:
    libraries |= set(re.findall(rf'NEEDED.*\[({CUDA_LIBRARY})\]', read('readelf', '-dW', path)))
for path in own:
    for name, version in re.findall(r' U (\w+)(?:@(\S+))?', read('nm', '-D', '--undefined-only', path)):
        if version in libraries or version == 'NVSHMEM' or not version and re.match(CUDA_FUNCTION, name):
            functions[version].add(name)

source, versions = lib / 'stand_in.c', lib / 'stand_in.map'
source.write_text(''.join(f'int {name}(void) {{ return 100; }}\n' for names in functions.values() for name in sorted(names)))
versions.write_text(''.join(f'{version} {{ {"; ".join(sorted(names))}; }};\n' for version, names in functions.items() if version))
subprocess.run(['cc', '-w', '-fno-builtin', '-shared', '-o', lib / 'stand_in.so', source,
                f'-Wl,--version-script={versions}'], check=True)
for name in libraries:
    if not (lib / name).exists():
        (lib / name).symlink_to('stand_in.so')
