//! Attention in f64, and what a kernel may be off by.

use crate::numbers::{BF16, F32, assert_within, random_bf16, wide};

#[derive(Clone, Copy, Debug)]
pub struct Heads {
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
}

impl Heads {
    pub fn group(self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    /// The kernel's size for this head_dim.
    pub fn padded(self) -> usize {
        [64, 80, 96, 128].into_iter().find(|&d| d >= self.head_dim).expect("at most 128")
    }

    pub fn scale(self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }
}

pub fn offsets(lens: &[usize]) -> Vec<u32> {
    let mut offsets = vec![0];
    lens.iter().for_each(|&n| offsets.push(offsets[offsets.len() - 1] + n as u32));
    offsets
}

/// Softmax weights, output and log of the sum of exponentials of every token and head, in f64.
pub fn exact(heads: Heads, lens: &[usize], q: &[u16], k: &[u16], v: &[u16]) -> (Vec<f64>, Vec<f64>) {
    let Heads { n_heads, n_kv_heads, head_dim } = heads;
    let (q, k, v) = (wide(q), wide(k), wide(v));
    let (mut y, mut lses) = (vec![0.0; q.len()], vec![]);
    let mut start = 0;
    for &n in lens {
        for t in start..start + n {
            for h in 0..n_heads {
                let query = &q[(t * n_heads + h) * head_dim..][..head_dim];
                let row = |x: usize| (x * n_kv_heads + h / heads.group()) * head_dim;
                let score = |j: usize| query.iter().zip(&k[row(j)..]).map(|(q, k)| q * k).sum::<f64>();
                let scores: Vec<f64> = (start..=t).map(|j| score(j) / (head_dim as f64).sqrt()).collect();
                let sum: f64 = scores.iter().map(|s| s.exp()).sum();
                for (j, s) in scores.iter().enumerate() {
                    let values = &v[row(start + j)..][..head_dim];
                    let y = &mut y[(t * n_heads + h) * head_dim..][..head_dim];
                    y.iter_mut().zip(values).for_each(|(y, v)| *y += s.exp() / sum * v);
                }
                lses.push(sum.ln());
            }
        }
        start += n;
    }
    (y, lses)
}

/// What a score may be off by: products of numbers below 1, then scale and logarithm's base.
fn score_error(heads: Heads) -> f64 {
    (heads.head_dim as f64 + 4.0) * F32 * (heads.head_dim as f64).sqrt()
}

/// What an output may be off by beside its own rounding: a weight errs by twice a score's error, the rounding of an operand, and the
/// exponential; values are below 1.
pub fn error_of_weight(heads: Heads) -> f64 {
    2.0 * score_error(heads) + BF16 + 8.0 * F32
}

/// What the log of a sum of exponentials may be off by.
pub fn error_of_lse(heads: Heads, lse: f64) -> f64 {
    2.0 * score_error(heads) + (20.0 + lse.abs()) * F32
}

pub fn inputs(heads: Heads, lens: &[usize]) -> [Vec<u16>; 3] {
    let tokens = lens.iter().sum::<usize>();
    let kv = tokens * heads.n_kv_heads * heads.head_dim;
    [random_bf16(tokens * heads.n_heads * heads.head_dim, 1), random_bf16(kv, 2), random_bf16(kv, 3)]
}

/// Gradients in f64, and for each element the sum of the absolute terms that it is made of, by which rounding is bounded.
fn exact_gradients(heads: Heads, lens: &[usize], dy: &[u16], x: [&[u16]; 3]) -> [(Vec<f64>, Vec<f64>); 3] {
    let Heads { n_heads, n_kv_heads, head_dim } = heads;
    let (dy, [q, k, v]) = (wide(dy), x.map(wide));
    let scale = 1.0 / (head_dim as f64).sqrt();
    let [mut dq, mut dk, mut dv] = [&q, &k, &v].map(|x| (vec![0.0; x.len()], vec![0.0; x.len()]));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let mut start = 0;
    for &n in lens {
        for t in start..start + n {
            for h in 0..n_heads {
                let at_q = (t * n_heads + h) * head_dim;
                let (query, d_out) = (&q[at_q..at_q + head_dim], &dy[at_q..at_q + head_dim]);
                let rows: Vec<usize> = (start..=t).map(|j| (j * n_kv_heads + h / heads.group()) * head_dim).collect();
                let weights: Vec<f64> = rows.iter().map(|&r| (scale * dot(query, &k[r..r + head_dim])).exp()).collect();
                let sum: f64 = weights.iter().sum();
                let d_weights: Vec<f64> = rows.iter().map(|&r| dot(d_out, &v[r..r + head_dim])).collect();
                let delta: f64 = weights.iter().zip(&d_weights).map(|(w, d)| w / sum * d).sum();
                let size = d_weights.iter().fold(delta.abs(), |m, d| m.max(d.abs()));
                for ((&r, w), d) in rows.iter().zip(&weights).zip(&d_weights) {
                    let (p, ds) = (w / sum, w / sum * (d - delta) * scale);
                    for i in 0..head_dim {
                        let (term_q, term_k, term_v) = (ds * k[r + i], ds * query[i], p * d_out[i]);
                        dq.0[at_q + i] += term_q;
                        dk.0[r + i] += term_k;
                        dv.0[r + i] += term_v;
                        // The difference d - delta errs by its larger term.
                        dq.1[at_q + i] += p * size * scale * k[r + i].abs();
                        dk.1[r + i] += p * size * scale * query[i].abs();
                        dv.1[r + i] += term_v.abs();
                    }
                }
            }
        }
        start += n;
    }
    [dq, dk, dv]
}

/// Panics unless dq, dk and dv are within what rounding explains.
pub fn assert_gradients(heads: Heads, lens: &[usize], dy: &[u16], x: [&[u16]; 3], got: &[Vec<u16>; 3]) {
    let want = exact_gradients(heads, lens, dy, x);
    for ((name, got), (want, size)) in ["dq", "dk", "dv"].iter().zip(got).zip(&want) {
        // A weight errs by its score and the log of the sum, and rounds to an operand; y in delta was rounded, dS is.
        let relative = 4.0 * score_error(heads) + 3.0 * BF16 + 64.0 * F32;
        let bound = |i: usize| size[i] * relative + want[i].abs() * BF16 + 1e-30;
        assert_within(&format!("{name} {heads:?}"), &wide(got), want, bound);
    }
}
