//! Load and bad input: what is odd is handled or named, what is much stays within its memory.

#[path = "support/engine.rs"]
mod engine;
mod support;

use engine::{request, run, tiny};
use ratoon::device::Device;
use ratoon::generate::{Completion, EngineOptions, Finish, Logprobs, Models, OnOverflow, Request, Sampling, generate};
use ratoon::model::GenerationConfig;

/// Bytes of memory that this process has now.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
}

/// Short and long prompts, greedy and sampled, with and without shared beginnings and stop strings.
fn mixed(i: u64) -> Request {
    let shared: &[u32] = if i.is_multiple_of(3) { &[9; 40] } else { &[] };
    let own = (0..1 + i * 7 % 19).map(|p| ((p * 31 + i * 17) % 256) as u32);
    Request {
        sampling: Sampling { temperature: (i % 2) as f32, seed: 5, ..Sampling::GREEDY },
        stop: if i.is_multiple_of(5) { vec!["ab".into()] } else { Vec::new() },
        logprobs: Logprobs { output: i.is_multiple_of(7), top: 0, prompt: i.is_multiple_of(11) },
        ..Request::new(i, shared.iter().copied().chain(own).collect(), 1 + (i % 12) as usize)
    }
}

#[test]
fn twenty_thousand_mixed_requests_leave_memory_flat() {
    let (setup, generation) = (tiny(), GenerationConfig::default());
    let options = EngineOptions {
        max_batch_size: 64,
        // 200 tokens: about five requests side by side, so pages are shared, evicted and preempted all the time.
        page_size: 1,
        kv_memory: Some(200 * 1024),
        ..EngineOptions::default()
    };
    let models = Models { target: &setup.model, tokenizer: &setup.tokenizer, generation: &generation, draft: None };
    let (mut levels, mut tokens, mut preemptions) = (Vec::new(), 0, 0);
    for round in 0..10u64 {
        let requests: Vec<Request> = (0..2_000).map(|i| mixed(round * 2_000 + i)).collect();
        let mut ended = 0;
        let stats = generate(&Device::cpu(), models, &requests, &options, &mut |_, completion: Completion| {
            tokens += completion.ids.len();
            ended += 1;
            Ok(())
        });
        preemptions += stats.unwrap().preemptions;
        assert_eq!(ended, 2_000);
        levels.push(resident());
    }
    assert!(tokens > 20_000 && preemptions > 0);
    // The first rounds fill allocators and thread buffers; from then on nothing may pile up.
    let (settled, last) = (levels[2], levels[9]);
    assert!(last < settled + (8 << 20), "resident memory after each round: {levels:?}");
}

#[test]
fn ten_thousand_requests_at_once_end_each_in_its_place() {
    let requests: Vec<Request> = (0..10_000).map(|i| Request { sampling: Sampling::GREEDY, ..mixed(i) }).collect();
    let (out, stats) = run(&tiny(), &[], &requests, &EngineOptions::default()).unwrap();
    assert_eq!(stats.requests, 10_000);
    for (i, (request, got)) in requests.iter().zip(&out).enumerate().step_by(997) {
        let (alone, _) = run(&tiny(), &[], std::slice::from_ref(request), &EngineOptions::default()).unwrap();
        assert_eq!(*got, alone[0], "request {i}");
    }
}

#[test]
fn a_five_megabyte_prompt_is_refused_dropped_or_cut_as_asked() {
    let setup = tiny();
    let text = "All work and no play. ".repeat(5 * (1 << 20) / 22);
    let ids = setup.tokenizer.encode(&text, true).unwrap();
    assert!(ids.len() > 5_000_000, "a token a byte");
    let requests = [request(&ids, 8), request(&[65, 66], 8)];
    let with = |on_overflow| EngineOptions { on_overflow, ..EngineOptions::default() };
    let error = run(&setup, &[], &requests, &with(OnOverflow::Error)).unwrap_err().to_string();
    assert!(error.contains("request 0") && error.contains(&ids.len().to_string()), "{error}");
    let (dropped, _) = run(&setup, &[], &requests, &with(OnOverflow::Drop)).unwrap();
    assert_eq!((dropped[0].finish, dropped[1].ids.len()), (Finish::Dropped, 8));
    let (cut, stats) = run(&setup, &[], &requests, &with(OnOverflow::Truncate)).unwrap();
    assert_eq!((cut[0].prompt_tokens, cut[0].truncated, stats.truncated), (504, ids.len() - 504, 1));
    assert_eq!(cut[1], dropped[1]);
}

#[test]
fn a_caller_that_stops_gets_its_error_back_and_nothing_more() {
    let (setup, generation) = (tiny(), GenerationConfig::default());
    let models = Models { target: &setup.model, tokenizer: &setup.tokenizer, generation: &generation, draft: None };
    let requests: Vec<Request> = (0..50).map(mixed).collect();
    let mut seen = 0;
    let stopped = generate(&Device::cpu(), models, &requests, &EngineOptions::default(), &mut |_, _| {
        seen += 1;
        if seen == 7 { Err(ratoon::Error::Interrupted) } else { Ok(()) }
    });
    assert!(matches!(stopped, Err(ratoon::Error::Interrupted)));
    assert_eq!(seen, 7);
}

#[test]
fn decoding_goes_on_in_every_step_beside_a_long_prompt() {
    // 400 tokens in chunks of 8 take 50 steps; the short request beside it needs 40 and must not wait for them.
    let requests = [request(&[65, 66], 40), request(&(0..400).map(|i| i % 256).collect::<Vec<u32>>(), 1)];
    let options = EngineOptions { chunk_tokens: 8, ..EngineOptions::default() };
    let (setup, generation) = (tiny(), GenerationConfig::default());
    let models = Models { target: &setup.model, tokenizer: &setup.tokenizer, generation: &generation, draft: None };
    let mut order = Vec::new();
    let stats = generate(&Device::cpu(), models, &requests, &options, &mut |index, _| {
        order.push(index);
        Ok(())
    });
    assert_eq!(order, [0, 1]);
    assert_eq!(stats.unwrap().steps, 51, "the two share their steps: six tokens of the long one fit the first");
}

#[test]
fn log_probabilities_of_prompts_are_those_of_the_forward_pass() {
    let setup = tiny();
    let prompt: Vec<u32> = (0..45).map(|i| (i * 29 + 3) % 256).collect();
    let batch = ratoon::model::Batch::pack(&[&prompt]);
    let dev = Device::cpu();
    let mut ws = ratoon::model::Workspace::new(&dev, &setup.model.config, prompt.len()).unwrap();
    let want = setup.model.next_token_log_probs(&dev, &batch, &mut ws).unwrap();
    let logprobs = Logprobs { prompt: true, ..Logprobs::default() };
    for chunk in [512, 7] {
        let options = EngineOptions { chunk_tokens: chunk, ..EngineOptions::default() };
        let asked = Request { logprobs, ..request(&prompt, 2) };
        let plain = request(&prompt, 2);
        // The request in front leaves its pages: they must not make the second one miss what it asks for.
        let (out, _) = run(&setup, &[], &[plain, asked], &options).unwrap();
        assert_eq!(out[1].prompt_logprobs.as_deref(), Some(&want[..44]));
        assert_eq!((&out[0].ids, &out[0].prompt_logprobs), (&out[1].ids, &None));
        // And without a token of output.
        let (out, _) = run(&setup, &[], &[Request { logprobs, ..request(&prompt, 0) }], &options).unwrap();
        assert_eq!((out[0].ids.len(), out[0].prompt_logprobs.as_deref()), (0, Some(&want[..44])));
    }
}
