//! Tensor copies, barriers and products, one by one, and each with a mistake that must show.

use crate::abi::tensor_map;
use crate::gpu::SCHEDULES;
use crate::numbers::{F32, product, random_bf16, wide, wide32};
use crate::{gpu, tensor};
use cudarc::driver::DeviceRepr;

/// `sm90_params` of `faults/sm90.h`.
#[repr(C)]
struct Params {
    a: tensor_map,
    b: tensor_map,
    y: *mut f32,
    left: *const u16,
    tiles: u32,
    x: u32,
    y0: u32,
}

// SAFETY: the C struct that the kernels take.
unsafe impl DeviceRepr for Params {}

const TILES: usize = 3;
const SHARED: u32 = 2 * 64 * 64 * 2 + 1024;

/// Whether a kernel multiplies right, in every schedule and without a complaint of the device.
fn multiplies(kernel: &str, layout: &str) -> bool {
    let (gpu, k) = (gpu(), 64 * TILES);
    let (a, b) = (random_bf16(64 * k, 1), random_bf16(64 * k, 2));
    let (a_d, b_d) = (gpu.upload(&a), gpu.upload(&b));
    let size = |transposed: bool| if transposed { [64, k] } else { [k, 64] };
    let (a_map, b_map) =
        (tensor(&a_d, size(layout.starts_with('t')), [64, 64]), tensor(&b_d, size(layout.ends_with('n')), [64, 64]));
    let want = product(layout, (64, 64, k), &a, &b);
    (0..SCHEDULES).all(|_| {
        let y = gpu.fresh::<f32>(64 * 64);
        let params = Params { a: a_map, b: b_map, y: y.ptr(), left: a_d.ptr(), tiles: TILES as u32, x: 0, y0: 0 };
        let fine = gpu.try_launch(kernel, (1, 1, 1), 160, SHARED, &params);
        let within = |(got, want): (&f64, &f64)| (got - want).abs() <= (k * k) as f64 * F32;
        fine && wide32(&gpu.download(&y)).iter().zip(&want).all(within)
    })
}

#[test]
fn products_of_every_kind_equal_f64() {
    for layout in ["nt", "nn", "tn", "tt"] {
        assert!(multiplies(&format!("sm90_products_{layout}"), layout), "{layout}");
    }
    for layout in ["nt", "nn"] {
        assert!(multiplies(&format!("sm90_products_registers_{layout}"), layout), "{layout}, from registers");
    }
}

#[test]
fn a_mistake_with_tiles_barriers_or_products_shows() {
    let mistakes =
        ["no_wait", "few_bytes", "many_bytes", "early_release", "no_product_wait", "no_fence", "uneven", "no_arrival"];
    for mistake in mistakes {
        assert!(!multiplies(&format!("sm90_{mistake}"), "nt"), "{mistake} did not show");
    }
}

#[test]
fn a_box_is_copied_with_zeros_outside_the_tensor() {
    let (gpu, rows, columns) = (gpu(), 70, 72);
    let a = random_bf16(rows * columns, 3);
    let a_d = gpu.upload(&a);
    let map = tensor(&a_d, [columns, rows], [64, 64]);
    for (x, y0) in [(0, 0), (64, 0), (8, 50), (64, 64), (128, 0), (0, 100)] {
        let y = gpu.fresh::<f32>(64 * 64);
        let params = Params { a: map, b: map, y: y.ptr(), left: a_d.ptr(), tiles: 0, x, y0 };
        gpu.launch("sm90_copy", (1, 1, 1), 64, SHARED, &params);
        for (i, got) in wide32(&gpu.download(&y)).into_iter().enumerate() {
            let (row, column) = (y0 as usize + i / 64, x as usize + i % 64);
            let want = if row < rows && column < columns { wide(&a)[row * columns + column] } else { 0.0 };
            assert!(got == want, "({x}, {y0}): element {i}: {got} for {want}");
        }
    }
}

#[test]
fn what_the_copy_engine_refuses_is_refused() {
    let buffer = gpu().upload(&random_bf16(64 * 64, 4));
    let encode = |offset: u64, size, boxed| {
        crate::tensor_map::encode::<2>(buffer.ptr::<u16>() as u64 + offset, size, boxed).is_ok()
    };
    assert!(encode(0, [64, 64], [64, 64]));
    assert!(!encode(2, [64, 32], [64, 32]), "an address that is no multiple of 16");
    assert!(!encode(0, [63, 64], [64, 64]), "rows of 126 bytes");
    assert!(!encode(0, [64, 64], [64, 257]), "a box of 257 rows");
    assert!(!encode(0, [64, 65], [64, 64]), "a tensor larger than its buffer");
}

#[test]
fn named_barriers_let_warps_take_turns() {
    let gpu = gpu();
    let a = gpu.upload(&random_bf16(64 * 64, 5));
    let map = tensor(&a, [64, 64], [64, 64]);
    for _ in 0..SCHEDULES {
        let y = gpu.fresh::<f32>(64 * 64);
        let params = Params { a: map, b: map, y: y.ptr(), left: a.ptr(), tiles: 0, x: 0, y0: 0 };
        gpu.launch("sm90_turns", (1, 1, 1), 64, 256, &params);
        let turns = (0..64 * 64).map(|i| (2 * (i / 64) + i % 64 / 32 + 1) as f32);
        assert!(gpu.download(&y).into_iter().eq(turns));
    }
}

/// Whether both blocks of a cluster sum the tiles that they copy to each other, in every schedule.
fn share_tiles(kernel: &str) -> bool {
    let (gpu, columns) = (gpu(), 64 * TILES);
    let a = random_bf16(64 * columns, 6);
    let a_d = gpu.upload(&a);
    let map = tensor(&a_d, [columns, 64], [64, 32]);
    let a = wide(&a);
    let want = (0..2 * 64 * 64)
        .map(|e| (0..TILES).fold(0.0f32, |sum, tile| sum + a[e / 64 % 64 * columns + 64 * tile + e % 64] as f32));
    (0..SCHEDULES).all(|_| {
        let y = gpu.fresh::<f32>(2 * 64 * 64);
        let params = Params { a: map, b: map, y: y.ptr(), left: a_d.ptr(), tiles: TILES as u32, x: 0, y0: 0 };
        let fine = gpu.try_launch(kernel, (2, 1, 1), 96, SHARED, &params);
        fine && gpu.download(&y).into_iter().eq(want.clone())
    })
}

#[test]
fn blocks_of_a_cluster_copy_to_each_other() {
    assert!(share_tiles("sm90_shared_tiles"));
    for mistake in ["no_start", "own_release", "no_end"] {
        assert!(!share_tiles(&format!("sm90_{mistake}")), "{mistake} did not show");
    }
}
