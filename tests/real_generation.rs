//! The real model, as `generate` runs it: packed weights in bf16 and in 8 bits. A request gets the same tokens whatever runs
//! beside it, and greedy output with a cut model as draft is the model's own.

#[path = "support/engine.rs"]
mod engine;
mod support;

use engine::{Setup, run_on};
use ratoon::device::{Compute, Device, Weights};
use ratoon::generate::{Completion, EngineOptions, Logprobs, Order, Request, Sampling, Stats};
use ratoon::model::{Llama, Tokenizer};

/// Blocks that the quickstart cuts.
const CUT: [usize; 6] = [13, 14, 15, 16, 17, 18];

fn cpu(weights: Weights) -> Device {
    Device::cpu().with_compute(Compute::Bf16).unwrap().with_weights(weights).unwrap()
}

fn setup(weights: Weights) -> Setup {
    let dir = support::smollm2();
    let model = Llama::load_packed(&cpu(weights), &dir).unwrap();
    Setup { model, tokenizer: Tokenizer::load(&dir).unwrap(), draft: None }
}

/// Half of them share their first 90 tokens or so; greedy and sampled, with and without log-probabilities.
fn requests(tokenizer: &Tokenizer) -> Vec<Request> {
    let shared =
        "Answer each question in one short sentence. Question: What is a ratoon? Answer: A new shoot. ".repeat(4);
    let one = |i: u64| {
        let text = format!("{}Question: What comes after {i}? Answer:", if i.is_multiple_of(2) { &shared } else { "" });
        let temperature = if i.is_multiple_of(3) { 0.0 } else { 0.8 };
        Request {
            sampling: Sampling { temperature, top_p: 0.95, seed: 11, ..Sampling::GREEDY },
            logprobs: Logprobs { output: true, top: 2, prompt: i % 5 == 4 },
            ..Request::new(i, tokenizer.encode(&text, true).unwrap(), 8 + (i * 7 % 25) as usize)
        }
    };
    (0..20).map(one).collect()
}

fn generate(
    setup: &Setup,
    weights: Weights,
    requests: &[Request],
    options: &EngineOptions,
) -> (Vec<Completion>, Stats) {
    run_on(&cpu(weights), setup, &[0, 2], requests, options).unwrap()
}

#[test]
fn tokens_and_log_probabilities_are_the_same_bits_whatever_runs_beside_a_request() {
    for weights in [Weights::Stored, Weights::Int8] {
        let setup = setup(weights);
        let requests = requests(&setup.tokenizer);
        let alone = EngineOptions { max_batch_size: 1, prefix_sharing: false, ..EngineOptions::default() };
        let (want, _) = generate(&setup, weights, &requests, &alone);
        let mut preemptions = 0;
        // Keys and values take 2 x 2 bytes x 30 blocks x 3 heads x 64 = 23,040 bytes a token.
        for (batch, chunk, page, order, tokens) in [
            (32, 512, 16, Order::LongestFirst, None),
            (7, 33, 5, Order::Input, None),
            (20, 100, 4, Order::Input, Some(150)),
        ] {
            let options = EngineOptions {
                max_batch_size: batch,
                chunk_tokens: chunk,
                page_size: page,
                order,
                kv_memory: tokens.map(|n: u64| n * 23_040),
                ..EngineOptions::default()
            };
            let (got, stats) = generate(&setup, weights, &requests, &options);
            assert!(got == want, "{weights:?}, batch {batch}, chunk {chunk}, page {page}");
            preemptions += stats.preemptions;
        }
        assert!(preemptions > 0);
        // A shard or a resumed run is a part of the requests.
        let part: Vec<Request> = requests.iter().skip(1).step_by(3).cloned().collect();
        let (got, _) = generate(&setup, weights, &part, &EngineOptions::default());
        assert!(want.iter().skip(1).step_by(3).eq(&got), "{weights:?}: a part of the requests");
    }
}

#[test]
fn greedy_output_with_a_cut_model_as_draft_is_the_models_own() {
    for weights in [Weights::Stored, Weights::Int8] {
        let mut setup = setup(weights);
        let greedy = |request| Request { sampling: Sampling::GREEDY, ..request };
        let requests: Vec<Request> = requests(&setup.tokenizer).into_iter().map(greedy).collect();
        let (want, plain) = generate(&setup, weights, &requests, &EngineOptions::default());
        setup.draft = Some(setup.model.without_blocks(&CUT));
        for (batch, draft_tokens) in [(1, 4), (20, 2)] {
            let options = EngineOptions { max_batch_size: batch, draft_tokens, ..EngineOptions::default() };
            let (got, stats) = generate(&setup, weights, &requests, &options);
            assert!(got == want, "{weights:?}, batch {batch}, {draft_tokens} tokens at a time");
            assert!(stats.acceptance().is_some_and(|rate| rate > 0.1 && rate < 1.0), "{stats:?}");
            assert_eq!(stats.generated_tokens, plain.generated_tokens);
        }
    }
}
