use crate::abi::attention_backward_params;
use crate::attention::{CASES, Heads, inputs, offsets, packed, score_error};
use crate::gpu::{Gpu, in_every_schedule};
use crate::numbers::{BF16, F32, assert_within, random_bf16, wide};

/// dq, dk, dv.
fn backward(heads: Heads, lens: &[usize], dy: &[u16], [q, k, v]: [&[u16]; 3]) -> [Vec<u16>; 3] {
    let gpu = Gpu::get();
    let tokens = lens.iter().sum::<usize>();
    let (y, lse) = packed(heads, lens, q, k, v);
    let [y, dy, q, k, v] = [&y[..], dy, q, k, v].map(|x| gpu.upload(x));
    let (lse, cu_seqlens) = (gpu.upload(&lse), gpu.upload(&offsets(lens)));
    let (q_len, kv_len) = (tokens * heads.n_heads * heads.head_dim, tokens * heads.n_kv_heads * heads.head_dim);
    in_every_schedule(|| {
        let [dq, dk, dv] = [q_len, kv_len, kv_len].map(|n| gpu.fresh::<u16>(n));
        let delta = gpu.fresh::<f32>(tokens * heads.n_heads);
        let params = attention_backward_params {
            dq: dq.ptr(),
            dk: dk.ptr(),
            dv: dv.ptr(),
            delta: delta.ptr(),
            dy: dy.ptr(),
            y: y.ptr(),
            q: q.ptr(),
            k: k.ptr(),
            v: v.ptr(),
            lse: lse.ptr(),
            cu_seqlens: cu_seqlens.ptr(),
            tokens: tokens as u32,
            n_heads: heads.n_heads as u32,
            n_kv_heads: heads.n_kv_heads as u32,
            head_dim: heads.head_dim as u32,
            scale: heads.scale(),
        };
        let (d, longest) = (heads.padded(), *lens.iter().max().expect("a sequence"));
        let shared = ((64 + 32) * 2 * (d + 8) * 2) as u32;
        let grid = |blocks: usize| (blocks as u32, heads.n_kv_heads as u32, lens.len() as u32);
        let rows = (tokens * heads.n_heads).div_ceil(4) as u32;
        gpu.launch("attention_delta", (rows, 1, 1), 128, 0, &params);
        gpu.launch(&format!("attention_backward_keys_{d}"), grid(longest.div_ceil(64)), 128, shared, &params);
        let blocks = longest.div_ceil(64 / heads.group());
        gpu.launch(&format!("attention_backward_queries_{d}"), grid(blocks), 128, shared, &params);
        [&dq, &dk, &dv].map(|x| gpu.download(x))
    })
}

/// Gradients in f64, and for each element the sum of the absolute terms that it is made of, by which rounding is bounded.
fn exact(heads: Heads, lens: &[usize], dy: &[u16], x: [&[u16]; 3]) -> [(Vec<f64>, Vec<f64>); 3] {
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

#[test]
fn gradients_equal_f64() {
    for (heads, lens) in CASES {
        let [q, k, v] = inputs(heads, lens);
        let dy = random_bf16(q.len(), 4);
        let x = [&q[..], &k[..], &v[..]];
        let got = backward(heads, lens, &dy, x);
        let want = exact(heads, lens, &dy, x);
        for ((name, got), (want, size)) in ["dq", "dk", "dv"].iter().zip(&got).zip(&want) {
            // A weight errs by its score and the log of the sum, and rounds to an operand; y in delta was rounded, dS is.
            let relative = 4.0 * score_error(heads) + 3.0 * BF16 + 64.0 * F32;
            let bound = |i: usize| size[i] * relative + want[i].abs() * BF16 + 1e-30;
            assert_within(&format!("{name} {heads:?}"), &wide(got), want, bound);
        }
    }
}

#[test]
fn a_sequence_has_the_same_gradients_beside_any_other() {
    let heads = Heads { n_heads: 4, n_kv_heads: 2, head_dim: 64 };
    let [q, k, v] = inputs(heads, &[37, 90]);
    let dy = random_bf16(q.len(), 4);
    let (q0, kv0) = (37 * 4 * 64, 37 * 2 * 64);
    let both = backward(heads, &[37, 90], &dy, [&q, &k, &v]);
    let alone = backward(heads, &[90], &dy[q0..], [&q[q0..], &k[kv0..], &v[kv0..]]);
    assert!(alone[0] == both[0][q0..] && alone[1] == both[1][kv0..] && alone[2] == both[2][kv0..]);
}
