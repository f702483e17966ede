//! Logits of the last position for given token ids, as JSON: what to compare with another implementation.
//!
//!     cargo run --example logits -- MODEL '[[504, 2365, 6354], [1, 2]]'
//!
//! Prints one array of `vocab_size` numbers for each sequence.

use ratoon::device::{DType, Device, Tensor};
use ratoon::model::{Batch, Llama, Workspace, source};
use ratoon::ops::matmul::{Store, matmul_nt};
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, ids] = &arguments[..] else { return Err("usage: logits MODEL '[[ID, ...], ...]'".into()) };
    let sequences: Vec<Vec<u32>> = serde_json::from_str(ids)?;

    let dev = Device::cpu();
    let model = Llama::load(&source::resolve(model)?)?;
    let batch = Batch::pack(&sequences);
    let mut workspace = Workspace::new(&model.config, batch.tokens());
    model.forward(&dev, &batch, &mut workspace, &mut |_, _| Ok(()))?;

    let vocab = model.config.vocab_size;
    let mut logits = Tensor::zeros(&[batch.tokens(), vocab], DType::F32);
    matmul_nt(&dev, &mut logits, &workspace.hidden, model.head(), None, Store::Replace)?;
    let ends = batch.cu_seqlens.u32()[1..].iter().map(|&end| end as usize);
    let last: Vec<&[f32]> = ends.map(|end| &logits.f32()[(end - 1) * vocab..end * vocab]).collect();
    println!("{}", serde_json::to_string(&last)?);
    Ok(())
}
