//! `kernels/matmul_sm90.cu`.

use crate::abi::{self, matmul_params, matmul_sm90_params, matmul_sm90_rows_params, tensor_map};
use crate::gpu::{Buffer, in_every_schedule};
use crate::numbers::random_bf16;
use crate::products::{Product, Size, assert_bias_and_old_value, assert_same_bits_near_f64};
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

struct Tiled<'a> {
    layout: &'a str,
    kernel: Kernel,
    size: Size,
    a: &'a [u16],
    b: &'a [u16],
    bias: Option<&'a [u16]>,
}

impl Product for Tiled<'_> {
    fn size(&self) -> Size {
        self.size
    }

    fn launch(&self, y: *mut c_void, flags: u32) {
        let (gpu, (m, n, k)) = (gpu(), self.size);
        let (a, b, bias) = (gpu.upload(self.a), gpu.upload(self.b), self.bias.map(|bias| gpu.upload(bias)));
        let product = matmul_params {
            y,
            a: a.ptr(),
            b: b.ptr(),
            bias: bias.as_ref().map_or(std::ptr::null_mut(), |bias| bias.ptr()),
            largest_a: std::ptr::null(),
            m: m as u32,
            n: n as u32,
            k: k as u32,
            flags,
        };
        let columns = match self.kernel {
            Columns(columns) => columns,
            Rows { of_a, weights } => return few_rows((of_a, weights), &a, &[(product, &b)]),
        };
        let operand = |x, layout: char, along: char, outer| {
            if layout == along { tensor(x, [k, outer], [64, 128]) } else { tensor(x, [outer, k], [64, 64]) }
        };
        let mut layouts = self.layout.chars();
        let (of_a, of_b) = (layouts.next().expect("two letters"), layouts.next().expect("two letters"));
        let params = matmul_sm90_params { a: operand(&a, of_a, 'n', m), b: operand(&b, of_b, 't', n), product };
        let cluster = if columns == 256 { abi::MATMUL_SM90_CLUSTER as usize } else { 1 };
        // Fewer clusters than tiles of a cluster: one goes from one to the next.
        let clusters = 2.min(m.div_ceil(128 * cluster) * n.div_ceil(columns));
        let name = format!("matmul_sm90_{}_{columns}", self.layout);
        gpu.launch(&name, ((clusters * cluster) as u32, 1, 1), 384, abi::MATMUL_SM90_SHARED, &params);
    }
}

/// Products with the same left operand by the kernel for tiles of `of_a` rows of it and `weights`.
fn few_rows((of_a, weights): (usize, usize), a: &Buffer<u16>, products: &[(matmul_params, &Buffer<u16>)]) {
    let (first, cluster) = (products[0].0, if of_a >= 32 { abi::MATMUL_SM90_ROWS_CLUSTER as usize } else { 1 });
    let (m, k) = (first.m as usize, first.k as usize);
    let mut params = matmul_sm90_rows_params {
        a: tensor(a, [k, m], [64, of_a / cluster]),
        b: [tensor_map { words: [0; 16] }; 3],
        product: [first; 3],
        products: products.len() as u32,
        rows: weights as u32,
    };
    let mut clusters = 0;
    for (i, (product, b)) in products.iter().enumerate() {
        let n = product.n as usize;
        params.b[i] = tensor(b, [k, n], [64, weights]);
        params.product[i] = *product;
        clusters += n.div_ceil(weights * cluster) * m.div_ceil(of_a);
    }
    let grid = ((clusters.min(2) * cluster) as u32, 1, 1);
    gpu().launch(&format!("matmul_sm90_rows_{of_a}"), grid, 384, abi::MATMUL_SM90_SHARED, &params);
}

#[test]
fn every_layout_and_tile_equals_f64_with_the_same_bits() {
    for (layout, sizes) in [
        ("nt", [(1, 8, 8), (3, 12, 72), (130, 260, 136), (300, 68, 200)]),
        ("nn", [(1, 8, 8), (3, 72, 72), (130, 264, 136), (300, 72, 64)]),
        ("tn", [(8, 8, 1), (72, 264, 65), (136, 72, 130), (264, 8, 3)]),
    ] {
        for size @ (m, n, k) in sizes {
            let (a, b) = (&random_bf16(m * k, 1)[..], &random_bf16(n * k, 2)[..]);
            let few = FEW.into_iter().filter(|_| layout == "nt");
            let kernels = [Columns(256), Columns(128)].into_iter().chain(few);
            let of = |kernel: Kernel| (format!("{kernel:?}"), Tiled { layout, kernel, size, a, b, bias: None });
            let products: Vec<_> = kernels.map(of).collect();
            assert_same_bits_near_f64(gpu(), layout, (a, b), &products);
        }
    }
}

#[test]
fn bias_then_old_value_are_added_in_both_types() {
    for kernel in [Columns(256), Columns(128), FEW[0]] {
        for size @ (m, n, k) in [(5, 24, 40), (3, 12, 8)] {
            let (a, b, bias) = (random_bf16(m * k, 1), random_bf16(n * k, 2), random_bf16(n, 3));
            let of = Tiled { layout: "nt", kernel, size, a: &a, b: &b, bias: Some(&bias) };
            assert_bias_and_old_value(gpu(), &of, &a, &b, &bias);
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_batch() {
    let (n, k) = (264, 136);
    let (a, b) = (random_bf16(150 * k, 5), random_bf16(n * k, 6));
    let run = |kernel, rows: std::ops::Range<usize>| {
        let (m, a) = (rows.len(), &a[rows.start * k..rows.end * k]);
        Tiled { layout: "nt", kernel, size: (m, n, k), a, b: &b, bias: None }.bf16(gpu(), None)
    };
    let all = run(Columns(256), 0..150);
    assert!(run(Columns(128), 60..131) == all[60 * n..131 * n]);
    for kernel in FEW {
        assert!(run(kernel, 77..80) == all[77 * n..80 * n], "{kernel:?}");
    }
}

#[test]
fn products_of_one_left_operand_have_the_bits_that_each_has_alone() {
    let (gpu, (m, k), ns) = (gpu(), (70, 136), [264, 40, 72]);
    let (a, bias) = (random_bf16(m * k, 7), random_bf16(40, 8));
    let weights: Vec<Vec<u16>> = ns.iter().zip(10..).map(|(n, seed)| random_bf16(n * k, seed)).collect();
    let bias_of = |n: usize| (n == 40).then_some(&bias[..]);
    for kernel in FEW {
        let Rows { of_a, weights: rows } = kernel else { panic!("for few rows") };
        let (a_d, bias_d) = (gpu.upload(&a), gpu.upload(&bias));
        let b: Vec<_> = weights.iter().map(|b| gpu.upload(b)).collect();
        let together = in_every_schedule(|| {
            let y = ns.map(|n| gpu.fresh::<u16>(m * n));
            let products: Vec<_> = (0..ns.len())
                .map(|i| {
                    let (m, n, k) = (m as u32, ns[i] as u32, k as u32);
                    let bias = if ns[i] == 40 { bias_d.ptr() } else { std::ptr::null_mut() };
                    let (y, a, largest_a) = (y[i].ptr(), a_d.ptr(), std::ptr::null());
                    (matmul_params { y, a, b: b[i].ptr(), bias, largest_a, m, n, k, flags: 0 }, &b[i])
                })
                .collect();
            few_rows((of_a, rows), &a_d, &products);
            y.each_ref().map(|y| gpu.download(y))
        });
        for ((n, b), together) in ns.into_iter().zip(&weights).zip(together) {
            let alone = Tiled { layout: "nt", kernel, size: (m, n, k), a: &a, b, bias: bias_of(n) }.bf16(gpu, None);
            assert!(alone == together, "{kernel:?}: {n} weights");
        }
    }
}
