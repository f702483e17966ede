use crate::attention::{CASES, packed};
use crate::attention_setup::{
    assert_gradients_equal_f64, assert_gradients_ignore_neighbours, assert_gradients_keep_any_size, gradients,
};
use crate::exact_attention::Heads;
use crate::gpu::Gpu;

/// dq, dk, dv.
fn backward(heads: Heads, lens: &[usize], dy: &[u16], x: [&[u16]; 3]) -> [Vec<u16>; 3] {
    let gpu = Gpu::get();
    let (d, longest) = (heads.padded(), *lens.iter().max().expect("a sequence"));
    gradients(gpu, packed, heads, lens, dy, x, |params, _, _| {
        let shared = ((64 + 32) * 2 * (d + 8) * 2) as u32;
        for (kernel, rows) in [("keys", 64), ("queries", 64 / heads.group())] {
            let grid = (longest.div_ceil(rows) as u32, heads.n_kv_heads as u32, lens.len() as u32);
            gpu.launch(&format!("attention_backward_{kernel}_{d}"), grid, 128, shared, params);
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
