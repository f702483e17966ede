//! Kernels that move rows or compare them.

use crate::abi::{cast_params, cosine_params, kv_store_params};
use crate::gpu::{Gpu, in_every_schedule, row_threads};
use crate::numbers::{F32, assert_within, random, random_bf16, wide, wide32};
use half::{bf16, f16};

#[test]
fn keys_and_values_go_to_their_slots_and_nowhere_else() {
    let gpu = Gpu::get();
    for width in [36, 192, 1024] {
        let (slots, places) = (11, [7u32, 0, 10]);
        let (k, v) = (random_bf16(3 * width, 1), random_bf16(3 * width, 2));
        let before = random_bf16(slots * width, 3);
        let (k_d, v_d, slots_d) = (gpu.upload(&k), gpu.upload(&v), gpu.upload(&places));
        let got = in_every_schedule(|| {
            let (k_pages, v_pages) = (gpu.upload(&before), gpu.upload(&before));
            let params = kv_store_params {
                k_pages: k_pages.ptr(),
                v_pages: v_pages.ptr(),
                k: k_d.ptr(),
                v: v_d.ptr(),
                slots: slots_d.ptr(),
                width: width as u32,
            };
            gpu.launch("kv_store", (3, 1, 1), row_threads(width), 0, &params);
            (gpu.download(&k_pages), gpu.download(&v_pages))
        });
        let stored = |x: &[u16]| {
            let mut pages = before.clone();
            for (t, &slot) in places.iter().enumerate() {
                pages[slot as usize * width..][..width].copy_from_slice(&x[t * width..][..width]);
            }
            pages
        };
        assert!(got == (stored(&k), stored(&v)), "width {width}");
    }
}

#[test]
fn casts_round_to_the_nearest() {
    let gpu = Gpu::get();
    let mut x = random(1003, 1);
    x.extend([0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, 3e38, 1e-40]);
    let n = x.len();
    let cast = |kernel: &str, y: *mut std::ffi::c_void, x: *mut std::ffi::c_void| {
        gpu.launch(kernel, (3, 1, 1), crate::abi::ROW_THREADS, 0, &cast_params { y, x, n: n as u64 });
    };
    let (x_d, narrow, back) = (gpu.upload(&x), gpu.fresh::<u16>(n), gpu.fresh::<f32>(n));
    cast("cast_f32_bf16", narrow.ptr(), x_d.ptr());
    cast("cast_bf16_f32", back.ptr(), narrow.ptr());
    let want: Vec<u16> = x.iter().map(|&x| bf16::from_f32(x).to_bits()).collect();
    assert!(gpu.download(&narrow) == want);
    let wide: Vec<f32> = want.iter().map(|&b| bf16::from_bits(b).to_f32()).collect();
    assert!(gpu.download(&back) == wide);
    let halves: Vec<u16> = x.iter().map(|&x| f16::from_f32(x).to_bits()).collect();
    let (halves_d, from_half) = (gpu.upload(&halves), gpu.fresh::<u16>(n));
    cast("cast_f16_bf16", from_half.ptr(), halves_d.ptr());
    let want: Vec<u16> = halves.iter().map(|&h| bf16::from_f32(f16::from_bits(h).to_f32()).to_bits()).collect();
    assert!(gpu.download(&from_half) == want);
}

#[test]
fn cosines_equal_f64_and_the_zero_vector_has_none() {
    let gpu = Gpu::get();
    for hidden in [1, 37, 576, 4104] {
        let (mut a, mut b) = (random_bf16(4 * hidden, 1), random_bf16(4 * hidden, 2));
        a[hidden..2 * hidden].fill(0);
        b[2 * hidden..3 * hidden].copy_from_slice(&a[2 * hidden..3 * hidden]);
        let (a_d, b_d) = (gpu.upload(&a), gpu.upload(&b));
        let got = in_every_schedule(|| {
            let out = gpu.fresh::<f32>(4);
            let params = cosine_params { out: out.ptr(), a: a_d.ptr(), b: b_d.ptr(), hidden: hidden as u32 };
            gpu.launch("cosine", (4, 1, 1), row_threads(hidden), 0, &params);
            gpu.download(&out)
        });
        let (a, b) = (wide(&a), wide(&b));
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let cosine = |a: &[f64], b: &[f64]| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
        let want: Vec<f64> = a.chunks(hidden).zip(b.chunks(hidden)).map(|(a, b)| cosine(a, b)).collect();
        let want: Vec<f64> = want.into_iter().map(|c| if c.is_nan() { 0.0 } else { c }).collect();
        assert_eq!((got[1], got[2]), (0.0, 1.0), "{hidden}: the zero vector, and equal ones");
        assert_within("cosine", &wide32(&got), &want, |_| 1.01 * F32);
    }
}
