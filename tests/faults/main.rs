//! Whatever happens between the program and its files, and at whichever of its changes: nothing half-written has the output's
//! name, the message names file and cause, and the same command again gives the bytes of an unbroken run.
//!
//! | file | subject |
//! |-|-|
//! | `trace.rs` | a process under `ptrace`: killed, signalled or refused at an exact change |
//! | `verbs.rs` | what is run: every verb whose work takes long |
//! | `killed.rs` | SIGKILL before each change |
//! | `recipe.rs` | the same for a whole recipe |
//! | `interrupted.rs` | SIGTERM and SIGINT at each change |
//! | `refused.rs` | a disk that is full, or read-only, from each change on |
//! | `writers.rs` | two writers on one output, and another setting |
//!
//! The registers that the tracer reads are those of x86-64.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

#[path = "../support/gguf.rs"]
mod gguf;
mod interrupted;
mod killed;
mod recipe;
mod refused;
#[path = "../support/mod.rs"]
mod support;
mod trace;
mod verbs;
mod writers;
