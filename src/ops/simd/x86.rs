//! AVX-512 (one register a vector) and AVX2 with FMA (two).

use super::{Kernel, LANES, Simd};
use crate::ops::rounding::bf16_bits;
use std::arch::x86_64::*;

/// Runs a kernel compiled for AVX-512.
#[target_feature(enable = "avx512f,avx2,fma")]
pub(super) fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: this function has the features.
    unsafe { kernel.run::<Avx512<false>>() }
}

/// Runs a kernel compiled for AVX-512 with BF16 and BW.
#[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx2,fma")]
pub(super) fn run_avx512_bf16<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: this function has the features.
    unsafe { kernel.run::<Avx512<true>>() }
}

/// Runs a kernel compiled for AVX2.
#[target_feature(enable = "avx2,fma")]
pub(super) fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: this function has the features.
    unsafe { kernel.run::<Avx2>() }
}

/// The halves of lane `i`: numbers `i` and `16 + i` of 32.
const HALVES: [u16; 2 * LANES] = {
    let mut order = [0; 2 * LANES];
    let mut i = 0;
    while i < LANES {
        order[2 * i] = i as u16;
        order[2 * i + 1] = (LANES + i) as u16;
        i += 1;
    }
    order
};

/// AVX-512 F, with AVX-512 BF16 and BW or without.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const BF16: bool>;

// SAFETY of every function below: registers only, or 16 floats that the caller gives; the features are those of
// `run_avx512`, `run_avx512_bf16` and `run_avx2`, into which all of it is inlined.
impl<const BF16: bool> Simd for Avx512<BF16> {
    type V = __m512;
    const WIDE: bool = true;

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sqrt(a: Self::V) -> Self::V {
        unsafe { _mm512_sqrt_ps(a) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn round(a: Self::V) -> Self::V {
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    unsafe fn scale(a: Self::V, n: Self::V) -> Self::V {
        unsafe { _mm512_scalef_ps(a, n) }
    }
    #[inline(always)]
    unsafe fn dot(acc: Self::V, a: Self::V, b: Self::V) -> Self::V {
        unsafe {
            if BF16 {
                let pairs = [a, b].map(|x| std::mem::transmute::<__m512, __m512bh>(x));
                return _mm512_dpbf16_ps(acc, pairs[0], pairs[1]);
            }
            let (a, b) = (_mm512_castps_si512(a), _mm512_castps_si512(b));
            let high = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            let odd = [_mm512_and_si512(a, high), _mm512_and_si512(b, high)];
            let even = [_mm512_slli_epi32::<16>(a), _mm512_slli_epi32::<16>(b)];
            let acc = _mm512_fmadd_ps(_mm512_castsi512_ps(odd[0]), _mm512_castsi512_ps(odd[1]), acc);
            _mm512_fmadd_ps(_mm512_castsi512_ps(even[0]), _mm512_castsi512_ps(even[1]), acc)
        }
    }
    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        unsafe { sum_half(_mm256_add_ps(_mm512_castps512_ps256(v), upper_half(v))) }
    }
    #[inline(always)]
    unsafe fn largest(v: Self::V) -> f32 {
        unsafe { largest_half(_mm256_max_ps(_mm512_castps512_ps256(v), upper_half(v))) }
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut u16, v: Self::V) {
        unsafe {
            if BF16 {
                let rounded = _mm512_cvtneps_pbh(v);
                return _mm256_storeu_si256(p.cast(), std::mem::transmute::<__m256bh, __m256i>(rounded));
            }
            let mut lanes = [0.0f32; LANES];
            Self::store(lanes.as_mut_ptr(), v);
            for (i, lane) in lanes.into_iter().enumerate() {
                *p.add(i) = bf16_bits(lane);
            }
        }
    }

    #[inline(always)]
    unsafe fn pair(low: Self::V, high: Self::V) -> Self::V {
        unsafe {
            if BF16 {
                let rounded = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
                let order = _mm512_loadu_si512(HALVES.as_ptr().cast());
                return _mm512_castsi512_ps(_mm512_permutexvar_epi16(order, rounded));
            }
            super::pair_lanes::<Self>(low, high)
        }
    }

    #[inline(always)]
    unsafe fn transpose(dst: *mut f32, dst_stride: usize, src: *const f32, src_stride: usize) {
        unsafe {
            let mut r = [_mm512_setzero_ps(); 16];
            for (i, r) in r.iter_mut().enumerate() {
                *r = _mm512_loadu_ps(src.add(i * src_stride));
            }
            // Pairs of rows, then pairs of pairs: afterwards u[4 b + c] holds, in its quarter k, column 4 k + c of rows 4 b .. 4 b + 4.
            let mut u = [_mm512_setzero_ps(); 16];
            for b in 0..4 {
                let [r0, r1, r2, r3] = [r[4 * b], r[4 * b + 1], r[4 * b + 2], r[4 * b + 3]];
                let (lo01, hi01) = (_mm512_unpacklo_ps(r0, r1), _mm512_unpackhi_ps(r0, r1));
                let (lo23, hi23) = (_mm512_unpacklo_ps(r2, r3), _mm512_unpackhi_ps(r2, r3));
                u[4 * b] = _mm512_shuffle_ps::<0x44>(lo01, lo23);
                u[4 * b + 1] = _mm512_shuffle_ps::<0xEE>(lo01, lo23);
                u[4 * b + 2] = _mm512_shuffle_ps::<0x44>(hi01, hi23);
                u[4 * b + 3] = _mm512_shuffle_ps::<0xEE>(hi01, hi23);
            }
            // A 4 x 4 transpose of quarters for each c.
            for c in 0..4 {
                let (a, b, d, e) = (u[c], u[4 + c], u[8 + c], u[12 + c]);
                let (ab02, ab13) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xDD>(a, b));
                let (de02, de13) = (_mm512_shuffle_f32x4::<0x88>(d, e), _mm512_shuffle_f32x4::<0xDD>(d, e));
                _mm512_storeu_ps(dst.add(c * dst_stride), _mm512_shuffle_f32x4::<0x88>(ab02, de02));
                _mm512_storeu_ps(dst.add((4 + c) * dst_stride), _mm512_shuffle_f32x4::<0x88>(ab13, de13));
                _mm512_storeu_ps(dst.add((8 + c) * dst_stride), _mm512_shuffle_f32x4::<0xDD>(ab02, de02));
                _mm512_storeu_ps(dst.add((12 + c) * dst_stride), _mm512_shuffle_f32x4::<0xDD>(ab13, de13));
            }
        }
    }
}

#[inline(always)]
unsafe fn upper_half(v: __m512) -> __m256 {
    unsafe { _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(v))) }
}

/// The rest of [`Simd::sum`], for eight lanes.
#[inline(always)]
unsafe fn sum_half(v: __m256) -> f32 {
    unsafe {
        let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
    }
}

/// The rest of [`Simd::largest`], for eight lanes.
#[inline(always)]
unsafe fn largest_half(v: __m256) -> f32 {
    unsafe {
        let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
    }
}

/// AVX2 and FMA.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

/// `2^n` in each lane for integers `-126 ..= 127`.
#[inline(always)]
unsafe fn power_of_two(n: __m256i) -> __m256 {
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n, _mm256_set1_epi32(127)))) }
}

#[inline(always)]
unsafe fn scale_half(a: __m256, n: __m256) -> __m256 {
    unsafe {
        let n = _mm256_cvtps_epi32(n);
        let half = _mm256_srai_epi32::<1>(n);
        // Two steps, because 2^n itself may not be a normal number; the first is exact.
        _mm256_mul_ps(_mm256_mul_ps(a, power_of_two(half)), power_of_two(_mm256_sub_epi32(n, half)))
    }
}

#[inline(always)]
unsafe fn dot_half(acc: __m256, a: __m256, b: __m256) -> __m256 {
    unsafe {
        let (a, b) = (_mm256_castps_si256(a), _mm256_castps_si256(b));
        let high = _mm256_set1_epi32(0xffff_0000_u32 as i32);
        let odd = [_mm256_and_si256(a, high), _mm256_and_si256(b, high)];
        let even = [_mm256_slli_epi32::<16>(a), _mm256_slli_epi32::<16>(b)];
        let acc = _mm256_fmadd_ps(_mm256_castsi256_ps(odd[0]), _mm256_castsi256_ps(odd[1]), acc);
        _mm256_fmadd_ps(_mm256_castsi256_ps(even[0]), _mm256_castsi256_ps(even[1]), acc)
    }
}

impl Simd for Avx2 {
    type V = [__m256; 2];
    const WIDE: bool = false;

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        unsafe {
            _mm256_storeu_ps(p, v[0]);
            _mm256_storeu_ps(p.add(8), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        unsafe { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn sqrt(a: Self::V) -> Self::V {
        unsafe { [_mm256_sqrt_ps(a[0]), _mm256_sqrt_ps(a[1])] }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        unsafe { [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn round(a: Self::V) -> Self::V {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        unsafe { [_mm256_round_ps::<NEAREST>(a[0]), _mm256_round_ps::<NEAREST>(a[1])] }
    }
    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        unsafe { sum_half(_mm256_add_ps(v[0], v[1])) }
    }
    #[inline(always)]
    unsafe fn largest(v: Self::V) -> f32 {
        unsafe { largest_half(_mm256_max_ps(v[0], v[1])) }
    }
    #[inline(always)]
    unsafe fn dot(acc: Self::V, a: Self::V, b: Self::V) -> Self::V {
        unsafe { [dot_half(acc[0], a[0], b[0]), dot_half(acc[1], a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn scale(a: Self::V, n: Self::V) -> Self::V {
        unsafe { [scale_half(a[0], n[0]), scale_half(a[1], n[1])] }
    }

    #[inline(always)]
    unsafe fn transpose(dst: *mut f32, dst_stride: usize, src: *const f32, src_stride: usize) {
        for (i, j) in [(0, 0), (0, 8), (8, 0), (8, 8)] {
            unsafe { transpose8(dst.add(j * dst_stride + i), dst_stride, src.add(i * src_stride + j), src_stride) };
        }
    }
}

/// Transposes an 8 x 8 block.
#[inline(always)]
unsafe fn transpose8(dst: *mut f32, dst_stride: usize, src: *const f32, src_stride: usize) {
    unsafe {
        let mut u = [_mm256_setzero_ps(); 8];
        for b in 0..2 {
            let rows = src.add(4 * b * src_stride);
            let (r0, r1) = (_mm256_loadu_ps(rows), _mm256_loadu_ps(rows.add(src_stride)));
            let (r2, r3) = (_mm256_loadu_ps(rows.add(2 * src_stride)), _mm256_loadu_ps(rows.add(3 * src_stride)));
            let (lo01, hi01) = (_mm256_unpacklo_ps(r0, r1), _mm256_unpackhi_ps(r0, r1));
            let (lo23, hi23) = (_mm256_unpacklo_ps(r2, r3), _mm256_unpackhi_ps(r2, r3));
            u[4 * b] = _mm256_shuffle_ps::<0x44>(lo01, lo23);
            u[4 * b + 1] = _mm256_shuffle_ps::<0xEE>(lo01, lo23);
            u[4 * b + 2] = _mm256_shuffle_ps::<0x44>(hi01, hi23);
            u[4 * b + 3] = _mm256_shuffle_ps::<0xEE>(hi01, hi23);
        }
        for c in 0..4 {
            _mm256_storeu_ps(dst.add(c * dst_stride), _mm256_permute2f128_ps::<0x20>(u[c], u[4 + c]));
            _mm256_storeu_ps(dst.add((4 + c) * dst_stride), _mm256_permute2f128_ps::<0x31>(u[c], u[4 + c]));
        }
    }
}
