//! Attention forward and backward against f64, and their promises of equal bits.

use super::{Heads, attention, attention_backward, cost};
use crate::device::{Compute, Device, Op, Tensor};
use crate::ops::rounding::bf16_value;
use crate::ops::testing::{assert_close, assert_derivative, bits, random_tensor, unwritten, wide};

/// Head counts with 1, 3, 4 and 8 queries to a key, head sizes with and without whole vectors.
const SHAPES: [(usize, usize, usize); 6] = [(2, 2, 16), (3, 1, 64), (8, 2, 12), (8, 1, 80), (4, 4, 128), (9, 3, 64)];

pub(super) fn heads((n_heads, n_kv_heads, head_dim): (usize, usize, usize)) -> Heads {
    Heads { n_heads, n_kv_heads, head_dim }
}

pub(super) struct Case {
    pub heads: Heads,
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
    dy: Tensor,
    pub cu_seqlens: Tensor,
}

impl Case {
    pub fn new(heads: Heads, lengths: &[usize]) -> Case {
        let tokens: usize = lengths.iter().sum();
        let (q, kv) = ([tokens, heads.n_heads * heads.head_dim], [tokens, heads.n_kv_heads * heads.head_dim]);
        let mut offsets = vec![0u32];
        lengths.iter().for_each(|n| offsets.push(offsets[offsets.len() - 1] + *n as u32));
        let [k, v] = [2, 3].map(|seed| random_tensor(&kv, seed));
        let [q, dy] = [1, 4].map(|seed| random_tensor(&q, seed));
        Case { heads, q, k, v, dy, cu_seqlens: Tensor::from_u32(&offsets) }
    }

    pub fn forward(&self, dev: &Device) -> (Tensor, Tensor) {
        let (mut y, mut lse) = (unwritten(self.q.shape()), unwritten(&[self.q.rows(), self.heads.n_heads]));
        attention(dev, &mut y, &mut lse, &self.q, &self.k, &self.v, &self.cu_seqlens, self.heads).unwrap();
        (y, lse)
    }

    fn backward(&self, dev: &Device) -> [Tensor; 3] {
        let (y, lse) = self.forward(dev);
        let [mut dq, mut dk, mut dv] = [&self.q, &self.k, &self.v].map(|t| unwritten(t.shape()));
        let (q, k, v) = (&self.q, &self.k, &self.v);
        attention_backward(dev, &mut dq, &mut dk, &mut dv, &self.dy, &y, q, k, v, &lse, &self.cu_seqlens, self.heads)
            .unwrap();
        [dq, dk, dv]
    }

    /// One sequence of the case, alone.
    fn only(&self, sequence: usize) -> Case {
        let offsets = self.cu_seqlens.u32();
        let rows = offsets[sequence] as usize..offsets[sequence + 1] as usize;
        let cut = |t: &Tensor| {
            let width = t.row_len();
            Tensor::from_f32(&t.f32()[rows.start * width..rows.end * width], &[rows.len(), width])
        };
        let cu_seqlens = Tensor::from_u32(&[0, rows.len() as u32]);
        Case { heads: self.heads, q: cut(&self.q), k: cut(&self.k), v: cut(&self.v), dy: cut(&self.dy), cu_seqlens }
    }

    fn reference(&self) -> Reference {
        Reference {
            heads: self.heads,
            cu_seqlens: self.cu_seqlens.u32().to_vec(),
            q: wide(self.q.f32()),
            k: wide(self.k.f32()),
            v: wide(self.v.f32()),
        }
    }
}

/// The definition, in f64.
#[derive(Clone)]
struct Reference {
    heads: Heads,
    cu_seqlens: Vec<u32>,
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
}

impl Reference {
    /// Calls `visit(query row, first key row, weights, lse)`, rows being those of single heads.
    fn each(&self, mut visit: impl FnMut(usize, &[usize], &[f64], f64)) {
        let Heads { n_heads, n_kv_heads, head_dim: d } = self.heads;
        for w in self.cu_seqlens.windows(2) {
            for t in w[0] as usize..w[1] as usize {
                for head in 0..n_heads {
                    let row = t * n_heads + head;
                    let keys: Vec<usize> =
                        (w[0] as usize..=t).map(|s| s * n_kv_heads + head * n_kv_heads / n_heads).collect();
                    let score = |key: &usize| {
                        (0..d).map(|i| self.q[row * d + i] * self.k[key * d + i]).sum::<f64>() / (d as f64).sqrt()
                    };
                    let scores: Vec<f64> = keys.iter().map(score).collect();
                    let lse = scores.iter().map(|s| s.exp()).sum::<f64>().ln();
                    let weights: Vec<f64> = scores.iter().map(|s| (s - lse).exp()).collect();
                    visit(row, &keys, &weights, lse);
                }
            }
        }
    }

    fn forward(&self) -> (Vec<f64>, Vec<f64>) {
        let d = self.heads.head_dim;
        let (mut y, mut all) = (vec![0.0; self.q.len()], vec![0.0; self.q.len() / d]);
        self.each(|row, keys, weights, lse| {
            all[row] = lse;
            for (key, p) in keys.iter().zip(weights) {
                (0..d).for_each(|i| y[row * d + i] += p * self.v[key * d + i]);
            }
        });
        (y, all)
    }

    fn backward(&self, dy: &[f64]) -> [Vec<f64>; 3] {
        let d = self.heads.head_dim;
        let (mut dq, mut dk, mut dv) = (vec![0.0; self.q.len()], vec![0.0; self.k.len()], vec![0.0; self.v.len()]);
        let (y, _) = self.forward();
        self.each(|row, keys, weights, _| {
            let dot = |x: &[f64], key: usize| (0..d).map(|i| dy[row * d + i] * x[key * d + i]).sum::<f64>();
            let delta = dot(&y, row);
            for (&key, p) in keys.iter().zip(weights) {
                let ds = p * (dot(&self.v, key) - delta) / (d as f64).sqrt();
                for i in 0..d {
                    dv[key * d + i] += p * dy[row * d + i];
                    dk[key * d + i] += ds * self.q[row * d + i];
                    dq[row * d + i] += ds * self.k[key * d + i];
                }
            }
        });
        [dq, dk, dv]
    }

    /// What rounding to bf16 (by up to 2^-8) may change of [`Reference::backward`]: weights and their gradients as operands, and the
    /// output, whose weights were rounded, in `delta`.
    fn bounds_of_bf16(&self, dy: &[f64]) -> [Vec<f64>; 3] {
        const BF16: f64 = 1.0 / 256.0;
        let d = self.heads.head_dim;
        let (mut dq, mut dk, mut dv) = (vec![0.0; self.q.len()], vec![0.0; self.k.len()], vec![0.0; self.v.len()]);
        let (y, _) = self.forward();
        self.each(|row, keys, weights, _| {
            let sum = |f: &dyn Fn(usize) -> f64| (0..d).map(f).sum::<f64>();
            let of_dy = &dy[row * d..(row + 1) * d];
            let delta = sum(&|i| of_dy[i] * y[row * d + i]);
            let averaged = |i: usize| keys.iter().zip(weights).map(|(j, p)| p * self.v[j * d + i].abs()).sum::<f64>();
            let of_delta = BF16 * sum(&|i| of_dy[i].abs() * averaged(i));
            for (&key, p) in keys.iter().zip(weights) {
                let dp = sum(&|i| of_dy[i] * self.v[key * d + i]);
                let ds = p * (BF16 * (dp - delta).abs() + of_delta * (1.0 + BF16)) / (d as f64).sqrt();
                for i in 0..d {
                    dv[key * d + i] += BF16 * p * of_dy[i].abs();
                    dk[key * d + i] += ds * self.q[row * d + i].abs();
                    dq[row * d + i] += ds * self.k[key * d + i].abs();
                }
            }
        });
        [dq, dk, dv]
    }
}

/// Sums of up to 128 + 200 products of unit numbers with errors of 2^-24 each.
const TOLERANCE: f64 = 2e-5;

#[test]
fn attention_is_the_softmax_average_of_the_values_before() {
    for shape in SHAPES {
        for lengths in [&[1][..], &[5, 1, 70, 33], &[200]] {
            let case = Case::new(heads(shape), lengths);
            let (y, lse) = case.forward(&Device::cpu());
            let (want_y, want_lse) = case.reference().forward();
            assert_close(&format!("{shape:?} {lengths:?} y"), y.f32(), &want_y, TOLERANCE);
            assert_close(&format!("{shape:?} {lengths:?} lse"), lse.f32(), &want_lse, TOLERANCE);
        }
    }
}

#[test]
fn attention_of_bf16_is_that_of_the_rounded_inputs_up_to_the_rounding_of_the_weights() {
    let dev = Device::cpu().with_compute(Compute::Bf16).unwrap();
    for shape in SHAPES {
        for lengths in [&[1][..], &[5, 1, 70, 33], &[200]] {
            let case = Case::new(heads(shape), lengths);
            let (y, lse) = case.forward(&dev);
            let mut reference = case.reference();
            let scale = 1.0 / (case.heads.head_dim as f32).sqrt();
            let root = (case.heads.head_dim as f64).sqrt();
            reference.q = case.q.f32().iter().map(|q| f64::from(bf16_value(q * scale)) * root).collect();
            reference.k = wide(&case.k.f32().iter().map(|&k| bf16_value(k)).collect::<Vec<_>>());
            reference.v = wide(&case.v.f32().iter().map(|&v| bf16_value(v)).collect::<Vec<_>>());
            let (want_y, want_lse) = reference.forward();
            let largest = case.v.f32().iter().fold(0.0f32, |max, v| max.max(v.abs()));
            let weights = 2f64.powi(-9) * f64::from(largest);
            assert_close(&format!("{shape:?} {lengths:?} y"), y.f32(), &want_y, weights + TOLERANCE);
            assert_close(&format!("{shape:?} {lengths:?} lse"), lse.f32(), &want_lse, TOLERANCE);
        }
    }
}

#[test]
fn attention_gradients_equal_the_f64_formula() {
    for shape in SHAPES {
        for lengths in [&[1][..], &[5, 1, 70, 33], &[200]] {
            let case = Case::new(heads(shape), lengths);
            let want = case.reference().backward(&wide(case.dy.f32()));
            for ((name, got), want) in ["dq", "dk", "dv"].iter().zip(case.backward(&Device::cpu())).zip(want) {
                assert_close(&format!("{shape:?} {lengths:?} {name}"), got.f32(), &want, 4.0 * TOLERANCE);
            }
        }
    }
}

#[test]
fn attention_gradients_of_bf16_are_those_of_the_rounded_inputs_up_to_the_rounding_of_weights() {
    let dev = Device::cpu().with_compute(Compute::Bf16).unwrap();
    let rounded = |x: &[f32]| x.iter().map(|&x| f64::from(bf16_value(x))).collect::<Vec<_>>();
    for shape in SHAPES {
        for lengths in [&[1usize, 5, 70, 129][..], &[64], &[33, 17], &[530]] {
            let case = Case::new(heads(shape), lengths);
            let (root, scale) = ((shape.2 as f64).sqrt(), 1.0 / (shape.2 as f32).sqrt());
            let q = case.q.f32().iter().map(|q| f64::from(bf16_value(q * scale)) * root).collect();
            let (k, v) = (rounded(case.k.f32()), rounded(case.v.f32()));
            let (reference, dy) = (Reference { q, k, v, ..case.reference() }, rounded(case.dy.f32()));
            let (want, bounds) = (reference.backward(&dy), reference.bounds_of_bf16(&dy));
            for ((got, want), bounds) in case.backward(&dev).iter().zip(want).zip(bounds) {
                for (i, ((got, want), bound)) in got.f32().iter().zip(want).zip(bounds).enumerate() {
                    let error = (f64::from(*got) - want).abs();
                    let place = format!("{shape:?} {lengths:?}, element {i}: {got} for {want}");
                    assert!(error < bound + 4.0 * TOLERANCE, "{place}, {error} beyond {bound}");
                }
            }
        }
    }
}

#[test]
fn long_sequences_add_up_the_gradients_of_their_spans() {
    // 1,300 tokens are three spans of 512 keys; the first of two sequences, so that offsets matter.
    let case = Case::new(heads((3, 1, 16)), &[1300, 7]);
    let want = case.reference().backward(&wide(case.dy.f32()));
    for (got, want) in case.backward(&Device::cpu()).iter().zip(want) {
        assert_close("1300 tokens", got.f32(), &want, 8.0 * TOLERANCE);
    }
}

#[test]
fn the_f64_formula_is_the_derivative_of_the_forward_pass() {
    for shape in SHAPES {
        let case = Case::new(heads(shape), &[1, 6, 3]);
        let (reference, dy) = (case.reference(), wide(case.dy.f32()));
        let loss = |r: &Reference| r.forward().0.iter().zip(&dy).map(|(y, dy)| y * dy).sum::<f64>();
        let [dq, dk, dv] = reference.backward(&dy);
        assert_derivative("dq", &reference.q, &dq, |q| loss(&Reference { q: q.to_vec(), ..reference.clone() }));
        assert_derivative("dk", &reference.k, &dk, |k| loss(&Reference { k: k.to_vec(), ..reference.clone() }));
        assert_derivative("dv", &reference.v, &dv, |v| loss(&Reference { v: v.to_vec(), ..reference.clone() }));
    }
}

#[test]
fn a_packed_sequence_gives_the_bits_that_it_gives_alone() {
    for compute in [Compute::F32, Compute::Bf16] {
        packed_is_alone(&Device::cpu().with_compute(compute).unwrap());
    }
}

fn packed_is_alone(dev: &Device) {
    let case = Case::new(heads((9, 3, 64)), &[37, 1, 600, 65]);
    let ((y, lse), grads) = (case.forward(dev), case.backward(dev));
    for s in 0..4 {
        let alone = case.only(s);
        let (y_alone, lse_alone) = alone.forward(dev);
        let rows = case.cu_seqlens.u32()[s] as usize..case.cu_seqlens.u32()[s + 1] as usize;
        let same = |packed: &Tensor, alone: &Tensor| {
            let width = packed.row_len();
            assert_eq!(bits(&packed.f32()[rows.start * width..rows.end * width]), bits(alone.f32()), "sequence {s}");
        };
        same(&y, &y_alone);
        same(&lse, &lse_alone);
        grads.iter().zip(&alone.backward(dev)).for_each(|(packed, alone)| same(packed, alone));
    }
}

#[test]
fn gradients_do_not_depend_on_the_number_of_threads() {
    let case = Case::new(heads((4, 2, 32)), &[700, 40]);
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| case.backward(&Device::cpu()).map(|t| bits(t.f32())))
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn wrong_shapes_and_offsets_are_named() {
    let dev = Device::cpu();
    let mut case = Case::new(heads((3, 1, 16)), &[4]);
    case.cu_seqlens = Tensor::from_u32(&[0, 3]);
    let (mut y, mut lse) = (unwritten(case.q.shape()), unwritten(&[4, 3]));
    let error = attention(&dev, &mut y, &mut lse, &case.q, &case.k, &case.v, &case.cu_seqlens, case.heads);
    let message = error.unwrap_err().to_string();
    assert!(message.contains("cu_seqlens") && message.contains("rising from 0 to 4"), "{message}");
    let uneven = Heads { n_heads: 3, n_kv_heads: 2, head_dim: 16 };
    let error = attention(&dev, &mut y, &mut lse, &case.q, &case.k, &case.v, &case.cu_seqlens, uneven);
    assert!(error.unwrap_err().to_string().contains("heads"));
}

#[test]
fn the_ledger_counts_two_products_forward_and_five_backward() {
    let dev = Device::cpu();
    let case = Case::new(heads((3, 1, 16)), &[4, 2]);
    case.backward(&dev);
    // 10 and 3 pairs of a query and a key, 3 heads of 16 features, 2 FLOPs a product.
    assert_eq!(dev.ledger().entry(Op::Attention).flops, 2 * 2 * 13 * 48);
    assert_eq!(dev.ledger().entry(Op::AttentionBackward).flops, 5 * 2 * 13 * 48);
    assert_eq!(cost(&[0, 4, 6], case.heads).bytes, 4 * 6 * (2 * 48 + 2 * 16));
}
