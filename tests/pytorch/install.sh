#!/usr/bin/env bash
# Installs PyTorch, transformers and peft from the Python index into the virtual environment DIR, for tests/transformers.rs.
# Usage: tests/pytorch/install.sh DIR, then RATOON_TEST_PYTHON=DIR/bin/python cargo test --release --test transformers.
# x86-64 Linux, Python 3.11 or later, a C compiler. 0.6 GB of downloads, 1.6 GB on disk, about a minute.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=$1
if "$dir/bin/python" -c "import torch, transformers, peft" 2>/dev/null; then exit 0; fi
python3 -m venv --clear "$dir"
"$dir/bin/python" -m pip install --quiet --no-deps --requirement "$here/requirements.txt"
"$dir/bin/python" "$here/cuda_stand_ins.py"
"$dir/bin/python" -c "import torch, transformers, peft"
