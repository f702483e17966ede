//! The memory that plans announce: the driver is asked for no more, for little less, and for nothing after the first step.

use crate::generate::tokens;
use crate::smollm::{self, smollm};
use crate::train::{lora, trainer};
use crate::{calls, card, most_memory, tiny};
use ratoon::generate::{self, EngineOptions, Request};
use ratoon::model::adapter::LoraConfig;
use ratoon::model::{Adapter, KvCache, Llama, Projection, Recompute};
use ratoon::train::{MemoryPlan, Method, OptimizerOptions};
use std::path::Path;

/// Calls of this thread that stop a card.
fn allocations() -> [Option<u64>; 2] {
    [c"cuMemAlloc_v2", c"cuMemFree_v2"].map(calls)
}

/// `plan` holds what this thread had from the driver since it last asked, and is at most 5 % more.
fn assert_planned(what: &str, plan: u64) {
    if let Some(used) = most_memory() {
        assert!(used <= plan, "{what}: {plan} planned, {used} used");
        assert!(plan <= used + used / 20, "{what}: {plan} planned, {used} used");
    }
}

fn step(trainer: &mut ratoon::train::Trainer, lengths: &[u32]) {
    trainer.step(&lengths.iter().map(|&n| (0..n).collect()).collect::<Vec<Vec<u32>>>()).unwrap();
}

/// Two blocks of SmolLM2-135M's widths, 64 tokens at most.
#[test]
fn training_takes_what_is_planned_by_its_first_step() {
    let recomputed = [Recompute::None, Recompute::Block];
    for (i, method) in [Method::Full, lora(0.0), lora(0.25)].into_iter().enumerate() {
        let (dev, model, recompute) = (card(), smollm(), recomputed[i % 2]);
        most_memory();
        let optim = OptimizerOptions::default().optim;
        let plan = MemoryPlan::new(&dev, &model.config, &method, optim, 0, 64, recompute);
        let mut trainer = trainer(&dev, model, method.clone(), recompute);
        step(&mut trainer, &[9]);
        let first = allocations();
        [&[7, 2][..], &[20, 4]].iter().for_each(|lengths| step(&mut trainer, lengths));
        assert_eq!(allocations(), first, "{method:?}");
        assert_planned(&format!("{method:?}"), plan.total());
    }
}

#[test]
fn training_steps_allocate_nothing_after_the_first_whatever_their_lengths() {
    for (name, method) in [("gqa", lora(0.25)), ("biases", Method::Full), ("odd_sizes", lora(0.0))] {
        let dev = card();
        let mut trainer = trainer(&dev, Llama::load(&tiny(name)).unwrap(), method.clone(), Recompute::Block);
        step(&mut trainer, &[5]);
        let first = allocations();
        for n in [44, 12, 31, 47, 3] {
            step(&mut trainer, &[n, 15]);
        }
        assert_eq!(allocations(), first, "{name} {method:?}");
    }
}

/// Four prompts of so many tokens at most, and four tokens after each.
fn requests(longest: u32) -> Vec<Request> {
    (0..4).map(|id| Request::new(id, (0..longest - id as u32).map(|i| (i * 7 + 3) % 200).collect(), 4)).collect()
}

/// Memory of generation with pages for four requests, and none more for calls like it.
fn assert_generation_is_planned(
    mut model: Llama,
    dir: &Path,
    adapter: Option<&Path>,
    longest: u32,
    chunk_tokens: usize,
) {
    let dev = &card();
    let token_bytes = KvCache::bytes_per_token(dev, &model.config);
    let pages = 4 * (longest as usize + 4).div_ceil(16);
    let kv_memory = Some((pages * 16 * token_bytes) as u64);
    let options = EngineOptions { max_batch_size: 4, chunk_tokens, kv_memory, ..EngineOptions::default() };
    let plan = generate::memory(dev, &options, dir, adapter, None).unwrap();
    most_memory();
    model.prepare(dev).unwrap();
    tokens(dev, &model, &requests(longest), &options);
    let first = allocations();
    for shorter in [0, 1, 3] {
        tokens(dev, &model, &requests(longest - shorter), &options);
        assert_eq!(allocations(), first, "a call like an earlier one");
    }
    assert_planned(&format!("{} {adapter:?}", dir.display()), plan.total());
}

/// Contexts of two splits, whose sums have memory of their own in graphs.
#[test]
fn generation_takes_what_is_planned() {
    assert_generation_is_planned(Llama::load(&tiny("gqa")).unwrap(), &tiny("gqa"), None, 290, 4);
}

#[test]
fn generation_with_an_adapter_takes_what_is_planned() {
    let dir = tempfile::tempdir().unwrap();
    let (base, adapter) = (dir.path().join("base"), dir.path().join("adapter"));
    let model = smollm::load(&base);
    let config = LoraConfig {
        r: 8,
        lora_alpha: 8.0,
        lora_dropout: 0.0,
        target_modules: Projection::ALL.to_vec(),
        layers_to_transform: None,
        use_rslora: false,
    };
    std::fs::create_dir(&adapter).unwrap();
    Adapter::new(config, &model, 1).unwrap().save(&adapter, "base").unwrap();
    assert_generation_is_planned(model.with_adapter(&adapter).unwrap(), &base, Some(&adapter), 40, 16);
}
