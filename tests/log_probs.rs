//! Log-probabilities and losses of the real model equal PyTorch's (float32).

mod support;

use ratoon::device::{DType, Device, Tensor};
use ratoon::model::{Batch, Llama, Workspace};
use ratoon::ops::cross_entropy::linear_cross_entropy;
use ratoon::ops::log_probs::log_probs;
use ratoon::ops::matmul::PackedWeight;
use serde_json::Value;

#[test]
fn token_log_probs_losses_and_packed_heads_agree_with_pytorch_on_the_real_model() {
    let reference: Value = serde_json::from_str(include_str!("data/prompts.json")).unwrap();
    let prompts = reference["prompts"].as_array().unwrap();
    let sequences: Vec<Vec<u32>> = prompts.iter().map(|p| serde_json::from_value(p["ids"].clone()).unwrap()).collect();
    let dev = Device::cpu();
    let model = Llama::load(&support::smollm2()).unwrap();
    let batch = Batch::pack(&sequences);
    let mut ws = Workspace::new(&dev, &model.config, batch.tokens()).unwrap();
    let got = model.next_token_log_probs(&dev, &batch, &mut ws).unwrap();

    let offsets = batch.cu_seqlens.u32();
    for (s, prompt) in prompts.iter().enumerate() {
        let want: Vec<f32> = serde_json::from_value(prompt["token_logprobs"].clone()).unwrap();
        let got = &got[offsets[s] as usize..offsets[s + 1] as usize - 1];
        assert_eq!(got.len(), want.len(), "{}", prompt["name"]);
        for (t, (got, want)) in got.iter().zip(&want).enumerate() {
            assert!((got - want).abs() < 2e-3, "{} token {t}: {got} for {want}", prompt["name"]);
        }
    }

    let targets = batch.next_tokens();
    let mut packed = Tensor::zeros(&[batch.tokens()], DType::F32);
    log_probs(&dev, &mut packed, &ws.hidden, &PackedWeight::new(model.head(), dev.compute()).unwrap(), &targets)
        .unwrap();
    assert_eq!(packed.f32(), got, "a packed head gives the same bits");

    let mut losses = Tensor::zeros(&[batch.tokens()], DType::F32);
    let mut gradient = Tensor::zeros(ws.hidden.shape(), DType::F32);
    linear_cross_entropy(&dev, &mut losses, &mut gradient, None, &ws.hidden, model.head(), &targets, 1.0).unwrap();
    assert!(
        losses.f32().iter().zip(&got).all(|(loss, log_p)| *loss == -log_p),
        "the loss is the log-probability's negative"
    );
}
