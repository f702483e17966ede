//! What prompts have in common is computed once, and nothing that comes out is different for it.

#[path = "support/engine.rs"]
mod engine;
mod support;

use engine::{run_on, tiny};
use ratoon::device::{Device, Op, Phase};
use ratoon::generate::{Completion, EngineOptions, Logprobs, Order, Request, Sampling, Stats};

/// Requests that begin with the same 100 tokens, with ends of many lengths.
fn few_shot(count: u32) -> Vec<Request> {
    let shared: Vec<u32> = (0..100).map(|i| (i * 37 + 11) % 256).collect();
    let one = |i: u32| {
        let own = (0..1 + i * 5 % 23).map(|p| (p * 3 + i) % 256);
        Request {
            sampling: Sampling { temperature: 0.9, seed: 4, ..Sampling::GREEDY },
            logprobs: Logprobs { output: true, top: 2, prompt: i % 6 == 5 },
            ..Request::new(u64::from(i), shared.iter().copied().chain(own).collect(), 1 + (i * 7 % 20) as usize)
        }
    };
    (0..count).map(one).collect()
}

fn run(requests: &[Request], options: &EngineOptions) -> (Vec<Completion>, Stats, Device) {
    let dev = Device::cpu();
    let (out, stats) = run_on(&dev, &tiny(), &[2], requests, options).unwrap();
    (out, stats, dev)
}

#[test]
fn shared_prefixes_cost_once_and_change_no_bit() {
    let requests = few_shot(24);
    let prompts: u64 = requests.iter().map(|r| r.prompt.len() as u64).sum();
    let (alone, stats, without) = run(&requests, &EngineOptions { prefix_sharing: false, ..EngineOptions::default() });
    assert_eq!((stats.shared_tokens, stats.prompt_tokens), (0, prompts));
    for (batch, chunk, page) in [(32, 512, 16), (4, 32, 16), (1, 512, 16), (24, 130, 1), (7, 50, 9)] {
        let options =
            EngineOptions { max_batch_size: batch, chunk_tokens: chunk, page_size: page, ..EngineOptions::default() };
        let (shared, stats, with) = run(&requests, &options);
        assert_eq!(alone, shared, "batch {batch}, chunk {chunk}, page {page}");
        // Four of the 24 score their prompt and compute all of it; the first of the others computes the common part for them.
        let pages = (100 / page * page) as u64;
        assert_eq!(stats.shared_tokens + stats.prompt_tokens, prompts);
        assert!(stats.shared_tokens >= 19 * pages, "{} shared with pages of {page}", stats.shared_tokens);
        let flops = |dev: &Device| dev.ledger().phase(Phase::Prefill).flops;
        assert!(flops(&with) < flops(&without) / 2, "{} against {}", flops(&with), flops(&without));
    }
}

#[test]
fn a_prompt_that_comes_again_later_is_still_there_until_its_memory_is_needed() {
    let mut requests = few_shot(2);
    // Another request between the two, as long as the cache allows.
    requests.insert(1, Request::new(9, (0..200).map(|i| i % 256).collect(), 4));
    let options =
        |kib: u64| EngineOptions { max_batch_size: 1, kv_memory: Some(kib * 1024), ..EngineOptions::default() };
    // A token takes 1,024 bytes. 512 tokens hold both prompts; 208 only the longer one.
    let (out, roomy, _) = run(&requests, &options(512));
    assert_eq!(roomy.shared_tokens, 0, "a cache is no larger than what the requests can use side by side");
    let both: Vec<Request> = requests.iter().cloned().chain([Request::new(8, vec![7; 500], 4)]).collect();
    let (roomy_out, roomy, _) = run(&both, &options(512));
    assert_eq!(roomy.shared_tokens, 96, "six pages of 16 tokens");
    assert_eq!(roomy_out[..3], out);
    let (tight_out, tight, _) = run(&requests, &options(208));
    assert_eq!(tight.shared_tokens, 0);
    assert_eq!(tight_out, out);
}

#[test]
fn requests_without_memory_for_all_are_preempted_and_give_the_same_bits() {
    let make = |i: u32| Request {
        sampling: Sampling { temperature: 1.0, seed: 2, ..Sampling::GREEDY },
        logprobs: Logprobs { output: true, top: 0, prompt: i % 4 == 3 },
        ..Request::new(
            u64::from(i),
            (0..10 + i % 9).map(|p| (p * 5 + i * 13) % 256).collect(),
            60 + (i % 5) as usize * 10,
        )
    };
    let requests: Vec<Request> = (0..20).map(make).collect();
    let (want, easy, _) = run(&requests, &EngineOptions { max_batch_size: 1, ..EngineOptions::default() });
    assert_eq!(easy.preemptions, 0);
    for (batch, page, kib, prefix_sharing, order) in [
        (20, 4, 200, true, Order::Input),
        (20, 4, 200, false, Order::LongestFirst),
        (6, 16, 128, true, Order::LongestFirst),
        (20, 1, 120, true, Order::Input),
    ] {
        let options = EngineOptions {
            max_batch_size: batch,
            page_size: page,
            kv_memory: Some(kib * 1024),
            chunk_tokens: 24,
            prefix_sharing,
            order,
            ..EngineOptions::default()
        };
        let (got, stats, _) = run(&requests, &options);
        assert_eq!(got, want, "batch {batch}, page {page}, {kib} KiB, sharing {prefix_sharing}");
        assert!(stats.preemptions > 0 && stats.kv_bytes <= kib * 1024, "{stats:?}");
        assert_eq!(stats.generated_tokens, easy.generated_tokens);
    }
}

#[test]
fn the_ledger_divides_exactly_into_prefill_and_decode() {
    let requests = few_shot(5);
    let (_, stats, dev) = run(&requests, &EngineOptions { prefix_sharing: false, ..EngineOptions::default() });
    let ledger = dev.ledger();
    let (read, written) = (ledger.phase(Phase::Prefill), ledger.phase(Phase::Decode));
    assert_eq!(read.flops + written.flops, ledger.flops());
    let bytes: u64 = Op::ALL.iter().map(|&op| ledger.entry(op).bytes).sum();
    assert_eq!(read.bytes + written.bytes, bytes);
    assert_eq!(read.tokens, stats.prompt_tokens);
    // Of each output the first token comes from the prompt's pass.
    assert_eq!(written.tokens, stats.generated_tokens - 5);
}
