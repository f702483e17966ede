//! Random numbers, bf16, comparison with f64.

use half::bf16;

/// Unit roundoff of bf16 and of f32: half a unit in the last place.
pub const BF16: f64 = 1.0 / 256.0;
pub const F32: f64 = 1.0 / 16_777_216.0;

/// `n` numbers between -1 and 1 (splitmix64).
pub fn random(n: usize, seed: u64) -> Vec<f32> {
    let word = |i: u64| {
        let mut z = (seed << 32 ^ i).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    };
    (0..n as u64).map(|i| (word(i) >> 40) as f32 / 8_388_608.0 - 1.0).collect()
}

/// Bits of [`random`] numbers as bf16.
pub fn random_bf16(n: usize, seed: u64) -> Vec<u16> {
    random(n, seed).into_iter().map(|x| bf16::from_f32(x).to_bits()).collect()
}

/// bf16 times a number, rounded.
pub fn scaled(bits: &[u16], by: f32) -> Vec<u16> {
    bits.iter().map(|&b| bf16::from_f32(bf16::from_bits(b).to_f32() * by).to_bits()).collect()
}

/// The numbers that bf16 bits stand for.
pub fn wide(bits: &[u16]) -> Vec<f64> {
    bits.iter().map(|&b| bf16::from_bits(b).to_f64()).collect()
}

/// f32 as f64.
pub fn wide32(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

/// `a b` in f64 for a layout: `n` where k runs along the rows of `a`, or down the columns of `b`; `t` where it is the other way.
pub fn product(layout: &str, (m, n, k): (usize, usize, usize), a: &[u16], b: &[u16]) -> Vec<f64> {
    let (a, b) = (wide(a), wide(b));
    let at_a = |i: usize, l: usize| if layout.starts_with('t') { a[l * m + i] } else { a[i * k + l] };
    let at_b = |l: usize, j: usize| if layout.ends_with('t') { b[j * k + l] } else { b[l * n + j] };
    (0..m * n).map(|e| (0..k).map(|l| at_a(e / n, l) * at_b(l, e % n)).sum()).collect()
}

/// Panics unless each element is within `bound(i)` of what it should be. NaN never is.
pub fn assert_within(what: &str, got: &[f64], want: &[f64], bound: impl Fn(usize) -> f64) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let (error, bound) = ((got - want).abs(), bound(i));
        assert!(error <= bound, "{what}: element {i}: {got} for {want}, off by {error:e}, allowed {bound:e}");
    }
}
