use crate::abi;
use crate::abi::matmul_params;
use crate::gpu::Gpu;
use crate::numbers::random_bf16;
use crate::products::{Product, Size, assert_bias_and_old_value, assert_same_bits_near_f64};

/// Name, rows and columns of a tile, threads, shared memory.
type Shape = (&'static str, usize, usize, u32, u32);
const LARGE: Shape = ("large", 128, 128, 256, abi::MATMUL_LARGE_SHARED);
const MEDIUM: Shape = ("medium", 64, 64, 128, abi::MATMUL_MEDIUM_SHARED);
const SMALL: Shape = ("small", 16, 32, 64, abi::MATMUL_SMALL_SHARED);

const SIZES: [(usize, usize, usize); 6] =
    [(1, 8, 8), (3, 5, 7), (17, 33, 40), (70, 96, 168), (130, 131, 72), (2, 300, 251)];

struct Tiled<'a> {
    layout: &'a str,
    shape: Shape,
    size: Size,
    a: &'a [u16],
    b: &'a [u16],
    bias: Option<&'a [u16]>,
}

impl Product for Tiled<'_> {
    fn size(&self) -> Size {
        self.size
    }

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
}

#[test]
fn every_layout_and_tile_equals_f64() {
    for (layout, shapes) in [("nt", &[LARGE, MEDIUM, SMALL][..]), ("nn", &[LARGE, MEDIUM]), ("tn", &[LARGE, MEDIUM])] {
        for size @ (m, n, k) in SIZES {
            let (a, b) = (&random_bf16(m * k, 1)[..], &random_bf16(n * k, 2)[..]);
            let of = |&shape: &Shape| (shape.0.to_string(), Tiled { layout, shape, size, a, b, bias: None });
            let products: Vec<_> = shapes.iter().map(of).collect();
            assert_same_bits_near_f64(Gpu::get(), layout, (a, b), &products);
        }
    }
}

#[test]
fn bias_then_old_value_are_added_in_both_types() {
    for shape in [LARGE, MEDIUM, SMALL] {
        for size @ (m, n, k) in [(5, 24, 40), (3, 5, 7)] {
            let (a, b, bias) = (random_bf16(m * k, 1), random_bf16(n * k, 2), random_bf16(n, 3));
            let of = Tiled { layout: "nt", shape, size, a: &a, b: &b, bias: Some(&bias) };
            assert_bias_and_old_value(Gpu::get(), &of, &a, &b, &bias);
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_batch() {
    let (n, k) = (160, 136);
    let (a, b) = (random_bf16(150 * k, 5), random_bf16(n * k, 6));
    let run = |shape, rows: std::ops::Range<usize>| {
        let (m, a) = (rows.len(), &a[rows.start * k..rows.end * k]);
        Tiled { layout: "nt", shape, size: (m, n, k), a, b: &b, bias: None }.bf16(Gpu::get(), None)
    };
    let all = run(LARGE, 0..150);
    assert!(run(SMALL, 77..78) == all[77 * n..78 * n]);
    assert!(run(MEDIUM, 60..131) == all[60 * n..131 * n]);
}
