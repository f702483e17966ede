//! Paged attention gives the bits of attention over packed sequences.

use super::tests::{Case, heads};
use super::{PagedBatch, cache_slots, kv_store, paged_attention};
use crate::device::{Compute, DType, Device, Tensor};
use crate::ops::testing::{bits, to_bf16, unwritten};

/// Runs the sequences through pages in steps of at most `chunk` tokens, all sequences beside each other, and gives `y`
/// in packed order.
fn paged(dev: &Device, case: &Case, lengths: &[usize], chunk: usize, page_size: usize, together: bool) -> Vec<f32> {
    let (offsets, width, kv) = (case.cu_seqlens.u32(), case.q.row_len(), case.k.row_len());
    let max_pages = lengths.iter().max().unwrap().div_ceil(page_size);
    let pages = lengths.len() * max_pages;
    // Pages are handed out backwards and interleaved, so that neighbours in position are not neighbours in memory.
    let page = |s: usize, i: usize| (pages - 1 - (i * lengths.len() + s)) as u32;
    // What is not in use is no number, and none of it may reach a result.
    let pool = || {
        let pool = unwritten(&[cache_slots(pages, page_size), kv]);
        if dev.kv_cache() == DType::BF16 { to_bf16(&pool) } else { pool }
    };
    let (mut k_pages, mut v_pages) = (pool(), pool());
    let mut out = vec![f32::NAN; case.q.elements()];
    let groups: Vec<Vec<usize>> =
        if together { vec![(0..lengths.len()).collect()] } else { (0..lengths.len()).map(|s| vec![s]).collect() };
    for group in groups {
        let mut done = 0;
        while group.iter().any(|&s| done < lengths[s]) {
            let active: Vec<usize> = group.iter().copied().filter(|&s| done < lengths[s]).collect();
            let (mut rows, mut cu, mut lens, mut slots, mut table) = (vec![], vec![0u32], vec![], vec![], vec![]);
            for &s in &active {
                let end = lengths[s].min(done + chunk);
                for p in done..end {
                    rows.push(offsets[s] as usize + p);
                    slots.push(page(s, p / page_size) * page_size as u32 + (p % page_size) as u32);
                }
                cu.push(rows.len() as u32);
                lens.push(end as u32);
                table.extend((0..max_pages).map(|i| page(s, i)));
            }
            let gather = |t: &Tensor| {
                let w = t.row_len();
                let values: Vec<f32> = rows.iter().flat_map(|r| t.f32()[r * w..(r + 1) * w].to_vec()).collect();
                Tensor::from_f32(&values, &[rows.len(), w])
            };
            let (q, k, v) = (gather(&case.q), gather(&case.k), gather(&case.v));
            kv_store(dev, &mut k_pages, &mut v_pages, &k, &v, &Tensor::from_u32(&slots), case.heads).unwrap();
            let mut page_table = Tensor::zeros(&[active.len(), max_pages], DType::U32);
            page_table.u32_mut().copy_from_slice(&table);
            let (cu_seqlens, context_lens) = (Tensor::from_u32(&cu), Tensor::from_u32(&lens));
            let batch =
                PagedBatch { cu_seqlens: &cu_seqlens, context_lens: &context_lens, page_table: &page_table, page_size };
            let mut y = unwritten(q.shape());
            paged_attention(dev, &mut y, &q, &k_pages, &v_pages, &batch, case.heads).unwrap();
            for (y, r) in y.f32().chunks(width).zip(&rows) {
                out[r * width..(r + 1) * width].copy_from_slice(y);
            }
            done += chunk;
        }
    }
    out
}

#[test]
fn pages_chunks_and_batch_do_not_change_a_bit() {
    for shape in [(9, 3, 64), (4, 4, 12), (8, 1, 80)] {
        let lengths = [70, 1, 133, 64];
        let case = Case::new(heads(shape), &lengths);
        for compute in [Compute::F32, Compute::Bf16] {
            let dev = Device::cpu().with_compute(compute).unwrap();
            let want = bits(case.forward(&dev).0.f32());
            for (chunk, page_size, together) in
                [(1, 16, true), (7, 1, true), (64, 100, false), (200, 16, true), (33, 64, true)]
            {
                let got = bits(&paged(&dev, &case, &lengths, chunk, page_size, together));
                let place = format!("{compute} {shape:?}: chunks of {chunk}, pages of {page_size}");
                assert!(got == want, "{place}, together: {together}");
            }
        }
    }
}
