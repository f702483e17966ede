//! Generated tokens.

use crate::{card, support, tiny};
use ratoon::Error;
use ratoon::device::{DType, Device, Tensor};
use ratoon::generate::{EngineOptions, Models, Request, Sampling, generate};
use ratoon::model::{GenerationConfig, Llama, Tokenizer};
use ratoon::ops::philox;
use ratoon::ops::sample::{Draw, sample};
use std::path::Path;

/// Hands `with` a model whose outputs only their lengths end.
pub fn with_models<T>(target: &Llama, with: impl FnOnce(Models) -> T) -> T {
    let dir = tempfile::tempdir().unwrap();
    support::tiny_model_with_tokenizer(dir.path());
    let tokenizer = Tokenizer::load(dir.path()).unwrap();
    let generation = GenerationConfig { eos_token_ids: Vec::new(), ..GenerationConfig::default() };
    with(Models { target, tokenizer: &tokenizer, generation: &generation, draft: None })
}

pub fn tokens(dev: &Device, model: &Llama, requests: &[Request], options: &EngineOptions) -> Vec<Vec<u32>> {
    let mut out = vec![Vec::new(); requests.len()];
    let mut sink = |i: usize, completion: ratoon::generate::Completion| {
        out[i] = completion.ids;
        Ok(())
    };
    with_models(model, |models| generate(dev, models, requests, options, &mut sink)).unwrap();
    out
}

fn load(dev: &Device, dir: &Path) -> Llama {
    Llama::load_packed(dev, dir).unwrap()
}

#[test]
fn the_same_tokens_whatever_the_batch_the_chunks_and_the_pages() {
    let dev = card();
    let model = load(&dev, &tiny("gqa"));
    let requests: Vec<Request> = (0..5u64)
        .map(|id| {
            let prompt = (0..7 + 11 * id as u32).map(|i| (i * 13 + id as u32) % 200).collect();
            let temperature = if id % 2 == 0 { 0.0 } else { 0.8 };
            Request { sampling: Sampling { temperature, ..Sampling::GREEDY }, ..Request::new(id, prompt, 6) }
        })
        .collect();
    let of = |max_batch_size, chunk_tokens, page_size| {
        let options = EngineOptions { max_batch_size, chunk_tokens, page_size, ..EngineOptions::default() };
        tokens(&dev, &model, &requests, &options)
    };
    let alone = of(1, 512, 16);
    assert!(alone.iter().all(|ids| ids.len() == 6));
    assert_eq!(alone, of(5, 512, 16));
    assert_eq!(alone, of(3, 9, 4));
}

/// F32 `[rows, vocab]` of about N(0, 4), with equal ones among them.
fn random_logits(rows: usize, vocab: usize) -> Tensor {
    let sum = |i: u64| philox::block(9, 0, i).iter().map(|&w| f64::from(w >> 20)).sum::<f64>();
    let values: Vec<f32> = (0..(rows * vocab) as u64).map(|i| ((sum(i) / 4096.0 - 2.0) * 3.5) as f32).collect();
    Tensor::from_f32(&values, &[rows, vocab])
}

#[test]
fn the_card_draws_the_cpus_tokens_from_the_same_logits() {
    let (dev, cpu, vocab) = (card(), Device::cpu(), 1003);
    let settings = [
        (0, 1.0, 0.0),
        (5, 1.0, 0.0),
        (0, 0.9, 0.0),
        (40, 0.5, 0.0),
        (2000, 0.99, 0.0),
        (0, 1.0, 0.1),
        (30, 0.9, 0.01),
    ];
    let mut draws = Vec::new();
    for (i, (top_k, top_p, min_p)) in settings.into_iter().cycle().take(350).enumerate() {
        let temperature = [0.0, 0.7, 1.0, 1.9][i % 4];
        let sampling = Sampling { temperature, top_k, top_p, min_p, seed: 5 << 33 | 1, ..Sampling::GREEDY };
        // What only the host does stands among what the card does.
        let (logit_bias, seen): (&[(u32, f32)], &[u32]) =
            if i % 10 == 3 { (&[(7, 2.5)], &[1, 2]) } else { (&[], &[3]) };
        let repetition_penalty = if i % 10 == 7 { 1.3 } else { 1.0 };
        let sampling = Sampling { repetition_penalty, ..sampling };
        let draw = Draw {
            logit_bias,
            seen,
            top: usize::from(i % 10 == 5),
            ..Draw::new(sampling, 40 + i as u64, 2 * i as u32)
        };
        draws.push(draw);
    }
    let logits = random_logits(draws.len(), vocab);
    let placed = dev.upload(&logits, DType::F32).unwrap();
    let (got, want) = (sample(&dev, &placed, &draws).unwrap(), sample(&cpu, &logits, &draws).unwrap());
    for ((got, want), draw) in got.iter().zip(&want).zip(&draws) {
        // Weights differ by 2^-20 of themselves: a random number lies that close to a border once in a thousand such tests.
        assert_eq!((got.id, &got.top), (want.id, &want.top), "{draw:?}");
        assert!((got.log_prob - want.log_prob).abs() < 4e-6, "{draw:?}: {got:?} for {want:?}");
    }
    // A request's token does not depend on what is drawn beside it.
    let alone = dev.upload(&Tensor::from_f32(&logits.f32()[vocab..2 * vocab], &[1, vocab]), DType::F32).unwrap();
    assert_eq!(sample(&dev, &alone, &draws[1..2]).unwrap()[0], got[1]);
}

#[test]
fn logits_that_cannot_be_drawn_from_are_told_with_their_request() {
    let dev = card();
    for bad in [f32::NAN, f32::INFINITY] {
        let logits = Tensor::from_f32(&[0.0, 1.0, 2.0, 0.0, bad, 2.0], &[2, 3]);
        let placed = dev.upload(&logits, DType::F32).unwrap();
        let draws = [
            Draw::new(Sampling::GREEDY, 4, 8),
            Draw { name: "row 5", ..Draw::new(Sampling { temperature: 1.0, ..Sampling::GREEDY }, 5, 9) },
        ];
        let error = sample(&dev, &placed, &draws).unwrap_err();
        assert!(matches!(error, Error::NotFinite { .. }), "{error}");
        assert!(error.to_string().contains("row 5 at position 9"), "{error}");
    }
}
