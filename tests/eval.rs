//! Perplexity, divergence and log-likelihoods equal independent values.

mod support;

use ratoon::device::Device;
use ratoon::eval::{Request, divergence, log_likelihoods, perplexity};
use ratoon::generate::Runtime;
use ratoon::model::{Llama, Tokenizer};
use ratoon::progress::Progress;
use serde_json::Value;
use std::path::{Path, PathBuf};

fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(path)
}

fn json(path: &str) -> Value {
    serde_json::from_slice(&std::fs::read(data(path)).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

/// The 20,480 ids that perplexity.json and prune.json are over.
fn text_ids(tokenizer: &Tokenizer) -> Vec<u32> {
    let names = json("perplexity.json")["text"].as_array().unwrap().clone();
    let texts = names.iter().map(|name| std::fs::read_to_string(data("text").join(name.as_str().unwrap())).unwrap());
    let mut ids = tokenizer.encode(&texts.collect::<Vec<_>>().join("\n\n"), true).unwrap();
    ids.truncate(20_480);
    ids
}

#[test]
fn perplexity_of_the_real_model_is_pytorchs() {
    let expected = json("perplexity.json");
    let subject = Runtime::load(&Device::cpu(), &support::smollm2()).unwrap();
    let ids = text_ids(&subject.tokenizer);
    let got = perplexity(&Device::cpu(), &subject.model, &ids, 1024).unwrap();
    let want = expected["perplexity"].as_f64().unwrap();
    assert!((got.perplexity / want - 1.0).abs() < 1e-3, "{} against {want}", got.perplexity);
    assert_eq!(got.scored, expected["scored"].as_u64().unwrap() as usize);
    for (got, want) in got.nll_per_window.iter().zip(expected["nll_per_window"].as_array().unwrap()) {
        assert!((got - want.as_f64().unwrap()).abs() < 1e-3, "{got} against {want}");
    }
    let known = got.with_bytes(&ids, &subject.tokenizer).unwrap();
    let bytes = subject.tokenizer.decode(&ids, false).unwrap().len();
    // The 20 tokens that are not scored are a few bytes each, of 90,000.
    let from_all_bytes = want.ln() * 20460.0 / std::f64::consts::LN_2 / bytes as f64;
    assert!((known.bits_per_byte.unwrap() / from_all_bytes - 1.0).abs() < 5e-3);
}

#[test]
fn perplexities_without_two_and_four_blocks_are_pytorchs() {
    let whole = Runtime::load(&Device::cpu(), &support::smollm2()).unwrap();
    let ids = text_ids(&whole.tokenizer);
    for result in json("prune.json")["result"].as_array().unwrap() {
        // tests/prune.rs has six, through a pruned directory.
        let n = result["n"].as_u64().unwrap() as usize;
        if n != 2 && n != 4 {
            continue;
        }
        let start = result["start_last"].as_u64().unwrap() as usize;
        let cut = whole.model.without_blocks(&(start..start + n).collect::<Vec<_>>());
        let (got, want) = (perplexity(&Device::cpu(), &cut, &ids, 1024).unwrap(), result["ppl_last"].as_f64().unwrap());
        assert!((got.perplexity / want - 1.0).abs() < 1e-3, "{n} blocks: {} against {want}", got.perplexity);
    }
}

#[test]
fn log_likelihoods_of_the_real_model_are_pytorchs() {
    let prompts = json("prompts.json");
    let subject = Runtime::load(&Device::cpu(), &support::smollm2()).unwrap();
    let (mut requests, mut expected) = (Vec::new(), Vec::new());
    for prompt in prompts["prompts"].as_array().unwrap() {
        let ids = ids(&prompt["ids"]);
        let log_probs: Vec<f64> = serde_json::from_value(prompt["token_logprobs"].clone()).unwrap();
        // Continuations of different lengths after the same prompt: what they share is computed once.
        for continuation in [1, 2, 7, ids.len() - 1] {
            let continuation = continuation.min(ids.len() - 1).min(log_probs.len());
            let end = log_probs.len() + 1;
            requests.push(Request { ids: ids[..end].to_vec(), continuation });
            expected.push(log_probs[end - 1 - continuation..].iter().sum::<f64>());
        }
    }
    let progress = Progress::start("test", 0, "choices");
    let got = log_likelihoods(&Device::cpu(), &subject.model, &requests, &progress).unwrap();
    for ((got, want), request) in got.iter().zip(&expected).zip(&requests) {
        let tolerance = 2e-3 * (request.continuation as f64).sqrt().max(1.0) + 1e-5 * request.continuation as f64;
        assert!((got - want).abs() < tolerance, "{got} against {want} over {} tokens", request.continuation);
    }
}

/// `log softmax(head · hidden)` of every position of one sequence in f64, from the model's own hidden states.
fn log_softmax_rows(dev: &Device, model: &Llama, ids: &[u32]) -> Vec<Vec<f64>> {
    let batch = ratoon::model::Batch::pack(&[ids]);
    let mut ws = ratoon::model::Workspace::new(dev, &model.config, ids.len()).unwrap();
    model.forward(dev, &batch, &mut ws, &mut |_, _| Ok(())).unwrap();
    let (hidden, head) = (ws.hidden.to_f32(), model.head().to_f32());
    let rows = hidden.f32().chunks_exact(hidden.row_len()).map(|h| {
        let dot = |w: &[f32]| h.iter().zip(w).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
        let logits: Vec<f64> = head.f32().chunks_exact(head.row_len()).map(dot).collect();
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let log_sum = max + logits.iter().map(|l| (l - max).exp()).sum::<f64>().ln();
        logits.iter().map(|l| l - log_sum).collect()
    });
    rows.collect()
}

#[test]
fn divergence_is_what_f64_by_hand_gives() {
    let dev = Device::cpu();
    for name in ["gqa", "odd_sizes"] {
        let base = Llama::load(&data("tiny").join(name)).unwrap();
        let cut = base.without_blocks(&[1]);
        let text = ids(&json(&format!("tiny/{name}/expected.json"))["ids"][0]);
        let window = 40;
        let got = divergence(&dev, &base, &cut, &text, window).unwrap();
        let (mut kl, mut agreed, mut count) = (0.0, 0, 0);
        for window in text.chunks(window).filter(|w| w.len() > 1) {
            let (p, q) = (log_softmax_rows(&dev, &base, window), log_softmax_rows(&dev, &cut, window));
            for (p, q) in p.iter().zip(&q).take(window.len() - 1) {
                kl += p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
                let best = |row: &[f64]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]));
                agreed += usize::from(best(p) == best(q));
                count += 1;
            }
        }
        assert_eq!(got.tokens, count, "{name}");
        assert!(
            (got.kl - kl / f64::from(count as u32)).abs() < 1e-5,
            "{name}: {} against {}",
            got.kl,
            kl / count as f64
        );
        assert_eq!(got.top1_agreement, agreed as f64 / count as f64, "{name}");
        let same = divergence(&dev, &base, &base, &text, window).unwrap();
        assert!(same.kl.abs() < 1e-9 && same.top1_agreement == 1.0, "a model is no distance from itself: {same:?}");
    }
}

#[test]
fn likelihoods_are_bit_equal_whatever_shares_the_batch() {
    let dev = Device::cpu();
    let model = Llama::load(&data("tiny/gqa")).unwrap();
    let text = ids(&json("tiny/gqa/expected.json")["ids"][0]);
    let mut requests = Vec::new();
    for context in [1, 5, 16, 17, 33, 48] {
        for last in 0..4u32 {
            let mut ids = text[..context].to_vec();
            ids.extend([last, last + 1, text[context]]);
            requests.push(Request { ids, continuation: 3 });
            requests.push(Request { ids: text[..context + 1].to_vec(), continuation: 1 });
        }
    }
    let progress = Progress::start("test", 0, "choices");
    let together = log_likelihoods(&dev, &model, &requests, &progress).unwrap();
    for (request, got) in requests.iter().zip(together) {
        let alone = log_likelihoods(&dev, &model, std::slice::from_ref(request), &progress).unwrap();
        assert_eq!(got.to_bits(), alone[0].to_bits(), "{request:?}");
    }
}

#[test]
fn a_many_shot_task_costs_its_suffixes_alone() {
    let model = Llama::load(&data("tiny/gqa")).unwrap();
    let (items, shots, question, choice) = (40, 300, 12, 3);
    let shared: Vec<u32> = (0..shots).map(|i| (i * 31 + 7) % 256).collect();
    let request = |item: u32, letter: u32| {
        let own = (0..question).map(|p| (p * p + 3 * item) % 256);
        let answer = [letter, (letter * 5 + item) % 256, 9];
        Request { ids: shared.iter().copied().chain(own).chain(answer).collect(), continuation: choice }
    };
    let requests: Vec<Request> = (0..items).flat_map(|item| (0..4).map(move |letter| request(item, letter))).collect();
    let progress = Progress::start("test", 0, "choices");
    let together = Device::cpu();
    let scores = log_likelihoods(&together, &model, &requests, &progress).unwrap();
    // The examples once; of each item the question with the first choice, whose last token is only predicted; for each further
    // choice its tokens, with the context's last, which predicts the first of them.
    let tokens = shots as usize + items as usize * (question as usize + choice - 1 + 3 * choice);
    assert_eq!(together.ledger().tokens(), tokens as u64);
    let alone = Device::cpu();
    for (request, score) in requests.iter().zip(scores) {
        let one = log_likelihoods(&alone, &model, std::slice::from_ref(request), &progress).unwrap();
        assert_eq!(one[0].to_bits(), score.to_bits());
    }
    let ratio = alone.ledger().flops() as f64 / together.ledger().flops() as f64;
    assert!(ratio > 20.0, "without sharing it is {ratio:.1} times the FLOPs");
}

#[test]
fn windows_and_texts_that_do_not_fit_are_named() {
    let dev = Device::cpu();
    let model = Llama::load(&data("tiny/gqa")).unwrap();
    let longest = model.config.max_position_embeddings;
    let message = |ids: &[u32], window| perplexity(&dev, &model, ids, window).unwrap_err().to_string();
    assert!(message(&[1, 2, 3], 1).contains("--window: expected 2 to"));
    assert!(message(&[1, 2, 3], longest + 1).contains(&format!("found {}", longest + 1)));
    assert!(message(&[1], 8).contains("two tokens or more"));
}
