#!/usr/bin/env python3
"""The compile gate: kernels/*.cu for every target, and a table of what ptxas made of them.

kernel-table.py [--write]   compares benches/results/kernels.md with what the compiler gives now, or writes it.

Fails when the table is stale, when a kernel that must not spill does, when ptxas serialises wgmma, when the machine code of a matrix
product, of attention or of a kernel that starts early lacks the instructions that it should hold, and when attention_sm90 has its
exponentials behind the product that they should run under. nvcc is found as build.rs finds it: NVCC, CUDA_HOME, PATH,
target/cuda.
"""

import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
TABLE = ROOT / "benches/results/kernels.md"
TARGETS = ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90a"]
NO_SPILLS = ("matmul", "attention", "rmsnorm", "adamw")
# Instructions that every kernel of a file holds, but for those named: products on tensor cores, tensor copies, also to a whole cluster.
ALONE = ["matmul_sm90_nt_128", "matmul_sm90_nn_128", "matmul_sm90_tn_128", "matmul_sm90_rows_8", "matmul_sm90_rows_16"]
INSTRUCTIONS = {
    "matmul": {"HMMA": []},
    "attention": {"HMMA": ["attention_combine"]},
    "attention_backward": {"HMMA": ["attention_delta"]},
    "matmul_sm90": {"HGMMA": [], "UTMALDG": [], "UTMALDG.2D.MULTICAST": ALONE},
    "attention_sm90": {"HGMMA": [], "UTMALDG": []},
    "attention_backward_sm90": {"HGMMA": [], "UTMALDG": []},
}
# For sm_90a the kernels of these files, but for those named, let the next one start early and wait for those before them.
DEPENDENT = {
    "attention": [],
    "embedding": [],
    "kv_store": [],
    "matmul_sm90": [f"matmul_sm90_{layout}_{columns}" for layout in ("nt", "nn", "tn") for columns in (128, 256)],
    "rmsnorm": [],
    "rope": [],
    "scale": [],
    "swiglu": ["swiglu_backward"],
}


def nvcc():
    home = os.environ.get("CUDA_HOME")
    candidates = [os.environ.get("NVCC"), home and f"{home}/bin/nvcc", shutil.which("nvcc")]
    candidates.append(str(ROOT / "target/cuda/nvidia/cu13/bin/nvcc"))
    for candidate in candidates:
        if candidate and pathlib.Path(candidate).is_file():
            return pathlib.Path(candidate)
    sys.exit("kernel-table: no nvcc: set NVCC or CUDA_HOME, put it on PATH, or run scripts/cuda-toolkit.sh target/cuda")


def compile_kernel(compiler, source, target, folder):
    """Registers, shared bytes and spilled bytes of each kernel; problems with its machine code."""
    cubin = folder / f"{source.stem}.{target}.cubin"
    command = [compiler, "-cubin", "-std=c++17", "-O3", "-Werror=all-warnings", "-Xptxas", "-v", "-o", cubin, source]
    command += [f"-arch={target}"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        return {}, [f"{source.name} for {target}: {result.stderr.strip()}"]
    rows, problems = {}, []
    for part in re.split(r"Compiling entry function '", result.stderr)[1:]:
        name = part.split("'")[0]
        registers = int(re.search(r"Used (\d+) registers", part)[1])
        shared = re.search(r"(\d+) bytes smem", part)
        spills = sum(int(n) for n in re.findall(r"(\d+) bytes spill", part))
        rows[name] = (registers, int(shared[1]) if shared else 0, spills)
        if spills and name.startswith(NO_SPILLS):
            problems.append(f"{name} for {target} spills {spills} bytes")
    # C7508: setmaxnreg ignored; C7510 and its neighbours: a wait after every wgmma.
    problems += [f"{source.name} for {target}: {line.strip()}" for line in result.stderr.splitlines() if "(C75" in line]
    wanted = dict(INSTRUCTIONS.get(source.stem, {}))
    if target == "sm_90a" and source.stem in DEPENDENT:
        wanted |= {instruction: DEPENDENT[source.stem] for instruction in ("PREEXIT", "ACQBULK")}
    if wanted:
        dump = subprocess.run([compiler.parent / "cuobjdump", "-sass", cubin], capture_output=True, text=True, check=True)
        for part in dump.stdout.split("Function : ")[1:]:
            name = part.split()[0]
            missing = [instruction for instruction, exempt in wanted.items() if instruction not in part and name not in exempt]
            problems += [f"{name} for {target} has no {instruction} instruction" for instruction in missing]
            # From the wait that leaves one group of wgmma on its way to the next wait.
            under = re.search(r"DEPBAR.LE gsb0, 0x1(.*?)DEPBAR", part, re.DOTALL)
            if name.startswith("attention_sm90") and not (under and "MUFU.EX2" in under[1]):
                problems.append(f"{name} for {target} computes no exponentials under a product")
    return rows, problems


def table(results):
    lines = [
        "# Kernels as compiled",
        "",
        "Registers of a thread / bytes of static shared memory of a block / bytes spilled, from `ptxas -v` of CUDA 13.0. Kernels that",
        "move registers between warpgroups show what a thread has at launch.",
        "Made by `scripts/kernel-table.py --write`; CI fails when it is stale.",
        "",
        "| kernel | " + " | ".join(TARGETS) + " |",
        "|-|" + "-|" * len(TARGETS),
    ]
    for kernel in sorted({name for rows in results.values() for name in rows}):
        rows = [results[target].get(kernel) for target in TARGETS]
        cells = ["{} / {} / {}".format(*row) if row else "-" for row in rows]
        lines.append(f"| {kernel} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main():
    compiler, sources = nvcc(), sorted((ROOT / "kernels").glob("*.cu"))
    results, problems = {target: {} for target in TARGETS}, []
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = {
            pool.submit(compile_kernel, compiler, source, target, pathlib.Path(folder)): target
            for source in sources
            for target in TARGETS
        }
        for job in concurrent.futures.as_completed(jobs):
            rows, found = job.result()
            results[jobs[job]].update(rows)
            problems += found
    if problems:
        sys.exit("kernel-table: " + "\nkernel-table: ".join(sorted(problems)))
    made = table(results)
    if sys.argv[1:] == ["--write"]:
        TABLE.write_text(made)
    elif not TABLE.is_file() or TABLE.read_text() != made:
        sys.exit(f"kernel-table: {TABLE.relative_to(ROOT)} is stale: run scripts/kernel-table.py --write and look at the difference")
    print(f"kernel-table: {len(sources)} files for {len(TARGETS)} targets, no forbidden spills, tensor cores in use")


if __name__ == "__main__":
    main()
