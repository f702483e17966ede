#!/usr/bin/env bash
# cuda-toolkit.sh DIR: installs nvcc 13.0 and what it needs from PyPI into DIR: 280 MB, no root, no GPU, no driver.
# `build.rs` looks into target/cuda; for another folder: export CUDA_HOME=DIR/nvidia/cu13
set -euo pipefail
dir=${1:?usage: cuda-toolkit.sh DIR}
[ -x "$dir/nvidia/cu13/bin/nvcc" ] && [ -x "$dir/nvidia/cu13/bin/cuobjdump" ] && exit 0
# cuobjdump and nvdisasm are not published for 13.0; those of 13.2 read its code.
python3 -m pip install --quiet --root-user-action ignore --disable-pip-version-check --no-deps --target "$dir" --upgrade \
    'nvidia-cuda-nvcc==13.0.*' 'nvidia-nvvm==13.0.*' 'nvidia-cuda-crt==13.0.*' 'nvidia-cuda-runtime==13.0.*' \
    'nvidia-cuda-cccl==13.0.*' 'nvidia-cuda-cuobjdump==13.2.*' 'nvidia-cuda-nvdisasm==13.2.*'
