//! Every instruction set gives the same bits, and `exp` keeps its bound.

use super::*;
use crate::ops::rounding::bf16_value;
use crate::ops::testing::{bits, random};

/// Each instruction set that this processor has runs the kernel that `make` makes.
fn on_each<K: Kernel>(mut make: impl FnMut() -> K) -> Vec<K::Output> {
    // SAFETY: the portable implementation needs no feature; the others are run where they were detected.
    unsafe {
        let mut outputs = vec![make().run::<portable::Portable>()];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                outputs.push(x86::run_avx2(make()));
            }
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("fma") {
                outputs.push(x86::run_avx512(make()));
                if is_x86_feature_detected!("avx512bf16") {
                    outputs.push(x86::run_avx512_bf16(make()));
                }
            }
        }
        outputs
    }
}

/// `exp`, or `exp2` where `TWO`.
struct Exp<'a, const TWO: bool>(&'a [f32]);

impl<const TWO: bool> Kernel for Exp<'_, TWO> {
    type Output = Vec<f32>;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> Vec<f32> {
        let mut out = vec![0.0; self.0.len()];
        for (y, x) in out.chunks_mut(LANES).zip(self.0.chunks(LANES)) {
            // SAFETY: run by `on_each`.
            unsafe { S::write(y, if TWO { S::exp2(S::read(x)) } else { S::exp(S::read(x)) }) };
        }
        out
    }
}

#[test]
fn exp_keeps_its_bound_and_its_bits_on_every_instruction_set() {
    let x: Vec<f32> = (0..400_000).map(|i| -106.0 + i as f32 * (195.0 / 400_000.0)).collect();
    let outputs = on_each(|| Exp::<false>(&x));
    for output in &outputs {
        assert_eq!(bits(output), bits(&outputs[0]));
    }
    let mut worst = 0.0f64;
    for (&x, &y) in x.iter().zip(&outputs[0]) {
        let want = f64::from(x).exp();
        if want > f64::from(f32::MAX) {
            assert!(y >= 3.4e38, "{x}: {y}");
        } else if want >= f64::from(f32::MIN_POSITIVE) {
            worst = worst.max((f64::from(y) / want - 1.0).abs());
        } else {
            // Below the normal numbers: within one unit of the smallest of them.
            assert!((f64::from(y) - want).abs() <= 1.5e-45, "{x}: {y} against {want}");
        }
    }
    assert!(worst < 2f64.powf(-22.9), "2^{}", worst.log2());
    let special = on_each(|| Exp::<false>(&[f32::NEG_INFINITY, f32::INFINITY, f32::NAN, 0.0, -0.0]));
    for y in special {
        assert!(y[0] == 0.0 && y[1] == f32::INFINITY && y[2].is_nan() && y[3] == 1.0 && y[4] == 1.0, "{y:?}");
    }
}

#[test]
fn exp2_keeps_its_bound_and_its_bits_on_every_instruction_set() {
    let x: Vec<f32> = (0..400_000).map(|i| -155.0 + i as f32 * (243.0 / 400_000.0)).collect();
    let outputs = on_each(|| Exp::<true>(&x));
    for output in &outputs {
        assert_eq!(bits(output), bits(&outputs[0]));
    }
    for (&x, &y) in x.iter().zip(&outputs[0]) {
        let want = f64::from(x).exp2();
        let error = (f64::from(y) - want).abs();
        if want >= f64::from(f32::MIN_POSITIVE) {
            assert!(error < want * 2f64.powf(-23.5), "{x}: {y} against {want}");
        } else {
            assert!(error <= 1.5e-45, "{x}: {y} against {want}");
        }
    }
    for y in on_each(|| Exp::<true>(&[f32::NEG_INFINITY, -150.5, f32::NAN, 0.0, -0.0, -1.0])) {
        assert!(y[0] == 0.0 && y[1] == 0.0 && y[2].is_nan() && y[3..] == [1.0, 1.0, 0.5], "{y:?}");
    }
}

struct Reductions<'a>(&'a [f32]);

impl Kernel for Reductions<'_> {
    type Output = Vec<[f32; 2]>;

    /// The sum and the largest of each vector.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> Self::Output {
        let mut out = Vec::new();
        for x in self.0.chunks_exact(LANES) {
            // SAFETY: run by `on_each`.
            unsafe { out.push([S::sum(S::load(x.as_ptr())), S::largest(S::load(x.as_ptr()))]) };
        }
        out
    }
}

#[test]
fn sums_and_maxima_have_one_order_on_every_instruction_set() {
    let x = random(LANES * 1000, 5);
    for out in on_each(|| Reductions(&x)) {
        for (x, [sum, largest]) in x.chunks_exact(LANES).zip(out) {
            let quarter = |i: usize| (x[i] + x[i + 8]) + (x[i + 4] + x[i + 12]);
            let want = (quarter(0) + quarter(2)) + (quarter(1) + quarter(3));
            assert_eq!((sum.to_bits(), largest), (want.to_bits(), x.iter().copied().fold(f32::NEG_INFINITY, f32::max)));
        }
    }
}

struct Blocks<'a>(&'a [f32], &'a [f32]);

impl Kernel for Blocks<'_> {
    type Output = (Vec<f32>, Vec<f32>);

    /// The transpose of the first 16 x 16 floats, and a product of 19 x 23 by 23 x 48.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> Self::Output {
        let (mut t, mut c) = (vec![0.0; 256], vec![1.0; 19 * 48]);
        let a = matrix::View { data: self.0.as_ptr(), row: 1, column: 19 };
        // SAFETY: the sizes are those of the slices; run by `on_each`.
        unsafe {
            S::transpose(t.as_mut_ptr(), 16, self.0.as_ptr(), 16);
            let size = matrix::Size { m: 19, n: 48, k: 23 };
            let b = matrix::Right::rows(self.1.as_ptr(), 48, 23);
            matrix::product::<S, false>(c.as_mut_ptr(), 48, a, b, size, matrix::Old::Add);
        }
        (t, c)
    }
}

#[test]
fn products_and_transposes_are_right_and_the_same_on_every_instruction_set() {
    let (a, b) = (random(19 * 23, 1), random(23 * 48, 2));
    let outputs = on_each(|| Blocks(&a, &b));
    for (t, c) in &outputs {
        assert_eq!((bits(t), bits(c)), (bits(&outputs[0].0), bits(&outputs[0].1)));
        for i in 0..16 {
            (0..16).for_each(|j| assert_eq!(t[i * 16 + j], a[j * 16 + i]));
        }
        for i in 0..19 {
            for j in 0..48 {
                let want = 1.0 + (0..23).map(|k| f64::from(a[k * 19 + i]) * f64::from(b[k * 48 + j])).sum::<f64>();
                assert!((f64::from(c[i * 48 + j]) - want).abs() < 1e-5, "{i}, {j}");
            }
        }
    }
}

struct Pairs<'a>(&'a [f32], &'a [f32]);

impl Kernel for Pairs<'_> {
    type Output = Vec<f32>;

    /// Rounds the rows of both to bf16 and gives the product of 19 x 46 by the transpose of 16 x 46.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> Vec<f32> {
        let (mut a, mut b, mut c) = (vec![0.0; 19 * 32], vec![0.0; 23 * 16], vec![0.5; 19 * 16]);
        // SAFETY: the sizes are those of the slices (rows of `self.0` are 46 of 64 floats); run by `on_each`.
        unsafe {
            for i in 0..19 {
                for j in (0..64).step_by(LANES) {
                    let row = a[i * 32..].as_mut_ptr().cast::<u16>();
                    S::store_bf16(row.add(j), S::load(self.0[i * 64 + j..].as_ptr()));
                }
            }
            for (p, pairs) in b.chunks_exact_mut(16).enumerate() {
                for (j, pair) in pairs.iter_mut().enumerate() {
                    let bits = |k: usize| u32::from(bf16_bits(self.1[j * 46 + k]));
                    *pair = f32::from_bits(bits(2 * p) | bits(2 * p + 1) << 16);
                }
            }
            let view = matrix::View { data: a.as_ptr(), row: 32, column: 1 };
            let size = matrix::Size { m: 19, n: 16, k: 23 };
            let b = matrix::Right::rows(b.as_ptr(), 16, 23);
            matrix::product::<S, true>(c.as_mut_ptr(), 16, view, b, size, matrix::Old::Add);
        }
        c
    }
}

#[test]
fn products_of_pairs_are_chains_of_odd_and_even_steps_on_every_instruction_set() {
    let (a, b) = (random(19 * 64, 3), random(16 * 46, 4));
    for c in on_each(|| Pairs(&a, &b)) {
        for (i, c) in c.iter().enumerate() {
            let (x, w) = (&a[i / 16 * 64..], &b[i % 16 * 46..]);
            let want = (0..46).map(|k| k ^ 1).fold(0.5f32, |sum, k| bf16_value(x[k]).mul_add(bf16_value(w[k]), sum));
            assert_eq!(c.to_bits(), want.to_bits(), "element {i}");
        }
    }
}

struct Pieces<'a> {
    a: &'a [f32],
    pieces: [&'a [f32]; 3],
    old: &'a [f32],
    factors: &'a [f32],
    m: usize,
    n: usize,
}

impl Kernel for Pieces<'_> {
    type Output = Vec<f32>;

    /// `m` rows of 23 by three pieces of up to 10 rows of 64, added to old rows times their factors.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> Vec<f32> {
        let Pieces { pieces, m, n, .. } = self;
        let mut c = self.old.to_vec();
        let at = |piece: usize, j: usize| pieces[piece][j * LANES..].as_ptr();
        let (b, a) =
            (matrix::Right { at, steps: 10, row: 64 }, matrix::View { data: self.a.as_ptr(), row: 23, column: 1 });
        let (size, old) = (matrix::Size { m, n, k: 23 }, matrix::Old::Scale(self.factors.as_ptr()));
        // SAFETY: the sizes are those of the slices; run by `on_each`.
        unsafe { matrix::product::<S, false>(c.as_mut_ptr(), 64, a, b, size, old) };
        c
    }
}

#[test]
fn products_in_pieces_are_single_chains_from_scaled_rows_on_every_instruction_set() {
    let [a, x, y, z] = [(19 * 23, 6), (640, 7), (640, 8), (192, 9)].map(|(n, seed)| random(n, seed));
    let (old, factors) = (random(19 * 64, 10), random(19, 11));
    // Fewer rows and columns than a tile has, and more.
    for (m, n) in [(1, 64), (3, 64), (3, 48), (4, 16), (5, 64), (8, 32), (19, 64)] {
        let pieces = [&x[..], &y, &z];
        for c in on_each(|| Pieces { a: &a, pieces, old: &old, factors: &factors, m, n }) {
            for (at, c) in c.iter().enumerate() {
                let (i, j) = (at / 64, at % 64);
                let chain = |sum: f32, k: usize| a[i * 23 + k].mul_add(pieces[k / 10][k % 10 * 64 + j], sum);
                let want = if i < m && j < n { (0..23).fold(old[at] * factors[i], chain) } else { old[at] };
                assert_eq!(c.to_bits(), want.to_bits(), "{m} x {n}: ({i}, {j})");
            }
        }
    }
}

struct Rounded<'a>(&'a [f32]);

impl Kernel for Rounded<'_> {
    type Output = Vec<f32>;

    /// Pairs of each vector with the one after it.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> Vec<f32> {
        let mut out = vec![0.0; self.0.len() - LANES];
        for (i, y) in out.chunks_exact_mut(LANES).enumerate() {
            let x = self.0[i * LANES..].as_ptr();
            // SAFETY: two vectors are there; run by `on_each`.
            unsafe { S::store(y.as_mut_ptr(), S::pair(S::load(x), S::load(x.add(LANES)))) };
        }
        out
    }
}

#[test]
fn pairs_hold_both_numbers_rounded_on_every_instruction_set() {
    // Every exponent, both signs, infinities and NaN among them.
    let x: Vec<f32> = (0..1 << 16).map(|i: u32| f32::from_bits(i.wrapping_mul(0x9e37_79b1))).collect();
    for pairs in on_each(|| Rounded(&x)) {
        for (i, pair) in pairs.iter().enumerate() {
            let want = u32::from(bf16_bits(x[i])) | u32::from(bf16_bits(x[i + LANES])) << 16;
            assert_eq!(pair.to_bits(), want, "{:08x} and {:08x}", x[i].to_bits(), x[i + LANES].to_bits());
        }
    }
}
