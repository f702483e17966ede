//! Products against f64, and their promise of equal bits.

use super::blocked::{Operand, Product};
use super::pack::{Left, Right, Source};
use super::tile::Inputs;
use super::*;
use crate::device::Compute;
use crate::ops::rounding::{bf16_bits, bf16_value};
use half::{bf16, f16};
use proptest::prelude::*;

/// Numbers in [-1, 1) without a pattern (SplitMix64).
pub(crate) fn numbers(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(n).collect()
}

/// A float tensor of the dtype and its values as f32.
fn tensor(seed: u64, shape: &[usize], dtype: DType) -> Tensor {
    let values = numbers(seed, shape.iter().product());
    let mut t = Tensor::zeros(shape, dtype);
    match dtype {
        DType::BF16 => t.bf16_mut().iter_mut().zip(&values).for_each(|(t, v)| *t = bf16::from_f32(*v)),
        DType::F16 => {
            let halves: &mut [f16] = bytemuck::cast_slice_mut(t.bytes_mut());
            halves.iter_mut().zip(&values).for_each(|(t, v)| *t = f16::from_f32(*v));
        }
        _ => t.f32_mut().copy_from_slice(&values),
    }
    t
}

/// The tensor rounded to bf16.
fn to_bf16(t: &Tensor) -> Tensor {
    let mut out = Tensor::zeros(t.shape(), DType::BF16);
    out.bf16_mut().iter_mut().zip(t.f32()).for_each(|(out, &v)| *out = bf16::from_bits(bf16_bits(v)));
    out
}

/// What the contract promises for one element: the chain, then the bias, then the old value.
fn chain(
    compute: Compute,
    k: usize,
    x: impl Fn(usize) -> f32,
    w: impl Fn(usize) -> f32,
    bias: Option<f32>,
    old: Option<f32>,
) -> f32 {
    let pairs = || (0..k.next_multiple_of(2)).map(|p| p ^ 1);
    let sum = match compute {
        Compute::F32 => (0..k).fold(0.0f32, |sum, p| x(p).mul_add(w(p), sum)),
        Compute::Bf16 => pairs().filter(|&p| p < k).fold(0.0f32, |sum, p| x(p).mul_add(w(p), sum)),
    };
    let sum = bias.map_or(sum, |b| sum + b);
    old.map_or(sum, |old| old + sum)
}

/// The f64 value and the error bound of sequential summation, with two more roundings for bias and old value.
fn exact(k: usize, x: impl Fn(usize) -> f32, w: impl Fn(usize) -> f32, rest: &[f32]) -> (f64, f64) {
    let terms = (0..k).map(|p| f64::from(x(p)) * f64::from(w(p))).chain(rest.iter().map(|&v| f64::from(v)));
    let (sum, magnitude) = terms.fold((0.0, 0.0), |(sum, abs), v| (sum + v, abs + v.abs()));
    let ku = (k + 2) as f64 * 2f64.powi(-24);
    (sum, ku / (1.0 - ku) * magnitude)
}

#[derive(Clone, Copy, Debug)]
struct Case {
    compute: Compute,
    size: (usize, usize, usize),
    dtype: DType,
    bias: bool,
    store: Store,
}

/// Runs all three layouts and the packed weight on every instruction set and compares each element with the chain and f64.
fn all_paths_agree(case: Case) {
    let Case { compute, size: (m, n, k), dtype, bias, store } = case;
    let x = tensor(1, &[m, k], DType::F32);
    let value = |v: f32| if compute == Compute::Bf16 { bf16_value(v) } else { v };
    let xt = {
        let mut t = Tensor::zeros(&[k, m], DType::F32);
        (0..m * k).for_each(|i| t.f32_mut()[i % k * m + i / k] = x.f32()[i]);
        t
    };
    let w = tensor(2, &[n, k], dtype);
    let wide = w.to_f32();
    let wt = {
        let mut t = Tensor::zeros(&[k, n], dtype);
        let size = dtype.size();
        for i in 0..n * k {
            let (from, to) = (i * size, (i % k * n + i / k) * size);
            t.bytes_mut()[to..to + size].copy_from_slice(&w.bytes()[from..from + size]);
        }
        t
    };
    let packed = PackedWeight::new(&w, compute).unwrap();
    let bias = bias.then(|| numbers(3, n));
    let old = numbers(4, m * n);
    let mut expected = vec![0.0f32; m * n];
    for i in 0..m {
        for j in 0..n {
            let (x, w) = (|p: usize| value(x.f32()[i * k + p]), |p: usize| value(wide.f32()[j * k + p]));
            let (b, o) = (bias.as_ref().map(|b| b[j]), (store == Store::Add).then_some(old[i * n + j]));
            let value = chain(compute, k, x, w, b, o);
            let (sum, bound) = exact(k, x, w, &b.into_iter().chain(o).collect::<Vec<_>>());
            assert!((f64::from(value) - sum).abs() <= bound, "{case:?} [{i}, {j}]: {value} for {sum}");
            expected[i * n + j] = value;
        }
    }
    let rights =
        [Operand::Plain(Right::Rows(&w, 0)), Operand::Plain(Right::Columns(&wt, 0)), Operand::Packed(&packed, 0)];
    let (x_bf16, xt_bf16) = (to_bf16(&x), to_bf16(&xt));
    let mut lefts = vec![Left::Rows(Source::of(&x, 0)), Left::Columns(Source::of(&xt, 0))];
    if compute == Compute::Bf16 {
        lefts.extend([Left::Rows(Source::of(&x_bf16, 0)), Left::Columns(Source::of(&xt_bf16, 0))]);
    }
    for isa in Isa::available() {
        for &left in &lefts {
            for (r, right) in rights.into_iter().enumerate() {
                let mut c = old.clone();
                Product {
                    isa,
                    inputs: Inputs::new(compute, None),
                    size: (m, n, k),
                    left,
                    right,
                    bias: bias.as_deref(),
                    store,
                }
                .run(&mut c, n);
                for (i, (c, e)) in c.iter().zip(&expected).enumerate() {
                    let place = format!("{case:?} {} right {r} element {i}: {c} for {e}", isa.name());
                    assert_eq!(c.to_bits(), e.to_bits(), "{place}");
                }
            }
        }
    }
}

#[test]
fn every_layout_dtype_and_instruction_set_gives_the_promised_chain_on_odd_shapes() {
    let sizes = [
        (1, 1, 1),
        (1, 33, 7),
        (1, 150, 64),
        (2, 16, 5),
        (3, 129, 17),
        (4, 31, 66),
        (5, 65, 3),
        (6, 100, 9),
        (7, 1, 13),
        (8, 40, 1),
        (11, 48, 130),
        (12, 32, 65),
        (13, 17, 31),
        (121, 35, 6),
        (130, 70, 19),
    ];
    for (i, size) in sizes.into_iter().enumerate() {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            for store in [Store::Replace, Store::Add] {
                for compute in [Compute::F32, Compute::Bf16] {
                    all_paths_agree(Case { compute, size, dtype, bias: i % 2 == 0, store });
                }
            }
        }
    }
}

#[test]
fn blocks_of_a_long_reduction_continue_the_same_chain() {
    for store in [Store::Replace, Store::Add] {
        for compute in [Compute::F32, Compute::Bf16] {
            all_paths_agree(Case { compute, size: (14, 34, 3301), dtype: DType::BF16, bias: true, store });
            all_paths_agree(Case { compute, size: (1, 70, 800), dtype: DType::F32, bias: false, store });
        }
    }
}

#[test]
fn operands_larger_than_the_packing_buffers_are_walked_in_parts() {
    // 2 x 6,000,000 floats exceed B_BYTES and A_BYTES, so that both outer loops turn.
    let k = 40_000;
    let (x, w) = (tensor(5, &[250, k], DType::F32), tensor(6, &[64, k], DType::F32));
    let dev = Device::cpu();
    let mut y = Tensor::zeros(&[250, 64], DType::F32);
    matmul_nt(&dev, &mut y, &x, &w, None, Store::Replace).unwrap();
    for (i, j) in [(0, 0), (119, 31), (120, 32), (249, 63), (239, 33), (240, 1)] {
        let e = chain(Compute::F32, k, |p| x.f32()[i * k + p], |p| w.f32()[j * k + p], None, None);
        assert_eq!(y.f32()[i * 64 + j].to_bits(), e.to_bits(), "[{i}, {j}]");
    }
}

#[test]
fn an_empty_reduction_gives_the_bias() {
    let dev = Device::cpu();
    let bias = Tensor::from_f32(&[1.0, -2.0], &[2]);
    let mut y = Tensor::from_f32(&[5.0; 6], &[3, 2]);
    let (x, w) = (Tensor::zeros(&[3, 0], DType::F32), Tensor::zeros(&[2, 0], DType::F32));
    matmul_nt(&dev, &mut y, &x, &w, Some(&bias), Store::Replace).unwrap();
    assert_eq!(y.f32(), [1.0, -2.0, 1.0, -2.0, 1.0, -2.0]);
}

#[test]
fn a_row_has_the_same_bits_whatever_rows_stand_beside_it_and_however_many_threads_run() {
    rows_are_independent(Compute::F32);
    rows_are_independent(Compute::Bf16);
}

fn rows_are_independent(compute: Compute) {
    let (m, n, k) = (260, 200, 300);
    let (x, w) = (tensor(7, &[m, k], DType::F32), tensor(8, &[n, k], DType::BF16));
    let packed = PackedWeight::new(&w, compute).unwrap();
    let dev = Device::cpu().with_compute(compute).unwrap();
    let mut all = Tensor::zeros(&[m, n], DType::F32);
    matmul_nt(&dev, &mut all, &x, &w, None, Store::Replace).unwrap();
    for threads in [1, 2, 3, 5] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        for rows in [1, 2, 3, 5, 8, 12, 13, 130, 260] {
            let part = Tensor::from_f32(&x.f32()[..rows * k], &[rows, k]);
            let mut y = Tensor::zeros(&[rows, n], DType::F32);
            for use_packed in [false, true] {
                pool.install(|| match use_packed {
                    false => matmul_nt(&dev, &mut y, &part, &w, None, Store::Replace),
                    true => matmul_packed(&dev, &mut y, &part, &packed, None, Store::Replace),
                })
                .unwrap();
                assert_eq!(y.bytes(), &all.bytes()[..rows * n * 4], "{rows} rows, {threads} threads");
            }
        }
    }
}

#[test]
fn products_inside_parallel_work_do_not_disturb_each_other() {
    use rayon::prelude::*;
    let (m, n, k) = (150, 96, 64);
    let (x, w) = (tensor(9, &[m, k], DType::F32), tensor(10, &[n, k], DType::F32));
    let run = || {
        let mut y = Tensor::zeros(&[m, n], DType::F32);
        matmul_nt(&Device::cpu(), &mut y, &x, &w, None, Store::Replace).unwrap();
        y.bytes().to_vec()
    };
    let expected = run();
    assert!((0..64).into_par_iter().map(|_| run()).all(|y| y == expected));
}

#[test]
fn several_weights_of_one_input_give_the_bits_of_each_alone() {
    for compute in [Compute::F32, Compute::Bf16] {
        let dev = Device::cpu().with_compute(compute).unwrap();
        for m in [1, 7, 130] {
            let x = tensor(11, &[m, 64], DType::F32);
            let weights = [96, 33, 5].map(|n| tensor(n as u64, &[n, 64], DType::BF16));
            let packed = weights.each_ref().map(|w| PackedWeight::new(w, compute).unwrap());
            let bias = Tensor::from_f32(&numbers(12, 33), &[33]);
            let [mut a, mut b, mut c] = [96, 33, 5].map(|n| Tensor::zeros(&[m, n], DType::F32));
            let mut products = [
                (&mut a, Weight::Packed(&packed[0]), None),
                (&mut b, Weight::Packed(&packed[1]), Some(&bias)),
                (&mut c, Weight::Plain(&weights[2]), None),
            ];
            matmul_weights(&dev, &x, &mut products).unwrap();
            for (i, y) in [&a, &b, &c].into_iter().enumerate() {
                let mut alone = Tensor::zeros(y.shape(), DType::F32);
                matmul_nt(&dev, &mut alone, &x, &weights[i], (i == 1).then_some(&bias), Store::Replace).unwrap();
                assert_eq!(alone.bytes(), y.bytes(), "{compute} {m} rows, weight {i}");
            }
        }
    }
}

#[test]
fn a_weight_packed_for_other_products_is_refused() {
    let (x, w) = (tensor(1, &[3, 6], DType::F32), tensor(2, &[7, 6], DType::F32));
    let mut y = Tensor::zeros(&[3, 7], DType::F32);
    for (packed, used) in [(Compute::F32, Compute::Bf16), (Compute::Bf16, Compute::F32)] {
        let packed = PackedWeight::new(&w, packed).unwrap();
        let dev = Device::cpu().with_compute(used).unwrap();
        let error = matmul_packed(&dev, &mut y, &x, &packed, None, Store::Replace).unwrap_err().to_string();
        assert!(error.contains(&format!("expected a weight packed for {used} products")), "{error}");
    }
}

#[test]
fn flops_and_bytes_are_booked_and_wrong_shapes_are_named() {
    let dev = Device::cpu();
    let (x, w) = (tensor(1, &[3, 5], DType::F32), tensor(2, &[7, 5], DType::BF16));
    let mut y = Tensor::zeros(&[3, 7], DType::F32);
    matmul_nt(&dev, &mut y, &x, &w, None, Store::Replace).unwrap();
    let entry = dev.ledger().entry(Op::Matmul);
    assert_eq!((entry.flops, entry.bytes), (2 * 3 * 7 * 5, 4 * (15 + 21) + 2 * 35));
    let error = matmul_nt(&dev, &mut y, &w.to_f32(), &w, None, Store::Replace).unwrap_err().to_string();
    assert_eq!(error, "matmul_nt: y: expected F32 [7, 7], found F32 [3, 7]");
    let error = matmul_nn(&dev, &mut y, &x, &w, Store::Replace).unwrap_err().to_string();
    assert_eq!(error, "matmul_nn: dy: expected F32 [3, 7], found F32 [3, 5]");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_shape_gives_the_promised_chain(
        m in 1usize..150, n in 1usize..150, k in 1usize..90, kind in 0usize..3, bf16: bool, bias: bool, add: bool,
    ) {
        let compute = if bf16 { Compute::Bf16 } else { Compute::F32 };
        let dtype = [DType::F32, DType::BF16, DType::F16][kind];
        let store = if add { Store::Add } else { Store::Replace };
        all_paths_agree(Case { compute, size: (m, n, k), dtype, bias, store });
    }
}
