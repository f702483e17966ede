//! Training follows PyTorch's AdamW, a resumed run has the bits of an unbroken one, and mistakes are named.

mod support;

use ratoon::device::{DType, Device};
use ratoon::model::adapter::LoraConfig;
use ratoon::model::safetensors::WeightFiles;
use ratoon::model::{Llama, Projection, Recompute};
use ratoon::train::{
    FinetuneOptions, Method, Optim, OptimizerOptions, Schedule, SchedulerType, Sequence, Trainer, TrainerOptions,
    finetune,
};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(path)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Options of a reference run: constant learning rate, no clipping.
fn reference(expected: &Value, method: Method, tokens: usize) -> TrainerOptions {
    let adamw = &expected["adamw"];
    let number = |v: &Value| v.as_f64().unwrap();
    TrainerOptions {
        method,
        optimizer: OptimizerOptions {
            optim: Optim::AdamwTorch,
            adam_beta1: number(&adamw["betas"][0]),
            adam_beta2: number(&adamw["betas"][1]),
            adam_epsilon: number(&adamw["eps"]),
            weight_decay: number(&adamw["weight_decay"]),
            no_decay_norms: false,
            max_grad_norm: 0.0,
        },
        schedule: Schedule {
            learning_rate: number(&adamw["lr"]),
            kind: SchedulerType::Constant,
            warmup_steps: 0,
            total_steps: 5,
        },
        recompute: Recompute::None,
        max_tokens: tokens,
        seed: 0,
    }
}

#[test]
fn five_adamw_steps_follow_pytorch_on_every_tiny_model() {
    for name in ["biases", "gqa", "linear_rope", "llama3_rope", "mha_tied", "mqa_head_dim", "odd_sizes"] {
        let dir = data("tiny").join(name);
        let expected = json(&dir.join("expected.json"));
        let ids: Vec<Vec<u32>> = serde_json::from_value(expected["ids"].clone()).unwrap();
        let tokens = ids.iter().map(Vec::len).sum();
        let options = reference(&expected, Method::Full, tokens);
        let mut trainer = Trainer::new(&Device::cpu(), Llama::load(&dir).unwrap(), options).unwrap();
        for want in expected["adamw"]["losses_before_each_step"].as_array().unwrap() {
            let (got, want) = (trainer.step(&ids).unwrap(), want.as_f64().unwrap() as f32);
            assert!((got - want).abs() < 1e-3, "{name}: {got} against {want}");
        }
    }
}

#[test]
fn five_adamw_steps_of_an_adapter_follow_peft() {
    let expected = json(&data("lora/expected.json"));
    let ids: Vec<Vec<u32>> = serde_json::from_value(expected["ids"].clone()).unwrap();
    let prompt = expected["prompt_tokens"].as_u64().unwrap() as usize;
    let sequences: Vec<Sequence> = ids.into_iter().map(|ids| Sequence::masked(ids, prompt)).collect();
    let model = Llama::load(&data("tiny/gqa")).unwrap().with_adapter(&data("lora")).unwrap();
    let method = Method::Lora(LoraConfig::load(&data("lora")).unwrap());
    let mut trainer = Trainer::new(&Device::cpu(), model, reference(&expected, method, 128)).unwrap();
    for want in expected["adamw"]["losses_before_each_step"].as_array().unwrap() {
        let step = trainer.step_on(&[sequences.iter().collect()]).unwrap();
        assert_eq!(step.target_tokens, 88);
        let want = want.as_f64().unwrap();
        assert!((step.loss - want).abs() < 1e-3, "{} against {want}", step.loss);
    }
}

#[test]
fn five_adamw_steps_of_the_real_model_follow_pytorch() {
    let expected = json(&data("train.json"));
    let ids: Vec<Vec<u32>> = serde_json::from_value(expected["batch"].clone()).unwrap();
    let model = Llama::load(&support::smollm2()).unwrap();
    let mut trainer = Trainer::new(&Device::cpu(), model, reference(&expected, Method::Full, 256)).unwrap();
    for want in expected["adamw"]["losses_before_each_step_and_after_5"].as_array().unwrap() {
        let (got, want) = (trainer.step(&ids).unwrap(), want.as_f64().unwrap() as f32);
        assert!((got - want).abs() < 1e-3, "{got} against {want}");
    }
}

#[test]
fn accumulation_gives_what_one_large_batch_gives() {
    let dir = data("tiny/gqa");
    let sequences: Vec<Sequence> =
        (0..4u32).map(|i| Sequence::masked((i..i + 20 + 5 * i).collect(), 3 * i as usize)).collect();
    let expected = json(&dir.join("expected.json"));
    let of = |micro_batches: &[Vec<&Sequence>]| {
        let options = reference(&expected, Method::Full, 200);
        let mut trainer = Trainer::new(&Device::cpu(), Llama::load(&dir).unwrap(), options).unwrap();
        let report = trainer.step_on(micro_batches).unwrap();
        (report, trainer.gradients().iter().map(|g| g.f32().to_vec()).collect::<Vec<_>>())
    };
    let all: Vec<&Sequence> = sequences.iter().collect();
    let ((one, a), (four, b)) =
        (of(std::slice::from_ref(&all)), of(&all.chunks(1).map(<[_]>::to_vec).collect::<Vec<_>>()));
    assert_eq!(one.target_tokens, four.target_tokens);
    assert!((one.loss - four.loss).abs() < 1e-12);
    for (a, b) in a.iter().zip(&b) {
        // Sums over 110 tokens in another order.
        let bound = 110.0 * f32::EPSILON * a.iter().fold(1e-6f32, |m, v| m.max(v.abs()));
        assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() <= bound));
    }
}

/// The tiny model with a tokenizer whose tokens are `t0` ... `t255`, and a dataset of 11 rows.
fn workshop() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    std::fs::create_dir(&model).unwrap();
    for entry in std::fs::read_dir(data("tiny/mha_tied")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, model.join(path.file_name().unwrap())).unwrap();
    }
    let vocab: serde_json::Map<String, Value> = (0..200u32).map(|i| (format!("t{i}"), i.into())).collect();
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "t0" }
    });
    std::fs::write(model.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let rows: String = (0..11)
        .map(|i| {
            let words =
                |from: u32, n: u32| (from..from + n).map(|t| format!("t{}", t % 200)).collect::<Vec<_>>().join(" ");
            let row = serde_json::json!({ "prompt": words(3 * i, 4), "completion": words(7 * i, 5 + i) });
            format!("{row}\n")
        })
        .collect();
    let path = dir.path().join("data.jsonl");
    std::fs::write(&path, rows).unwrap();
    (dir, model, path)
}

fn lora() -> Method {
    Method::Lora(LoraConfig {
        r: 2,
        lora_alpha: 4.0,
        lora_dropout: 0.1,
        target_modules: vec![Projection::QProj, Projection::DownProj],
        layers_to_transform: None,
        use_rslora: false,
    })
}

fn run(model: &Path, rows: &Path, output: PathBuf, method: Method) -> FinetuneOptions {
    FinetuneOptions {
        per_device_train_batch_size: 2,
        gradient_accumulation_steps: 2,
        max_steps: Some(7),
        learning_rate: 1e-2,
        warmup_steps: 2.0,
        lr_scheduler_type: SchedulerType::Cosine,
        ..FinetuneOptions::new(model.to_path_buf(), rows.to_path_buf(), output, method)
    }
}

#[test]
fn a_resumed_run_has_the_bytes_of_an_unbroken_one() {
    let (adapter, weights) = ("adapter_model.safetensors", "model.safetensors");
    for (method, optim, file) in [
        (lora(), Optim::AdamwTorch, adapter),
        (Method::Full, Optim::AdamwTorch, weights),
        (Method::Full, Optim::Adamw8bit, weights),
    ] {
        let (dir, model, rows) = workshop();
        let run = |output: &str| {
            let mut options = run(&model, &rows, dir.path().join(output), method.clone());
            options.optimizer.optim = optim;
            options
        };
        let unbroken = run("unbroken");
        let report = finetune(&Device::cpu(), &unbroken).unwrap();
        assert_eq!(report.steps, 7);
        assert!(report.losses[6] < report.losses[0], "{:?}", report.losses);

        let broken = FinetuneOptions { save_steps: Some(2), ..run("broken") };
        finetune(&Device::cpu(), &broken).unwrap();
        // What a kill after step 4 leaves: checkpoints 2 and 4, no result, the marker.
        let out = &broken.output;
        let moments = WeightFiles::open_files(vec![out.join("checkpoint-4/optimizer.safetensors")]).unwrap();
        let quantised = moments.tensors.values().filter(|info| info.dtype == DType::U32).count();
        assert_eq!(quantised > 0, optim == Optim::Adamw8bit);
        for name in [file, "adapter_config.json", "config.json", "ratoon_finetune.json", "tokenizer.json"] {
            let _ = std::fs::remove_file(out.join(name));
        }
        std::fs::remove_dir_all(out.join("checkpoint-6")).unwrap();
        std::fs::write(out.join("ratoon_run.json"), "{}").unwrap();
        let resumed = finetune(&Device::cpu(), &broken).unwrap();
        assert_eq!(resumed.losses, report.losses);
        let bytes = |dir: &Path| std::fs::read(dir.join(file)).unwrap();
        assert!(bytes(out) == bytes(&unbroken.output), "{file}");
        let lines = std::fs::read_to_string(out.join("log.jsonl")).unwrap();
        assert_eq!(lines.lines().count(), 7, "no step is logged twice");

        let again = finetune(&Device::cpu(), &broken).unwrap();
        assert_eq!(again.losses, report.losses, "a finished run is not run again");
        let report = std::fs::read_to_string(out.join("ratoon_finetune.json")).unwrap();
        let name = if optim == Optim::Adamw8bit { "adamw_8bit" } else { "adamw_torch" };
        assert_eq!(serde_json::from_str::<Value>(&report).unwrap()["settings"]["optim"], name);
        let other = FinetuneOptions { seed: 7, ..broken.clone() };
        assert_eq!(finetune(&Device::cpu(), &other).unwrap_err().exit_code(), 2);
    }
}

#[test]
fn resuming_with_another_setting_is_an_error_that_names_it() {
    let (dir, model, rows) = workshop();
    let options = FinetuneOptions { save_steps: Some(2), ..run(&model, &rows, dir.path().join("out"), lora()) };
    finetune(&Device::cpu(), &options).unwrap();
    std::fs::rename(options.output.join("ratoon_finetune.json"), options.output.join("ratoon_run.json")).unwrap();
    let other = FinetuneOptions { learning_rate: 2e-2, ..options.clone() };
    let message = finetune(&Device::cpu(), &other).unwrap_err().to_string();
    assert!(message.contains("--learning-rate") && message.contains("0.02"), "{message}");
    std::fs::write(&rows, std::fs::read_to_string(&rows).unwrap().replace("t9", "t8")).unwrap();
    let message = finetune(&Device::cpu(), &options).unwrap_err().to_string();
    assert!(message.contains("--data"), "{message}");
}

#[test]
fn a_full_run_keeps_the_source_s_dtype_and_a_merged_adapter_computes_what_the_adapter_did() {
    let (dir, model, rows) = workshop();
    let full = run(&model, &rows, dir.path().join("full"), Method::Full);
    finetune(&Device::cpu(), &full).unwrap();
    let files = WeightFiles::open(&full.output).unwrap();
    assert!(files.tensors.values().all(|info| info.dtype == DType::BF16));
    assert!(full.output.join("tokenizer.json").exists());
    Llama::load(&full.output).unwrap();

    let adapter = run(&model, &rows, dir.path().join("adapter"), lora());
    finetune(&Device::cpu(), &adapter).unwrap();
    let out = dir.path().join("merged");
    let report =
        ratoon::train::merge_lora::merge_adapter(&Device::cpu(), &model, &adapter.output, &out, false).unwrap();
    let source = Llama::load(&model).unwrap();
    assert_eq!(report.merged, 2 * source.blocks.len());
    let loras = ratoon::model::Adapter::load(&adapter.output, &source).unwrap().loras;
    let merged = Llama::load(&out).unwrap();
    for (&(l, p), lora) in &loras {
        let (before, after) =
            (source.blocks[l].projection(p).weight.to_f32(), merged.blocks[l].projection(p).weight.to_f32());
        let input = before.row_len();
        for (i, (w, m)) in before.f32().iter().zip(after.f32()).enumerate() {
            let dot =
                |r: usize| f64::from(lora.b.f32()[i / input * 2 + r]) * f64::from(lora.a.f32()[r * input + i % input]);
            let want = f64::from(*w) + f64::from(lora.scale) * (dot(0) + dot(1));
            // Half a unit of bf16's 8 bits, and the rounding of the f32 sum.
            assert!((f64::from(*m) - want).abs() <= want.abs() / 256.0 + 1e-7, "{m} against {want}");
        }
    }
}

#[test]
fn bad_rows_and_settings_are_named() {
    let (dir, model, rows) = workshop();
    let fails = |change: &dyn Fn(&mut FinetuneOptions)| {
        let mut options = run(&model, &rows, dir.path().join("out"), lora());
        change(&mut options);
        let error = finetune(&Device::cpu(), &options).unwrap_err();
        assert!(!dir.path().join("out").join("adapter_config.json").exists());
        (error.to_string(), error.exit_code())
    };
    let (message, code) = fails(&|o| o.max_length = 12);
    assert!(message.contains("at most 12 tokens") && message.contains("line 4") && code == 3, "{message}");
    let (message, code) = fails(&|o| o.memory_budget = Some(1000));
    assert!(message.contains("available") && code == 5, "{message}");
    let (message, code) = fails(&|o| o.learning_rate = f64::NAN);
    assert!(message.contains("--learning-rate") && code == 2, "{message}");
    let (message, code) = fails(&|o| o.learning_rate = 1e39);
    assert!(message.contains("not finite") && code == 7, "{message}");
    std::fs::write(&rows, "{\"prompt\": \"t1 t2\", \"completion\": \"\"}\n").unwrap();
    let (message, _) = fails(&|_| ());
    assert!(message.contains("data.jsonl"), "{message}");
}
