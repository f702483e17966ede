//! `kernels/attention_backward_sm90.cu`.

use crate::abi::attention_backward_sm90_params;
use crate::attention::{CASES, attention};
use crate::attention_setup::{
    assert_gradients_equal_f64, assert_gradients_ignore_neighbours, assert_gradients_keep_any_size, gradients,
};
use crate::exact_attention::Heads;
use crate::{gpu, tensor};

/// dq, dk, dv.
fn backward(heads: Heads, lens: &[usize], dy: &[u16], x: [&[u16]; 3]) -> [Vec<u16>; 3] {
    let (gpu, Heads { n_heads, n_kv_heads, head_dim }) = (gpu(), heads);
    let (tokens, longest) = (lens.iter().sum::<usize>(), *lens.iter().max().expect("a sequence"));
    let group = n_heads / n_kv_heads;
    gradients(gpu, attention, heads, lens, dy, x, |&attention, dy, [q, k, v]| {
        let queries = |x| tensor(x, [head_dim, group, n_kv_heads, tokens], [64, group, 1, 64 / group]);
        let keys = |x| tensor(x, [head_dim, 1, n_kv_heads, tokens], [64, 1, 1, 64]);
        let params =
            attention_backward_sm90_params { q: queries(q), dy: queries(dy), k: keys(k), v: keys(v), attention };
        let shared = ((256 + 3 * 128) * head_dim * 2 + 1024) as u32;
        for (kernel, rows) in [("keys", 128), ("queries", 2 * (64 / group))] {
            let grid = (longest.div_ceil(rows) as u32, n_kv_heads as u32, lens.len() as u32);
            gpu.launch(&format!("attention_backward_sm90_{kernel}_{head_dim}"), grid, 384, shared, &params);
        }
    })
}

#[test]
fn gradients_equal_f64() {
    assert_gradients_equal_f64(backward, &CASES);
}

#[test]
fn gradients_of_any_size_are_as_exact() {
    assert_gradients_keep_any_size(backward);
}

#[test]
fn a_sequence_has_the_same_gradients_beside_any_other() {
    assert_gradients_ignore_neighbours(backward);
}
