//! What this machine and this build can do: processor, memory, disk, GPU, the programs and the cache that models come through.
//!
//! Everything is read from the system's files, but for the cards that can be used, which only the driver knows. Nothing is changed.

use crate::device::peak::cpu_name;
use crate::error::Result;
use crate::model::source;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Everything that `ratoon doctor` shows. `None`: the system does not say.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// Version of this build.
    pub version: &'static str,
    /// Optional parts of this build, and whether they are in it.
    pub features: Vec<(&'static str, bool)>,
    /// The processor.
    pub cpu: Cpu,
    /// Main memory.
    pub memory: Memory,
    /// Free space where models are kept and where the command runs.
    pub disks: Vec<Disk>,
    /// The NVIDIA driver and its GPUs.
    pub gpu: Gpu,
    /// The interpreter for `pypi:` sources.
    pub python: Python,
    /// Where converted models are kept.
    pub cache: PathBuf,
    /// What is there.
    pub cached_models: Vec<source::Entry>,
}

/// The processor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cpu {
    /// Its name.
    pub name: String,
    /// Instruction sets that the operations can use, and whether they are there.
    pub features: Vec<(&'static str, bool)>,
    /// Physical cores of the machine.
    pub cores: Option<usize>,
    /// Hardware threads of the machine.
    pub hardware_threads: Option<usize>,
    /// Threads that this process may use: affinity and container limits counted.
    pub usable_threads: usize,
}

/// Main memory in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Memory {
    /// Of the machine.
    pub total: Option<u64>,
    /// Available without swapping.
    pub available: Option<u64>,
    /// Limit of the container.
    pub limit: Option<u64>,
}

/// Free space of a file system in bytes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Disk {
    /// What lies there.
    pub use_for: &'static str,
    /// A directory on it.
    pub path: PathBuf,
    /// Free for this user.
    pub free: Option<u64>,
}

/// The NVIDIA driver and its GPUs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Gpu {
    /// Version line of the kernel module.
    pub driver: Option<String>,
    /// The driver's library.
    pub libcuda: Option<PathBuf>,
    /// Model names, as the kernel module tells.
    pub devices: Vec<String>,
    /// What `--device` can name: each card with its abilities, or why it cannot be used. Empty in a build without CUDA.
    pub usable: Vec<String>,
}

/// The interpreter that fetches packages.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Python {
    /// The command.
    pub program: String,
    /// What its pip says about itself; `None` when one of the two is missing.
    pub pip: Option<String>,
}

/// Looks at everything, under a second.
pub fn examine() -> Result<Report> {
    let cache = source::cache_dir()?;
    let here = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("."));
    Ok(Report {
        version: env!("CARGO_PKG_VERSION"),
        features: vec![
            ("cuda", cfg!(feature = "cuda")),
            ("parquet", cfg!(feature = "parquet")),
            ("hf-hub", cfg!(feature = "hf-hub")),
        ],
        cpu: cpu(),
        memory: memory(),
        disks: vec![disk("cache", &cache), disk("working directory", &here)],
        gpu: gpu(),
        python: python(),
        cached_models: source::entries()?,
        cache,
    })
}

fn cpu() -> Cpu {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let (hardware_threads, cores) = threads_and_cores(&info);
    Cpu {
        name: cpu_name(),
        features: cpu_features(),
        cores,
        hardware_threads,
        usable_threads: std::thread::available_parallelism().map_or(1, usize::from),
    }
}

#[cfg(target_arch = "x86_64")]
fn cpu_features() -> Vec<(&'static str, bool)> {
    vec![
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512_bf16", is_x86_feature_detected!("avx512bf16")),
    ]
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu_features() -> Vec<(&'static str, bool)> {
    Vec::new()
}

/// Hardware threads and physical cores in `/proc/cpuinfo`; a virtual machine may name no cores.
fn threads_and_cores(info: &str) -> (Option<usize>, Option<usize>) {
    let mut cores = BTreeSet::new();
    let mut threads = 0;
    for processor in info.split("\n\n") {
        let field = |name: &str| {
            let line = processor.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name))?;
            Some(line.split_once(':')?.1.trim().to_string())
        };
        threads += usize::from(field("processor").is_some());
        if let (Some(socket), Some(core)) = (field("physical id"), field("core id")) {
            cores.insert((socket, core));
        }
    }
    ((threads > 0).then_some(threads), (!cores.is_empty()).then_some(cores.len()))
}

fn memory() -> Memory {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let limits = [cgroup_file("memory.max"), Some("/sys/fs/cgroup/memory/memory.limit_in_bytes".into())];
    let limit = limits.into_iter().flatten().find_map(|path| std::fs::read_to_string(path).ok()?.trim().parse().ok());
    let total = kilobytes(&info, "MemTotal");
    // A group without limit may say so with a number beyond all memory.
    let limit = limit.filter(|&limit: &u64| total.is_none_or(|total| limit < total));
    Memory { total, available: kilobytes(&info, "MemAvailable"), limit }
}

fn kilobytes(info: &str, key: &str) -> Option<u64> {
    let line = info.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// A file of this process's control group (version 2).
fn cgroup_file(name: &str) -> Option<PathBuf> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(Path::new("/sys/fs/cgroup").join(group).join(name))
}

fn disk(use_for: &'static str, path: &Path) -> Disk {
    // The cache may not exist yet: then its nearest parent tells.
    let existing = path.ancestors().find(|p| p.exists());
    let free = existing.and_then(|p| rustix::fs::statvfs(p).ok()).map(|s| s.f_bavail * s.f_frsize);
    Disk { use_for, path: path.to_path_buf(), free }
}

/// Where drivers put `libcuda.so.1`: Debian, Red Hat, containers, WSL.
const LIBRARY_DIRS: [&str; 7] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/nvidia/lib64",
    "/usr/local/cuda/compat",
    "/usr/lib/wsl/lib",
];

fn gpu() -> Gpu {
    let driver = std::fs::read_to_string("/proc/driver/nvidia/version").ok();
    let driver = driver.and_then(|text| text.lines().next().map(|line| line.trim().to_string()));
    let own = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&own).chain(LIBRARY_DIRS.map(PathBuf::from));
    let libcuda = dirs.map(|dir| dir.join("libcuda.so.1")).find(|path| path.exists());
    let list = std::fs::read_dir("/proc/driver/nvidia/gpus").into_iter().flatten();
    let mut cards: Vec<PathBuf> = list.filter_map(|e| e.ok().map(|e| e.path().join("information"))).collect();
    cards.sort();
    let model = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).ok()?;
        text.lines().find_map(|line| line.strip_prefix("Model:").map(|name| name.trim().to_string()))
    };
    Gpu { driver, libcuda, devices: cards.iter().filter_map(model).collect(), usable: usable() }
}

/// Asks the driver itself, which the rest of this file does not.
#[cfg(feature = "cuda")]
fn usable() -> Vec<String> {
    let describe = |card: &crate::device::cuda::Card| {
        let (major, minor) = card.compute_capability;
        let memory = card.total_memory as f64 / 1e9;
        let known = format!("{}: {}, {major}.{minor}, {memory:.1} GB", card.device_name(), card.name);
        card.check().map_or_else(|e| e.to_string(), |()| known)
    };
    match crate::device::cuda::cards() {
        Ok(cards) => cards.iter().map(describe).collect(),
        Err(e) => vec![e.to_string()],
    }
}

#[cfg(not(feature = "cuda"))]
fn usable() -> Vec<String> {
    Vec::new()
}

fn python() -> Python {
    let program = source::python();
    let output = Command::new(&program).args(["-m", "pip", "--version"]).stdin(Stdio::null()).output();
    let said =
        output.ok().filter(|o| o.status.success()).map(|o| String::from_utf8_lossy(&o.stdout).trim().to_string());
    Python { program: program.to_string_lossy().into_owned(), pip: said.filter(|s| !s.is_empty()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_counted_once_whatever_their_threads() {
        let thread =
            |n: u32, core: u32| format!("processor\t: {n}\nmodel name\t: X\nphysical id\t: 0\ncore id\t\t: {core}\n\n");
        let info: String = [(0, 0), (1, 1), (2, 0), (3, 1)].map(|(n, core)| thread(n, core)).concat();
        assert_eq!(threads_and_cores(&info), (Some(4), Some(2)));
        assert_eq!(threads_and_cores("processor : 0\n"), (Some(1), None));
        assert_eq!(threads_and_cores(""), (None, None));
    }

    #[test]
    fn memory_is_read_in_bytes() {
        let info = "MemTotal:       16 kB\nMemFree: 1 kB\nMemAvailable:    8 kB\n";
        assert_eq!(kilobytes(info, "MemTotal"), Some(16384));
        assert_eq!(kilobytes(info, "MemAvailable"), Some(8192));
        assert_eq!(kilobytes(info, "Mem"), None);
    }
}
