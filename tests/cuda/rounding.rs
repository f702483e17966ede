//! What rounding to BF16 does to a forward pass, found by trying (Monte Carlo arithmetic, Parker 1997): the pass in double
//! precision, with every number that a card stores in between moved by up to half a unit in its last place.
//!
//! The count of roundings alone does not tell. The first block reads embeddings of 0.1 and adds 0.8: what its first norm rounds
//! weighs five times as much in the logits of `tiny/gqa` as the mean rounding, and some tokens weigh four times as much as
//! others. So the largest error is far from the mean one, and each logit has a deviation of its own.

use ratoon::device::Tensor;
use ratoon::model::Llama;
use ratoon::model::linear::Linear;
use rayon::prelude::*;
use std::cell::Cell;

/// Passes from which deviations are taken.
const PASSES: u64 = 32;

/// Exact results, and how far rounding takes them in the mean square.
pub struct Expected {
    pub value: Vec<f64>,
    pub deviation: Vec<f64>,
}

impl Expected {
    /// Logits `[tokens, vocab]` of all sequences, and the log-probability of each next token (0 at the end of a sequence).
    pub fn of(model: &Llama, sequences: &[Vec<u32>]) -> [Expected; 2] {
        let pass = |pass: Option<u64>| {
            let logits = sequences.iter().map(|ids| Pass::new(model, ids.len(), pass).logits(ids));
            let logits: Vec<Vec<f64>> = logits.collect();
            let log_probs = sequences.iter().zip(&logits).flat_map(|(ids, logits)| log_probs(ids, logits)).collect();
            [logits.concat(), log_probs]
        };
        let exact = pass(None);
        let tried: Vec<[Vec<f64>; 2]> = (0..PASSES).into_par_iter().map(|i| pass(Some(i))).collect();
        let mut which = 0..2;
        exact.map(|value| {
            let which = which.next().expect("two");
            let square = |i: usize| tried.iter().map(|pass| (pass[which][i] - value[i]).powi(2)).sum::<f64>();
            let deviation = (0..value.len()).map(|i| (square(i) / PASSES as f64).sqrt()).collect();
            Expected { value, deviation }
        })
    }

    /// No number is further off than seven of its deviations, and all together no further than 1.25 in the mean square.
    ///
    /// A deviation from 32 passes makes Student's t of an error: 7 is passed once in 17 million, and there are 256 thousand logits.
    pub fn assert_explains(&self, what: &str, got: &[f32]) {
        assert_eq!(got.len(), self.value.len());
        let mut squares = 0.0;
        for (i, (&got, (value, deviation))) in got.iter().zip(self.value.iter().zip(&self.deviation)).enumerate() {
            let error = (f64::from(got) - value).abs();
            assert!(error <= 7.0 * deviation, "{what}: number {i}: {got} for {value}, deviation {deviation}");
            squares += if error > 0.0 { (error / deviation).powi(2) } else { 0.0 };
        }
        let rms = (squares / got.len() as f64).sqrt();
        assert!(rms <= 1.25, "{what}: off by {rms} standard deviations in the mean square");
    }
}

/// One pass over one sequence. `noise` is its number; without one nothing is rounded.
struct Pass<'a> {
    model: &'a Llama,
    tokens: usize,
    noise: Option<u64>,
    place: Cell<u64>,
}

impl<'a> Pass<'a> {
    fn new(model: &'a Llama, tokens: usize, noise: Option<u64>) -> Pass<'a> {
        Pass { model, tokens, noise, place: Cell::new(0) }
    }

    /// Moves the numbers, keyed by the pass, the place in the model and the number itself: equal rows move alike, as on a card.
    fn round(&self, mut values: Vec<f64>) -> Vec<f64> {
        self.place.set(self.place.get() + 1);
        if let Some(pass) = self.noise {
            for value in &mut values {
                let exponent = (value.to_bits() >> 52 & 0x7FF) as i32 - 1023;
                let uniform = uniform(value.to_bits(), pass << 32 | self.place.get());
                *value += (uniform - 0.5) * 2f64.powi(exponent - 7);
            }
        }
        values
    }

    fn logits(&self, ids: &[u32]) -> Vec<f64> {
        let (model, hidden) = (self.model, self.model.config.hidden_size);
        let row = |&id: &u32| model.embed_tokens.f32()[id as usize * hidden..][..hidden].iter().map(|&x| f64::from(x));
        let mut x: Vec<f64> = ids.iter().flat_map(row).collect();
        for block in &model.blocks {
            let normed = self.norm(&x, &block.input_norm);
            let [q, k, v] = [&block.q, &block.k, &block.v].map(|linear| self.round(linear_forward(linear, &normed)));
            let [q, k] = [q, k].map(|heads| self.round(self.rope(&heads)));
            let attended = self.round(self.attention(&q, &k, &v));
            x = self.round(sum(&x, &linear_forward(&block.o, &attended)));
            let normed = self.norm(&x, &block.post_norm);
            let [gate, up] = [&block.gate, &block.up].map(|linear| self.round(linear_forward(linear, &normed)));
            let activated = gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            x = self.round(sum(&x, &linear_forward(&block.down, &self.round(activated))));
        }
        product(&self.norm(&x, &model.norm), model.head())
    }

    fn norm(&self, x: &[f64], w: &Tensor) -> Vec<f64> {
        let eps = f64::from(self.model.config.rms_norm_eps);
        let row = |x: &[f64]| {
            let scale = (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + eps).sqrt().recip();
            x.iter().zip(w.f32()).map(|(x, &w)| x * scale * f64::from(w)).collect::<Vec<f64>>()
        };
        self.round(x.chunks(w.elements()).flat_map(row).collect())
    }

    fn rope(&self, x: &[f64]) -> Vec<f64> {
        let (mut y, width, inv_freq) = (x.to_vec(), x.len() / self.tokens, self.model.inv_freq.f32());
        for (position, row) in y.chunks_mut(width).enumerate() {
            for head in row.chunks_mut(2 * inv_freq.len()) {
                let (low, high) = head.split_at_mut(inv_freq.len());
                for (i, (a, b)) in low.iter_mut().zip(high).enumerate() {
                    let (sin, cos) = f64::from(position as f32 * inv_freq[i]).sin_cos();
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        }
        y
    }

    /// Weights are rounded before they meet the values, their sum is not.
    fn attention(&self, q: &[f64], k: &[f64], v: &[f64]) -> Vec<f64> {
        let heads = self.model.config.heads;
        let (width, group) = (heads.head_dim, heads.n_heads / heads.n_kv_heads);
        let mut y = vec![0.0; q.len()];
        for (at, (q, y)) in q.chunks(width).zip(y.chunks_mut(width)).enumerate() {
            let (token, kv_head) = (at / heads.n_heads, at % heads.n_heads / group);
            let of = |rows: &'_ [f64], t: usize| rows[(t * heads.n_kv_heads + kv_head) * width..][..width].to_vec();
            let scores: Vec<f64> = (0..=token).map(|t| dot(q, &of(k, t)) / (width as f64).sqrt()).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for (t, weight) in self.round(weights).into_iter().enumerate() {
                y.iter_mut().zip(of(v, t)).for_each(|(y, v)| *y += weight / sum * v);
            }
        }
        y
    }
}

/// A number from 0 to 1 (splitmix64).
fn uniform(bits: u64, key: u64) -> f64 {
    let mut z = bits ^ key.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ z >> 31) >> 11) as f64 / (1u64 << 53) as f64
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn sum(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// `x wᵀ`, `w`: F32 `[n, k]`.
fn product(x: &[f64], w: &Tensor) -> Vec<f64> {
    let w: Vec<Vec<f64>> = w.f32().chunks(w.row_len()).map(|row| row.iter().map(|&w| f64::from(w)).collect()).collect();
    x.chunks(w[0].len()).flat_map(|x| w.iter().map(|w| dot(x, w)).collect::<Vec<f64>>()).collect()
}

fn linear_forward(linear: &Linear, x: &[f64]) -> Vec<f64> {
    let mut y = product(x, &linear.weight);
    if let Some(bias) = &linear.bias {
        for row in y.chunks_mut(bias.elements()) {
            row.iter_mut().zip(bias.f32()).for_each(|(y, &b)| *y += f64::from(b));
        }
    }
    y
}

/// `log p(next token)`; 0 at the end.
fn log_probs(ids: &[u32], logits: &[f64]) -> Vec<f64> {
    let rows = logits.chunks(logits.len() / ids.len());
    let next = ids[1..].iter().map(Some).chain([None]);
    let one = |(row, next): (&[f64], Option<&u32>)| {
        next.map_or(0.0, |&id| row[id as usize] - row.iter().map(|x| x.exp()).sum::<f64>().ln())
    };
    rows.zip(next).map(one).collect()
}
