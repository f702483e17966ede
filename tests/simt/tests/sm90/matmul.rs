//! `kernels/matmul_sm90.cu`.

use crate::abi::{self, matmul_params, matmul_sm90_params};
use crate::gpu::in_every_schedule;
use crate::numbers::{BF16, F32, assert_within, product, random, random_bf16, wide, wide32};
use crate::{gpu, tensor};
use std::ffi::c_void;

/// A kernel: tiles of so many columns, or of y^T, with so many rows of a and weights.
#[derive(Clone, Copy, Debug)]
enum Kernel {
    Columns(usize),
    Rows { of_a: usize, weights: usize },
}
use Kernel::{Columns, Rows};

const FEW: [Kernel; 5] = [
    Rows { of_a: 8, weights: 8 },
    Rows { of_a: 16, weights: 32 },
    Rows { of_a: 32, weights: 64 },
    Rows { of_a: 64, weights: 104 },
    Rows { of_a: 128, weights: 128 },
];

struct Product<'a> {
    layout: &'a str,
    kernel: Kernel,
    size: (usize, usize, usize),
    a: &'a [u16],
    b: &'a [u16],
    bias: Option<&'a [u16]>,
}

impl Product<'_> {
    fn launch(&self, y: *mut c_void, flags: u32) {
        let (gpu, (m, n, k)) = (gpu(), self.size);
        let (a, b, bias) = (gpu.upload(self.a), gpu.upload(self.b), self.bias.map(|bias| gpu.upload(bias)));
        let (name, tiles, a_tile, b_tile, rows) = match self.kernel {
            Columns(columns) => {
                let tiles = m.div_ceil(128) * n.div_ceil(columns);
                (format!("matmul_sm90_{}_{columns}", self.layout), tiles, 128, columns, 0)
            }
            Rows { of_a, weights } => {
                (format!("matmul_sm90_rows_{of_a}"), n.div_ceil(weights) * m.div_ceil(of_a), of_a, weights, weights)
            }
        };
        let a_map =
            if self.layout.starts_with('n') { tensor(&a, [k, m], [64, a_tile]) } else { tensor(&a, [m, k], [64, 64]) };
        let b_map =
            if self.layout.ends_with('t') { tensor(&b, [k, n], [64, b_tile]) } else { tensor(&b, [n, k], [64, 64]) };
        let product = matmul_params {
            y,
            a: a.ptr(),
            b: b.ptr(),
            bias: bias.as_ref().map_or(std::ptr::null_mut(), |bias| bias.ptr()),
            m: m as u32,
            n: n as u32,
            k: k as u32,
            flags,
        };
        let params = matmul_sm90_params { a: a_map, b: b_map, product, rows: rows as u32 };
        // Fewer blocks than tiles: a block goes from one to the next.
        gpu.launch(&name, (tiles.min(2) as u32, 1, 1), 384, abi::MATMUL_SM90_SHARED, &params);
    }

    fn f32(&self, before: Option<&[f32]>) -> Vec<f32> {
        in_every_schedule(|| {
            let y = before.map_or_else(|| gpu().fresh::<f32>(self.size.0 * self.size.1), |y| gpu().upload(y));
            self.launch(y.ptr(), abi::MATMUL_F32 | if before.is_some() { abi::MATMUL_ADD } else { 0 });
            gpu().download(&y)
        })
    }

    fn bf16(&self, before: Option<&[u16]>) -> Vec<u16> {
        in_every_schedule(|| {
            let y = before.map_or_else(|| gpu().fresh::<u16>(self.size.0 * self.size.1), |y| gpu().upload(y));
            self.launch(y.ptr(), if before.is_some() { abi::MATMUL_ADD } else { 0 });
            gpu().download(&y)
        })
    }
}

/// What a chain of k products of numbers below 1 may be off by.
fn chain(k: usize) -> f64 {
    (k * k) as f64 * F32
}

#[test]
fn every_layout_and_tile_equals_f64_with_the_same_bits() {
    for (layout, sizes) in [
        ("nt", [(1, 8, 8), (3, 12, 72), (130, 260, 136), (300, 68, 200)]),
        ("nn", [(1, 8, 8), (3, 72, 72), (130, 264, 136), (300, 72, 64)]),
        ("tn", [(8, 8, 1), (72, 264, 65), (136, 72, 130), (264, 8, 3)]),
    ] {
        for size @ (m, n, k) in sizes {
            let (a, b) = (random_bf16(m * k, 1), random_bf16(n * k, 2));
            let want = product(layout, size, &a, &b);
            let few = FEW.iter().filter(|_| layout == "nt");
            let mut first: Option<Vec<f32>> = None;
            for &kernel in [Columns(256), Columns(128)].iter().chain(few) {
                let got = Product { layout, kernel, size, a: &a, b: &b, bias: None }.f32(None);
                let what = format!("{layout} {kernel:?} {size:?}");
                assert_within(&what, &wide32(&got), &want, |_| chain(k));
                assert!(first.get_or_insert_with(|| got.clone()) == &got, "{what}: other tiles, other bits");
            }
        }
    }
}

#[test]
fn bias_then_old_value_are_added_in_both_types() {
    for kernel in [Columns(256), Columns(128), FEW[0]] {
        for size @ (m, n, k) in [(5, 24, 40), (3, 12, 8)] {
            let (a, b, bias) = (random_bf16(m * k, 1), random_bf16(n * k, 2), random_bf16(n, 3));
            let of = Product { layout: "nt", kernel, size, a: &a, b: &b, bias: Some(&bias) };
            let mut want = product("nt", size, &a, &b);
            want.iter_mut().enumerate().for_each(|(e, y)| *y += wide(&bias)[e % n]);
            assert_within("bias", &wide(&of.bf16(None)), &want, |i| chain(k) + want[i].abs() * BF16 * 1.01);
            // The sum and its terms round.
            let sums = chain(k) + 2.0 * (k + 2) as f64 * F32;
            let before = random(m * n, 4);
            let added: Vec<f64> = want.iter().zip(&before).map(|(y, &old)| y + f64::from(old)).collect();
            assert_within("added", &wide32(&of.f32(Some(&before))), &added, |_| sums);
            let before = random_bf16(m * n, 4);
            let added: Vec<f64> = want.iter().zip(wide(&before)).map(|(y, old)| y + old).collect();
            assert_within("added", &wide(&of.bf16(Some(&before))), &added, |i| sums + added[i].abs() * BF16);
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_batch() {
    let (n, k) = (264, 136);
    let (a, b) = (random_bf16(150 * k, 5), random_bf16(n * k, 6));
    let run = |kernel, rows: std::ops::Range<usize>| {
        let (m, a) = (rows.len(), &a[rows.start * k..rows.end * k]);
        Product { layout: "nt", kernel, size: (m, n, k), a, b: &b, bias: None }.bf16(None)
    };
    let all = run(Columns(256), 0..150);
    assert!(run(Columns(128), 60..131) == all[60 * n..131 * n]);
    for kernel in FEW {
        assert!(run(kernel, 77..80) == all[77 * n..80 * n], "{kernel:?}");
    }
}
