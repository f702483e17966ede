use crate::abi;
use crate::abi::matmul_params;
use crate::gpu::{Gpu, in_every_schedule};
use crate::numbers::{BF16, F32, assert_within, product, random, random_bf16, wide, wide32};

/// Name, rows and columns of a tile, threads, shared memory.
type Shape = (&'static str, usize, usize, u32, u32);
const LARGE: Shape = ("large", 128, 128, 256, abi::MATMUL_LARGE_SHARED);
const MEDIUM: Shape = ("medium", 64, 64, 128, abi::MATMUL_MEDIUM_SHARED);
const SMALL: Shape = ("small", 16, 32, 64, abi::MATMUL_SMALL_SHARED);

const SIZES: [(usize, usize, usize); 6] =
    [(1, 8, 8), (3, 5, 7), (17, 33, 40), (70, 96, 168), (130, 131, 72), (2, 300, 251)];

/// The layout, the tile, m, n, k, operands, bias; f32 results, added to `before` where that is given.
struct Product<'a> {
    layout: &'a str,
    shape: Shape,
    size: (usize, usize, usize),
    a: &'a [u16],
    b: &'a [u16],
    bias: Option<&'a [u16]>,
}

impl Product<'_> {
    fn launch(&self, y: *mut std::ffi::c_void, flags: u32) {
        let gpu = Gpu::get();
        let (a, b, bias) = (gpu.upload(self.a), gpu.upload(self.b), self.bias.map(|bias| gpu.upload(bias)));
        let ((m, n, k), (name, rows, columns, threads, shared)) = (self.size, self.shape);
        let params = matmul_params {
            y,
            a: a.ptr(),
            b: b.ptr(),
            bias: bias.as_ref().map_or(std::ptr::null_mut(), |bias| bias.ptr()),
            m: m as u32,
            n: n as u32,
            k: k as u32,
            flags,
        };
        let tiles = m.div_ceil(rows) * n.div_ceil(columns);
        gpu.launch(&format!("matmul_{}_{name}", self.layout), (tiles as u32, 1, 1), threads, shared, &params);
    }

    fn f32(&self, before: Option<&[f32]>) -> Vec<f32> {
        let gpu = Gpu::get();
        in_every_schedule(|| {
            let y = before.map_or_else(|| gpu.fresh::<f32>(self.size.0 * self.size.1), |y| gpu.upload(y));
            self.launch(y.ptr(), abi::MATMUL_F32 | if before.is_some() { abi::MATMUL_ADD } else { 0 });
            gpu.download(&y)
        })
    }

    fn bf16(&self, before: Option<&[u16]>) -> Vec<u16> {
        let gpu = Gpu::get();
        in_every_schedule(|| {
            let y = before.map_or_else(|| gpu.fresh::<u16>(self.size.0 * self.size.1), |y| gpu.upload(y));
            self.launch(y.ptr(), if before.is_some() { abi::MATMUL_ADD } else { 0 });
            gpu.download(&y)
        })
    }
}

/// What a chain of k products of numbers below 1 may be off by; half of an operand's last place where it is below 2^-14 and
/// f16 cannot hold it.
fn chain(k: usize) -> f64 {
    let operands = if Gpu::get().multiplies_bf16 { 0.0 } else { 2.0 * 2f64.powi(-25) };
    k as f64 * (k as f64 * F32 + operands)
}

#[test]
fn every_layout_and_tile_equals_f64() {
    for (layout, shapes) in [("nt", &[LARGE, MEDIUM, SMALL][..]), ("nn", &[LARGE, MEDIUM]), ("tn", &[LARGE, MEDIUM])] {
        for size @ (m, n, k) in SIZES {
            let (a, b) = (random_bf16(m * k, 1), random_bf16(n * k, 2));
            let want = product(layout, size, &a, &b);
            let mut first: Option<Vec<f32>> = None;
            for &shape in shapes {
                let got = Product { layout, shape, size, a: &a, b: &b, bias: None }.f32(None);
                let what = format!("{layout} {} {size:?}", shape.0);
                assert_within(&what, &wide32(&got), &want, |_| chain(k));
                assert!(
                    first.get_or_insert_with(|| got.clone()) == &got,
                    "{what}: tiles of another shape differ in bits"
                );
            }
        }
    }
}

#[test]
fn bias_then_old_value_are_added_in_both_types() {
    for shape in [LARGE, MEDIUM, SMALL] {
        for size @ (m, n, k) in [(5, 24, 40), (3, 5, 7)] {
            let (a, b, bias) = (random_bf16(m * k, 1), random_bf16(n * k, 2), random_bf16(n, 3));
            let of = Product { layout: "nt", shape, size, a: &a, b: &b, bias: Some(&bias) };
            let mut want = product("nt", size, &a, &b);
            want.iter_mut().enumerate().for_each(|(e, y)| *y += wide(&bias)[e % n]);
            let got = of.bf16(None);
            assert_within("bias", &wide(&got), &want, |i| chain(k) + want[i].abs() * BF16 * 1.01);

            let before = random(m * n, 4);
            let want: Vec<f64> = want.iter().zip(&before).map(|(y, &old)| y + f64::from(old)).collect();
            // The sum and its terms round.
            assert_within("added", &wide32(&of.f32(Some(&before))), &want, |_| chain(k) + 2.0 * (k + 2) as f64 * F32);
            let before = random_bf16(m * n, 4);
            let base = product("nt", size, &a, &b);
            let want: Vec<f64> =
                base.iter().enumerate().map(|(e, y)| y + wide(&bias)[e % n] + wide(&before)[e]).collect();
            let bound = |i: usize| chain(k) + 2.0 * (k + 2) as f64 * F32 + want[i].abs() * BF16;
            assert_within("added", &wide(&of.bf16(Some(&before))), &want, bound);
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_batch() {
    let (n, k) = (160, 136);
    let (a, b) = (random_bf16(150 * k, 5), random_bf16(n * k, 6));
    let run = |shape, rows: std::ops::Range<usize>| {
        let (m, a) = (rows.len(), &a[rows.start * k..rows.end * k]);
        Product { layout: "nt", shape, size: (m, n, k), a, b: &b, bias: None }.bf16(None)
    };
    let all = run(LARGE, 0..150);
    assert!(run(SMALL, 77..78) == all[77 * n..78 * n]);
    assert!(run(MEDIUM, 60..131) == all[60 * n..131 * n]);
}
