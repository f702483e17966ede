//! Speed of prefill, decode and training, with llama-bench's test names and JSON keys, and what they are in FLOP/s and bytes/s.

use super::ceiling::ceiling;
use super::training_step::{TrainingStep, spread_ids};
use crate::device::peak::{self, Peak};
use crate::device::{Compute, DType, Device, Entry, Op, Tensor, Weights};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::model::{Batch, Config, InferencePlan, KvCache, Llama, PagedStep, Workspace};
use crate::ops::gather::gather_rows;
use crate::progress::Progress;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Tokens in a page of the cache.
const PAGE: usize = 16;
/// Rows of logits that are held at once when every position is scored.
const LOGIT_ROWS: usize = 128;

/// What to measure.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// Directory of a PEFT adapter beside the model's weights, in prefill and decode.
    pub adapter: Option<PathBuf>,
    /// Lengths of prompts that are read.
    pub n_prompt: Vec<usize>,
    /// Numbers of tokens that are generated after an empty context.
    pub n_gen: Vec<usize>,
    /// Sequences that generate side by side.
    pub batches: Vec<usize>,
    /// Measured runs of each test, after one that is not.
    pub repetitions: usize,
    /// Prefill computes the logits of every position (as a training framework does) and not of the last alone.
    pub all_logits: bool,
}

impl Default for BenchOptions {
    /// The defaults of the command line: 512 tokens read, 128 written by one sequence, five times each.
    fn default() -> BenchOptions {
        BenchOptions {
            adapter: None,
            n_prompt: vec![512],
            n_gen: vec![128],
            batches: vec![1],
            repetitions: 5,
            all_logits: false,
        }
    }
}

/// One test, with llama-bench's keys.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct BenchRow {
    /// Commit of this build; `unknown` where it was not built from a checkout.
    pub build_commit: String,
    /// Name of the processor.
    pub cpu_info: String,
    /// Name of the card; empty on the CPU.
    pub gpu_info: String,
    /// Directory of the model.
    pub model_filename: String,
    /// Architecture and dtype of the weights.
    pub model_type: String,
    /// How products are computed.
    pub compute: Compute,
    /// Bytes of the weights as stored.
    pub model_size: u64,
    /// Parameters, a tied head counted once.
    pub model_n_params: u64,
    /// `CPU` or `CUDA`.
    pub backend: String,
    /// Worker threads.
    pub n_threads: usize,
    /// `pp512`, `tg128`, `tg128 b8`, `train4x512 lora-r8`.
    pub test: String,
    /// Prompt tokens.
    pub n_prompt: usize,
    /// Generated tokens of each sequence.
    pub n_gen: usize,
    /// Sequences side by side.
    pub n_seqs: usize,
    /// Mean nanoseconds of a run.
    pub avg_ns: u64,
    /// Sample standard deviation of the same.
    pub stddev_ns: u64,
    /// Mean tokens per second.
    pub avg_ts: f64,
    /// Sample standard deviation of the same.
    pub stddev_ts: f64,
    /// Nanoseconds of each run.
    pub samples_ns: Vec<u64>,
    /// Tokens per second of each run.
    pub samples_ts: Vec<f64>,
    /// FLOPs per token, from the ledger.
    pub flops_per_token: f64,
    /// FLOP/s at the mean time.
    pub flops_per_second: f64,
    /// FLOP/s over `peak_flops_per_second`.
    pub mfu: f64,
    /// Fewest bytes per second that had to move between memory and the chip, from the ledger.
    pub bytes_per_second: f64,
    /// The same over `peak_bytes_per_second`; may pass 1 where operands stay in the cache.
    pub bandwidth_utilization: f64,
    /// The device's peak in FLOP/s, see [`ceiling`].
    pub peak_flops_per_second: f64,
    /// Share of the time that the machine's limits account for: the larger of `mfu` and `bandwidth_utilization`.
    pub floor_share: f64,
    /// The device's memory bandwidth in bytes/s, see [`ceiling`].
    pub peak_bytes_per_second: f64,
}

/// A model under test, with what every row says of it.
pub struct Bench<'a> {
    pub(super) dev: &'a Device,
    pub(super) model: &'a Llama,
    peak: Peak,
    repetitions: usize,
    all_logits: bool,
    pub(super) template: BenchRow,
}

impl<'a> Bench<'a> {
    /// Finds the device's [`ceiling`] and describes the model.
    pub fn new(dev: &'a Device, model: &'a Llama, dir: &Path, options: &BenchOptions) -> Result<Bench<'a>> {
        if options.repetitions == 0 {
            return Err(Error::usage("--repetitions", "one or more", "0"));
        }
        let peak = ceiling(dev)?;
        let tensors = weights(model);
        let packed = if dev.weights() == Weights::Int8 { " as int8" } else { "" };
        let lora = model.lora_rank().map_or_else(String::new, |r| format!(" + LoRA r={r}"));
        let template = BenchRow {
            build_commit: option_env!("RATOON_COMMIT").unwrap_or("unknown").to_string(),
            cpu_info: peak::cpu_name(),
            gpu_info: if dev.is_cpu() { String::new() } else { dev.description() },
            model_filename: dir.display().to_string(),
            model_type: format!("llama {}{packed}{lora}", model.embed_tokens.dtype()),
            compute: dev.compute(),
            model_size: tensors.iter().map(|t| t.size_bytes() as u64).sum(),
            model_n_params: tensors.iter().map(|t| t.elements() as u64).sum(),
            backend: if dev.is_cpu() { "CPU" } else { "CUDA" }.to_string(),
            n_threads: rayon::current_num_threads(),
            test: String::new(),
            n_prompt: 0,
            n_gen: 0,
            n_seqs: 1,
            avg_ns: 0,
            stddev_ns: 0,
            avg_ts: 0.0,
            stddev_ts: 0.0,
            samples_ns: Vec::new(),
            samples_ts: Vec::new(),
            flops_per_token: 0.0,
            flops_per_second: 0.0,
            mfu: 0.0,
            bytes_per_second: 0.0,
            bandwidth_utilization: 0.0,
            floor_share: 0.0,
            peak_flops_per_second: peak.flops_per_second,
            peak_bytes_per_second: peak.bytes_per_second,
        };
        let (repetitions, all_logits) = (options.repetitions, options.all_logits);
        Ok(Bench { dev, model, peak, repetitions, all_logits, template })
    }

    /// Runs `run` once to warm up and then as often as asked; `tokens` are those of one run.
    pub fn measure(&self, test: String, tokens: usize, mut run: impl FnMut() -> Result<()>) -> Result<BenchRow> {
        let progress = Progress::start(&test, self.repetitions as u64 + 1, "runs");
        run()?;
        self.dev.synchronize()?;
        progress.add(1);
        let before = total(self.dev);
        let mut samples_ns = Vec::new();
        for _ in 0..self.repetitions {
            interrupt::check()?;
            let start = Instant::now();
            run()?;
            self.dev.synchronize()?;
            samples_ns.push(start.elapsed().as_nanos() as u64);
            progress.add(1);
        }
        let work = total(self.dev) - before;
        let samples_ts: Vec<f64> = samples_ns.iter().map(|&ns| tokens as f64 * 1e9 / ns as f64).collect();
        let nanoseconds: Vec<f64> = samples_ns.iter().map(|&ns| ns as f64).collect();
        let ((avg_ns, stddev_ns), (avg_ts, stddev_ts)) =
            (mean_and_deviation(&nanoseconds), mean_and_deviation(&samples_ts));
        let (flops, bytes) = (work.flops as f64 / self.repetitions as f64, work.bytes as f64 / self.repetitions as f64);
        let (flops_per_second, bytes_per_second) = (flops * 1e9 / avg_ns, bytes * 1e9 / avg_ns);
        let mfu = flops_per_second / self.peak.flops_per_second;
        let bandwidth_utilization = bytes_per_second / self.peak.bytes_per_second;
        Ok(BenchRow {
            test,
            avg_ns: avg_ns as u64,
            stddev_ns: stddev_ns as u64,
            avg_ts,
            stddev_ts,
            samples_ns,
            samples_ts,
            flops_per_token: flops / tokens as f64,
            flops_per_second,
            mfu,
            bytes_per_second,
            bandwidth_utilization,
            floor_share: mfu.max(bandwidth_utilization),
            ..self.template.clone()
        })
    }

    /// `ppN`: reads a prompt of `n` tokens.
    pub fn prefill(&self, n: usize) -> Result<BenchRow> {
        self.check_length("--n-prompt", n)?;
        let config = &self.model.config;
        let batch = Batch::pack(&[spread_ids(n, config.vocab_size)]);
        let mut ws = Workspace::new(self.dev, config, n)?;
        let rows: Vec<u32> = if self.all_logits { (0..n as u32).collect() } else { vec![n as u32 - 1] };
        let at_once = LOGIT_ROWS.min(rows.len());
        let mut hidden = self.dev.zeros(&[at_once, config.hidden_size], ws.hidden.dtype())?;
        let mut logits = self.dev.zeros(&[at_once, config.vocab_size], DType::F32)?;
        let row = self.measure(format!("pp{n}"), n, || {
            self.model.forward(self.dev, &batch, &mut ws, &mut |_, _| Ok(()))?;
            for rows in rows.chunks(at_once) {
                hidden.set_rows(rows.len())?;
                logits.set_rows(rows.len())?;
                gather_rows(self.dev, &mut hidden, &ws.hidden, &Tensor::from_u32(rows))?;
                self.model.logits(self.dev, &mut logits, &hidden)?;
            }
            Ok(())
        })?;
        Ok(BenchRow { n_prompt: n, ..row })
    }

    /// `tgN bB`: `batch` sequences generate `n` tokens each, after an empty context.
    pub fn decode(&self, n: usize, batch: usize) -> Result<BenchRow> {
        self.check_length("--n-gen", n)?;
        if batch == 0 {
            return Err(Error::usage("--batch-size", "one or more", "0"));
        }
        let config = &self.model.config;
        let pages = n.div_ceil(PAGE);
        let mut cache = KvCache::new(self.dev, config, batch * pages, PAGE)?;
        let mut ws = Workspace::new(self.dev, config, batch)?;
        let mut logits = self.dev.zeros(&[batch, config.vocab_size], DType::F32)?;
        let mut step = PagedStep::new(batch, batch, pages, PAGE);
        let ids = spread_ids(batch, config.vocab_size);
        let own_pages: Vec<u32> = (0..(batch * pages) as u32).collect();
        let test = if batch == 1 { format!("tg{n}") } else { format!("tg{n} b{batch}") };
        let row = self.measure(test, n * batch, || {
            for position in 0..n {
                interrupt::check()?;
                step.clear();
                for (id, pages) in ids.chunks(1).zip(own_pages.chunks(pages)) {
                    step.push(id, position, pages)?;
                }
                step.forward(self.dev, self.model, &mut cache, &mut ws)?;
                self.model.logits(self.dev, &mut logits, &ws.hidden)?;
            }
            Ok(())
        })?;
        Ok(BenchRow { n_gen: n, n_seqs: batch, ..row })
    }

    fn check_length(&self, option: &str, n: usize) -> Result<()> {
        let longest = self.model.config.max_position_embeddings;
        if (1..=longest).contains(&n) {
            return Ok(());
        }
        Err(Error::usage(option, format!("1 to {longest}, the model's max_position_embeddings"), n.to_string()))
    }
}

/// Memory of the prefill and decode tests of [`bench()`], the largest of them.
pub fn memory(dev: &Device, dir: &Path, options: &BenchOptions) -> Result<InferencePlan> {
    let (config, weights) = (Config::load(dir)?, InferencePlan::of(dev, dir, options.adapter.as_deref())?);
    let mut plan = weights;
    for &n in &options.n_prompt {
        plan = plan.or(weights.with_pass(dev, &config, n, if options.all_logits { LOGIT_ROWS.min(n) } else { 1 }));
    }
    for (&n, &batch) in options.n_gen.iter().flat_map(|n| options.batches.iter().map(move |batch| (n, batch))) {
        let cached = batch.saturating_mul(n.next_multiple_of(PAGE));
        let pass = weights.with_pass(dev, &config, batch, batch).with_cache(dev, &config, cached);
        plan = plan.or(pass.with_pages(dev, &config, batch, batch, n.div_ceil(PAGE), PAGE));
    }
    Ok(plan)
}

/// Runs every test that the options name on the model in `dir`: prompts first, then generation at each batch size, then training.
pub fn bench(
    dev: &Device,
    dir: &Path,
    options: &BenchOptions,
    training: Option<&TrainingStep>,
) -> Result<Vec<BenchRow>> {
    let mut rows = Vec::new();
    let lengths = |list: &[usize]| list.iter().copied().filter(|&n| n > 0).collect::<Vec<usize>>();
    let (prompts, generated) = (lengths(&options.n_prompt), lengths(&options.n_gen));
    if prompts.is_empty() && generated.is_empty() && training.is_none() {
        return Err(Error::usage("bench", "a number above 0 for -p or -n, or --train", "nothing to measure"));
    }
    if !prompts.is_empty() || !generated.is_empty() {
        let mut model = Llama::load_adapted(dir, options.adapter.as_deref())?;
        model.prepare(dev)?;
        let bench = Bench::new(dev, &model, dir, options)?;
        for n in prompts {
            rows.push(bench.prefill(n)?);
        }
        for n in generated {
            for &batch in &options.batches {
                rows.push(bench.decode(n, batch)?);
            }
        }
    }
    if let Some(training) = training {
        let model = Llama::load(dir)?;
        rows.push(Bench::new(dev, &model, dir, options)?.train(training)?);
    }
    Ok(rows)
}

/// Work of all operations so far.
pub(super) fn total(dev: &Device) -> Entry {
    dev.ledger().snapshot().into_iter().fold(Entry::default(), |sum: Entry, (_, entry): (Op, Entry)| Entry {
        calls: sum.calls + entry.calls,
        flops: sum.flops + entry.flops,
        bytes: sum.bytes + entry.bytes,
        seconds: sum.seconds + entry.seconds,
    })
}

/// The middle of the values; the mean of both where two are in the middle.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    (values[(n - 1) / 2] + values[n / 2]) / 2.0
}

/// Mean and sample standard deviation; 0 for a single value.
fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (mean, if values.len() > 1 { (squares / (n - 1.0)).sqrt() } else { 0.0 })
}

/// Every weight of a model with its adapter, a tied head once.
pub(super) fn weights(model: &Llama) -> Vec<&Tensor> {
    let mut tensors = vec![&*model.embed_tokens, &*model.norm];
    tensors.extend(model.lm_head.as_deref());
    for block in &model.blocks {
        tensors.extend([&*block.input_norm, &*block.post_norm]);
        for linear in [&block.q, &block.k, &block.v, &block.o, &block.gate, &block.up, &block.down] {
            tensors.push(&linear.weight);
            tensors.extend(linear.bias.as_deref());
            tensors.extend(linear.lora.iter().flat_map(|lora| [&lora.a, &lora.b]));
        }
    }
    tensors
}
