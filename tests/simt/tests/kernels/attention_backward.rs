use crate::abi::attention_backward_params;
use crate::attention::{CASES, packed};
use crate::exact_attention::{Heads, assert_gradients, inputs, offsets};
use crate::gpu::{Gpu, in_every_schedule};
use crate::numbers::random_bf16;

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

#[test]
fn gradients_equal_f64() {
    for (heads, lens) in CASES {
        let [q, k, v] = inputs(heads, lens);
        let dy = random_bf16(q.len(), 4);
        let x = [&q[..], &k[..], &v[..]];
        let got = backward(heads, lens, &dy, x);
        assert_gradients(heads, lens, &dy, x, &got);
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
