//! Launches that start before those in front of them have ended, in graphs: each mistake that these let a kernel make shows.

use crate::abi::tensor_map;
use crate::gpu::{Buffer, Gpu, SCHEDULES};
use crate::{gpu, tensor};
use cudarc::driver::{DeviceRepr, sys};
use half::bf16;
use std::ptr;

/// `dependent_params` of `faults/sm90.h`.
#[repr(C)]
struct Params {
    map: tensor_map,
    y: *mut u16,
    x: *const u16,
}

// SAFETY: the C struct that the kernels take.
unsafe impl DeviceRepr for Params {}

const SHARED: u32 = 64 * 64 * 2 + 1024;

/// Runs launches as a graph, all but the first of which may start before those in front of them have ended; false when the device
/// says that a kernel did something wrong.
fn runs(gpu: &Gpu, launches: &[(&str, Params)]) -> bool {
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    gpu.stream.begin_capture(mode).expect("a stream");
    for (i, (kernel, params)) in launches.iter().enumerate() {
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: 1,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: 64,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: SHARED,
            hStream: gpu.stream.cu_stream(),
            attrs: &mut attribute,
            numAttrs: u32::from(i > 0),
        };
        let (function, mut params) = (gpu.function(kernel), [ptr::from_ref(params).cast_mut().cast()]);
        // SAFETY: the parameters are those of the kernel, and copied; its accesses are what is tested.
        let launched =
            unsafe { sys::cuLaunchKernelEx(&config, function.cu_function(), params.as_mut_ptr(), ptr::null_mut()) };
        launched.result().expect("a capture runs nothing");
    }
    let graph = gpu.stream.end_capture(sys::CUgraphInstantiate_flags(0)).expect("a capture").expect("launches");
    graph.launch().is_ok() && gpu.stream.synchronize().is_ok()
}

/// Whether the last of these buffers holds the right sums after a graph of launches, in every schedule: each kernel adds one to
/// the buffer of the first number, into that of the second. Buffer 0 holds numbers, the others NaN.
fn adds_up(launches: &[(&str, usize, usize)]) -> bool {
    let gpu = gpu();
    let values: Vec<u16> = (0..64 * 64).map(|i| bf16::from_f32((i % 100) as f32).to_bits()).collect();
    (0..SCHEDULES).all(|_| {
        let buffers: Vec<Buffer<u16>> =
            (0..4).map(|i| if i == 0 { gpu.upload(&values) } else { gpu.fresh(64 * 64) }).collect();
        let (mut params, mut sums) = (Vec::new(), [Some(0.0), None, None, None]);
        for &(kernel, from, to) in launches {
            let (x, y) = (&buffers[from], &buffers[to]);
            params.push((kernel, Params { map: tensor(x, [64, 64], [64, 64]), y: y.ptr(), x: x.ptr() }));
            sums[to] = sums[from].map(|sum| sum + 1.0);
        }
        let last = launches[launches.len() - 1].2;
        let sum = sums[last].expect("made from the first buffer");
        let want = values.iter().map(|&x| bf16::from_f32(bf16::from_bits(x).to_f32() + sum).to_bits());
        runs(gpu, &params) && gpu.download(&buffers[last]).into_iter().eq(want)
    })
}

/// To and fro between two buffers: each launch reads what the one before writes, and writes what that one reads.
fn to_and_fro(kernel: &str) -> bool {
    let first = ("dependent_nothing", 0, 1);
    adds_up(&[first, (kernel, 1, 0), (kernel, 0, 1), (kernel, 1, 0), (kernel, 0, 1)])
}

#[test]
fn launches_that_wait_give_what_launches_in_order_give() {
    assert!(to_and_fro("dependent_nothing"));
}

#[test]
fn what_is_done_ahead_of_the_kernels_before_shows() {
    for ahead in ["read", "tile", "copy", "write", "all"] {
        assert!(!to_and_fro(&format!("dependent_{ahead}")), "{ahead} did not show");
    }
}

#[test]
fn what_no_kernel_before_writes_may_be_read_ahead() {
    for kernel in ["dependent_read", "dependent_tile"] {
        assert!(adds_up(&[("dependent_nothing", 0, 1), (kernel, 0, 2), (kernel, 0, 3)]), "{kernel}");
    }
}

/// The launch in between may let the third start before the first has ended.
#[test]
fn what_a_kernel_before_the_one_before_writes_may_not_be_read_ahead() {
    for kernel in ["dependent_read", "dependent_tile"] {
        assert!(!adds_up(&[("dependent_nothing", 0, 1), ("dependent_nothing", 0, 2), (kernel, 1, 3)]), "{kernel}");
    }
}
