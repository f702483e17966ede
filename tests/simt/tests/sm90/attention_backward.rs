//! `kernels/attention_backward_sm90.cu`.

use crate::abi::{attention_backward_params, attention_backward_sm90_params};
use crate::attention::{CASES, attention};
use crate::exact_attention::{Heads, assert_gradients, inputs, offsets};
use crate::gpu::in_every_schedule;
use crate::numbers::random_bf16;
use crate::{gpu, tensor};

/// dq, dk, dv.
fn backward(heads: Heads, lens: &[usize], dy: &[u16], x: [&[u16]; 3]) -> [Vec<u16>; 3] {
    let (gpu, Heads { n_heads, n_kv_heads, head_dim }) = (gpu(), heads);
    let (tokens, longest) = (lens.iter().sum::<usize>(), *lens.iter().max().expect("a sequence"));
    let (y, lse) = attention(heads, lens, x);
    let [y, dy, q, k, v] = [&y[..], dy, x[0], x[1], x[2]].map(|x| gpu.upload(x));
    let (lse, cu_seqlens) = (gpu.upload(&lse), gpu.upload(&offsets(lens)));
    let (group, q_len, kv_len) = (heads.group(), tokens * n_heads * head_dim, tokens * n_kv_heads * head_dim);
    in_every_schedule(|| {
        let [dq, dk, dv] = [q_len, kv_len, kv_len].map(|n| gpu.fresh::<u16>(n));
        let delta = gpu.fresh::<f32>(tokens * n_heads);
        let attention = attention_backward_params {
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
            n_heads: n_heads as u32,
            n_kv_heads: n_kv_heads as u32,
            head_dim: head_dim as u32,
            scale: heads.scale(),
        };
        let rows = (tokens * n_heads).div_ceil(4) as u32;
        gpu.launch("attention_delta", (rows, 1, 1), 128, 0, &attention);
        let queries = |x| tensor(x, [head_dim, group, n_kv_heads, tokens], [64, group, 1, 64 / group]);
        let keys = |x| tensor(x, [head_dim, 1, n_kv_heads, tokens], [64, 1, 1, 64]);
        let params =
            attention_backward_sm90_params { q: queries(&q), dy: queries(&dy), k: keys(&k), v: keys(&v), attention };
        let shared = ((256 + 3 * 128) * head_dim * 2 + 1024) as u32;
        for (kernel, rows) in [("keys", 128), ("queries", 2 * (64 / group))] {
            let grid = (longest.div_ceil(rows) as u32, n_kv_heads as u32, lens.len() as u32);
            gpu.launch(&format!("attention_backward_sm90_{kernel}_{head_dim}"), grid, 384, shared, &params);
        }
        [&dq, &dk, &dv].map(|x| gpu.download(x))
    })
}

#[test]
fn gradients_equal_f64() {
    for (heads, lens) in CASES {
        let [q, k, v] = inputs(heads, lens);
        let dy = random_bf16(q.len(), 4);
        let x = [&q[..], &k[..], &v[..]];
        assert_gradients(heads, lens, &dy, x, &backward(heads, lens, &dy, x));
    }
}

#[test]
fn a_sequence_has_the_same_gradients_beside_any_other() {
    let heads = Heads { n_heads: 4, n_kv_heads: 2, head_dim: 64 };
    let [q, k, v] = inputs(heads, &[37, 190]);
    let dy = random_bf16(q.len(), 4);
    let (q0, kv0) = (37 * 4 * 64, 37 * 2 * 64);
    let both = backward(heads, &[37, 190], &dy, [&q, &k, &v]);
    let alone = backward(heads, &[190], &dy[q0..], [&q[q0..], &k[kv0..], &v[kv0..]]);
    assert!(alone[0] == both[0][q0..] && alone[1] == both[1][kv0..] && alone[2] == both[2][kv0..]);
}
