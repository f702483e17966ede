use crate::abi;
use crate::abi::matmul_params;
use crate::gpu::Gpu;
use crate::numbers::{assert_within, product, random_bf16, scaled, wide32};
use crate::products::{Product, Size, assert_bias_and_old_value, assert_same_bits_near_f64, chain, largest};

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
        // The other layouts are those of gradients.
        let largest_a = (self.layout != "nt").then(|| largest(gpu, &a, m * k, &[0, 1]));
        let params = matmul_params {
            y,
            a: a.ptr(),
            b: b.ptr(),
            bias: bias.as_ref().map_or(std::ptr::null_mut(), |bias| bias.ptr()),
            largest_a: largest_a.as_ref().map_or(std::ptr::null_mut(), |largest| largest.ptr()),
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

#[test]
fn the_largest_magnitude_is_found_to_the_bit() {
    let gpu = Gpu::get();
    let most = |x: &[u16]| x.iter().map(|bits| u32::from(bits & 0x7fff) << 16).max().expect("a number");
    for n in [1usize, 7, 2048, 5003] {
        let mut x = random_bf16(n, n as u64);
        let of = |x: &[u16]| gpu.download(&largest(gpu, &gpu.upload(x), x.len(), &[0, 1]))[0];
        assert_eq!(of(&x), most(&x), "{n} numbers");
        x[n / 2] = 0xc49a; // -1232
        assert_eq!(of(&x), 0xc49a << 16 & 0x7fff_ffff, "{n} numbers");
        x[n - 1] = 0xffc0;
        assert!(f32::from_bits(of(&x)).is_nan(), "{n} numbers, one of them NaN");
    }
    let (width, ends) = (37, [0u32, 3, 3, 200, 201]);
    let x = random_bf16(201 * width, 9);
    let got = gpu.download(&largest(gpu, &gpu.upload(&x), width, &ends));
    let rows = |w: &[u32]| &x[w[0] as usize * width..w[1] as usize * width];
    let want: Vec<u32> = ends.windows(2).map(|w| if w[0] == w[1] { 0 } else { most(rows(w)) }).collect();
    assert_eq!(got, want);
}

#[test]
fn gradients_of_any_size_are_multiplied_as_exactly() {
    let (gpu, size @ (m, n, k)) = (Gpu::get(), (19, 40, 72));
    for layout in ["nn", "tn"] {
        let (a, b) = (random_bf16(m * k, 1), random_bf16(n * k, 2));
        let of = |a: &[u16]| Tiled { layout, shape: MEDIUM, size, a, b: &b, bias: None }.f32(gpu, None);
        let plain = of(&a);
        for by in [2f32.powi(-90), 2f32.powi(-24), 2f32.powi(90)] {
            let want: Vec<f32> = plain.iter().map(|y| y * by).collect();
            assert!(of(&scaled(&a, by)) == want, "{layout}: times {by:e}");
        }
        assert!(of(&vec![0; m * k]).iter().all(|&y| y == 0.0), "{layout}: zeros");
    }
    // A row beside others that are a million times larger: what f16 loses of it is 2^-(25 + 14) of the largest a product.
    let by = 2f64.powi(-20);
    let (mut a, b) = (random_bf16(m * k, 1), random_bf16(n * k, 2));
    a.splice(..k, scaled(&a[..k], by as f32));
    let got = Tiled { layout: "nn", shape: MEDIUM, size, a: &a, b: &b, bias: None }.f32(gpu, None);
    let bound = by * chain(gpu, k) + if gpu.multiplies_bf16 { 0.0 } else { k as f64 * 2f64.powi(-39) };
    let want = product("nn", size, &a, &b);
    assert_within("a small row", &wide32(&got[..n]), &want[..n], |_| bound);
}
