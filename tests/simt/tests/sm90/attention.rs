//! `kernels/attention_sm90.cu`.

use crate::abi::{ATTENTION_SM90_KEYS, attention_params, attention_sm90_params};
use crate::exact_attention::{Heads, error_of_lse, error_of_weight, exact, inputs, offsets};
use crate::gpu::in_every_schedule;
use crate::numbers::{BF16, assert_within, wide, wide32};
use crate::{gpu, tensor};
use std::ptr;

/// Grouped, one key/value head for all, each its own, a group that 64 is no multiple of; lengths around blocks of 128 keys.
pub const CASES: [(Heads, &[usize]); 4] = [
    (Heads { n_heads: 4, n_kv_heads: 2, head_dim: 64 }, &[1, 5, 130, 257]),
    (Heads { n_heads: 3, n_kv_heads: 1, head_dim: 64 }, &[66, 64]),
    (Heads { n_heads: 2, n_kv_heads: 2, head_dim: 128 }, &[3, 257, 128]),
    (Heads { n_heads: 8, n_kv_heads: 1, head_dim: 128 }, &[40, 300]),
];

pub fn attention(heads: Heads, lens: &[usize], [q, k, v]: [&[u16]; 3]) -> (Vec<u16>, Vec<f32>) {
    let (gpu, Heads { n_heads, n_kv_heads, head_dim }) = (gpu(), heads);
    let (tokens, longest) = (lens.iter().sum::<usize>(), *lens.iter().max().expect("a sequence"));
    let (group, keys) = (heads.group(), ATTENTION_SM90_KEYS as usize);
    let (q_d, k_d, v_d, cu_seqlens) = (gpu.upload(q), gpu.upload(k), gpu.upload(v), gpu.upload(&offsets(lens)));
    let boxed = [64, 1, 1, keys];
    in_every_schedule(|| {
        let (y, lse) = (gpu.fresh::<u16>(q.len()), gpu.fresh::<f32>(tokens * n_heads));
        let attention = attention_params {
            y: y.ptr(),
            lse: lse.ptr(),
            partial: ptr::null_mut(),
            q: q_d.ptr(),
            k: k_d.ptr(),
            v: v_d.ptr(),
            cu_seqlens: cu_seqlens.ptr(),
            context_lens: ptr::null(),
            page_table: ptr::null(),
            max_pages: 0,
            page_size: 0,
            n_heads: n_heads as u32,
            n_kv_heads: n_kv_heads as u32,
            head_dim: head_dim as u32,
            max_splits: 0,
            scale: heads.scale(),
        };
        let params = attention_sm90_params {
            q: tensor(&q_d, [head_dim, group, n_kv_heads, tokens], [64, group, 1, 64 / group]),
            k: tensor(&k_d, [head_dim, 1, n_kv_heads, tokens], boxed),
            v: tensor(&v_d, [head_dim, 1, n_kv_heads, tokens], boxed),
            attention,
        };
        let blocks = longest.div_ceil(2 * (64 / group)) as u32;
        let shared = ((128 + 4 * keys) * head_dim * 2 + 1024) as u32;
        let grid = (blocks, n_kv_heads as u32, lens.len() as u32);
        gpu.launch(&format!("attention_sm90_{head_dim}"), grid, 384, shared, &params);
        (gpu.download(&y), gpu.download(&lse))
    })
}

#[test]
fn packed_sequences_equal_f64() {
    for (heads, lens) in CASES {
        let [q, k, v] = inputs(heads, lens);
        let (y, lse) = attention(heads, lens, [&q, &k, &v]);
        let (want, want_lse) = exact(heads, lens, &q, &k, &v);
        let what = format!("{heads:?}");
        assert_within(&what, &wide(&y), &want, |i| error_of_weight(heads) + want[i].abs() * BF16);
        assert_within("lse", &wide32(&lse), &want_lse, |i| error_of_lse(heads, want_lse[i]));
    }
}

#[test]
fn a_sequence_has_the_same_bits_whatever_is_packed_beside_it() {
    let (heads, lens) = (Heads { n_heads: 4, n_kv_heads: 2, head_dim: 64 }, [70, 200, 31]);
    let [q, k, v] = inputs(heads, &lens);
    let (together, _) = attention(heads, &lens, [&q, &k, &v]);
    let mut start = 0;
    for n in lens {
        let of = |x: &[u16], heads: usize| x[start * heads * 64..(start + n) * heads * 64].to_vec();
        let (alone, _) = attention(heads, &[n], [&of(&q, 4), &of(&k, 2), &of(&v, 2)]);
        assert!(alone == of(&together, 4), "{n} tokens");
        start += n;
    }
}
