//! Trains an adapter on a dataset and writes it in PEFT's format.
//!
//!     cargo run --release --example finetune_lora -- MODEL data.jsonl ADAPTER

use ratoon::device::Device;
use ratoon::model::adapter::LoraConfig;
use ratoon::model::{Projection, source};
use ratoon::train::{FinetuneOptions, Method, finetune};
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, data, out] = &arguments[..] else {
        return Err("usage: finetune_lora MODEL data.jsonl ADAPTER".into());
    };
    let target_modules = vec![Projection::QProj, Projection::VProj];
    let method = Method::Lora(LoraConfig { target_modules, ..LoraConfig::default() });
    let options = FinetuneOptions::new(source::resolve(model)?, data.into(), out.into(), method);
    let report = finetune(&Device::cpu(), &FinetuneOptions { max_steps: Some(20), ..options })?;
    println!("losses {:.3?}, {:.2e} FLOP in {:.1} s", report.losses, report.flops as f64, report.seconds);
    Ok(())
}
