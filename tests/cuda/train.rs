//! Training steps and resumed runs.

use crate::{TINY, card, relative_deviation, rounded, support, tiny};
use ratoon::device::{Device, Op};
use ratoon::model::adapter::LoraConfig;
use ratoon::model::{Adapter, Llama, Projection, Recompute};
use ratoon::train::{
    FinetuneOptions, Method, OptimizerOptions, Schedule, SchedulerType, Sequence, StepReport, Trainer, TrainerOptions,
    finetune,
};
use std::path::{Path, PathBuf};

pub fn lora(lora_dropout: f64) -> Method {
    Method::Lora(LoraConfig {
        r: 4,
        lora_alpha: 8.0,
        lora_dropout,
        target_modules: Projection::ALL.to_vec(),
        layers_to_transform: None,
        use_rslora: false,
    })
}

pub fn trainer(dev: &Device, model: Llama, method: Method, recompute: Recompute) -> Trainer {
    let options = TrainerOptions {
        method,
        optimizer: OptimizerOptions::default(),
        schedule: Schedule { learning_rate: 1e-3, kind: SchedulerType::Constant, warmup_steps: 0, total_steps: 5 },
        recompute,
        max_tokens: 64,
        seed: 3,
    };
    Trainer::new(dev, model, options).unwrap()
}

/// Five steps on two sequences, the first half of the second masked.
pub fn five_steps(trainer: &mut Trainer) -> Vec<StepReport> {
    let mut second = Sequence::text((50..77).collect());
    second.targets[..13].fill(ratoon::ops::log_probs::IGNORE);
    let batch = [Sequence::text((1..32).collect()), second];
    (0..5).map(|_| trainer.step_on(&[batch.iter().collect()]).unwrap()).collect()
}

/// Steps of a card and of the CPU on a model of so many blocks.
///
/// Weights are rounded anew after each step, so they add a rounding to each product. The gradients go through the roundings of the
/// forward pass and as many again, and are sums over tokens of numbers that share some of them.
pub fn assert_same_steps(what: &str, blocks: usize, got: &[StepReport], want: &[StepReport]) {
    let loss = 2.0 * 2f64.sqrt() * relative_deviation(2 * blocks);
    let norm = 6.0 * relative_deviation(3 * blocks);
    for (step, (got, want)) in got.iter().zip(want).enumerate() {
        let place = format!("{what} step {step}: {got:?} against {want:?}");
        assert!((got.loss - want.loss).abs() < loss, "{place}: loss {loss}");
        assert!((got.grad_norm / want.grad_norm - 1.0).abs() < norm, "{place}: norm {norm}");
        assert_eq!(got.target_tokens, want.target_tokens);
    }
}

#[test]
fn five_steps_have_the_cpus_losses_and_gradient_norms_within_rounding() {
    let (dev, cpu) = (card(), Device::cpu());
    for name in TINY {
        for method in [Method::Full, lora(0.0), lora(0.25)] {
            let run =
                |dev: &Device| five_steps(&mut trainer(dev, rounded(&tiny(name)), method.clone(), Recompute::None));
            let (got, want) = (run(&dev), run(&cpu));
            assert_same_steps(&format!("{name} {method:?}"), rounded(&tiny(name)).blocks.len(), &got, &want);
            assert!(got[4].loss < got[0].loss, "{name}: it learns");
        }
    }
}

#[test]
fn five_steps_from_an_adapter_have_the_cpus_losses_and_gradient_norms_within_rounding() {
    let adapter = support::root().join("tests/data/lora");
    let config: LoraConfig = Adapter::load(&adapter, &Llama::load(&tiny("gqa")).unwrap()).unwrap().config;
    let run = |dev: &Device| {
        let model = rounded(&tiny("gqa")).with_adapter(&adapter).unwrap();
        five_steps(&mut trainer(dev, model, Method::Lora(config.clone()), Recompute::None))
    };
    assert_same_steps("gqa from an adapter", 4, &run(&card()), &run(&Device::cpu()));
}

#[test]
fn a_step_updates_all_parameters_in_one_call() {
    for method in [Method::Full, lora(0.0)] {
        let dev = card();
        let mut trainer = trainer(&dev, Llama::load(&tiny("gqa")).unwrap(), method, Recompute::None);
        assert!(trainer.gradients().len() > 20);
        five_steps(&mut trainer);
        assert_eq!(dev.ledger().entry(Op::AdamW).calls, 5);
    }
}

#[test]
fn recomputation_changes_no_bit_and_a_repeated_run_has_the_same_losses() {
    let dev = card();
    let run = |recompute| five_steps(&mut trainer(&dev, Llama::load(&tiny("gqa")).unwrap(), lora(0.25), recompute));
    let first = run(Recompute::None);
    assert_eq!(first, run(Recompute::Block));
    assert_eq!(first, run(Recompute::None));
}

/// A tiny model with a tokenizer, and rows for it.
fn workshop() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (model, rows) = (dir.path().join("model"), dir.path().join("rows.jsonl"));
    std::fs::create_dir(&model).unwrap();
    support::tiny_model_with_tokenizer(&model);
    let text: String = (0..6).map(|i| format!("{{\"text\": \"the {i} cat sat on {i} mats\"}}\n")).collect();
    std::fs::write(&rows, text).unwrap();
    (dir, model, rows)
}

fn run(model: &Path, rows: &Path, output: PathBuf, method: Method) -> FinetuneOptions {
    FinetuneOptions {
        max_steps: Some(5),
        per_device_train_batch_size: 2,
        max_length: 64,
        ..FinetuneOptions::new(model.to_path_buf(), rows.to_path_buf(), output, method)
    }
}

#[test]
fn a_resumed_run_has_the_bytes_of_an_unbroken_one() {
    let dev = card();
    for (method, file) in [(lora(0.1), "adapter_model.safetensors"), (Method::Full, "model.safetensors")] {
        let (dir, model, rows) = workshop();
        let unbroken = run(&model, &rows, dir.path().join("unbroken"), method.clone());
        let report = finetune(&dev, &unbroken).unwrap();
        let broken = FinetuneOptions { save_steps: Some(2), ..run(&model, &rows, dir.path().join("broken"), method) };
        finetune(&dev, &broken).unwrap();
        // What a kill after step 2 leaves.
        let out = &broken.output;
        for name in [file, "adapter_config.json", "config.json", "ratoon_finetune.json", "tokenizer.json"] {
            let _ = std::fs::remove_file(out.join(name));
        }
        std::fs::remove_dir_all(out.join("checkpoint-4")).unwrap();
        std::fs::write(out.join("ratoon_run.json"), "{}").unwrap();
        let resumed = finetune(&dev, &broken).unwrap();
        assert_eq!(resumed.losses, report.losses);
        let bytes = |dir: &Path| std::fs::read(dir.join(file)).unwrap();
        assert!(bytes(out) == bytes(&unbroken.output), "{file}");
    }
}
