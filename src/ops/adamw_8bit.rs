//! AdamW with moments of 8 bits: block-wise dynamic quantisation (Dettmers et al. 2022, arXiv 2110.02861), a quarter of the
//! memory of F32 moments.
//!
//! 256 moments share a scale, the largest magnitude among them. A moment over the scale becomes the nearest of 256 numbers: 0, 1,
//! and in each of seven decades, `[1e-7, 1e-6]` to `[0.1, 1]`, the middles of equal intervals, of which decade `d` has `2^d`
//! for each sign, or `2^(d+1)` for second moments, which have none. These are the numbers of bitsandbytes' dynamic map.

use super::adamw::{AdamW, Factors};
use super::simd::{Kernel, LANES, Simd, dispatch};
use super::{check, parallel};
use crate::device::{Cost, DType, Device, Op, Tensor};
use crate::error::{Error, Result};

/// Moments that share a scale.
pub const BLOCK: usize = 256;
/// Blocks of one parallel task.
const BLOCKS: usize = 64;
/// The lower ends of the decades but the lowest, and what brings each to `[0.1, 1)`.
const DECADES: [(f32, f32); 6] = [(1e-6, 1e5), (1e-5, 1e4), (1e-4, 1e3), (1e-3, 1e2), (1e-2, 1e1), (1e-1, 1.0)];

/// Both moments of a tensor of `n` elements.
pub struct Moments8bit {
    /// Running mean of the gradient: U32 `[n / 256, 64]` (rounded up), four codes each, the first in the low byte.
    pub m: Tensor,
    /// F32 `[n / 256]`.
    pub m_scale: Tensor,
    /// Running mean of its square, as `m`.
    pub v: Tensor,
    /// F32 `[n / 256]`.
    pub v_scale: Tensor,
}

impl Moments8bit {
    /// Zeros for a tensor of `elements` elements.
    pub fn zeros(elements: usize) -> Moments8bit {
        let blocks = elements.div_ceil(BLOCK);
        let codes = || Tensor::zeros(&[blocks, BLOCK / 4], DType::U32);
        let scales = || Tensor::zeros(&[blocks], DType::F32);
        Moments8bit { m: codes(), m_scale: scales(), v: codes(), v_scale: scales() }
    }

    /// Bytes of [`Moments8bit::zeros`].
    pub fn plan_bytes(elements: u64) -> u64 {
        elements.div_ceil(BLOCK as u64) * 2 * (BLOCK as u64 + 4)
    }
}

/// The step of [`adamw`](super::adamw::adamw) with moments of 8 bits: each block's are widened, take the step in F32, and are
/// rounded again. The parameters see them before they are rounded.
///
/// `p`, `g`: F32 of one shape, on the CPU. A first moment is rounded by at most half an interval of its decade, 0.7 % of the block's
/// largest in the highest. Second moments are twice as fine, and none that is not 0 becomes 0, which would make the next
/// step too long. Errors on step 0, and on moments of another size.
pub fn adamw_8bit(dev: &Device, p: &mut Tensor, moments: &mut Moments8bit, g: &Tensor, settings: AdamW) -> Result<()> {
    const OP: &str = "adamw_8bit";
    let blocks = g.elements().div_ceil(BLOCK);
    check(OP, "g", g, DType::F32, g.shape())?;
    check(OP, "p", p, DType::F32, g.shape())?;
    for (argument, codes, scales) in [("m", &moments.m, &moments.m_scale), ("v", &moments.v, &moments.v_scale)] {
        check(OP, argument, codes, DType::U32, &[blocks, BLOCK / 4])?;
        check(OP, argument, scales, DType::F32, &[blocks])?;
    }
    settings.check(OP)?;
    if !dev.is_cpu() {
        return Err(Error::shape(OP, "device", "the CPU", dev.description()));
    }
    let n = g.elements() as u64;
    let _span = dev.span(Op::AdamW, Cost { flops: 14 * n, bytes: 16 * n });
    let factors = Factors::new(&settings);
    let Moments8bit { m, m_scale, v, v_scale } = moments;
    let codes = |t| bytemuck::cast_slice_mut::<u32, u8>(Tensor::u32_mut(t)).chunks_mut(BLOCKS * BLOCK);
    let moments = codes(m).zip(m_scale.f32_mut().chunks_mut(BLOCKS));
    let moments = moments.zip(codes(v).zip(v_scale.f32_mut().chunks_mut(BLOCKS)));
    let values = p.f32_mut().chunks_mut(BLOCKS * BLOCK).zip(g.f32().chunks(BLOCKS * BLOCK));
    parallel::for_each(values.zip(moments), |((p, g), (m, v))| dispatch(Step { p, g, m, v, factors }));
    Ok(())
}

struct Step<'a> {
    p: &'a mut [f32],
    g: &'a [f32],
    /// Codes and scales.
    m: (&'a mut [u8], &'a mut [f32]),
    v: (&'a mut [u8], &'a mut [f32]),
    factors: Factors,
}

impl Kernel for Step<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let values = self.p.chunks_mut(BLOCK).zip(self.g.chunks(BLOCK));
        let first = self.m.0.chunks_exact_mut(BLOCK).zip(self.m.1);
        let second = self.v.0.chunks_exact_mut(BLOCK).zip(self.v.1);
        for ((p, g), ((m, m_scale), (v, v_scale))) in values.zip(first.zip(second)) {
            let (mut mean, mut square) = ([0.0f32; BLOCK], [0.0f32; BLOCK]);
            mean.iter_mut().zip(&*m).for_each(|(mean, code)| *mean = SIGNED[usize::from(*code)] * *m_scale);
            square.iter_mut().zip(&*v).for_each(|(square, code)| *square = UNSIGNED[usize::from(*code)] * *v_scale);
            let moments = mean.chunks_exact_mut(LANES).zip(square.chunks_exact_mut(LANES));
            for ((p, g), (m, v)) in p.chunks_mut(LANES).zip(g.chunks(LANES)).zip(moments) {
                // SAFETY: inside `dispatch`.
                unsafe {
                    let (next, mean, square) = self.factors.step::<S>(S::read(p), S::read(m), S::read(v), S::read(g));
                    S::write(p, next);
                    S::write(m, mean);
                    S::write(v, square);
                }
            }
            let scale = largest(&mean);
            let unit = inverse(scale);
            for (code, x) in m.iter_mut().zip(&mean) {
                let k = nearest(x.abs() * unit, 1.0);
                // There is a 1, but no -1.
                *code = low_byte(127.0 + if *x < 0.0 { -(if k > 127.0 { 127.0 } else { k }) } else { k });
            }
            *m_scale = scale;
            let scale = largest(&square);
            let unit = inverse(scale);
            for (code, x) in v.iter_mut().zip(&square) {
                let k = nearest(*x * unit, 2.0);
                let k = if *x > 0.0 && k < 1.0 { 1.0 } else { k };
                *code = low_byte(k);
            }
            *v_scale = scale;
        }
    }
}

/// The largest magnitude.
#[inline(always)]
fn largest(x: &[f32; BLOCK]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    for part in x.chunks_exact(LANES) {
        for (lane, x) in lanes.iter_mut().zip(part) {
            *lane = if x.abs() > *lane { x.abs() } else { *lane };
        }
    }
    lanes.into_iter().fold(0.0, |a, b| if b > a { b } else { a })
}

/// One over a scale; 0 where that would not be finite.
#[inline(always)]
fn inverse(scale: f32) -> f32 {
    if scale >= f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 }
}

/// The place of the number nearest to `x` in `0 ..= 1` among those of the map that are not negative, from 0; the lowest decade has
/// `first` intervals.
#[inline(always)]
fn nearest(x: f32, first: f32) -> f32 {
    let (mut scale, mut levels, mut above) = (1e6, first, first);
    for (edge, to_unit) in DECADES {
        above *= 2.0;
        // Halfway between the middles of the intervals below and above the edge, which are 0.9 / above and 4.5 / above of
        // it away.
        let reached = x >= edge * (1.0 + 1.8 / above);
        scale = if reached { to_unit } else { scale };
        levels = if reached { above } else { levels };
    }
    let inside = ((x * scale - 0.1) * (levels / 0.9)).floor();
    let inside = if inside < 0.0 { 0.0 } else { inside };
    let inside = if inside > levels - 1.0 { levels - 1.0 } else { inside };
    // Below this decade there are levels - first intervals, and 0.
    let k = levels - first + inside + 1.0;
    let k = if x < 0.5e-6 * (0.1 + 0.45 / first) { 0.0 } else { k };
    if x > 1.0 - 0.225 / (64.0 * first) { 127.0 * first + 1.0 } else { k }
}

/// A whole number in `0 ..= 255`. Adding 2^23 puts it into the low bits of the sum.
#[inline(always)]
fn low_byte(x: f32) -> u8 {
    (x + 8_388_608.0).to_bits() as u8
}

/// What the codes of first moments stand for, in increasing order.
static SIGNED: [f32; 256] = {
    let (numbers, mut map, mut k) = (numbers(1), [0.0; 256], 0);
    while k <= 128 {
        map[127 + k] = numbers[k];
        if k <= 127 {
            map[127 - k] = -numbers[k];
        }
        k += 1;
    }
    map
};

/// What the codes of second moments stand for, in increasing order.
static UNSIGNED: [f32; 256] = numbers(2);

/// 0, the middles of the intervals of all decades, 1.
const fn numbers(first: usize) -> [f32; 256] {
    let (mut numbers, mut k, mut levels, mut decade) = ([0.0; 256], 1, first, 1e-6);
    while levels <= 64 * first {
        let mut i = 0;
        while i < levels {
            numbers[k] = (decade * (0.1 + 0.9 * (i as f64 + 0.5) / levels as f64)) as f32;
            (k, i) = (k + 1, i + 1);
        }
        (levels, decade) = (2 * levels, decade * 10.0);
    }
    numbers[k] = 1.0;
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{random, random_tensor};

    /// `create_dynamic_map` of bitsandbytes in f64, in increasing order.
    fn dynamic_map(signed: bool) -> Vec<f64> {
        let mut map = vec![0.0, 1.0];
        for i in 0..7 {
            let items = 1usize << (i + usize::from(!signed));
            let boundary = |b: usize| 0.1 + 0.9 * b as f64 / items as f64;
            for b in 0..items {
                let mean = 10f64.powi(i as i32 - 6) * (boundary(b) + boundary(b + 1)) / 2.0;
                map.push(mean);
                if signed {
                    map.push(-mean);
                }
            }
        }
        map.sort_by(f64::total_cmp);
        map
    }

    #[test]
    fn the_numbers_are_those_of_the_published_map_and_each_is_its_own_code() {
        for (signed, table) in [(true, &SIGNED), (false, &UNSIGNED)] {
            let map = dynamic_map(signed);
            assert_eq!(map.len(), 256);
            for (code, (got, want)) in table.iter().zip(map).enumerate() {
                assert!((f64::from(*got) - want).abs() <= 1e-7 * want.abs(), "{code}: {got} for {want}");
                let k = nearest(got.abs(), if signed { 1.0 } else { 2.0 });
                let back = if !signed {
                    k
                } else if *got < 0.0 {
                    127.0 - k
                } else {
                    127.0 + k
                };
                assert_eq!(low_byte(back) as usize, code, "{got}");
            }
        }
    }

    /// The nearest number of the map, found by looking at all of them.
    fn closest(map: &[f64], x: f64) -> f64 {
        *map.iter().min_by(|a, b| (*a - x).abs().total_cmp(&(*b - x).abs())).unwrap()
    }

    /// AdamW in f64 with the moments of each block rounded to the closest number after every step.
    #[test]
    fn steps_follow_the_published_algorithm() {
        let (n, dev) = (3 * BLOCK + 37, Device::cpu());
        let mut p = random_tensor(&[n], 1);
        let mut moments = Moments8bit::zeros(n);
        let (signed, unsigned) = (dynamic_map(true), dynamic_map(false));
        let mut want: Vec<[f64; 3]> = p.f32().iter().map(|&p| [f64::from(p), 0.0, 0.0]).collect();
        let (lr, steps) = (1e-3, 8);
        for step in 1..=steps {
            // Gradients over five decades.
            let g: Vec<f32> =
                random(n, 10 + step).iter().enumerate().map(|(i, g)| g * 10f32.powi(-(i as i32 % 5))).collect();
            let settings = AdamW { lr, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, step, grad_scale: 0.5 };
            adamw_8bit(&dev, &mut p, &mut moments, &Tensor::from_f32(&g, &[n]), settings).unwrap();
            for ([p, m, v], g) in want.iter_mut().zip(&g) {
                let g = 0.5 * f64::from(*g);
                *p -= lr * 0.1 * *p;
                *m = 0.9 * *m + 0.1 * g;
                *v = 0.999 * *v + 0.001 * g * g;
                let (m, v) = (*m / (1.0 - 0.9f64.powi(step as i32)), *v / (1.0 - 0.999f64.powi(step as i32)));
                *p -= lr * m / (v.sqrt() + 1e-8);
            }
            for block in want.chunks_mut(BLOCK) {
                let largest = |at: usize| block.iter().map(|w| w[at].abs()).fold(0.0, f64::max);
                let (m_scale, v_scale) = (largest(1), largest(2));
                for [_, m, v] in block {
                    *m = closest(&signed, *m / m_scale) * m_scale;
                    *v = closest(&unsigned, *v / v_scale).max(unsigned[1]) * v_scale;
                }
            }
        }
        // Where rounding errors put a moment on the other side of a border, an interval of it is a few percent of a step.
        let far = p.f32().iter().zip(&want).filter(|(p, w)| (f64::from(**p) - w[0]).abs() > 1e-3 * lr).count();
        assert!(far <= n / 100, "{far} of {n} differ");
    }

    #[test]
    fn moments_become_the_closest_number_and_no_second_moment_that_is_not_0_becomes_0() {
        let n = 40 * BLOCK;
        let g: Vec<f32> = random(n, 3).iter().enumerate().map(|(i, g)| g * 10f32.powi(-(i as i32 % 9))).collect();
        let (mut p, mut moments) = (Tensor::zeros(&[n], DType::F32), Moments8bit::zeros(n));
        // With both decays at 0 the moments are the gradient and its square.
        let settings = AdamW { lr: 0.0, beta1: 0.0, beta2: 0.0, eps: 1.0, weight_decay: 0.0, step: 1, grad_scale: 1.0 };
        adamw_8bit(&Device::cpu(), &mut p, &mut moments, &Tensor::from_f32(&g, &[n]), settings).unwrap();
        let codes = |t: &Tensor| bytemuck::cast_slice::<u32, u8>(t.u32()).to_vec();
        let (m, v) = (codes(&moments.m), codes(&moments.v));
        let (signed, unsigned) = (dynamic_map(true), dynamic_map(false));
        for (i, &g) in g.iter().enumerate() {
            let (m_scale, v_scale) = (moments.m_scale.f32()[i / BLOCK], moments.v_scale.f32()[i / BLOCK]);
            for (x, code, scale, map) in [(g, m[i], m_scale, &signed), (g * g, v[i], v_scale, &unsigned)] {
                let share = f64::from(x) / f64::from(scale);
                let (error, least) = ((map[code as usize] - share).abs(), (closest(map, share) - share).abs());
                let kept = code == 1 && map[0] == 0.0 && share < map[1];
                assert!(error <= least + 2e-7 * share.abs() || kept, "{x} of {scale} became code {code}");
            }
            assert!(v[i] > 0 || g == 0.0, "{g} squared became 0");
        }
    }

    #[test]
    fn a_wrong_size_is_named() {
        let (mut p, g) = (Tensor::zeros(&[300], DType::F32), Tensor::zeros(&[300], DType::F32));
        let settings = AdamW { lr: 1.0, beta1: 0.9, beta2: 0.9, eps: 1.0, weight_decay: 0.0, step: 1, grad_scale: 1.0 };
        let error = adamw_8bit(&Device::cpu(), &mut p, &mut Moments8bit::zeros(256), &g, settings).unwrap_err();
        assert_eq!(error.to_string(), "adamw_8bit: m: expected U32 [2, 64], found U32 [1, 64]");
    }
}
