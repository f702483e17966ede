//! Generated tokens.

use crate::{card, support, tiny};
use ratoon::device::Device;
use ratoon::generate::{EngineOptions, Models, Request, Sampling, generate};
use ratoon::model::{GenerationConfig, Llama, Tokenizer};
use std::path::Path;

fn tokens(dev: &Device, model: &Llama, requests: &[Request], options: &EngineOptions) -> Vec<Vec<u32>> {
    let dir = tempfile::tempdir().unwrap();
    support::tiny_model_with_tokenizer(dir.path());
    let tokenizer = Tokenizer::load(dir.path()).unwrap();
    let generation = GenerationConfig { eos_token_ids: Vec::new(), ..GenerationConfig::default() };
    let mut out = vec![Vec::new(); requests.len()];
    let mut sink = |i: usize, completion: ratoon::generate::Completion| {
        out[i] = completion.ids;
        Ok(())
    };
    let models = Models { target: model, tokenizer: &tokenizer, generation: &generation, draft: None };
    generate(dev, models, requests, options, &mut sink).unwrap();
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
