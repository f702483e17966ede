//! Gradients of causal attention, without ever storing the attention matrix (Dao 2023, FlashAttention-2).

use super::attention::{Heads, cost as forward_cost};
use super::check;
use crate::device::{Cost, DType, Device, Op, Tensor};
use crate::error::{Error, Result};

/// FLOPs and fewest bytes of a backward pass. The convention is five products over the causal pairs (the scores again,
/// `dP`, `dV`, `dQ`, `dK`): 2.5 times the forward pass.
pub fn cost(cu_seqlens: &[u32], heads: Heads) -> Cost {
    let tokens = cu_seqlens.last().copied().unwrap_or(0) as u64;
    let (q, kv) = ((heads.n_heads * heads.head_dim) as u64, (heads.n_kv_heads * heads.head_dim) as u64);
    Cost {
        flops: forward_cost(cu_seqlens, heads).flops / 2 * 5,
        bytes: 4 * tokens * (4 * q + 4 * kv + heads.n_heads as u64),
    }
}

/// Gradients of [`attention`](super::attention::attention): `dq`, `dk`, `dv` from `dy`, all replaced.
///
/// `q`, `y`, `dy`, `dq`: F32 `[tokens, n_heads * head_dim]`; `k`, `v`, `dk`, `dv`: F32 `[tokens, n_kv_heads * head_dim]`;
/// `lse`: F32 `[tokens, n_heads]` of the forward pass; `cu_seqlens` as there. `dk` and `dv` are summed over the query heads
/// of a group.
#[allow(clippy::too_many_arguments)]
pub fn attention_backward(
    dev: &Device,
    dq: &mut Tensor,
    dk: &mut Tensor,
    dv: &mut Tensor,
    dy: &Tensor,
    y: &Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    lse: &Tensor,
    cu_seqlens: &Tensor,
    heads: Heads,
) -> Result<()> {
    let Heads { n_heads, n_kv_heads, head_dim } = heads;
    let tokens = q.rows();
    let name = "attention_backward";
    for (argument, t) in [("q", q), ("y", y), ("dy", dy), ("dq", &*dq)] {
        check(name, argument, t, DType::F32, &[tokens, n_heads * head_dim])?;
    }
    for (argument, t) in [("k", k), ("v", v), ("dk", &*dk), ("dv", &*dv)] {
        check(name, argument, t, DType::F32, &[tokens, n_kv_heads * head_dim])?;
    }
    check(name, "lse", lse, DType::F32, &[tokens, n_heads])?;
    let offsets = cu_seqlens.u32();
    if offsets.last().copied() != Some(tokens as u32) {
        return Err(Error::shape(name, "cu_seqlens", format!("last offset {tokens}"), format!("{offsets:?}")));
    }
    let _span = dev.span(Op::AttentionBackward, cost(offsets, heads));
    let scale = 1.0 / (head_dim as f32).sqrt();
    let (q, k, v, y, dy, lse) = (q.f32(), k.f32(), v.f32(), y.f32(), dy.f32(), lse.f32());
    let (dq, dk, dv) = (dq.f32_mut(), dk.f32_mut(), dv.f32_mut());
    dq.fill(0.0);
    dk.fill(0.0);
    dv.fill(0.0);
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    for window in offsets.windows(2) {
        for t in window[0] as usize..window[1] as usize {
            for head in 0..n_heads {
                let at = (t * n_heads + head) * head_dim..(t * n_heads + head + 1) * head_dim;
                let delta = dot(&dy[at.clone()], &y[at.clone()]);
                for s in window[0] as usize..=t {
                    let row = s * n_kv_heads + head / (n_heads / n_kv_heads);
                    let kv = row * head_dim..(row + 1) * head_dim;
                    let p = (scale * dot(&q[at.clone()], &k[kv.clone()]) - lse[t * n_heads + head]).exp();
                    let ds = scale * p * (dot(&dy[at.clone()], &v[kv.clone()]) - delta);
                    for i in 0..head_dim {
                        dv[kv.start + i] += p * dy[at.start + i];
                        dq[at.start + i] += ds * k[kv.start + i];
                        dk[kv.start + i] += ds * q[at.start + i];
                    }
                }
            }
        }
    }
    Ok(())
}
