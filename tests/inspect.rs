//! `inspect` tells a model's sizes and costs as they are known from elsewhere; `init` writes the shapes that it names.

mod support;

use assert_cmd::Command;
use ratoon::device::DType;
use ratoon::model::presets::{InitOptions, PRESETS, Preset};
use ratoon::model::safetensors::WeightFiles;
use ratoon::model::{Config, Llama, Message, Tokenizer, inspect};
use serde_json::{Value, json};
use std::path::Path;

fn preset(name: &str, layers: usize) -> Config {
    let json = Preset::named(name).unwrap().config_json(layers, DType::BF16);
    Config::from_json(json, Path::new("config.json")).unwrap()
}

#[test]
fn known_models_have_their_published_parameters_flops_and_cache_bytes() {
    // Published parameter counts of Llama 3.1 8B, Llama 3.2 1B and SmolLM2 135M.
    let (full, cut) = (preset("llama-3.1-8b", 32), preset("llama-3.1-8b", 26));
    assert_eq!((full.parameters(), cut.parameters()), (8_030_261_248, 6_721_589_248));
    assert_eq!(preset("llama-3.2-1b", 16).parameters(), 1_235_814_400);
    let small = preset("smollm2-135m", 30);
    assert_eq!((small.parameters(), small.block_parameters()), (134_515_008, 3_540_096));
    let saved = |full: u64, cut: u64| (100_000.0 * (1.0 - cut as f64 / full as f64)).round() / 1000.0;
    assert_eq!(saved(full.flops_params_2n(), cut.flops_params_2n()), 16.297);
    assert_eq!(saved(full.flops_matmul(), cut.flops_matmul()), 17.437);
    assert_eq!(full.kv_bytes_per_token(DType::BF16), 131_072);
    assert_eq!(cut.kv_bytes_per_token(DType::BF16), 106_496);
}

#[test]
fn the_tensors_of_a_config_are_those_of_real_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny");
    for name in ["biases", "gqa", "linear_rope", "llama3_rope", "mha_tied", "mqa_head_dim", "odd_sizes"] {
        let (config, files) = (Config::load(&root.join(name)).unwrap(), WeightFiles::open(&root.join(name)).unwrap());
        assert_eq!(files.check(&config).unwrap(), [""; 0], "{name}");
        let held: u64 = files.tensors.values().map(|info| info.shape.iter().product::<usize>() as u64).sum();
        assert_eq!(config.parameters(), held, "{name}");
    }
}

#[test]
fn a_cut_config_keeps_everything_but_the_layers() {
    let mut json = Preset::named("tiny").unwrap().config_json(4, DType::BF16);
    json.insert("layer_types".into(), json!(vec!["full_attention"; 4]));
    json.insert("layer_notes".into(), json!(["a", "b", "c", "d"]));
    json.insert("eos_token_id".into(), json!([1, 2, 3, 4]));
    let config = Config::from_json(json.clone(), Path::new("config.json")).unwrap();
    let cut = config.with_layers(&[0, 3]);
    let mut expected = json;
    expected.insert("num_hidden_layers".into(), json!(2));
    expected.insert("layer_types".into(), json!(vec!["full_attention"; 2]));
    expected.insert("layer_notes".into(), json!(["a", "d"]));
    assert_eq!(Value::Object(cut.clone()).to_string(), Value::Object(expected).to_string(), "order of keys included");
    assert_eq!(Config::from_json(cut, Path::new("config.json")).unwrap().num_hidden_layers, 2);
}

#[test]
fn both_spellings_of_a_config_mean_the_same() {
    let old = Preset::named("llama-3.1-8b").unwrap().config_json(32, DType::BF16);
    let mut new = old.clone();
    let mut rope = new.remove("rope_scaling").unwrap();
    rope["rope_theta"] = new.remove("rope_theta").unwrap();
    new.insert("rope_parameters".into(), rope);
    let dtype = new.remove("torch_dtype").unwrap();
    new.insert("dtype".into(), dtype);
    let [old, new] = [old, new].map(|json| Config::from_json(json, Path::new("config.json")).unwrap());
    assert_eq!((old.rope_theta, old.rope_scaling), (new.rope_theta, new.rope_scaling));
    assert_eq!((old.inv_freq(), old.dtype()), (new.inv_freq(), new.dtype()));
}

#[test]
fn init_writes_the_same_bytes_for_the_same_seed_and_shards_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let tiny = Preset::named("tiny").unwrap();
    let write = |name: &str, seed: u64, max_shard_size: Option<u64>| {
        let path = dir.path().join(name);
        tiny.init(&path, &InitOptions { seed, max_shard_size, ..InitOptions::default() }).unwrap();
        path
    };
    let (a, b, other, shards) =
        (write("a", 1, None), write("b", 1, None), write("c", 2, None), write("d", 1, Some(150_000)));
    let bytes = |path: &Path| std::fs::read(path.join("model.safetensors")).unwrap();
    assert_eq!(bytes(&a), bytes(&b));
    assert_ne!(bytes(&a), bytes(&other));
    let (whole, parts) = (WeightFiles::open(&a).unwrap(), WeightFiles::open(&shards).unwrap());
    assert!(parts.shards.len() > 1);
    for (name, info) in &whole.tensors {
        assert_eq!(whole.tensor(name).unwrap().bytes(), parts.tensor(name).unwrap().bytes(), "{name}");
        assert!(info.shape.len() == 2 || whole.tensor(name).unwrap().bf16().iter().all(|x| x.to_f32() == 1.0));
    }
    let error = tiny.init(&a, &InitOptions::default()).unwrap_err();
    assert_eq!(error.exit_code(), 2, "an existing directory is not overwritten: {error}");
}

#[test]
fn a_random_model_loads_with_its_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let path = dir.path().join(dtype.to_string());
        Preset::named("tiny")
            .unwrap()
            .init(&path, &InitOptions { dtype, layers: Some(2), ..InitOptions::default() })
            .unwrap();
        let model = Llama::load(&path).unwrap();
        assert_eq!((model.blocks.len(), model.embed_tokens.dtype()), (2, dtype));
        let tokenizer = Tokenizer::load(&path).unwrap();
        let bytes: Vec<u8> = (1..=255).collect();
        for text in ["naïve 漢字 😀\0\t\n  12", &String::from_utf8_lossy(&bytes)] {
            let ids = tokenizer.encode(text, true).unwrap();
            assert_eq!(ids, text.bytes().map(|b| 1 + u32::from(b)).collect::<Vec<_>>());
            assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
        }
        assert_eq!(tokenizer.decode(&[0, 511], true).unwrap(), "", "ids without a text");
        let prompt = inspect::conversation(&path, &[Message::new("user", "hi")]).unwrap();
        assert_eq!(prompt.text, "user: hi\nassistant: ");
    }
    assert!(PRESETS.iter().all(|preset| Preset::named(preset.name).is_ok()));
    assert_eq!(Preset::named("llama-4").unwrap_err().exit_code(), 2);
}

#[test]
fn inspect_shows_the_real_model_and_a_conversation() {
    let model = support::smollm2();
    let dir = tempfile::tempdir().unwrap();
    let messages = dir.path().join("messages.json");
    std::fs::write(&messages, json!([{ "role": "user", "content": "Hi" }]).to_string()).unwrap();
    let mut command = Command::cargo_bin("ratoon").unwrap();
    command.args(["--quiet", "--json", "inspect", "--check-values", "--messages"]).arg(&messages).arg(&model);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["model"]["parameters"], 134_515_008);
    assert_eq!(report["model"]["kv_bytes_per_token_bf16"], 30 * 2 * 3 * 64 * 2);
    assert_eq!(report["model"]["remarks"], json!([]));
    let text = report["prompt"]["text"].as_str().unwrap();
    assert!(text.ends_with("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"), "{text}");
    assert_eq!(report["prompt"]["ids"][0], 1, "<|im_start|> once, nothing before it");
    assert_ne!(report["prompt"]["ids"][1], 1);
    std::fs::write(&messages, "{}").unwrap();
    let error = inspect::read_messages(&messages).unwrap_err().to_string();
    assert!(error.contains("messages: expected a list of {role, content}"), "{error}");
}
