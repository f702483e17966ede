//! A broken model directory gives one line that names file, place, expected and found, and exit code 3.

use assert_cmd::Command;
use ratoon::model::presets::{InitOptions, Preset};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// A sound tiny model to be broken: one weight file, or two shards with an index.
struct Model {
    dir: tempfile::TempDir,
}

impl Model {
    fn new(max_shard_size: Option<u64>) -> Model {
        let dir = tempfile::tempdir().unwrap();
        let options = InitOptions { max_shard_size, overwrite: true, ..InitOptions::default() };
        Preset::named("tiny").unwrap().init(&dir.path().join("model"), &options).unwrap();
        Model { dir }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("model")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    fn weights(&self) -> PathBuf {
        self.file("model.safetensors")
    }

    fn edit(&self, name: &str, change: impl FnOnce(&mut Map<String, Value>)) {
        let mut json: Map<String, Value> = serde_json::from_slice(&std::fs::read(self.file(name)).unwrap()).unwrap();
        change(&mut json);
        std::fs::write(self.file(name), Value::Object(json).to_string()).unwrap();
    }

    /// Rewrites header and data of the weight file; the header is text, so that it may be no JSON at all.
    fn rewrite(&self, change: impl FnOnce(&mut String, &mut Vec<u8>)) {
        let bytes = std::fs::read(self.weights()).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut header = String::from_utf8(bytes[8..8 + length].to_vec()).unwrap();
        let mut data = bytes[8 + length..].to_vec();
        change(&mut header, &mut data);
        std::fs::write(self.weights(), [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat())
            .unwrap();
    }

    /// Changes the entry of a tensor in the header.
    fn edit_entry(&self, tensor: &str, change: impl FnOnce(&mut Value)) {
        self.rewrite(|header, _| {
            let mut json: Value = serde_json::from_str(header).unwrap();
            change(&mut json[tensor]);
            *header = json.to_string();
        });
    }

    /// `ratoon inspect` must fail with exit code 3 and one line that has all `parts`.
    fn fails(&self, parts: &[&str]) {
        self.fails_with(&[], 3, parts);
    }

    fn fails_with(&self, options: &[&str], code: i32, parts: &[&str]) {
        let mut command = Command::cargo_bin("ratoon").unwrap();
        let output = command.args(["--quiet", "inspect"]).arg(self.path()).args(options).output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{message}");
        assert_eq!(message.trim_end().lines().count(), 1, "one line: {message}");
        assert!(
            message.starts_with("error: ") && message.contains(&*self.path().to_string_lossy()),
            "names the file: {message}"
        );
        for part in parts {
            assert!(message.contains(part), "{part:?} is not in: {message}");
        }
    }

    fn works(&self) {
        Command::cargo_bin("ratoon").unwrap().args(["--quiet", "inspect"]).arg(self.path()).assert().success();
    }
}

const UP: &str = "model.layers.1.mlp.up_proj.weight";

#[test]
fn broken_weight_files_are_named() {
    let write = |bytes: &[u8], parts: &[&str]| {
        let model = Model::new(None);
        std::fs::write(model.weights(), bytes).unwrap();
        model.fails(&[&["model.safetensors: "], parts].concat());
    };
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 269060552\n";
    write(pointer, &["expected the file's content", "found a Git LFS pointer", "git lfs pull"]);
    write(b"", &["header", "expected 8 bytes", "found a file of 0 bytes"]);
    write(&[1; 7], &["header", "expected 8 bytes", "found a file of 7 bytes"]);
    write(&10u64.to_le_bytes(), &["header length", "at most the 0 bytes that follow", "found 10"]);
    write(&[&1000u64.to_le_bytes()[..], b"{}"].concat(), &["header length", "at most the 2 bytes", "found 1000"]);
    write(&200_000_000u64.to_le_bytes(), &["header length", "at most 100000000", "found 200000000"]);
    write(&u64::MAX.to_le_bytes(), &["header length", "at most 100000000", "found 18446744073709551615"]);
    write(&[&4u64.to_le_bytes()[..], b"{\"\xff\""].concat(), &["header: expected UTF-8", "byte 0xff at offset 10"]);
    write(&[&4u64.to_le_bytes()[..], b"nope"].concat(), &["header, line 1 column 2", "a JSON object"]);
    write(&[&2u64.to_le_bytes()[..], b"[]"].concat(), &["header, line 1", "a JSON object"]);
    let deep = "[".repeat(5000);
    write(&[&5000u64.to_le_bytes()[..], deep.as_bytes()].concat(), &["header, line 1", "a JSON object"]);
}

#[test]
fn broken_tensor_entries_are_named() {
    let entry = |change: &dyn Fn(&mut Value), parts: &[&str]| {
        let model = Model::new(None);
        model.edit_entry(UP, |entry| change(entry));
        model.fails(&[&["model.safetensors: tensor model.layers.1.mlp.up_proj.weight"], parts].concat());
    };
    entry(&|e| e["dtype"] = json!("F8_E4M3"), &["dtype F8_E4M3 is not supported", "F32, F16 and BF16 are"]);
    entry(&|e| e["dtype"] = json!("NOPE"), &["dtype NOPE is not supported"]);
    entry(&|e| e["dtype"] = json!("F32"), &["expected 40960 bytes for F32 [160, 64]", "found data_offsets ["]);
    entry(&|e| e["shape"] = json!([1u64 << 40, 1u64 << 40]), &["an overflow", "[1099511627776, 1099511627776]"]);
    entry(&|e| e["shape"] = json!([1u64 << 62]), &["an overflow"]);
    entry(&|e| e["shape"] = json!([-1, 64]), &["expected dtype, shape and data_offsets", "-1"]);
    entry(&|e| e["shape"] = json!([160, 65]), &["expected 20800 bytes for BF16 [160, 65]"]);
    entry(&|e| e["data_offsets"] = json!([100, 10]), &["expected 20480 bytes", "found data_offsets [100, 10]"]);
    entry(&|e| e["data_offsets"] = json!([1]), &["expected dtype, shape and data_offsets"]);
    let shifted = |by: i64| {
        move |e: &mut Value| {
            let moved = |i: usize| json!(e["data_offsets"][i].as_i64().unwrap() + by);
            e["data_offsets"] = json!([moved(0), moved(1)]);
        }
    };
    entry(&shifted(2), &["expected data from offset", "found a hole: offset"]);
    entry(&shifted(-2), &["expected data from offset", "found an overlap: offset"]);
    let model = Model::new(None);
    model.edit_entry(UP, |entry| entry["data_offsets"] = json!([u64::MAX - 20480, u64::MAX]));
    // What is missing is first missed where the next tensor does not follow.
    model.fails(&["model.safetensors: tensor model.layers.1.mlp.down_proj.weight", "found a hole: offset"]);
}

#[test]
fn a_name_given_twice_is_refused() {
    let model = Model::new(None);
    model.rewrite(|header, _| *header = header.replacen("{", "{\"x\":{},\"x\":{},", 1));
    model.fails(&["model.safetensors: header, line 1", "each name once", "duplicate key \"x\""]);
}

#[test]
fn missing_and_trailing_bytes_are_counted() {
    let model = Model::new(None);
    model.rewrite(|_, data| data.extend([0; 5]));
    model.fails(&["model.safetensors: file", "after model.norm.weight", "found 5 trailing bytes"]);
    let model = Model::new(None);
    model.rewrite(|_, data| data.truncate(data.len() - 3));
    model.fails(&["model.safetensors: file", "to the end of model.norm.weight", "it is cut short"]);
}

#[test]
fn data_that_is_not_aligned_is_read_right() {
    let model = Model::new(None);
    let read = || {
        let files = ratoon::model::safetensors::WeightFiles::open(&model.path()).unwrap();
        files.tensor(UP).unwrap().bytes().to_vec()
    };
    let before = read();
    model.rewrite(|header, _| {
        let odd = header.trim_end().to_string();
        *header = if odd.len() % 2 == 0 { odd + " " } else { odd };
    });
    assert_eq!(read(), before);
    let file = ratoon::model::Llama::load(&model.path()).unwrap();
    assert_eq!(file.blocks[1].up.weight.bytes(), before);
}

#[test]
fn values_that_are_not_finite_are_found() {
    let model = Model::new(None);
    model.works();
    model.rewrite(|_, data| {
        let last = data.len() - 2;
        data[last..].copy_from_slice(&half::bf16::NAN.to_le_bytes());
    });
    model.works();
    model.fails_with(
        &["--check-values"],
        7,
        &["model.safetensors: tensor model.norm.weight, element 63: not finite (NaN)"],
    );
}

#[test]
fn weights_that_contradict_the_config_are_named() {
    let config = |key: &'static str, value: Value, parts: &[&str]| {
        let model = Model::new(None);
        model.edit("config.json", |json| {
            json.insert(key.into(), value);
        });
        model.fails(parts);
    };
    config(
        "num_hidden_layers",
        json!(3),
        &["config.json: num_hidden_layers: expected 4, the blocks that the weights hold, found 3"],
    );
    config("num_hidden_layers", json!(6), &["config.json: num_hidden_layers: expected 4", "found 6"]);
    let vocabulary =
        ["model.embed_tokens.weight", "expected shape [500, 64]", "config.json implies, found shape [512, 64]"];
    config("vocab_size", json!(500), &vocabulary);
    config(
        "intermediate_size",
        json!(128),
        &["model.safetensors: tensor model.layers.0.mlp.gate_proj.weight", "[128, 64]"],
    );
    config("tie_word_embeddings", json!(false), &["tensor lm_head.weight: expected shape [512, 64], found none"]);
    config("mlp_bias", json!(true), &["tensor model.layers.0.mlp.gate_proj.bias: expected shape [160], found none"]);
}

#[test]
fn a_tensor_too_many_is_refused_but_a_tied_head_is_only_remarked() {
    let extra = |name: &str, shape: &[usize]| {
        let model = Model::new(None);
        model.rewrite(|header, data| {
            let mut json: Value = serde_json::from_str(header).unwrap();
            let bytes = 2 * shape.iter().product::<usize>();
            json[name] = json!({ "dtype": "BF16", "shape": shape, "data_offsets": [data.len(), data.len() + bytes] });
            data.extend(vec![0; bytes]);
            *header = json.to_string();
        });
        model
    };
    let model = extra("model.layers.1.self_attn.q_norm.weight", &[16]);
    model.fails(&["tensor model.layers.1.self_attn.q_norm.weight", "no part of the model uses"]);
    let model = extra("model.layers.1.self_attn.q_proj.bias", &[64]);
    model.fails(&["tensor model.layers.1.self_attn.q_proj.bias", "(attention_bias is false)"]);
    let model = extra("lm_head.weight", &[512, 64]);
    let report = ratoon::model::inspect::inspect(&model.path()).unwrap();
    assert!(
        report.remarks.iter().any(|r| r.contains("lm_head.weight is not used") && r.contains("differs")),
        "{report:?}"
    );
    extra("lm_head.weight", &[512, 32]).fails(&[
        "tensor lm_head.weight",
        "expected shape [512, 64]",
        "found shape [512, 32]",
    ]);
    extra("model.layers.0.self_attn.rotary_emb.inv_freq", &[8]).works();
}

#[test]
fn an_index_that_contradicts_its_shards_is_named() {
    const INDEX: &str = "model.safetensors.index.json";
    let index = |change: &dyn Fn(&Model, &mut Map<String, Value>), parts: &[&str]| {
        let model = Model::new(Some(300_000));
        let mut map = Map::new();
        model.edit(INDEX, |json| {
            change(&model, json);
            map = json.clone();
        });
        model.fails(parts);
    };
    let set = |tensor: &'static str, shard: Value| {
        move |_: &Model, json: &mut Map<String, Value>| json["weight_map"][tensor] = shard.clone()
    };
    let bare = "expected the name of a .safetensors file in the same directory";
    for shard in [
        json!("../model.safetensors"),
        json!("/etc/passwd"),
        json!("a/b.safetensors"),
        json!(".."),
        json!(7),
        json!("a\\b.safetensors"),
        json!("config.json"),
    ] {
        index(&set(UP, shard), &["index.json: weight_map.model.layers.1.mlp.up_proj.weight", bare]);
    }
    index(
        &set(UP, json!("model-00003-of-00003.safetensors")),
        &[
            "index.json: weight_map: expected the shard model-00003-of-00003.safetensors, which holds 1 tensors",
            "no such file",
        ],
    );
    index(&set("nowhere", json!("model-00001-of-00002.safetensors")), &["weight_map.nowhere", "found it in no shard"]);
    index(
        &set("model.norm.weight", json!("model-00001-of-00002.safetensors")),
        &["weight_map.model.norm.weight: expected the tensor in model-00001", "found it in model-00002"],
    );
    let unlisted = |_: &Model, json: &mut Map<String, Value>| {
        json["weight_map"].as_object_mut().unwrap().remove("model.norm.weight");
    };
    index(&unlisted, &["weight_map.model.norm.weight: expected every tensor of the shards", "it does not list"]);
    let missing = |model: &Model, _: &mut Map<String, Value>| {
        std::fs::remove_file(model.file("model-00002-of-00002.safetensors")).unwrap();
    };
    index(&missing, &["expected the shard model-00002-of-00002.safetensors", "no such file"]);
    let twice = |model: &Model, json: &mut Map<String, Value>| {
        std::fs::copy(model.file("model-00002-of-00002.safetensors"), model.file("model-00003.safetensors")).unwrap();
        json["weight_map"]["model.norm.weight"] = json!("model-00003.safetensors");
    };
    index(
        &twice,
        &["model-00003.safetensors: tensor ", "expected each tensor in one shard", "found it in model-00002"],
    );
    let empty = |_: &Model, json: &mut Map<String, Value>| json["weight_map"] = json!({});
    index(&empty, &["index.json: weight_map: expected tensors, found none"]);
    let list = |_: &Model, json: &mut Map<String, Value>| json["weight_map"] = json!([]);
    index(&list, &["index.json: line 1", "expected JSON", "an object"]);
}

#[test]
fn shards_may_be_symlinks_as_in_the_hugging_face_cache() {
    let model = Model::new(Some(300_000));
    for name in ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "config.json"] {
        let blob = model.dir.path().join(format!("blob-{name}"));
        std::fs::rename(model.file(name), &blob).unwrap();
        std::os::unix::fs::symlink(&blob, model.file(name)).unwrap();
    }
    model.works();
}

#[test]
fn weights_in_other_formats_say_how_to_convert() {
    let instead_of_weights = |name: &str, parts: &[&str]| {
        let model = Model::new(None);
        std::fs::rename(model.weights(), model.file(name)).unwrap();
        model.fails(parts);
    };
    instead_of_weights("pytorch_model.bin", &["pytorch_model.bin: pickle is not supported", "safe_serialization=True"]);
    instead_of_weights("consolidated.00.pth", &["consolidated.00.pth: pickle is not supported"]);
    instead_of_weights("model-q4.gguf", &["model-q4.gguf is not supported", "ratoon convert"]);
    instead_of_weights(
        "other.safetensors",
        &["weights: expected model.safetensors or", "found other.safetensors without an index"],
    );
    instead_of_weights("nothing.txt", &["weights: expected model.safetensors or", "found neither"]);
}

#[test]
fn configs_that_cannot_be_are_named() {
    let config = |key: &str, value: Value, parts: &[&str]| {
        let model = Model::new(None);
        model.edit("config.json", |json| {
            json.insert(key.into(), value);
        });
        let place = format!("config.json: {key}");
        model.fails(&[&[&*place], parts].concat());
    };
    for bad in [json!(0), json!(-4), json!("4"), json!(4.0), json!(1u64 << 63), json!(true), json!([4])] {
        let found = format!("found {}", if bad.is_array() { "a list of 1".to_string() } else { bad.to_string() });
        config("num_hidden_layers", bad.clone(), &["expected an integer from 1 to", &found]);
        config("hidden_size", bad, &["expected an integer from 1 to", &found]);
    }
    config("num_key_value_heads", json!(3), &["expected a divisor of num_attention_heads 4, found 3"]);
    config("head_dim", json!(15), &["expected an even number", "found 15"]);
    config("head_dim", json!(1 << 20), &["found 4 heads of 1048576"]);
    config("rms_norm_eps", json!(-1.0), &["expected a number above 0, found -1.0"]);
    config("rope_theta", json!("big"), &["expected a number above 0, found \"big\""]);
    config("tie_word_embeddings", json!("yes"), &["expected true or false, found \"yes\""]);
    config("layer_types", json!(["full_attention"]), &["a list of num_hidden_layers = 4", "found a list of 1"]);
    let model = Model::new(None);
    model.edit("config.json", |json| {
        json.insert("head_dim".into(), Value::Null);
        json.insert("num_attention_heads".into(), json!(6));
    });
    model.fails(&["config.json: num_attention_heads: expected a divisor of hidden_size 64, found 6"]);
    let model = Model::new(None);
    std::fs::write(model.file("config.json"), "{\n  \"hidden_size\": 64,\n").unwrap();
    model.fails(&["config.json: line 3", "expected JSON"]);
    let model = Model::new(None);
    std::fs::remove_file(model.file("config.json")).unwrap();
    model.fails_with(&[], 4, &["config.json: cannot read"]);
}

#[test]
fn options_that_are_not_supported_are_named() {
    let cases = [
        (
            "architectures",
            json!(["MistralForCausalLM"]),
            "architecture \"MistralForCausalLM\" is not supported; LlamaForCausalLM is",
        ),
        ("model_type", json!("qwen2"), "model_type = \"qwen2\" is not supported"),
        ("hidden_act", json!("gelu"), "hidden_act = \"gelu\" is not supported; silu is"),
        ("pretraining_tp", json!(2), "pretraining_tp = 2 is not supported"),
        (
            "quantization_config",
            json!({ "quant_method": "gptq" }),
            "quantization_config = an object of 1 entries is not supported",
        ),
        ("sliding_window", json!(4096), "sliding_window = 4096 is not supported"),
        ("partial_rotary_factor", json!(0.5), "partial_rotary_factor = 0.5 is not supported"),
        ("num_local_experts", json!(8), "num_local_experts = 8 is not supported"),
        ("attention_dropout", json!(0.1), "attention_dropout = 0.1 is not supported"),
        (
            "rope_scaling",
            json!({ "type": "yarn", "factor": 4.0 }),
            "rope_scaling.rope_type = \"yarn\" is not supported; default, linear and llama3 are",
        ),
        (
            "rope_scaling",
            json!({ "rope_type": "dynamic", "factor": 2.0 }),
            "rope_scaling.rope_type = \"dynamic\" is not supported",
        ),
        (
            "rope_scaling",
            json!({ "factor": 2.0 }),
            "rope_scaling.rope_type: expected \"default\", \"linear\" or \"llama3\", found nothing",
        ),
        (
            "rope_scaling",
            json!({ "rope_type": "linear" }),
            "rope_scaling.factor: expected a number above 0, found nothing",
        ),
        (
            "rope_scaling",
            json!({ "rope_type": "linear", "factor": -2 }),
            "rope_scaling.factor: expected a number above 0, found -2",
        ),
        (
            "rope_parameters",
            json!({ "rope_type": "default", "rope_theta": 5.0 }),
            "rope_parameters.rope_theta: expected 10000 as rope_theta says, found 5.0",
        ),
        (
            "rope_parameters",
            json!({ "full_attention": { "rope_type": "default" } }),
            "rope_parameters.full_attention = an object",
        ),
        (
            "layer_types",
            json!(["full_attention", "sliding_attention", "full_attention", "full_attention"]),
            "layer_types[1] = \"sliding_attention\" is not supported",
        ),
    ];
    let model = Model::new(None);
    let sound = std::fs::read(model.file("config.json")).unwrap();
    for (key, value, message) in cases {
        std::fs::write(model.file("config.json"), &sound).unwrap();
        model.edit("config.json", |json| {
            json.insert(key.into(), value);
        });
        model.fails(&["config.json: ", message]);
    }
}

#[test]
fn a_file_cut_short_while_mapped_ends_with_its_name() {
    // The child maps a model, cuts its file, and reads on: only a child may die of it.
    if let Some(dir) = std::env::var_os("RATOON_TEST_CUT_SHORT") {
        ratoon::model::mapped::install_fault_handler().unwrap();
        let dir = Path::new(&dir);
        let files = ratoon::model::safetensors::WeightFiles::open(dir).unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(dir.join("model.safetensors")).unwrap();
        file.set_len(4096).unwrap();
        files.check_values().unwrap();
        return;
    }
    let model = Model::new(None);
    let name = "a_file_cut_short_while_mapped_ends_with_its_name";
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    let output =
        child.args(["--exact", name, "--nocapture"]).env("RATOON_TEST_CUT_SHORT", model.path()).output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{message}");
    let expected = format!("error: {}: byte ", model.weights().display());
    assert!(message.contains(&expected) && message.contains("found it cut short"), "{message}");
}
