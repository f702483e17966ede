//! Matrix products of any card: results of a launch in both types, and what they may be off by.

use crate::abi;
use crate::gpu::{Buffer, Gpu, in_every_schedule};
use crate::numbers::{BF16, F32, assert_within, product, random, random_bf16, wide, wide32};
use std::ffi::c_void;

/// m, n, k.
pub type Size = (usize, usize, usize);

/// A product with fixed operands, by one kernel.
pub trait Product {
    /// Runs it into y with these flags of `matmul_params`.
    fn launch(&self, y: *mut c_void, flags: u32);

    fn size(&self) -> Size;

    /// The result in f32, added to `before` where that is given.
    fn f32(&self, gpu: &Gpu, before: Option<&[f32]>) -> Vec<f32> {
        let (m, n, _) = self.size();
        in_every_schedule(|| {
            let y = before.map_or_else(|| gpu.fresh::<f32>(m * n), |y| gpu.upload(y));
            self.launch(y.ptr(), abi::MATMUL_F32 | if before.is_some() { abi::MATMUL_ADD } else { 0 });
            gpu.download(&y)
        })
    }

    /// The same in bf16.
    fn bf16(&self, gpu: &Gpu, before: Option<&[u16]>) -> Vec<u16> {
        let (m, n, _) = self.size();
        in_every_schedule(|| {
            let y = before.map_or_else(|| gpu.fresh::<u16>(m * n), |y| gpu.upload(y));
            self.launch(y.ptr(), if before.is_some() { abi::MATMUL_ADD } else { 0 });
            gpu.download(&y)
        })
    }
}

/// The bits of the largest magnitude of each sequence's rows of `width` numbers, by the card.
pub fn largest(gpu: &Gpu, x: &Buffer<u16>, width: usize, offsets: &[u32]) -> Buffer<u32> {
    let (found, cu_seqlens) = (gpu.upload(&vec![0; offsets.len() - 1]), gpu.upload(offsets));
    let longest = offsets.windows(2).map(|w| w[1] - w[0]).max().expect("a sequence");
    let several = found.len() > 1;
    let params = abi::largest_params {
        largest: found.ptr(),
        x: x.ptr(),
        cu_seqlens: if several { cu_seqlens.ptr() } else { std::ptr::null_mut() },
        tokens: offsets[offsets.len() - 1],
        width: width as u32,
    };
    let blocks = (longest as usize * width).div_ceil(abi::LARGEST_CHUNK as usize) as u32;
    gpu.launch("largest", (blocks, found.len() as u32, 1), abi::ROW_THREADS, 0, &params);
    found
}

/// What a chain of k products of numbers below 1 may be off by; half of an operand's last place where it is below 2^-14 and
/// f16 cannot hold it.
pub fn chain(gpu: &Gpu, k: usize) -> f64 {
    let operands = if gpu.multiplies_bf16 { 0.0 } else { 2.0 * 2f64.powi(-25) };
    k as f64 * (k as f64 * F32 + operands)
}

/// Panics unless products of the same operands, each with its name, are within what rounding explains, with the same bits.
pub fn assert_same_bits_near_f64<P: Product>(
    gpu: &Gpu,
    layout: &str,
    (a, b): (&[u16], &[u16]),
    products: &[(String, P)],
) {
    let mut first: Option<Vec<f32>> = None;
    for (name, of) in products {
        let (got, what) = (of.f32(gpu, None), format!("{layout} {name} {:?}", of.size()));
        assert_within(&what, &wide32(&got), &product(layout, of.size(), a, b), |_| chain(gpu, of.size().2));
        assert!(first.get_or_insert_with(|| got.clone()) == &got, "{what}: other tiles, other bits");
    }
}

/// Panics unless y = a b^T + bias (+ y) rounds once; `of` is that product with its bias.
pub fn assert_bias_and_old_value(gpu: &Gpu, of: &impl Product, a: &[u16], b: &[u16], bias: &[u16]) {
    let size @ (m, n, k) = of.size();
    let mut want = product("nt", size, a, b);
    want.iter_mut().enumerate().for_each(|(e, y)| *y += wide(bias)[e % n]);
    assert_within("bias", &wide(&of.bf16(gpu, None)), &want, |i| chain(gpu, k) + want[i].abs() * BF16 * 1.01);
    // The sum and its terms round.
    let sums = chain(gpu, k) + 2.0 * (k + 2) as f64 * F32;
    let before = random(m * n, 4);
    let added: Vec<f64> = want.iter().zip(&before).map(|(y, &old)| y + f64::from(old)).collect();
    assert_within("added", &wide32(&of.f32(gpu, Some(&before))), &added, |_| sums);
    let before = random_bf16(m * n, 4);
    let added: Vec<f64> = want.iter().zip(wide(&before)).map(|(y, old)| y + old).collect();
    assert_within("added", &wide(&of.bf16(gpu, Some(&before))), &added, |i| sums + added[i].abs() * BF16);
}
