//! End-to-end speed of a model: prefill and decode. `cargo bench --bench stages`; `RATOON_BENCH_MODEL` names a model directory, a
//! tiny one of the tests is measured without it.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ratoon::device::{DType, Device, Tensor};
use ratoon::model::{Batch, KvCache, Llama, Workspace};
use ratoon::ops::attention::PagedBatch;
use ratoon::ops::matmul::{Store, matmul_nt};
use std::path::PathBuf;

const PAGE: usize = 16;

fn model() -> Llama {
    let tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tiny/gqa");
    let dir = std::env::var_os("RATOON_BENCH_MODEL").map_or_else(|| PathBuf::from(tiny), PathBuf::from);
    Llama::load(&dir).unwrap()
}

fn prefill(criterion: &mut Criterion) {
    let (dev, model) = (Device::cpu(), model());
    let tokens = 512.min(model.config.max_position_embeddings);
    let ids: Vec<u32> = (0..tokens as u32).map(|i| i % model.config.vocab_size as u32).collect();
    let batch = Batch::pack(&[ids]);
    let mut ws = Workspace::new(&dev, &model.config, tokens).unwrap();
    let mut group = criterion.benchmark_group("prefill");
    group.sample_size(10).throughput(Throughput::Elements(tokens as u64));
    group.bench_function(format!("pp{tokens}"), |bencher| {
        bencher.iter(|| model.forward(&dev, &batch, &mut ws, &mut |_, _| Ok(())).unwrap());
    });
}

fn decode(criterion: &mut Criterion) {
    let (dev, model) = (Device::cpu(), model());
    let mut group = criterion.benchmark_group("decode");
    for batch in [1, 8, 32] {
        let context = 64;
        let pages = context / PAGE;
        let mut cache = KvCache::new(&dev, &model.config, batch * pages, PAGE).unwrap();
        let mut ws = Workspace::new(&dev, &model.config, batch).unwrap();
        let mut logits = Tensor::zeros(&[batch, model.config.vocab_size], DType::F32);
        let mut table = Tensor::zeros(&[batch, pages], DType::U32);
        table.u32_mut().iter_mut().enumerate().for_each(|(i, page)| *page = i as u32);
        let slots: Vec<u32> = (0..batch).map(|s| (s * context + context - 1) as u32).collect();
        let (ids, slots) = (Tensor::from_u32(&vec![1; batch]), Tensor::from_u32(&slots));
        let positions = Tensor::from_u32(&vec![context as u32 - 1; batch]);
        let paged = PagedBatch {
            cu_seqlens: &Tensor::from_u32(&(0..=batch as u32).collect::<Vec<u32>>()),
            context_lens: &Tensor::from_u32(&vec![context as u32; batch]),
            page_table: &table,
            page_size: PAGE,
        };
        group.sample_size(10).throughput(Throughput::Elements(batch as u64));
        group.bench_function(format!("context {context}, batch {batch}"), |bencher| {
            bencher.iter(|| {
                model.forward_paged(&dev, &ids, &positions, &slots, &paged, &mut cache, &mut ws).unwrap();
                matmul_nt(&dev, &mut logits, &ws.hidden, model.head(), None, Store::Replace).unwrap();
            });
        });
    }
}

criterion_group!(stages, prefill, decode);
criterion_main!(stages);
