//! FLOPs of a forward pass by formula, and by the ledger of the device that ran one.
//!
//!     cargo run --release --example flops -- MODEL 128

use ratoon::device::Device;
use ratoon::eval::flops::{Flops, check_forward};
use ratoon::model::{Llama, source};
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, tokens] = &arguments[..] else { return Err("usage: flops MODEL TOKENS".into()) };
    let (dev, model) = (Device::cpu(), Llama::load(&source::resolve(model)?)?);
    let tokens: usize = tokens.parse()?;
    let flops = Flops::new(&model.config, tokens as u64);
    println!("{} parameters, {:.0} FLOPs per token with attention", flops.parameters, flops.total());
    for count in check_forward(&dev, &model, tokens)?.counts {
        println!("{}: {} counted, {} by formula", count.operation, count.counted, count.expected);
    }
    for (op, entry) in dev.ledger().snapshot().into_iter().filter(|(_, entry)| entry.calls > 0) {
        println!(
            "{:12} {:6} calls, {:.3} GFLOP, {:.4} s",
            op.name(),
            entry.calls,
            entry.flops as f64 / 1e9,
            entry.seconds
        );
    }
    Ok(())
}
