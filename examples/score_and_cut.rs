//! Finds the blocks that a model misses least and writes it without them.
//!
//!     cargo run --release --example score_and_cut -- MODEL calibration.txt 6 CUT

use ratoon::device::Device;
use ratoon::model::{Llama, source};
use ratoon::prune::{Calibration, CalibrationOptions, Plan, ScoreOptions, describe, prune, score};
use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, text, blocks, out] = &arguments[..] else {
        return Err("usage: score_and_cut MODEL calibration.txt BLOCKS CUT".into());
    };
    let dir = source::resolve(model)?;
    let model = Llama::load(&dir)?;
    let sampling = CalibrationOptions { samples: 16, sample_tokens: 256 };
    let calibration = Calibration::read(&dir, Path::new(text), sampling)?;
    let options = ScoreOptions { block_sizes: vec![blocks.parse()?], ..ScoreOptions::default() };
    let scores = score(&Device::cpu(), &model, Some(&calibration), &options)?;
    let best = scores.best.first().ok_or("no cut of that size")?;
    println!("blocks {}, angular distance {:.4}", describe(&best.blocks), best.score);
    let plan = Plan::new(&best.blocks, model.blocks.len(), "best cut")?;
    let report = prune(&dir, &plan, Path::new(out), false)?;
    println!("{} -> {} parameters in {out}", report.parameters[0], report.parameters[1]);
    Ok(())
}
