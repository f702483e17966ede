//! Generation gives PyTorch's tokens, and the same tokens whatever runs beside them.

#[path = "support/engine.rs"]
mod engine;
mod support;

use engine::{Setup, mixed_requests, request, run, tiny};
use ratoon::Error;
use ratoon::generate::{EngineOptions, Finish, OnOverflow, Order, Request, Sampling};
use ratoon::model::{GenerationConfig, Llama, Tokenizer};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn json(path: PathBuf) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

#[test]
fn tiny_models_continue_as_pytorch_does() {
    let Setup { tokenizer, .. } = tiny();
    let mut setup = tiny();
    for name in ["biases", "gqa", "linear_rope", "llama3_rope", "mha_tied", "mqa_head_dim", "odd_sizes"] {
        let dir = data().join("tiny").join(name);
        let expected = json(dir.join("expected.json"));
        setup.model = Llama::load(&dir).unwrap();
        let (prompt, want) = (ids(&expected["ids"][0])[..16].to_vec(), ids(&expected["greedy_from_first_16"]));
        let (got, _) = run(&setup, &[], &[request(&prompt, want.len())], &EngineOptions::default()).unwrap();
        assert_eq!(got[0].ids, want, "{name}");
        assert_eq!(got[0].finish, Finish::Length);
    }
    assert_eq!(tokenizer.vocab_size(), 256);
}

#[test]
fn the_tokens_are_the_same_bit_for_bit_whatever_the_batch_chunk_and_page_sizes() {
    let (setup, requests) = (tiny(), mixed_requests());
    let options = |max_batch_size, chunk_tokens, page_size, order, kv_memory| EngineOptions {
        max_batch_size,
        chunk_tokens,
        page_size,
        order,
        kv_memory,
        ..EngineOptions::default()
    };
    let (alone, stats) = run(&setup, &[2], &requests, &options(1, 512, 16, Order::Input, None)).unwrap();
    assert_eq!(stats.generated_tokens, alone.iter().map(|c| c.ids.len() as u64).sum::<u64>());
    assert_eq!(stats.prompt_tokens, requests.iter().map(|r| r.prompt.len() as u64).sum::<u64>());
    // 2 (keys, values) x 4 bytes x 4 blocks x 2 heads x 16 = 1,024 bytes a token; the longest request has under 80 tokens.
    for (batch, chunk, page, order, memory) in [
        (32, 512, 16, Order::Input, None),
        (8, 3, 1, Order::LongestFirst, None),
        (5, 1, 7, Order::Input, Some(100 * 1024)),
        (23, 64, 128, Order::LongestFirst, Some(300 * 1024)),
    ] {
        let (other, stats) = run(&setup, &[2], &requests, &options(batch, chunk, page, order, memory)).unwrap();
        assert!(memory.is_none_or(|m| stats.kv_bytes <= m));
        for (i, (a, b)) in alone.iter().zip(&other).enumerate() {
            assert_eq!(a, b, "request {i} with batch {batch}, chunk {chunk}, page {page}");
        }
    }
    // And whatever the order and company of the requests.
    let reversed: Vec<Request> = requests.iter().rev().step_by(2).cloned().collect();
    let (other, _) = run(&setup, &[2], &reversed, &options(4, 16, 16, Order::Input, None)).unwrap();
    assert!(alone.iter().rev().step_by(2).eq(&other));
}

#[test]
fn another_seed_or_request_id_gives_other_tokens() {
    let setup = tiny();
    let sampling = |seed| Sampling { temperature: 1.0, seed, ..Sampling::GREEDY };
    let make = |id, seed| Request { id, sampling: sampling(seed), ..request(&[65, 66, 67], 32) };
    let (out, _) =
        run(&setup, &[], &[make(1, 0), make(1, 1), make(2, 0), make(1, 0)], &EngineOptions::default()).unwrap();
    assert_eq!(out[0].ids, out[3].ids);
    assert!(out[0].ids != out[1].ids && out[0].ids != out[2].ids && out[1].ids != out[2].ids);
}

#[test]
fn outputs_end_at_stop_strings_end_of_text_and_limits() {
    let setup = tiny();
    let sampling = Sampling { temperature: 1.0, ..Sampling::GREEDY };
    let request = |prompt: &[u32], max_tokens| Request { sampling, ..request(prompt, max_tokens) };
    let prompt = &[65u32, 66, 67, 68];
    let plain = &run(&setup, &[], &[request(prompt, 200)], &EngineOptions::default()).unwrap().0[0];
    assert_eq!((plain.ids.len(), plain.finish, plain.prompt_tokens), (200, Finish::Length, 4));

    // A stop string that spans three one-byte tokens: found in the output itself, where three bytes are ASCII.
    let text = setup.tokenizer.decode(&plain.ids, true).unwrap();
    let ascii = |w: &[u32]| w.iter().all(|&id| (33..127).contains(&id));
    let at = plain.ids.windows(3).position(ascii).expect("200 tokens hold three printable ones in a row");
    let stop = setup.tokenizer.decode(&plain.ids[at..at + 3], true).unwrap();
    let stopping = Request { stop: vec!["never in here".into(), stop.clone()], ..request(prompt, 200) };
    let stopped = &run(&setup, &[], &[stopping], &EngineOptions::default()).unwrap().0[0];
    assert_eq!(stopped.finish, Finish::Stop);
    assert_eq!(stopped.text, text[..text.find(&stop).unwrap()]);
    assert!(stopped.ids.len() <= at + 3);

    // End of text: kept in the ids, not drawn past.
    let eos = plain.ids[9];
    let first = plain.ids.iter().position(|&id| id == eos).unwrap();
    let ended = &run(&setup, &[eos], &[request(prompt, 200)], &EngineOptions::default()).unwrap().0[0];
    assert_eq!((ended.ids.as_slice(), ended.finish), (&plain.ids[..=first], Finish::Stop));

    let none = &run(&setup, &[], &[request(prompt, 0)], &EngineOptions::default()).unwrap().0[0];
    assert_eq!((none.ids.len(), none.text.as_str(), none.finish), (0, "", Finish::Length));
}

#[test]
fn half_a_character_at_the_end_is_left_out_of_the_text() {
    let setup = tiny();
    let mut halves = 0;
    for length in 1..60 {
        let sampling = Sampling { temperature: 5.0, seed: 1, ..Sampling::GREEDY };
        let request = Request { sampling, ..request(&[0xe2, 0x82], length) };
        let out = &run(&setup, &[], &[request], &EngineOptions::default()).unwrap().0[0];
        let bytes: Vec<u8> = out.ids.iter().map(|&id| id as u8).collect();
        assert_eq!(bytes.len(), length);
        let Err(last) = std::str::from_utf8(bytes.utf8_chunks().last().map_or(&[], |c| c.invalid())) else { continue };
        if last.error_len().is_none() {
            halves += 1;
            let whole = String::from_utf8_lossy(&bytes).into_owned();
            assert!(whole.ends_with('\u{FFFD}') && whole.starts_with(&out.text) && out.text.len() < whole.len());
        }
    }
    assert!(halves > 3, "some outputs end within a character");
}

#[test]
fn prompts_longer_than_the_context_are_an_error_dropped_or_cut_as_asked() {
    let setup = tiny();
    let long: Vec<u32> = (0..600).map(|i| i % 256).collect();
    let requests = [request(&[1, 3], 4), request(&long, 8), request(&long[..512], 8), request(&long[..511], 8)];
    let with = |on_overflow| EngineOptions { on_overflow, ..EngineOptions::default() };

    let error = run(&setup, &[], &requests, &with(OnOverflow::Error)).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("request 1") && text.contains("512") && text.contains("2 of 4"), "{text}");
    assert_eq!(error.exit_code(), 2);

    let (out, stats) = run(&setup, &[], &requests, &with(OnOverflow::Drop)).unwrap();
    assert_eq!(stats.dropped, 2);
    assert_eq!(
        out.iter().map(|c| c.finish).collect::<Vec<_>>(),
        [Finish::Length, Finish::Dropped, Finish::Dropped, Finish::Length]
    );
    assert_eq!(out[3].ids.len(), 1, "the context holds one more token");

    let (out, stats) = run(&setup, &[], &requests, &with(OnOverflow::Truncate)).unwrap();
    assert_eq!((stats.truncated, out[1].truncated, out[1].ids.len()), (2, 96, 8));
    let (same, _) = run(&setup, &[], &[request(&long[96..], 8)], &EngineOptions::default()).unwrap();
    assert_eq!(out[1].ids, same[0].ids, "the end of the prompt is what is kept");
}

#[test]
fn requests_that_cannot_work_are_errors_before_anything_is_computed() {
    let setup = tiny();
    let fail = |request: Request, options: &EngineOptions| run(&setup, &[], &[request], options).unwrap_err();
    let default = EngineOptions::default();
    assert!(fail(request(&[], 4), &default).to_string().contains("at least one token"));
    assert!(fail(request(&[256], 4), &default).to_string().contains("id 256"));
    let hot = Request { sampling: Sampling { temperature: -1.0, ..Sampling::GREEDY }, ..request(&[1], 4) };
    assert!(fail(hot, &default).to_string().contains("--temperature"));
    let small = EngineOptions { kv_memory: Some(20 * 1024), ..EngineOptions::default() };
    let error = fail(request(&[1; 30], 4), &small);
    assert!(matches!(error, Error::Budget { needed: 49_152, available: 20_480, .. }), "{error}");
    assert!(error.to_string().contains("--kv-memory"), "{error}");
    let (out, stats) = run(&setup, &[], &[], &default).unwrap();
    assert!(out.is_empty() && stats.steps == 0);
}

#[test]
fn the_real_model_continues_as_pytorch_does() {
    let dir = support::smollm2();
    let setup = Setup { model: Llama::load(&dir).unwrap(), tokenizer: Tokenizer::load(&dir).unwrap(), draft: None };
    let eos = GenerationConfig::load(&dir).unwrap().eos_token_ids;
    let expected = json(data().join("prompts.json"));
    let prompts = expected["prompts"].as_array().unwrap();
    let requests: Vec<Request> = prompts.iter().map(|p| request(&ids(&p["ids"]), 64)).collect();
    let (out, _) = run(&setup, &eos, &requests, &EngineOptions::default()).unwrap();
    for (prompt, got) in prompts.iter().zip(&out) {
        let want = ids(&prompt["greedy64_ids"]);
        // Behind a gap of less than 0.05 between the two likeliest tokens another right engine may go another way.
        let sure = prompt["greedy_first_gap_below_0p05"].as_u64().map_or(want.len(), |n| n as usize);
        assert!(got.ids.len() >= sure, "{}", prompt["name"]);
        assert_eq!(got.ids[..sure], want[..sure], "{}", prompt["name"]);
        if sure == want.len() {
            assert_eq!(got.ids, want, "{}", prompt["name"]);
        }
    }
}
