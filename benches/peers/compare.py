"""Ratoon against PyTorch float32 on the same threads, taking turns (A B A B), as a Markdown table.

    python compare.py MODEL_DIR --ratoon ../../target/release/ratoon --rounds 3 --threads 2 [--python VENV/bin/python]

Without --python a virtual environment with torch, transformers and peft from PyPI is made under ~/.cache. Taking turns
matters on a machine that others use too: a busy spell then slows both sides, and the ratio of the medians stays fair.
"""

import argparse
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import venv

here = pathlib.Path(__file__).resolve().parent
parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--ratoon", default=str(here.parents[1] / "target/release/ratoon"))
parser.add_argument("--python", help="interpreter that has torch, transformers and peft")
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--runs", type=int, default=3)
parser.add_argument("--threads", type=int, default=2)
args = parser.parse_args()

# test: (arguments of `ratoon bench`, arguments of pytorch_worker.py)
TESTS = {
    "prefill 512, last logits": (["-p", "512", "-n", "0"], ["prefill"]),
    "prefill 512, all logits": (["-p", "512", "-n", "0", "--all-logits"], ["prefill", "--all-logits"]),
}


def interpreter():
    if args.python:
        return args.python
    directory = pathlib.Path.home() / ".cache" / "ratoon-peers"
    python = directory / "bin" / "python"
    if not python.exists():
        venv.create(directory, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "torch", "transformers", "peft"], check=True)
    return str(python)


def checked(command, environment):
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return done


def ratoon(arguments):
    command = [args.ratoon, "bench", args.model, "-r", str(args.runs), "--threads", str(args.threads), "-o", "json"]
    done = checked(command + arguments, os.environ)
    memory = re.search(r"([0-9.]+) ([kMGT]?)B peak memory", done.stderr)
    scale = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
    return json.loads(done.stdout)[0]["samples_ts"], float(memory[1]) * scale[memory[2]]


def pytorch(python, arguments):
    command = [python, str(here / "pytorch_worker.py"), args.model, "--threads", str(args.threads)]
    environment = dict(os.environ, OMP_NUM_THREADS=str(args.threads), CUDA_VISIBLE_DEVICES="")
    result = json.loads(checked(command + ["--runs", str(args.runs)] + arguments, environment).stdout.splitlines()[-1])
    versions.update({key: result[key] for key in ("torch", "transformers")})
    return result["samples_ts"], result["peak_memory"]


def commit():
    done = subprocess.run(["git", "-C", str(here), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def cpu():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


python, versions = interpreter(), {}
lines = []
for name, (ours, theirs) in TESTS.items():
    samples = {"ratoon": [], "pytorch": []}
    memory = {"ratoon": 0.0, "pytorch": 0.0}
    for _ in range(args.rounds):
        for side, (values, peak) in (("ratoon", ratoon(ours)), ("pytorch", pytorch(python, theirs))):
            samples[side] += values
            memory[side] = max(memory[side], peak)
    mine, other = (statistics.median(samples[side]) for side in ("ratoon", "pytorch"))
    lines.append(
        f"| {name} | {mine:.0f} | {other:.0f} | {mine / other:.2f} | "
        f"{memory['ratoon'] / 1e9:.2f} | {memory['pytorch'] / 1e9:.2f} |"
    )

load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
print(f"{cpu()}, {os.cpu_count()} cores, {args.threads} threads; load average at the end {load}")
print(f"ratoon {commit()}; PyTorch {versions['torch']}, transformers {versions['transformers']}, float32")
print(f"`python compare.py {args.model} --rounds {args.rounds} --runs {args.runs} --threads {args.threads}`, medians\n")
print("| test | ratoon t/s | PyTorch t/s | ratio | ratoon GB | PyTorch GB |")
print("|-|-|-|-|-|-|")
print("\n".join(lines))
