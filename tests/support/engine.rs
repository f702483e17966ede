//! The engine on a tiny model, for tests of generation.
#![allow(dead_code)] // each test file compiles its own copy of this module

use crate::support;
use ratoon::Result;
use ratoon::device::Device;
use ratoon::generate::{Completion, EngineOptions, Logprobs, Models, Request, Sampling, Stats, generate};
use ratoon::model::{GenerationConfig, Llama, Tokenizer};

pub struct Setup {
    pub model: Llama,
    pub tokenizer: Tokenizer,
    pub draft: Option<Llama>,
}

/// The tiny model of [`support::tiny_model_with_tokenizer`]; its context is 512 tokens, its keys and values take 1,024 bytes a token.
pub fn tiny() -> Setup {
    let dir = tempfile::tempdir().unwrap();
    support::tiny_model_with_tokenizer(dir.path());
    Setup { model: Llama::load(dir.path()).unwrap(), tokenizer: Tokenizer::load(dir.path()).unwrap(), draft: None }
}

/// Runs the requests on a device of their own and checks that each ends once.
pub fn run_on(
    dev: &Device,
    setup: &Setup,
    eos: &[u32],
    requests: &[Request],
    options: &EngineOptions,
) -> Result<(Vec<Completion>, Stats)> {
    let mut out = vec![None; requests.len()];
    let generation = GenerationConfig { eos_token_ids: eos.to_vec(), ..GenerationConfig::default() };
    let mut sink = |i: usize, completion| {
        assert!(out[i].replace(completion).is_none(), "each request ends once");
        Ok(())
    };
    let (target, tokenizer, draft) = (&setup.model, &setup.tokenizer, setup.draft.as_ref());
    let stats =
        generate(dev, Models { target, tokenizer, generation: &generation, draft }, requests, options, &mut sink)?;
    Ok((out.into_iter().map(Option::unwrap).collect(), stats))
}

pub fn run(
    setup: &Setup,
    eos: &[u32],
    requests: &[Request],
    options: &EngineOptions,
) -> Result<(Vec<Completion>, Stats)> {
    run_on(&Device::cpu(), setup, eos, requests, options)
}

pub fn request(prompt: &[u32], max_tokens: usize) -> Request {
    Request::new(0, prompt.to_vec(), max_tokens)
}

/// Requests of many lengths, greedy and sampled, with and without stop strings.
pub fn mixed_requests() -> Vec<Request> {
    (0..23usize)
        .map(|i| Request {
            id: 1000 + i as u64,
            name: String::new(),
            prompt: (0..1 + i * 7 % 41).map(|p| ((p * 31 + i * 17) % 256) as u32).collect(),
            max_tokens: 1 + i * 5 % 37,
            sampling: match i % 3 {
                0 => Sampling::GREEDY,
                1 => Sampling { temperature: 1.0, seed: 7, ..Sampling::GREEDY },
                _ => Sampling { temperature: 0.8, top_k: 50, top_p: 0.9, seed: 8, ..Sampling::GREEDY },
            },
            logit_bias: if i % 6 == 1 { vec![(65, 2.0), (66, -100.0)] } else { Vec::new() },
            stop: if i % 4 == 0 { vec!["e".into()] } else { Vec::new() },
            logprobs: Logprobs { output: true, top: i % 3, prompt: i % 5 == 0 },
        })
        .collect()
}
