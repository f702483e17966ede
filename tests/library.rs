//! What authors of other programs rely on: types that threads can share, errors that travel, options with defaults, no panic.

use ratoon::device::Device;
use ratoon::distill::DistillOptions;
use ratoon::eval::bench::BenchOptions;
use ratoon::eval::{EvalOptions, Request, log_likelihoods};
use ratoon::generate::{EngineOptions, GenerateOptions, Runtime};
use ratoon::model::adapter::LoraConfig;
use ratoon::model::{Batch, Llama, Tokenizer, Workspace};
use ratoon::progress::Progress;
use ratoon::prune::{Plan, ScoreOptions};
use ratoon::train::{FinetuneOptions, Method};
use std::path::{Path, PathBuf};

fn shared<T: Send + Sync + 'static>() {}

#[test]
fn models_devices_options_and_errors_can_be_shared_between_threads() {
    shared::<Device>();
    shared::<Llama>();
    shared::<Tokenizer>();
    shared::<Runtime>();
    shared::<Workspace>();
    shared::<Batch>();
    shared::<Plan>();
    shared::<EngineOptions>();
    shared::<FinetuneOptions>();
    shared::<ratoon::Error>();
    let error: Box<dyn std::error::Error + Send + Sync> = Box::new(Llama::load(Path::new("/nowhere")).err().unwrap());
    assert!(error.to_string().contains("/nowhere/config.json: cannot read"), "{error}");
    assert!(error.source().is_some(), "the system's own error is its source");
}

#[test]
fn every_struct_of_options_has_the_defaults_of_the_command_line() {
    let path = |name: &str| PathBuf::from(name);
    let distill = DistillOptions::new(path("m"), path("d"), "general", path("o"));
    assert_eq!((distill.sampling.temperature, distill.sampling.top_p, distill.max_tokens), (0.9, 0.95, 512));
    let generate = GenerateOptions::new(path("m"), path("i"), path("o"));
    assert_eq!((generate.request.sampling.temperature, generate.request.max_tokens, generate.n), (0.0, 256, 1));
    let bench = BenchOptions::default();
    assert_eq!((bench.n_prompt, bench.n_gen, bench.batches, bench.repetitions), (vec![512], vec![128], vec![1], 5));
    let lora = LoraConfig::default();
    assert_eq!((lora.r, lora.lora_alpha, lora.target_modules.len()), (8, 16.0, 7));
    let finetune = FinetuneOptions::new(path("m"), path("d"), path("o"), Method::Lora(lora));
    assert_eq!((finetune.learning_rate, finetune.max_length), (1e-4, 1024));
    assert_eq!(EvalOptions::new("m").window, 1024);
    assert_eq!(ScoreOptions::default().block_sizes, [2, 4, 6, 8, 10]);
}

#[test]
fn a_sequence_without_tokens_is_no_panic() {
    let batch = Batch::pack(&[vec![], vec![5, 6], vec![], vec![7]]);
    assert_eq!(batch.next_tokens().u32()[..1], [6]);
    assert_eq!(batch.next_tokens().u32()[1..], [u32::MAX; 2]);
    assert_eq!(Batch::pack::<Vec<u32>>(&[]).next_tokens().u32().len(), 0);
    let model = Llama::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny/gqa")).unwrap();
    let progress = Progress::start("", 0, "");
    for (ids, continuation) in [(vec![], 0), (vec![5], 1), (vec![5, 6], 2)] {
        let said = log_likelihoods(&Device::cpu(), &model, &[Request { ids, continuation }], &progress).unwrap_err();
        assert!(said.to_string().starts_with("request 0: expected at least one id of context"), "{said}");
    }
}
