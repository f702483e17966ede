//! The host's device catches what it claims to catch: each kernel of `faults/faults.cu` with a mistake fails, and the same
//! kernel without it does not.

#[allow(dead_code)] // read by gpu.rs alone
#[path = "../../../src/device/cuda/abi.rs"]
mod abi;
#[allow(dead_code)] // what the kernels' tests need
#[path = "kernels/gpu.rs"]
mod gpu;

use cudarc::driver::DeviceRepr;
use gpu::{Gpu, SCHEDULES};
use half::bf16;
use std::process::Command;

/// `fault_params` of `faults/faults.h`.
#[repr(C)]
struct FaultParams {
    y: *mut f32,
    x: *const f32,
    halves: *const u16,
}

// SAFETY: the C struct that the kernels take.
unsafe impl DeviceRepr for FaultParams {}

/// Runs a kernel on 64 threads; whether the device found nothing wrong and the numbers came back reversed.
fn runs_well(kernel: &str) -> bool {
    let gpu = Gpu::get();
    let x: Vec<f32> = (0..64).map(|i| i as f32).collect();
    let halves: Vec<u16> = x.iter().map(|&x| bf16::from_f32(x).to_bits()).collect();
    let (x_d, halves) = (gpu.upload(&x), gpu.upload(&halves));
    (0..SCHEDULES).all(|_| {
        let y = gpu.fresh::<f32>(64);
        let params = FaultParams { y: y.ptr(), x: x_d.ptr(), halves: halves.ptr() };
        let fine = gpu.try_launch(kernel, (1, 1, 1), 64, 256, &params);
        fine && gpu.download(&y).iter().eq(x.iter().rev())
    })
}

/// Runs this test binary's `in_a_child` test on a kernel: an access out of bounds ends the process.
fn child_survives(kernel: &str) -> bool {
    let mut child = Command::new(std::env::current_exe().expect("a test binary"));
    child.args(["--exact", "in_a_child", "--ignored"]).env("RATOON_FAULT", kernel);
    child.output().expect("this binary").status.success()
}

#[test]
#[ignore = "run by the other tests"]
fn in_a_child() {
    let kernel = std::env::var("RATOON_FAULT").expect("set by the other tests");
    assert!(runs_well(&kernel));
}

#[test]
fn kernels_without_a_mistake_run() {
    for kernel in ["fault_none", "fault_none_reuse", "fault_none_copy"] {
        assert!(runs_well(kernel), "{kernel}");
        assert!(child_survives(kernel), "{kernel}, in a process of its own");
    }
}

#[test]
fn a_missing_barrier_shows() {
    assert!(!runs_well("fault_no_barrier"));
    assert!(!runs_well("fault_no_barrier_reuse"));
}

#[test]
fn a_missing_wait_shows() {
    // Before 8.0 there are no asynchronous copies, so there is nothing to wait for.
    let synchronous = std::env::var("RATOON_SIMT_ARCH").as_deref() == Ok("75");
    assert_eq!(runs_well("fault_no_wait"), synchronous);
}

#[test]
fn a_deadlock_is_reported() {
    assert!(!runs_well("fault_half_barrier"));
    assert!(!runs_well("fault_half_shuffle"));
}

#[test]
fn an_element_that_nobody_wrote_shows() {
    assert!(!runs_well("fault_unwritten"));
}

#[test]
fn accesses_out_of_bounds_end_the_launch_or_the_process() {
    for kernel in ["fault_write_beyond", "fault_write_before", "fault_read_beyond", "fault_shared_beyond"] {
        assert!(!child_survives(kernel), "{kernel}");
    }
}

#[test]
fn address_sanitizer_sees_what_guards_cannot() {
    // Without it the kernel reads whatever lies beside its array, and gives the right numbers all the same.
    if option_env!("RATOON_SIMT_ASAN").is_some() {
        assert!(!child_survives("fault_local_beyond"));
    }
}
