//! The forward pass equals PyTorch's on seven shapes of Llama.

use ratoon::device::{DType, Device, Tensor};
use ratoon::model::{Batch, Llama, Workspace};
use ratoon::ops::matmul::{Store, matmul_nt};
use serde_json::Value;
use std::path::Path;

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

#[test]
fn tiny_models_give_pytorch_logits() {
    for name in ["biases", "gqa", "linear_rope", "llama3_rope", "mha_tied", "mqa_head_dim", "odd_sizes"] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny").join(name);
        let expected: Value = serde_json::from_slice(&std::fs::read(dir.join("expected.json")).unwrap()).unwrap();
        let sequences: Vec<Vec<u32>> = serde_json::from_value(expected["ids"].clone()).unwrap();
        let dev = Device::cpu();
        let model = Llama::load(&dir).unwrap();
        let batch = Batch::pack(&sequences);
        let mut ws = Workspace::new(&dev, &model.config, batch.tokens()).unwrap();
        model.forward(&dev, &batch, &mut ws, &mut |_, _| Ok(())).unwrap();
        let vocab = model.config.vocab_size;
        let mut logits = Tensor::zeros(&[batch.tokens(), vocab], DType::F32);
        matmul_nt(&dev, &mut logits, &ws.hidden, model.head(), None, Store::Replace).unwrap();
        for (s, want) in expected["last_logits"].as_array().unwrap().iter().enumerate() {
            let last = batch.cu_seqlens.u32()[s + 1] as usize - 1;
            for (got, want) in logits.f32()[last * vocab..(last + 1) * vocab].iter().zip(floats(want)) {
                assert!((got - want).abs() < 2e-4, "{name}: sequence {s}: {got} against {want}");
            }
        }
    }
}
