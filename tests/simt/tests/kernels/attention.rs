use crate::abi::{ATTENTION_SPLIT, attention_params};
use crate::exact_attention::{Heads, error_of_lse, error_of_weight, exact, inputs, offsets};
use crate::gpu::{Buffer, Gpu, in_every_schedule};
use crate::numbers::{BF16, assert_within, wide, wide32};
use std::ptr;

/// Head shapes: grouped, one for all, each its own, odd sizes; and lengths of sequences around blocks and splits.
pub const CASES: [(Heads, &[usize]); 6] = [
    (Heads { n_heads: 4, n_kv_heads: 2, head_dim: 64 }, &[1, 5, 70, 130]),
    (Heads { n_heads: 3, n_kv_heads: 1, head_dim: 80 }, &[66, 64]),
    (Heads { n_heads: 6, n_kv_heads: 3, head_dim: 12 }, &[7, 33]),
    (Heads { n_heads: 8, n_kv_heads: 1, head_dim: 96 }, &[40]),
    (Heads { n_heads: 2, n_kv_heads: 2, head_dim: 128 }, &[3, 257]),
    (Heads { n_heads: 3, n_kv_heads: 1, head_dim: 7 }, &[9]),
];

/// Packed sequences: output and log of the sum of exponentials.
pub fn packed(heads: Heads, lens: &[usize], q: &[u16], k: &[u16], v: &[u16]) -> (Vec<u16>, Vec<f32>) {
    let gpu = Gpu::get();
    let (q_d, k_d, v_d, cu_seqlens) = (gpu.upload(q), gpu.upload(k), gpu.upload(v), gpu.upload(&offsets(lens)));
    in_every_schedule(|| {
        let tokens = q.len() / (heads.n_heads * heads.head_dim);
        let (y, lse) = (gpu.fresh::<u16>(q.len()), gpu.fresh::<f32>(tokens * heads.n_heads));
        let mut params = params(heads, &y, &q_d, &k_d, &v_d, &cu_seqlens);
        params.lse = lse.ptr();
        launch(heads, lens, &params);
        (gpu.download(&y), gpu.download(&lse))
    })
}

fn params(
    heads: Heads,
    y: &Buffer<u16>,
    q: &Buffer<u16>,
    k: &Buffer<u16>,
    v: &Buffer<u16>,
    cu_seqlens: &Buffer<u32>,
) -> attention_params {
    attention_params {
        y: y.ptr(),
        lse: ptr::null_mut(),
        partial: ptr::null_mut(),
        q: q.ptr(),
        k: k.ptr(),
        v: v.ptr(),
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

fn launch(heads: Heads, lens: &[usize], params: &attention_params) {
    let longest = *lens.iter().max().expect("a sequence");
    let blocks = longest.div_ceil(64 / heads.group());
    let (d, grid) = (heads.padded(), (blocks as u32, heads.n_kv_heads as u32, lens.len() as u32));
    let shared = (64 + 128) * (d + 8) * 2;
    Gpu::get().launch(&format!("attention_{d}"), grid, 128, shared as u32, params);
}

#[test]
fn packed_sequences_equal_f64() {
    for (heads, lens) in CASES {
        let [q, k, v] = inputs(heads, lens);
        let (y, lse) = packed(heads, lens, &q, &k, &v);
        let (want, want_lse) = exact(heads, lens, &q, &k, &v);
        assert_within(&format!("{heads:?}"), &wide(&y), &want, |i| error_of_weight(heads) + want[i].abs() * BF16);
        assert_within("lse", &wide32(&lse), &want_lse, |i| error_of_lse(heads, want_lse[i]));
    }
}

/// Keys and values in pages of `page_size`, scattered; what is not in use is NaN.
struct Pages {
    k: Vec<u16>,
    v: Vec<u16>,
    table: Vec<u32>,
    max_pages: usize,
    page_size: usize,
}

fn paginate(heads: Heads, lens: &[usize], k: &[u16], v: &[u16], page_size: usize) -> Pages {
    let width = heads.n_kv_heads * heads.head_dim;
    let max_pages = lens.iter().max().expect("a sequence").div_ceil(page_size);
    let pages = lens.len() * max_pages;
    let mut out = Pages {
        k: vec![u16::MAX; pages * page_size * width],
        v: vec![u16::MAX; pages * page_size * width],
        table: (0..pages as u32).map(|i| (i * 11 + 3) % pages as u32).collect(),
        max_pages,
        page_size,
    };
    assert!(!pages.is_multiple_of(11), "11 must go round all pages");
    let mut start = 0;
    for (s, &n) in lens.iter().enumerate() {
        for position in 0..n {
            let page = out.table[s * max_pages + position / page_size] as usize;
            let (from, to) = ((start + position) * width, (page * page_size + position % page_size) * width);
            out.k[to..to + width].copy_from_slice(&k[from..from + width]);
            out.v[to..to + width].copy_from_slice(&v[from..from + width]);
        }
        start += n;
    }
    out
}

/// The last `new[s]` tokens of every sequence against its pages, by one kernel or by splits.
fn paged(heads: Heads, lens: &[usize], new: &[usize], q: &[u16], pages: &Pages, by_splits: bool) -> Vec<u16> {
    let gpu = Gpu::get();
    let contexts: Vec<u32> = lens.iter().map(|&n| n as u32).collect();
    let (q_d, k_d, v_d) = (gpu.upload(q), gpu.upload(&pages.k), gpu.upload(&pages.v));
    let (cu_seqlens, contexts, table) = (gpu.upload(&offsets(new)), gpu.upload(&contexts), gpu.upload(&pages.table));
    in_every_schedule(|| {
        let y = gpu.fresh::<u16>(q.len());
        let mut params = params(heads, &y, &q_d, &k_d, &v_d, &cu_seqlens);
        params.context_lens = contexts.ptr();
        params.page_table = table.ptr();
        (params.max_pages, params.page_size) = (pages.max_pages as u32, pages.page_size as u32);
        if by_splits {
            let splits = lens.iter().max().expect("a sequence").div_ceil(ATTENTION_SPLIT as usize);
            let rows = q.len() / heads.head_dim;
            let partial = gpu.fresh::<f32>(rows * splits * (heads.head_dim + 2));
            (params.partial, params.max_splits) = (partial.ptr(), splits as u32);
            let (d, sequences) = (heads.padded(), lens.len() as u32);
            let grid = (splits as u32, heads.n_kv_heads as u32, sequences);
            gpu.launch(&format!("attention_split_{d}"), grid, 32, ((16 + 128) * (d + 8) * 2) as u32, &params);
            let most = *new.iter().max().expect("a sequence") as u32;
            gpu.launch("attention_combine", (most, heads.n_heads as u32, sequences), 128, 0, &params);
        } else {
            launch(heads, new, &params);
        }
        gpu.download(&y)
    })
}

#[test]
fn pages_steps_and_splits_give_the_bits_of_packed_sequences() {
    for (heads, lens) in [
        (Heads { n_heads: 4, n_kv_heads: 2, head_dim: 64 }, &[600usize, 1, 70][..]),
        (Heads { n_heads: 3, n_kv_heads: 1, head_dim: 128 }, &[300, 256]),
        (Heads { n_heads: 6, n_kv_heads: 3, head_dim: 12 }, &[33]),
    ] {
        let [q, k, v] = inputs(heads, lens);
        let width = heads.n_heads * heads.head_dim;
        let (all, _) = packed(heads, lens, &q, &k, &v);
        let last = |x: &[u16], new: &[usize]| -> Vec<u16> {
            let ends = offsets(lens);
            let rows = ends[1..].iter().zip(new).map(|(&end, &n)| (end as usize - n) * width..end as usize * width);
            rows.flat_map(|rows| x[rows].to_vec()).collect()
        };
        for page_size in [16, 5] {
            let pages = paginate(heads, lens, &k, &v, page_size);
            let one = vec![1; lens.len()];
            let some: Vec<usize> = lens.iter().map(|&n| n.min(4)).collect();
            let most: Vec<usize> = lens.iter().map(|&n| n.div_ceil(2)).collect();
            for (new, by_splits) in [(&one, true), (&some, true), (&one, false), (&most, false)] {
                let got = paged(heads, lens, new, &last(&q, new), &pages, by_splits);
                assert!(got == last(&all, new), "{heads:?}, {new:?} new tokens, splits: {by_splits}");
            }
        }
    }
}
