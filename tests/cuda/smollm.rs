//! Two blocks in the widths of SmolLM2-135M (576, 9 heads of 64 on 3, 1,536), random weights, the vocabulary cut to 256 ids.

use crate::rounding::Expected;
use crate::train::{assert_same_steps, five_steps, lora, trainer};
use crate::{card, relative_deviation};
use ratoon::device::{Device, Tensor};
use ratoon::eval::{self, log_likelihoods};
use ratoon::generate::{EngineOptions, Request};
use ratoon::model::presets::{InitOptions, Preset};
use ratoon::model::{Llama, Recompute};
use ratoon::progress::Progress;
use ratoon::prune::{Calibration, Metric, ScoreOptions, score};
use ratoon::train::Method;
use std::path::Path;
use std::sync::Arc;

const VOCAB: usize = 256;

/// The model on the host, weights F32 of BF16 values.
pub fn smollm() -> Llama {
    load(tempfile::tempdir().unwrap().path())
}

/// The same from `dir`, which holds it afterwards; its weights there have all ids, its config has not.
pub fn load(dir: &Path) -> Llama {
    let options = InitOptions { layers: Some(2), overwrite: true, ..InitOptions::default() };
    Preset::named("smollm2-135m").unwrap().init(dir, &options).unwrap();
    let mut model = Llama::load(dir).unwrap().into_f32();
    let hidden = model.config.hidden_size;
    model.embed_tokens = Arc::new(Tensor::from_f32(&model.embed_tokens.f32()[..VOCAB * hidden], &[VOCAB, hidden]));
    model.config.vocab_size = VOCAB;
    let path = dir.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["vocab_size"] = VOCAB.into();
    // One split of attention.
    config["max_position_embeddings"] = 256.into();
    std::fs::write(&path, config.to_string()).unwrap();
    model
}

/// The model, and the same on a card.
fn both(dev: &Device) -> (Llama, Llama) {
    let model = smollm();
    let mut placed = model.clone();
    placed.prepare(dev).unwrap();
    (model, placed)
}

fn ids(n: u32, seed: u32) -> Vec<u32> {
    (0..n).map(|i| (i * i * 31 + i * 7 + seed) % VOCAB as u32).collect()
}

#[test]
fn likelihoods_of_tasks_are_within_what_rounding_explains() {
    let dev = card();
    let (model, placed) = both(&dev);
    // Choices behind one context, and a request that shares nothing.
    let context = ids(13, 1);
    let choices = [[5, 9, 200].as_slice(), &[5, 17], &[201]];
    let mut requests: Vec<eval::Request> = choices
        .iter()
        .map(|choice| eval::Request { ids: [&context, *choice].concat(), continuation: choice.len() })
        .collect();
    requests.push(eval::Request { ids: ids(6, 3), continuation: 4 });
    let progress = Progress::start("requests", requests.len() as u64, "requests");
    let got = log_likelihoods(&dev, &placed, &requests, &progress).unwrap();
    let sequences: Vec<Vec<u32>> = requests.iter().map(|request| request.ids.clone()).collect();
    let [_, log_probs] = Expected::of(&model, &sequences);
    let mut end = 0;
    for (request, got) in requests.iter().zip(got) {
        end += request.ids.len();
        // The log-probability of a token stands at the one before it.
        let scored = end - 1 - request.continuation..end - 1;
        let (want, deviation): (f64, f64) =
            (log_probs.value[scored.clone()].iter().sum(), log_probs.deviation[scored].iter().sum());
        assert!((got - want).abs() <= 7.0 * deviation, "{request:?}: {got} for {want}, deviation {deviation}");
    }
}

#[test]
fn greedy_tokens_are_the_largest_logits_within_what_rounding_explains() {
    let dev = card();
    let (model, placed) = both(&dev);
    let requests: Vec<Request> = (0..3).map(|id| Request::new(id, ids(4 + 3 * id as u32, 2), 3)).collect();
    let of = |max_batch_size| {
        let options = EngineOptions { max_batch_size, ..EngineOptions::default() };
        crate::generate::tokens(&dev, &placed, &requests, &options)
    };
    let tokens = of(3);
    assert_eq!(tokens, of(1), "the batch does not show");
    let whole: Vec<Vec<u32>> =
        requests.iter().zip(&tokens).map(|(r, new)| [r.prompt.clone(), new.clone()].concat()).collect();
    let [logits, _] = Expected::of(&model, &whole);
    let mut first = 0;
    for (request, whole) in requests.iter().zip(&whole) {
        for at in request.prompt.len()..whole.len() {
            let row = (first + at - 1) * VOCAB;
            let (chosen, deviation) = (logits.value[row + whole[at] as usize], &logits.deviation[row..][..VOCAB]);
            for (id, &other) in logits.value[row..][..VOCAB].iter().enumerate() {
                let slack = 7.0 * (deviation[id] + deviation[whole[at] as usize]);
                assert!(chosen + slack >= other, "position {at}: {} was chosen over {id}", whole[at]);
            }
        }
        first += whole.len();
    }
}

#[test]
fn angular_distances_equal_the_cpus_within_rounding() {
    let dev = card();
    let model = smollm();
    let calibration = Calibration::new(vec![ids(11, 5), ids(7, 9)]);
    let options = ScoreOptions { block_sizes: vec![1], metric: Metric::Angular, ..ScoreOptions::default() };
    let (got, want) = (
        score(&dev, &model, Some(&calibration), &options).unwrap(),
        score(&Device::cpu(), &model, Some(&calibration), &options).unwrap(),
    );
    for (got, want) in got.rows.iter().zip(&want.rows) {
        // Two vectors, each turned by its relative error.
        let bound = 2.0 * relative_deviation(got.end) / std::f64::consts::PI;
        assert!((got.value - want.value).abs() < bound, "{got:?} against {want:?}, bound {bound}");
    }
}

#[test]
fn steps_have_the_cpus_losses_and_gradient_norms_within_rounding() {
    let (dev, cpu) = (card(), Device::cpu());
    let run = |dev: &Device, method| five_steps(&mut trainer(dev, smollm(), method, Recompute::Block));
    for method in [Method::Full, lora(0.0), lora(0.25)] {
        let (got, want) = (run(&dev, method.clone()), run(&cpu, method.clone()));
        assert_same_steps(&format!("smollm {method:?}"), 2, &got, &want);
    }
}
