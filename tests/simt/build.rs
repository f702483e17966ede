//! Compiles kernels/*.cu with the host's C++ compiler, once for each instruction path, into shared libraries that the driver
//! opens at run time. RATOON_SIMT_ASAN=1 adds AddressSanitizer.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Compute capabilities whose paths through the kernels differ, times 10.
const ARCHITECTURES: [&str; 3] = ["75", "80", "90"];

fn main() {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let kernels = root.join("../../kernels");
    println!("cargo::rerun-if-changed={}", kernels.display());
    println!("cargo::rerun-if-changed=include");
    println!("cargo::rerun-if-changed=faults");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=RATOON_SIMT_ASAN");
    // cudarc asks the loader for `libcuda.so`; a library already loaded answers to the name in its header. The file itself
    // is called otherwise, so that it can never stand in for NVIDIA's driver on a library path.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libcuda.so");
    let mut sources: Vec<PathBuf> = fs::read_dir(&kernels)
        .expect("kernels/ is beside tests/")
        .map(|entry| entry.expect("a folder entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "cu"))
        .collect();
    sources.sort();
    sources.push(root.join("faults/faults.cu"));
    sources.push(root.join("faults/sm90.cu"));
    sources.push(root.join("faults/dependent.cu"));
    sources.push(root.join("include/runtime.cpp"));
    sources.push(root.join("include/wgmma.cpp"));
    for architecture in ARCHITECTURES {
        compile(&root, &sources, architecture);
    }
}

fn compile(root: &Path, sources: &[PathBuf], architecture: &str) {
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets it"));
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(2).pic(true).cargo_metadata(false).out_dir(out.join(architecture));
    build.include(root.join("include")).include(root.join("../../kernels")).include(root.join("faults"));
    build.define("RATOON_SIMT", architecture);
    build.flag("-include").flag("simt.h").flag("-x").flag("c++");
    // Kernels read bf16 rows as 16-byte words, as nvcc allows.
    build.flag("-fno-strict-aliasing").flag("-Wno-unknown-pragmas").flag_if_supported("-march=native");
    if env::var_os("RATOON_SIMT_ASAN").is_some() {
        build.flag("-fsanitize=address").flag("-g");
    }
    let sizes = out.join(format!("sizes_{architecture}.cpp"));
    fs::write(&sizes, parameter_sizes(&build, sources)).expect("cargo's folder");
    let objects = build.files(sources).file(&sizes).compile_intermediates();
    let library = out.join(format!("kernels_{architecture}.so"));
    let mut link = Command::new(build.get_compiler().path());
    link.arg("-shared").arg("-o").arg(&library).args(&objects);
    if env::var_os("RATOON_SIMT_ASAN").is_some() {
        link.arg("-fsanitize=address");
    }
    let status = link.status().expect("the C++ compiler that made the objects");
    assert!(status.success(), "linking {} failed", library.display());
}

/// C++ that holds the size of each kernel's parameter struct: a captured launch is a copy of it.
fn parameter_sizes(build: &cc::Build, sources: &[PathBuf]) -> String {
    let mut text = "#include \"abi.h\"\n#include \"faults.h\"\n#include \"sm90.h\"\n".to_string();
    let visible = "__attribute__((visibility(\"default\"))) uint64_t";
    for source in sources.iter().filter(|source| source.extension().is_some_and(|e| e == "cu")) {
        let expanded = String::from_utf8(build.clone().file(source).expand()).expect("kernels are ASCII");
        // `void NAME(const TYPE & p)`, whatever macros made it.
        let words: Vec<&str> = expanded.split_whitespace().collect();
        for window in words.windows(4).filter(|w| w[0] == "void" && w[2].ends_with("_params") && w[3].starts_with('&'))
        {
            if let Some((name, "const")) = window[1].split_once('(') {
                text += &format!("extern \"C\" {{ {visible} simt_bytes_{name} = sizeof({}); }}\n", window[2]);
            }
        }
    }
    text
}
