//! `src/device/cuda/abi.rs` is what bindgen makes of `kernels/abi.h`. Needs libclang (`pip install libclang`, and its folder in
//! `LIBCLANG_PATH`):
//!
//! ```text
//! cargo test --release -p ratoon-simt --features bindings --test bindings                            # is it stale?
//! RATOON_WRITE_BINDINGS=1 cargo test --release -p ratoon-simt --features bindings --test bindings   # make it anew
//! ```
#![cfg(feature = "bindings")]

use std::fmt::Write;
use std::fs;

const HEADER: &str =
    "//! Parameter structs of the kernels: made by bindgen from `kernels/abi.h`, which documents them (see
//! `tests/simt/tests/bindings.rs`). Do not edit.
#![allow(missing_docs, non_camel_case_types)]
";

fn generate(header: &str) -> String {
    let bindings = bindgen::Builder::default()
        .header(header)
        .allowlist_file(".*/abi\\.h")
        .allowlist_type(".*_params|bf16")
        .use_core()
        .layout_tests(true)
        .derive_partialeq(true)
        .disable_header_comment()
        .generate_comments(false)
        .formatter(bindgen::Formatter::Rustfmt)
        .rustfmt_configuration_file(Some(std::path::Path::new(header).with_file_name("../rustfmt.toml")))
        .generate()
        .expect("abi.h is plain C");
    let mut text = format!("{HEADER}\n{bindings}");
    let structs: Vec<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("pub struct ")?.strip_suffix(" {"))
        .map(str::to_string)
        .collect();
    for name in structs {
        let reason = "// SAFETY: a plain C struct, laid out as the kernels see it.";
        writeln!(text, "{reason}\nunsafe impl cudarc::driver::DeviceRepr for {name} {{}}").expect("memory");
    }
    text
}

#[test]
fn the_committed_bindings_are_those_of_the_header() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let made = generate(&format!("{root}/kernels/abi.h"));
    let path = format!("{root}/src/device/cuda/abi.rs");
    if std::env::var_os("RATOON_WRITE_BINDINGS").is_some() {
        fs::write(&path, made).expect("src/device/cuda is there");
        return;
    }
    let committed = fs::read_to_string(&path).expect("src/device/cuda/abi.rs");
    assert!(committed == made, "src/device/cuda/abi.rs is stale: run with RATOON_WRITE_BINDINGS=1");
}
