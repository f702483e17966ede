use crate::abi::{
    ATTENTION_DEEP_SPLIT_STAGES, ATTENTION_SPLIT, ATTENTION_SPLIT_STAGES, ATTENTION_STAGES, attention_params,
};
use crate::attention_setup::{assert_outputs_equal_f64, assert_outputs_ignore_neighbours, params};
use crate::exact_attention::{Heads, inputs, offsets};
use crate::gpu::{Gpu, in_every_schedule};

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
pub fn packed(heads: Heads, lens: &[usize], x: [&[u16]; 3]) -> (Vec<u16>, Vec<f32>) {
    let gpu = Gpu::get();
    let ([q, k, v], cu_seqlens) = (x.map(|x| gpu.upload(x)), gpu.upload(&offsets(lens)));
    let (y, lse) = in_every_schedule(|| {
        let tokens = x[0].len() / (heads.n_heads * heads.head_dim);
        let (y, lse) = (gpu.fresh::<u16>(x[0].len()), gpu.fresh::<u32>(tokens * heads.n_heads));
        let mut params = params(heads, &y, [&q, &k, &v], &cu_seqlens);
        params.lse = lse.ptr();
        launch(heads, lens, &params);
        // Bits, by which a NaN equals itself.
        (gpu.download(&y), gpu.download(&lse))
    });
    (y, lse.into_iter().map(f32::from_bits).collect())
}

fn launch(heads: Heads, lens: &[usize], params: &attention_params) {
    let longest = *lens.iter().max().expect("a sequence");
    let blocks = longest.div_ceil(64 / heads.group());
    let (d, grid) = (heads.padded(), (blocks as u32, heads.n_kv_heads as u32, lens.len() as u32));
    Gpu::get().launch(&format!("attention_{d}"), grid, 128, shared(64, ATTENTION_STAGES, d), params);
}

/// Bytes of a block with so many rows of queries.
fn shared(rows: usize, stages: u32, d: usize) -> u32 {
    ((rows + 64 * stages as usize) * (d + 8) * 2) as u32
}

#[test]
fn packed_sequences_equal_f64() {
    assert_outputs_equal_f64(packed, &CASES);
}

#[test]
fn a_sequence_has_the_same_bits_whatever_is_packed_beside_it() {
    assert_outputs_ignore_neighbours(packed);
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

/// Kernels that compute the splits of a sequence side by side, and tiles in their rings.
const SPLITS: [(&str, u32); 2] =
    [("attention_split", ATTENTION_SPLIT_STAGES), ("attention_deep_split", ATTENTION_DEEP_SPLIT_STAGES)];

/// The last `new[s]` tokens of every sequence against its pages, by one kernel or by splits.
fn paged(
    heads: Heads,
    lens: &[usize],
    new: &[usize],
    q: &[u16],
    pages: &Pages,
    by_splits: Option<(&str, u32)>,
) -> Vec<u16> {
    let gpu = Gpu::get();
    let contexts: Vec<u32> = lens.iter().map(|&n| n as u32).collect();
    let (q_d, k_d, v_d) = (gpu.upload(q), gpu.upload(&pages.k), gpu.upload(&pages.v));
    let (cu_seqlens, contexts, table) = (gpu.upload(&offsets(new)), gpu.upload(&contexts), gpu.upload(&pages.table));
    in_every_schedule(|| {
        let y = gpu.fresh::<u16>(q.len());
        let mut params = params(heads, &y, [&q_d, &k_d, &v_d], &cu_seqlens);
        params.context_lens = contexts.ptr();
        params.page_table = table.ptr();
        (params.max_pages, params.page_size) = (pages.max_pages as u32, pages.page_size as u32);
        if let Some((kernel, stages)) = by_splits {
            let splits = lens.iter().max().expect("a sequence").div_ceil(ATTENTION_SPLIT as usize);
            let rows = q.len() / heads.head_dim;
            let partial = gpu.fresh::<f32>(rows * splits * (heads.head_dim + 2));
            (params.partial, params.max_splits) = (partial.ptr(), splits as u32);
            let (d, sequences) = (heads.padded(), lens.len() as u32);
            let grid = (splits as u32, heads.n_kv_heads as u32, sequences);
            gpu.launch(&format!("{kernel}_{d}"), grid, 32, shared(16, stages, d), &params);
            if splits > 1 {
                let most = *new.iter().max().expect("a sequence") as u32;
                gpu.launch("attention_combine", (most, heads.n_heads as u32, sequences), 128, 0, &params);
            }
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
        let (all, _) = packed(heads, lens, [&q, &k, &v]);
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
            let mut ways = vec![(&one, None), (&most, None)];
            for splits in SPLITS {
                if shared(16, splits.1, heads.padded()) <= Gpu::get().most_shared {
                    ways.extend([(&one, Some(splits)), (&some, Some(splits))]);
                }
            }
            for (new, splits) in ways {
                let got = paged(heads, lens, new, &last(&q, new), &pages, splits);
                assert!(got == last(&all, new), "{heads:?}, {new:?} new tokens, {splits:?}");
            }
        }
    }
}
