//! Speculative decoding: greedy output is the target's own, samples do not depend on company, and the draft's share is counted.

#[path = "support/engine.rs"]
mod engine;
mod support;

use engine::{Setup, mixed_requests, run, tiny};
use ratoon::generate::{EngineOptions, Request, Sampling};

/// The tiny model with a draft that lacks one of its four blocks.
fn with_draft(drop: &[usize]) -> Setup {
    let setup = tiny();
    Setup { draft: Some(setup.model.without_blocks(drop)), ..setup }
}

fn greedy(request: Request) -> Request {
    Request { sampling: Sampling { repetition_penalty: 1.1, ..Sampling::GREEDY }, ..request }
}

#[test]
fn greedy_output_is_the_targets_bit_for_bit_whatever_the_draft() {
    let requests: Vec<Request> = mixed_requests().into_iter().map(greedy).collect();
    let (want, plain) = run(&tiny(), &[2], &requests, &EngineOptions::default()).unwrap();
    assert_eq!(plain.acceptance(), None);
    for (drop, draft_tokens, batch, kib) in
        [(vec![2], 1, 32, None), (vec![1], 4, 3, None), (vec![0, 1, 2], 7, 8, Some(240)), (vec![], 3, 32, None)]
    {
        let options = EngineOptions {
            draft_tokens,
            max_batch_size: batch,
            chunk_tokens: 19,
            page_size: 4,
            kv_memory: kib.map(|kib| kib * 1024),
            ..EngineOptions::default()
        };
        let (got, stats) = run(&with_draft(&drop), &[2], &requests, &options).unwrap();
        assert_eq!(got, want, "without blocks {drop:?}, {draft_tokens} tokens at a time");
        assert_eq!(stats.generated_tokens, plain.generated_tokens);
        assert!(stats.proposed_tokens > 0);
        if drop.is_empty() {
            assert_eq!(stats.acceptance(), Some(1.0), "a model agrees with itself");
            assert!(stats.steps < plain.steps, "{} steps against {}", stats.steps, plain.steps);
        }
    }
}

#[test]
fn samples_do_not_depend_on_batches_pages_chunks_and_preemptions() {
    let (setup, requests) = (with_draft(&[2]), mixed_requests());
    let alone = EngineOptions { max_batch_size: 1, ..EngineOptions::default() };
    let (want, _) = run(&setup, &[2], &requests, &alone).unwrap();
    let mut preemptions = 0;
    for (batch, chunk, page, kib) in
        [(32, 512, 16, None), (5, 7, 3, None), (23, 30, 1, Some(170)), (23, 9, 8, Some(190))]
    {
        let options = EngineOptions {
            max_batch_size: batch,
            chunk_tokens: chunk,
            page_size: page,
            kv_memory: kib.map(|kib| kib * 1024),
            ..EngineOptions::default()
        };
        let (got, stats) = run(&setup, &[2], &requests, &options).unwrap();
        assert_eq!(got, want, "batch {batch}, chunk {chunk}, page {page}");
        preemptions += stats.preemptions;
    }
    assert!(preemptions > 0);
}

/// Through the whole engine: the first two sampled tokens of many requests, with a draft, against the same without.
#[test]
fn sampled_output_is_distributed_as_the_targets() {
    let sampling = Sampling { temperature: 0.5, top_k: 6, seed: 3, ..Sampling::GREEDY };
    let requests: Vec<Request> =
        (0..6000).map(|id| Request { sampling, ..Request::new(id, vec![72, 105, 33], 3) }).collect();
    let options = EngineOptions { max_batch_size: 64, draft_tokens: 2, ..EngineOptions::default() };
    let count = |setup: &Setup| {
        let (out, stats) = run(setup, &[], &requests, &options).unwrap();
        let mut counts = std::collections::BTreeMap::<[u32; 2], f64>::new();
        // The second and third token are those that a draft proposes.
        out.iter().for_each(|c| *counts.entry([c.ids[1], c.ids[2]]).or_default() += 1.0);
        (counts, stats)
    };
    let ((plain, _), (drafted, stats)) = (count(&tiny()), count(&with_draft(&[2])));
    assert!(stats.acceptance().is_some_and(|rate| rate > 0.05 && rate < 0.999), "{stats:?}");
    // Chi-square of two samples of one size, over pairs seen ten times or more in both together; the rest is one cell.
    let (mut chi2, mut cells, mut rest) = (0.0, -1.0, (0.0, 0.0));
    let pairs: std::collections::BTreeSet<[u32; 2]> = plain.keys().chain(drafted.keys()).copied().collect();
    for pair in pairs {
        let (a, b) = (plain.get(&pair).copied().unwrap_or(0.0), drafted.get(&pair).copied().unwrap_or(0.0));
        if a + b < 10.0 {
            rest = (rest.0 + a, rest.1 + b);
            continue;
        }
        chi2 += (a - b) * (a - b) / (a + b);
        cells += 1.0;
    }
    if rest.0 + rest.1 > 0.0 {
        chi2 += (rest.0 - rest.1) * (rest.0 - rest.1) / (rest.0 + rest.1);
        cells += 1.0;
    }
    // Mean k, standard deviation sqrt(2k); 4 deviations are passed once in 20,000 times.
    assert!(chi2 < cells + 4.0 * f64::sqrt(2.0 * cells), "chi-square {chi2:.1} for {cells} degrees of freedom");
}
