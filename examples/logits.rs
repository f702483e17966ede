//! Logits of the last position for given token ids, as JSON: what to compare with another implementation.
//!
//!     cargo run --example logits -- MODEL '[[504, 2365, 6354], [1, 2]]' [ADAPTER]
//!
//! Prints one array of `vocab_size` numbers for each sequence; ADAPTER is a directory in PEFT's format.

use ratoon::device::{DType, Device, Tensor};
use ratoon::model::{Batch, Llama, Workspace, source};
use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (model, ids, adapter) = match &arguments[..] {
        [model, ids] => (model, ids, None),
        [model, ids, adapter] => (model, ids, Some(Path::new(adapter))),
        _ => return Err("usage: logits MODEL '[[ID, ...], ...]' [ADAPTER]".into()),
    };
    let sequences: Vec<Vec<u32>> = serde_json::from_str(ids)?;
    if sequences.iter().any(Vec::is_empty) {
        return Err("a sequence without ids has no last position".into());
    }

    let dev = Device::cpu();
    let mut model = Llama::load(&source::resolve(model)?)?;
    if let Some(adapter) = adapter {
        model = model.with_adapter(adapter)?;
    }
    let batch = Batch::pack(&sequences);
    let mut workspace = Workspace::new(&dev, &model.config, batch.tokens())?;
    model.forward(&dev, &batch, &mut workspace, &mut |_, _| Ok(()))?;

    let vocab = model.config.vocab_size;
    let mut logits = Tensor::zeros(&[batch.tokens(), vocab], DType::F32);
    model.logits(&dev, &mut logits, &workspace.hidden)?;
    let ends = batch.cu_seqlens.u32()[1..].iter().map(|&end| end as usize);
    let last: Vec<&[f32]> = ends.map(|end| &logits.f32()[(end - 1) * vocab..end * vocab]).collect();
    println!("{}", serde_json::to_string(&last)?);
    Ok(())
}
