//! Losses and gradients equal PyTorch's, in full and for adapters, and do not depend on what is kept or recomputed.

mod support;

use ratoon::device::{Compute, Device, Tensor};
use ratoon::model::lora::DropoutKey;
use ratoon::model::{Activations, Adapter, Batch, Gradients, Llama, Recompute, Trainable};
use serde_json::Value;
use std::path::{Path, PathBuf};

const TINY: [&str; 7] = ["biases", "gqa", "linear_rope", "llama3_rope", "mha_tied", "mqa_head_dim", "odd_sizes"];

fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(path)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A batch, the id to predict at each of its positions, and how many losses the mean is over.
struct Task {
    batch: Batch,
    targets: Tensor,
    n: usize,
}

impl Task {
    /// Every next token.
    fn next_tokens(sequences: &[Vec<u32>]) -> Task {
        let batch = Batch::pack(sequences);
        Task { targets: batch.next_tokens(), n: batch.tokens() - sequences.len(), batch }
    }

    /// Every next token, but for labels before `prompt`, which are masked.
    fn masked(sequences: &[Vec<u32>], prompt: usize) -> Task {
        let Task { batch, mut targets, .. } = Task::next_tokens(sequences);
        for start in batch.cu_seqlens.u32()[..batch.cu_seqlens.rows() - 1].iter().copied() {
            targets.u32_mut()[start as usize..start as usize + prompt - 1].fill(ratoon::ops::log_probs::IGNORE);
        }
        let n = targets.u32().iter().filter(|&&t| t != ratoon::ops::log_probs::IGNORE).count();
        Task { batch, targets, n }
    }
}

/// Mean loss and gradients.
fn gradients(
    dev: &Device,
    model: &Llama,
    trainable: Trainable,
    task: &Task,
    recompute: Recompute,
    dropout: Option<DropoutKey>,
) -> (f64, Gradients) {
    let Task { batch, targets, n } = task;
    let mut grads = Gradients::new(dev, model, trainable).unwrap();
    let mut ws = Activations::new(dev, model, batch.tokens(), recompute, grads.lowest_block()).unwrap();
    let scale = 1.0 / *n as f32;
    let sum = model.forward_backward(dev, batch, targets, scale, dropout, &mut ws, &mut grads).unwrap();
    (sum / *n as f64, grads)
}

fn norm(t: &Tensor) -> f64 {
    t.f32().iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt()
}

fn compare_norms(name: &str, model: &mut Llama, trainable: Trainable, grads: &Gradients, expected: &Value) {
    let names: Vec<String> = model.parameters_mut(trainable).unwrap().into_iter().map(|(name, _)| name).collect();
    let expected = expected.as_object().unwrap();
    assert_eq!(names.len(), expected.len(), "{name}: parameters");
    for (parameter, grad) in names.iter().zip(grads.tensors()) {
        let want = expected[parameter].as_f64().unwrap();
        let got = norm(grad);
        // Relative, with a floor where the norm itself is rounding: the k bias moves all scores of a row alike.
        assert!((got - want).abs() <= 1e-3 * want + 1e-6, "{name}: {parameter}: {got} against {want}");
    }
}

fn bits(grads: &Gradients) -> Vec<Vec<u8>> {
    grads.tensors().into_iter().map(|t| t.bytes().to_vec()).collect()
}

fn sequences(expected: &Value) -> Vec<Vec<u32>> {
    serde_json::from_value(expected.clone()).unwrap()
}

#[test]
fn tiny_models_give_pytorch_losses_and_gradient_norms() {
    for name in TINY {
        let dir = data("tiny").join(name);
        let expected = json(&dir.join("expected.json"));
        let mut model = Llama::load(&dir).unwrap().into_f32();
        let task = Task::next_tokens(&sequences(&expected["ids"]));
        let (loss, grads) = gradients(&Device::cpu(), &model, Trainable::All, &task, Recompute::Block, None);
        let want = expected["loss"].as_f64().unwrap();
        assert!((loss - want).abs() < 1e-4, "{name}: loss {loss} against {want}");
        compare_norms(name, &mut model, Trainable::All, &grads, &expected["grad_norm"]);
    }
}

#[test]
fn an_adapter_gives_peft_masked_loss_and_gradient_norms() {
    let expected = json(&data("lora/expected.json"));
    let mut model = Llama::load(&data("tiny/gqa")).unwrap().with_adapter(&data("lora")).unwrap();
    let prompt = expected["prompt_tokens"].as_u64().unwrap() as usize;
    let task = Task::masked(&sequences(&expected["ids"]), prompt);
    assert_eq!(task.n, 88);
    let (loss, grads) = gradients(&Device::cpu(), &model, Trainable::Lora, &task, Recompute::None, None);
    let want = expected["loss"].as_f64().unwrap();
    assert!((loss - want).abs() < 1e-4, "loss {loss} against {want}");
    compare_norms("lora", &mut model, Trainable::Lora, &grads, &expected["grad_norm"]);
}

#[test]
fn recomputation_changes_no_bit_of_a_gradient() {
    let (dev, task) = (Device::cpu(), Task::next_tokens(&[(1..40).collect(), (7..20).collect()]));
    for name in TINY {
        let model = Llama::load(&data("tiny").join(name)).unwrap().into_f32();
        let of = |recompute| gradients(&dev, &model, Trainable::All, &task, recompute, None);
        let ((loss_a, a), (loss_b, b)) = (of(Recompute::Block), of(Recompute::None));
        assert_eq!(loss_a, loss_b);
        assert!(bits(&a) == bits(&b), "{name}");
    }
    let model = Llama::load(&data("tiny/gqa")).unwrap().with_adapter(&data("lora")).unwrap();
    let key = Some(DropoutKey { p: 0.3, seed: 5, stream: 280 });
    let of = |recompute, key| gradients(&dev, &model, Trainable::Lora, &task, recompute, key);
    let ((loss_a, a), (loss_b, b)) = (of(Recompute::Block, key), of(Recompute::None, key));
    assert_eq!(loss_a, loss_b);
    assert!(bits(&a) == bits(&b), "dropout masks agree");
    assert_ne!(loss_a, of(Recompute::Block, None).0, "dropout does something");
}

#[test]
fn bf16_products_keep_pytorch_losses_and_gradients_whatever_is_recomputed() {
    let dev = Device::cpu().with_compute(Compute::Bf16).unwrap();
    let tiny = TINY.map(|name| (data("tiny").join(name), data("tiny").join(name).join("expected.json"), "ids"));
    for (dir, expected, ids) in tiny.into_iter().chain([(support::smollm2(), data("train.json"), "batch")]) {
        let (name, expected) = (dir.display(), json(&expected));
        let mut model = Llama::load(&dir).unwrap().into_f32();
        let task = Task::next_tokens(&sequences(&expected[ids]));
        let (loss, grads) = gradients(&dev, &model, Trainable::All, &task, Recompute::None, None);
        let want = expected["loss"].as_f64().unwrap();
        // A value goes through about 20 roundings a block on its way up and down, each within 2^-9 and of either sign. The loss
        // is a mean over tokens; of the norms, most of them sums of many, the furthest off is looked at.
        let rounding = 2f64.powi(-9) * (20.0 * model.blocks.len() as f64).sqrt();
        assert!((loss - want).abs() < rounding * want / 10.0, "{name}: loss {loss} against {want}");
        let names: Vec<String> =
            model.parameters_mut(Trainable::All).unwrap().into_iter().map(|(name, _)| name).collect();
        for (parameter, grad) in names.iter().zip(grads.tensors()) {
            let (got, want) = (norm(grad), expected["grad_norm"][parameter].as_f64().unwrap());
            assert!((got - want).abs() < 2.0 * rounding * want + 1e-4, "{name}: {parameter}: {got} against {want}");
        }
        let (loss_again, again) = gradients(&dev, &model, Trainable::All, &task, Recompute::Block, None);
        assert_eq!(loss, loss_again, "{name}");
        assert!(bits(&grads) == bits(&again), "{name}");
    }
}

#[test]
fn packed_sequences_give_the_same_loss_as_separate_ones_and_the_same_gradients_within_rounding() {
    let model = Llama::load(&data("tiny/gqa")).unwrap().into_f32();
    let (one, two): (Vec<u32>, Vec<u32>) = ((1..40).collect(), (50..77).collect());
    let n = one.len() + two.len() - 2;
    let of = |ids: &[Vec<u32>]| {
        let task = Task { n, ..Task::next_tokens(ids) };
        gradients(&Device::cpu(), &model, Trainable::All, &task, Recompute::Block, None)
    };
    let (packed, grads) = of(&[one.clone(), two.clone()]);
    let ((first, a), (second, b)) = (of(&[one]), of(&[two]));
    assert!((packed - first - second).abs() < 1e-12, "{packed} against {first} + {second}");
    for ((sum, a), b) in grads.tensors().into_iter().zip(a.tensors()).zip(b.tensors()) {
        // Each element is a sum over 66 tokens: rounding of at most 66 terms of the largest gradient's size.
        let bound = 66.0 * f32::EPSILON * sum.f32().iter().fold(0.0f32, |m, v| m.max(v.abs())).max(1e-6);
        for ((s, a), b) in sum.f32().iter().zip(a.f32()).zip(b.f32()) {
            assert!((s - (a + b)).abs() <= bound, "{s} against {a} + {b}");
        }
    }
}

#[test]
fn frozen_weights_get_no_gradient_and_the_pass_ends_at_the_lowest_trained_block() {
    let mut model = Llama::load(&data("tiny/gqa")).unwrap();
    let config = ratoon::model::adapter::LoraConfig {
        r: 2,
        lora_alpha: 4.0,
        lora_dropout: 0.0,
        target_modules: vec![ratoon::model::Projection::QProj],
        layers_to_transform: Some(vec![2, 3]),
        use_rslora: false,
    };
    Adapter::new(config, &model, 1).unwrap().attach(&mut model);
    let grads = Gradients::new(&Device::cpu(), &model, Trainable::Lora).unwrap();
    assert_eq!(grads.lowest_block(), 2);
    assert_eq!(grads.tensors().len(), 4);
    let task = Task::next_tokens(&[(1..40).collect()]);
    let (_, grads) = gradients(&Device::cpu(), &model, Trainable::Lora, &task, Recompute::None, None);
    // B starts at zero, so A has no gradient yet and B has one.
    let norms: Vec<f64> = grads.tensors().into_iter().map(norm).collect();
    assert!(norms[0] == 0.0 && norms[1] > 0.0 && norms[2] == 0.0 && norms[3] > 0.0, "{norms:?}");
}

#[test]
fn the_real_model_gives_pytorch_loss_and_gradients() {
    let expected = json(&data("train.json"));
    let mut model = Llama::load(&support::smollm2()).unwrap().into_f32();
    let task = Task::next_tokens(&sequences(&expected["batch"]));
    let (loss, grads) = gradients(&Device::cpu(), &model, Trainable::All, &task, Recompute::None, None);
    let want = expected["loss"].as_f64().unwrap();
    assert!((loss - want).abs() < 1e-4, "loss {loss} against {want}");
    compare_norms("smollm2", &mut model, Trainable::All, &grads, &expected["grad_norm"]);
    let total = ratoon::ops::grad_norm::grad_norm(&Device::cpu(), &grads.tensors()).unwrap();
    let want = expected["grad_norm_total"].as_f64().unwrap();
    assert!((total - want).abs() < 1e-3 * want, "total norm {total} against {want}");
    let names: Vec<String> = model.parameters_mut(Trainable::All).unwrap().into_iter().map(|(name, _)| name).collect();
    for (name, grad) in names.iter().zip(grads.tensors()) {
        let scale = norm(grad) / (grad.elements() as f64).sqrt();
        for (got, want) in grad.f32().iter().zip(expected["grad_first4"][name].as_array().unwrap()) {
            let want = want.as_f64().unwrap();
            assert!((f64::from(*got) - want).abs() < 1e-3 * (want.abs() + scale), "{name}: {got} against {want}");
        }
    }
}
