//! Feature `cuda`: compiles `kernels/*.cu` into one multi-architecture fatbin a file, for the binary to embed. Without the
//! feature nothing is looked for and nothing is built.
//!
//! `RATOON_CUDA_ARCHS` chooses the targets, by nvcc's names: `sm_80` gives machine code, `compute_90` PTX that the driver
//! compiles for newer cards. Empty builds no device code, which suffices for `tests/simt`, the host's stand-in for a driver.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::{env, fs, thread};

/// Turing, Ampere, Ada and Hopper; PTX of the newest plain target, so that later cards can run it.
const TARGETS: &str = "sm_75,sm_80,sm_86,sm_89,sm_90a,compute_90";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo::rerun-if-changed=kernels");
    for name in ["NVCC", "CUDA_HOME", "RATOON_CUDA_ARCHS"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    if let Err(sentence) = build() {
        println!("cargo::error={sentence}");
    }
}

/// Compiles every kernel file and writes `fatbins.rs`, a table of names and contents.
fn build() -> Result<(), String> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let targets = env::var("RATOON_CUDA_ARCHS").unwrap_or_else(|_| TARGETS.into());
    let targets: Vec<&str> = targets.split(',').map(str::trim).filter(|t| !t.is_empty()).collect();
    let mut sources = Vec::new();
    if !targets.is_empty() {
        for entry in fs::read_dir("kernels").map_err(|e| format!("kernels: {e}"))? {
            let path = entry.map_err(|e| format!("kernels: {e}"))?.path();
            if path.extension().is_some_and(|e| e == "cu") {
                sources.push(path);
            }
        }
        sources.sort();
        compile_all(&nvcc()?, &sources, &gencodes(&targets)?, &out)?;
    }
    let entries: String = sources
        .iter()
        .map(|source| {
            let fatbin = out.join(stem(source)).with_extension("fatbin");
            format!("    ({:?}, include_bytes!({fatbin:?})),\n", stem(source))
        })
        .collect();
    let table = format!("pub static FATBINS: &[(&str, &[u8])] = &[\n{entries}];\n");
    fs::write(out.join("fatbins.rs"), table).map_err(|e| format!("fatbins.rs: {e}"))
}

fn stem(path: &Path) -> &str {
    path.file_stem().and_then(|s| s.to_str()).expect("kernel files have plain names")
}

/// nvcc's `-gencode` arguments.
fn gencodes(targets: &[&str]) -> Result<Vec<String>, String> {
    let gencode = |target: &&str| match target.split_once('_') {
        Some(("sm" | "compute", arch)) => Ok(format!("-gencode=arch=compute_{arch},code={target}")),
        _ => Err(format!("RATOON_CUDA_ARCHS: expected names such as sm_80 or compute_90, found {target}")),
    };
    targets.iter().map(gencode).collect()
}

/// nvcc from `NVCC`, `CUDA_HOME`, `PATH`, the folder that `scripts/cuda-toolkit.sh` fills, or pip's packages.
fn nvcc() -> Result<PathBuf, String> {
    if let Some(nvcc) = env::var_os("NVCC") {
        return Ok(nvcc.into());
    }
    let home = env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("bin/nvcc"));
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path).map(|folder| folder.join("nvcc"));
    let local = PathBuf::from("target/cuda/nvidia/cu13/bin/nvcc");
    let local = local.is_file().then(|| local.canonicalize().unwrap_or(local));
    let found = home.into_iter().chain(on_path).chain(local).find(|nvcc| nvcc.is_file());
    found.or_else(from_pip).ok_or_else(|| {
        "the feature `cuda` needs nvcc: set NVCC or CUDA_HOME, put it on PATH, or run scripts/cuda-toolkit.sh target/cuda".into()
    })
}

/// nvcc in the site-packages of python3.
fn from_pip() -> Option<PathBuf> {
    let program = "import nvidia; print('\\n'.join(nvidia.__path__))";
    let output = Command::new("python3").args(["-c", program]).output().ok()?;
    let folders = String::from_utf8(output.stdout).ok()?;
    folders.lines().map(|folder| Path::new(folder).join("cu13/bin/nvcc")).find(|nvcc| nvcc.is_file())
}

/// Compiles the files side by side, as many at a time as cargo allows.
fn compile_all(nvcc: &Path, sources: &[PathBuf], gencodes: &[String], out: &Path) -> Result<(), String> {
    let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1usize);
    let next = AtomicUsize::new(0);
    let work = || -> Result<(), String> {
        while let Some(source) = sources.get(next.fetch_add(1, Relaxed)) {
            compile(nvcc, source, gencodes, out)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("no panic in a worker"))
    })
}

fn compile(nvcc: &Path, source: &Path, gencodes: &[String], out: &Path) -> Result<(), String> {
    let mut command = Command::new(nvcc);
    command.args(["-fatbin", "-std=c++17", "-O3", "-lineinfo", "-Werror=all-warnings"]).args(gencodes);
    command.arg("-o").arg(out.join(stem(source)).with_extension("fatbin")).arg(source);
    let output = command.output().map_err(|e| format!("{}: {e}", nvcc.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    errors.lines().for_each(|line| println!("cargo::warning={line}"));
    Err(format!("{}: nvcc failed, see above", source.display()))
}
