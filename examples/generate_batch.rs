//! Answers several messages side by side.
//!
//!     cargo run --release --example generate_batch -- MODEL 'What is a ratoon?' 'Name three crops.'

use ratoon::device::Device;
use ratoon::generate::{EngineOptions, Request, Runtime, Sampling, generate};
use ratoon::model::{Message, source};
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let model = arguments.next().ok_or("usage: generate_batch MODEL MESSAGE...")?;
    let messages: Vec<String> = arguments.collect();
    let dev = Device::cpu();
    let runtime = Runtime::load(&dev, &source::resolve(&model)?)?;
    let requests = messages.iter().zip(0..).map(|(message, id)| {
        let prompt = runtime.chat_prompt(&[Message::new("user", message)], "")?;
        Ok(Request { id, prompt, max_tokens: 128, sampling: Sampling::GREEDY, stop: Vec::new() })
    });
    let requests = requests.collect::<ratoon::Result<Vec<Request>>>()?;
    let Runtime { model, tokenizer, generation, .. } = &runtime;
    // Each completion is handed over as soon as it is whole.
    let mut print = |index: usize, completion: ratoon::generate::Completion| {
        println!("{}\n  {}\n", messages[index], completion.text.trim());
        Ok(())
    };
    generate(&dev, model, tokenizer, generation, &requests, &EngineOptions::default(), &mut print)?;
    Ok(())
}
