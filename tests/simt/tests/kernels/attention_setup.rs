//! Attention of any card: parameters of its kernels, and what each of them promises.

use crate::abi::{attention_backward_params, attention_params};
use crate::exact_attention::{Heads, assert_gradients, error_of_lse, error_of_weight, exact, inputs, offsets};
use crate::gpu::{Buffer, Gpu, in_every_schedule};
use crate::numbers::{BF16, assert_within, random_bf16, scaled, wide, wide32};
use crate::products::largest;
use std::ptr;

/// Output and log of the sum of exponentials of packed sequences, of queries, keys and values.
pub type Forward = fn(Heads, &[usize], [&[u16]; 3]) -> (Vec<u16>, Vec<f32>);
/// dq, dk, dv of packed sequences, of dy and queries, keys and values.
pub type Backward = fn(Heads, &[usize], &[u16], [&[u16]; 3]) -> [Vec<u16>; 3];

/// Of packed sequences.
pub fn params(heads: Heads, y: &Buffer<u16>, x: [&Buffer<u16>; 3], cu_seqlens: &Buffer<u32>) -> attention_params {
    attention_params {
        y: y.ptr(),
        lse: ptr::null_mut(),
        partial: ptr::null_mut(),
        q: x[0].ptr(),
        k: x[1].ptr(),
        v: x[2].ptr(),
        cu_seqlens: cu_seqlens.ptr(),
        context_lens: ptr::null(),
        page_table: ptr::null(),
        max_pages: 0,
        page_size: 0,
        n_heads: heads.n_heads as u32,
        n_kv_heads: heads.n_kv_heads as u32,
        head_dim: heads.head_dim as u32,
        max_splits: 0,
        scale: heads.scale(),
    }
}

/// dq, dk and dv by what `launch` runs after `attention_delta`, given parameters, dy and queries, keys and values.
pub fn gradients(
    gpu: &Gpu,
    forward: Forward,
    heads: Heads,
    lens: &[usize],
    dy: &[u16],
    x: [&[u16]; 3],
    launch: impl Fn(&attention_backward_params, &Buffer<u16>, [&Buffer<u16>; 3]),
) -> [Vec<u16>; 3] {
    let (y, lse) = forward(heads, lens, x);
    let tokens = lens.iter().sum::<usize>();
    let [y, dy, q, k, v] = [&y[..], dy, x[0], x[1], x[2]].map(|x| gpu.upload(x));
    let (lse, cu_seqlens) = (gpu.upload(&lse), gpu.upload(&offsets(lens)));
    let largest_dy = largest(gpu, &dy, heads.n_heads * heads.head_dim, &offsets(lens));
    in_every_schedule(|| {
        let [dq, dk, dv] = x.map(|x| gpu.fresh::<u16>(x.len()));
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
            largest_dy: largest_dy.ptr(),
            tokens: tokens as u32,
            n_heads: heads.n_heads as u32,
            n_kv_heads: heads.n_kv_heads as u32,
            head_dim: heads.head_dim as u32,
            scale: heads.scale(),
        };
        let rows = (tokens * heads.n_heads).div_ceil(4) as u32;
        gpu.launch("attention_delta", (rows, 1, 1), 128, 0, &params);
        launch(&params, &dy, [&q, &k, &v]);
        [&dq, &dk, &dv].map(|x| gpu.download(x))
    })
}

/// Panics unless outputs are within what rounding explains.
pub fn assert_outputs_equal_f64(forward: Forward, cases: &[(Heads, &[usize])]) {
    for &(heads, lens) in cases {
        let [q, k, v] = inputs(heads, lens);
        let (y, lse) = forward(heads, lens, [&q, &k, &v]);
        let (want, want_lse) = exact(heads, lens, &q, &k, &v);
        assert_within(&format!("{heads:?}"), &wide(&y), &want, |i| error_of_weight(heads) + want[i].abs() * BF16);
        assert_within("lse", &wide32(&lse), &want_lse, |i| error_of_lse(heads, want_lse[i]));
    }
}

/// Panics unless gradients are within what rounding explains.
pub fn assert_gradients_equal_f64(backward: Backward, cases: &[(Heads, &[usize])]) {
    for &(heads, lens) in cases {
        let [q, k, v] = inputs(heads, lens);
        let (dy, x) = (random_bf16(q.len(), 4), [&q[..], &k[..], &v[..]]);
        assert_gradients(heads, lens, &dy, x, &backward(heads, lens, &dy, x));
    }
}

/// Panics unless gradients of the output that are a power of two as large give others that are that, to the bit.
pub fn assert_gradients_keep_any_size(backward: Backward) {
    let (heads, lens) = NEIGHBOURS;
    let [q, k, v] = inputs(heads, &lens);
    let (dy, x) = (random_bf16(q.len(), 4), [&q[..], &k[..], &v[..]]);
    let plain = backward(heads, &lens, &dy, x);
    for by in [2f32.powi(-60), 2f32.powi(-24), 2f32.powi(60)] {
        let got = backward(heads, &lens, &scaled(&dy, by), x);
        assert!(got == plain.each_ref().map(|d| scaled(d, by)), "times {by:e}");
    }
}

/// Sequences beside each other: 64 features, two query heads a key/value head.
const NEIGHBOURS: (Heads, [usize; 3]) = (Heads { n_heads: 4, n_kv_heads: 2, head_dim: 64 }, [70, 200, 31]);

/// Of each sequence of [`NEIGHBOURS`]: its rows of queries and of keys, as ranges of elements.
fn ranges() -> [[std::ops::Range<usize>; 2]; 3] {
    let (Heads { n_heads, n_kv_heads, head_dim }, lens) = NEIGHBOURS;
    let ends = offsets(&lens);
    std::array::from_fn(|s| {
        [n_heads, n_kv_heads].map(|n| ends[s] as usize * n * head_dim..ends[s + 1] as usize * n * head_dim)
    })
}

/// Panics unless a sequence has the bits that it has alone, also beside one full of NaN.
pub fn assert_outputs_ignore_neighbours(forward: Forward) {
    let (heads, lens) = NEIGHBOURS;
    let [mut q, mut k, mut v] = inputs(heads, &lens);
    let (together, _) = forward(heads, &lens, [&q, &k, &v]);
    for (n, [of_q, of_k]) in lens.into_iter().zip(ranges()) {
        let (alone, _) = forward(heads, &[n], [&q[of_q.clone()], &k[of_k.clone()], &v[of_k]]);
        assert!(alone == together[of_q], "{n} tokens");
    }
    let [[before, _], [of_q, of_k], [after, _]] = ranges();
    q[of_q].fill(u16::MAX);
    k[of_k.clone()].fill(u16::MAX);
    v[of_k].fill(u16::MAX);
    let (beside_nan, _) = forward(heads, &lens, [&q, &k, &v]);
    assert!(beside_nan[before.clone()] == together[before], "before a sequence of NaN");
    assert!(beside_nan[after.clone()] == together[after], "behind a sequence of NaN");
}

/// The same of gradients.
pub fn assert_gradients_ignore_neighbours(backward: Backward) {
    let (heads, lens) = NEIGHBOURS;
    let [mut q, mut k, mut v] = inputs(heads, &lens);
    let mut dy = random_bf16(q.len(), 4);
    let together = backward(heads, &lens, &dy, [&q, &k, &v]);
    let same = |got: &[Vec<u16>; 3], [of_q, of_k]: [std::ops::Range<usize>; 2]| {
        got[0][of_q.clone()] == together[0][of_q] && (1..3).all(|i| got[i][of_k.clone()] == together[i][of_k.clone()])
    };
    let [first, nan, last] = ranges();
    let [of_q, of_k] = first.clone();
    let alone = backward(heads, &lens[..1], &dy[of_q.clone()], [&q[of_q], &k[of_k.clone()], &v[of_k]]);
    assert!(same(&alone, first.clone()), "alone");
    let [of_q, of_k] = nan;
    q[of_q.clone()].fill(u16::MAX);
    dy[of_q].fill(u16::MAX);
    k[of_k.clone()].fill(u16::MAX);
    v[of_k].fill(u16::MAX);
    let beside_nan = backward(heads, &lens, &dy, [&q, &k, &v]);
    assert!(same(&beside_nan, first), "before a sequence of NaN");
    assert!(same(&beside_nan, last), "behind a sequence of NaN");
}
