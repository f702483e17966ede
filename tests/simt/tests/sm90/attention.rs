//! `kernels/attention_sm90.cu`.

use crate::abi::{ATTENTION_SM90_KEYS, attention_sm90_params};
use crate::attention_setup::{assert_outputs_equal_f64, assert_outputs_ignore_neighbours, params};
use crate::exact_attention::{Heads, offsets};
use crate::gpu::in_every_schedule;
use crate::{gpu, tensor};

/// Grouped, one key/value head for all, each its own, a group that 64 is no multiple of; lengths around blocks of 128 keys.
pub const CASES: [(Heads, &[usize]); 4] = [
    (Heads { n_heads: 4, n_kv_heads: 2, head_dim: 64 }, &[1, 5, 130, 257]),
    (Heads { n_heads: 3, n_kv_heads: 1, head_dim: 64 }, &[66, 64]),
    (Heads { n_heads: 2, n_kv_heads: 2, head_dim: 128 }, &[3, 257, 128]),
    (Heads { n_heads: 8, n_kv_heads: 1, head_dim: 128 }, &[40, 300]),
];

/// Output and log of the sum of exponentials.
pub fn attention(heads: Heads, lens: &[usize], x: [&[u16]; 3]) -> (Vec<u16>, Vec<f32>) {
    let (gpu, Heads { n_heads, n_kv_heads, head_dim }) = (gpu(), heads);
    let (tokens, longest) = (lens.iter().sum::<usize>(), *lens.iter().max().expect("a sequence"));
    let (group, keys) = (heads.group(), ATTENTION_SM90_KEYS as usize);
    let ([q, k, v], cu_seqlens) = (x.map(|x| gpu.upload(x)), gpu.upload(&offsets(lens)));
    let boxed = [64, 1, 1, keys];
    let (y, lse) = in_every_schedule(|| {
        let (y, lse) = (gpu.fresh::<u16>(x[0].len()), gpu.fresh::<u32>(tokens * n_heads));
        let mut attention = params(heads, &y, [&q, &k, &v], &cu_seqlens);
        attention.lse = lse.ptr();
        let params = attention_sm90_params {
            q: tensor(&q, [head_dim, group, n_kv_heads, tokens], [64, group, 1, 64 / group]),
            k: tensor(&k, [head_dim, 1, n_kv_heads, tokens], boxed),
            v: tensor(&v, [head_dim, 1, n_kv_heads, tokens], boxed),
            attention,
        };
        let blocks = longest.div_ceil(2 * (64 / group)) as u32;
        let shared = ((128 + 4 * keys) * head_dim * 2 + 1024) as u32;
        let grid = (blocks, n_kv_heads as u32, lens.len() as u32);
        gpu.launch(&format!("attention_sm90_{head_dim}"), grid, 384, shared, &params);
        // Bits, by which a NaN equals itself.
        (gpu.download(&y), gpu.download(&lse))
    });
    (y, lse.into_iter().map(f32::from_bits).collect())
}

#[test]
fn packed_sequences_equal_f64() {
    assert_outputs_equal_f64(attention, &CASES);
}

#[test]
fn a_sequence_has_the_same_bits_whatever_is_packed_beside_it() {
    assert_outputs_ignore_neighbours(attention);
}
