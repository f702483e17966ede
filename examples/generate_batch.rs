//! Answers several messages side by side.
//!
//!     cargo run --release --example generate_batch -- MODEL 'What is a ratoon?' 'Name three crops.'

use ratoon::device::Device;
use ratoon::generate::{EngineOptions, Request, Runtime, generate};
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
        Ok(Request::new(id, prompt, 128))
    });
    let requests = requests.collect::<ratoon::Result<Vec<Request>>>()?;
    // Each completion is handed over as soon as it is whole.
    let mut print = |index: usize, completion: ratoon::generate::Completion| {
        println!("{}\n  {}\n", messages[index], completion.text.trim());
        Ok(())
    };
    generate(&dev, runtime.models(), &requests, &EngineOptions::default(), &mut print)?;
    Ok(())
}
