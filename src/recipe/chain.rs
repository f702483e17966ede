//! The stages in their order. Each reads what the one before left in the output directory, and is skipped when its stamp says
//! that it is done.

use super::settings::{FinetuneSettings, Recipe};
use super::stamp::{Stage, Stamp, file_key, key, run_stage};
use super::summary;
use crate::device::{Device, peak};
use crate::distill::{DistillOptions, DistillReport, distill};
use crate::error::{Error, Result};
use crate::eval::bench::{Bench, BenchOptions};
use crate::eval::flops::Flops;
use crate::eval::tasks::{self, Items, Task, TaskOptions};
use crate::eval::{OwnTextOptions, divergence, own_text, perplexity};
use crate::generate::provenance::model_fingerprint;
use crate::generate::{EngineOptions, Runtime, Sampling};
use crate::input::read_text;
use crate::model::adapter::LoraConfig;
use crate::model::safetensors::WeightFiles;
use crate::model::{Config, Llama, source};
use crate::output::{OutputLock, write_file};
use crate::progress;
use crate::prune::{Calibration, CalibrationOptions, Plan, ScoreOptions, prune, score, write_scores};
use crate::report::{LossCurve, ModelRow, Report, TaskScore, page};
use crate::train::merge_lora::merge_adapter;
use crate::train::{FinetuneOptions, Method, OnOverflow, OptimizerOptions, finetune};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Prompt length (the context, if that is less) at which the prefill speeds of base and cut are measured, and how often each, in
/// turn.
const PREFILL: (usize, usize) = (512, 5);

/// What the distil stage leaves for the report.
#[derive(Serialize, Deserialize)]
struct Distilled {
    reasons: Vec<(String, u64)>,
}

/// A run in progress: what every stage needs.
struct Run<'a> {
    dev: &'a Device,
    recipe: &'a Recipe,
    output: &'a Path,
    base: PathBuf,
}

/// Runs the recipe, or what is left of it, and returns the report that `report.html` and `report.json` in its output show.
pub fn run(dev: &Device, recipe: &Recipe) -> Result<Report> {
    let output = recipe.output.as_path();
    let _lock = OutputLock::acquire(output)?;
    std::fs::create_dir_all(output).map_err(Error::io(output, "create"))?;
    let run = Run { dev, recipe, output, base: source::resolve(&recipe.model)? };
    run.check()?;
    let model_key = model_fingerprint(&run.base)?.to_string();

    progress::line("1/6 score: which blocks change the residual stream least");
    let scored = run.score(&model_key)?;
    progress::line("2/6 prune");
    let pruned = run.prune(&scored.key)?;
    progress::line("3/6 distil: the uncut model rewrites the answers");
    let distilled = run.distil(&model_key)?;
    progress::line("4/6 fine-tune on the plain answers");
    let sft = run.finetune("sft", &recipe.distill.data, &pruned.key, &file_key(&recipe.distill.data)?)?;
    progress::line("5/6 fine-tune on the rewritten answers");
    let rewritten = output.join("distilled.jsonl");
    let self_distilled = run.finetune("self-distilled", &rewritten, &pruned.key, &file_key(&rewritten)?)?;

    progress::line("6/6 measure all four models");
    let evaluated = [
        run.evaluate("base", "base", &run.base, &model_key)?,
        run.evaluate("cut", "cut", &output.join("cut"), &pruned.key)?,
        run.evaluate("cut + SFT", "sft", &output.join("sft"), &sft.key)?,
        run.evaluate("cut + self-distilled", "self-distilled", &output.join("self-distilled"), &self_distilled.key)?,
    ];
    let speeds = run.speeds(&pruned.key)?;
    let mut stages = vec![(scored.row, scored.operations), (pruned.row, pruned.operations)];
    stages.push((distilled.row, distilled.operations));
    let mut losses = Vec::new();
    for student in [sft, self_distilled] {
        losses.push(student.result);
        stages.push((student.row, student.operations));
    }
    let mut models = Vec::new();
    for stamp in evaluated {
        models.push(stamp.result);
        stages.push((stamp.row, stamp.operations));
    }
    for (model, speed) in models.iter_mut().zip(speeds.result) {
        model.prefill_tokens_per_second = Some(speed);
    }
    stages.push((speeds.row, speeds.operations));
    let report = summary::report(recipe, models, pruned.result, losses, distilled.result.reasons, stages)?;
    let html = output.join("report.html");
    let page = page::render(&report, &html)?;
    write_file(&output.join("report.json"), |out| serde_json::to_writer_pretty(out, &report).map_err(Into::into))?;
    write_file(&html, |out| out.write_all(page.as_bytes()))?;
    Ok(report)
}

impl Run<'_> {
    /// Finds what is wrong with the late stages' settings before the early stages take their time.
    fn check(&self) -> Result<()> {
        let nowhere = PathBuf::new();
        finetune_options(&self.recipe.finetune, nowhere.clone(), nowhere.clone(), nowhere).check()?;
        let context = Config::load(&self.base)?.max_position_embeddings;
        let window = self.recipe.eval.window_of(context);
        if !(2..=context).contains(&window) {
            let expected = format!("2 to {context}, the model's max_position_embeddings");
            return Err(Error::usage("[eval] window", expected, window.to_string()));
        }
        for path in &self.recipe.eval.tasks {
            Items::load(&Task::load(path)?, self.recipe.eval.num_fewshot, self.recipe.eval.limit)?;
        }
        Ok(())
    }

    /// `scores.csv`, `scores.svg`, `scores.json`.
    fn score(&self, model_key: &str) -> Result<Stamp<()>> {
        let settings = &self.recipe.score;
        let key = key(settings, &[model_key, &file_key(&settings.data)?, &self.recipe.seed.to_string()]);
        let stage = Stage { name: "score", makes: &["scores.csv", "scores.svg"], leaves: &["scores.json"] };
        run_stage(self.dev, self.output, stage, &key, || {
            let model = Llama::load(&self.base)?;
            let samples = CalibrationOptions { samples: settings.samples, sample_tokens: settings.sample_tokens };
            let calibration = Calibration::read(&self.base, &settings.data, samples)?;
            let options = ScoreOptions {
                metric: settings.metric,
                tokens: settings.tokens,
                block_sizes: settings.block_size.clone(),
                seed: self.recipe.seed,
                ..ScoreOptions::default()
            };
            let scores = score(self.dev, &model, Some(&calibration), &options)?;
            write_scores(&scores, &self.output.join("scores.csv"))
        })
    }

    /// The cut model, in `cut/`; gives the blocks that were cut.
    fn prune(&self, scores_key: &str) -> Result<Stamp<Vec<usize>>> {
        let size = self.recipe.prune.block_size;
        let key = key(&self.recipe.prune, &[scores_key]);
        let stage = Stage { name: "prune", makes: &["cut"], leaves: &[] };
        run_stage(self.dev, self.output, stage, &key, || {
            let layers = Config::load(&self.base)?.num_hidden_layers;
            let plan = Plan::from_scores(&self.output.join("scores.csv"), size, layers)?;
            let report = prune(&self.base, &plan, &self.output.join("cut"), true)?;
            Ok(report.dropped)
        })
    }

    /// The rewritten rows, in `distilled.jsonl`.
    fn distil(&self, model_key: &str) -> Result<Stamp<Distilled>> {
        let settings = &self.recipe.distill;
        let template = Path::new(&settings.template);
        let template_key = if template.is_file() { file_key(template)? } else { settings.template.clone() };
        let inputs = [model_key, &file_key(&settings.data)?, &template_key, &self.recipe.seed.to_string()];
        let key = key(settings, &inputs);
        let leaves = [
            "distilled.jsonl.manifest.json",
            ".distilled.jsonl.unfinished",
            ".distilled.jsonl.unfinished.ahead",
            ".distilled.jsonl.unfinished.json",
        ];
        let stage = Stage { name: "distil", makes: &["distilled.jsonl"], leaves: &leaves };
        run_stage(self.dev, self.output, stage, &key, || {
            let output = self.output.join("distilled.jsonl");
            let (model, data) = (self.base.clone(), settings.data.clone());
            let options = DistillOptions {
                sampling: Sampling {
                    temperature: settings.temperature,
                    top_p: settings.top_p,
                    seed: self.recipe.seed,
                    ..Sampling::GREEDY
                },
                max_tokens: settings.max_tokens,
                limit: settings.limit,
                engine: EngineOptions {
                    max_batch_size: settings.max_batch_size,
                    label: "distil".into(),
                    ..EngineOptions::default()
                },
                ..DistillOptions::new(model, data, &settings.template, output)
            };
            let DistillReport { reasons, .. } = distill(&self.dev.clone().with_compute(settings.compute)?, &options)?;
            let name = |reason| serde_json::to_value(reason).ok().and_then(|v| v.as_str().map(str::to_string));
            let reasons = reasons
                .into_iter()
                .filter(|&(_, n)| n > 0)
                .filter_map(|(reason, n)| Some((name(reason)?, n as u64)))
                .collect();
            Ok(Distilled { reasons })
        })
    }

    /// One student, merged into a model directory of its own name; the adapter stays in `NAME-adapter/`.
    fn finetune(&self, name: &str, data: &Path, cut_key: &str, data_key: &str) -> Result<Stamp<LossCurve>> {
        let settings = &self.recipe.finetune;
        let limit = self.recipe.distill.limit.map(|n| n.to_string()).unwrap_or_default();
        let key = key(settings, &[cut_key, data_key, &limit, &self.recipe.seed.to_string()]);
        let stage_name = format!("finetune-{name}");
        let adapter = format!("{name}-adapter");
        let stage = Stage { name: &stage_name, makes: &[name], leaves: &[&adapter] };
        run_stage(self.dev, self.output, stage, &key, || {
            let cut = self.output.join("cut");
            let target = self.output.join(name);
            let trained = if settings.full { target.clone() } else { self.output.join(&adapter) };
            let options = FinetuneOptions {
                limit: self.recipe.distill.limit,
                seed: self.recipe.seed,
                ..finetune_options(settings, cut.clone(), data.to_path_buf(), trained.clone())
            };
            let report = finetune(&self.dev.clone().with_compute(settings.compute)?, &options)?;
            if !settings.full {
                merge_adapter(self.dev, &cut, &trained, &target, true)?;
            }
            let points = report.losses.iter().enumerate().map(|(i, &loss)| (i as u64 + 1, loss)).collect();
            Ok(LossCurve { name: format!("cut + {}", if name == "sft" { "SFT" } else { name }), points })
        })
    }

    /// Everything that the report says of one model.
    fn evaluate(&self, title: &str, name: &str, dir: &Path, model_key: &str) -> Result<Stamp<ModelRow>> {
        let settings = &self.recipe.eval;
        let mut inputs = vec![file_key(&settings.perplexity)?, model_key.to_string()];
        for task in &settings.tasks {
            let Task { path, data, fewshot, .. } = Task::load(task)?;
            // The header, or the data again where there is none.
            for file in [Some(path), Some(data), fewshot].into_iter().flatten() {
                inputs.push(file_key(&file)?);
            }
        }
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let stage = Stage { name: &format!("eval-{name}"), makes: &[], leaves: &[] };
        run_stage(self.dev, self.output, stage, &key(settings, &inputs), || {
            let subject = Runtime::load(self.dev, dir)?;
            let mut ids = subject.tokenizer.encode(&read_text(&settings.perplexity)?, true)?;
            ids.truncate(settings.limit_tokens.unwrap_or(usize::MAX));
            let window = settings.window_of(subject.model.config.max_position_embeddings);
            let quality = perplexity(self.dev, &subject.model, &ids, window)?;
            let (mut distance, mut own) = (None, None);
            if dir != self.base {
                let base = Runtime::load(self.dev, &self.base)?;
                distance = Some(divergence(self.dev, &base.model, &subject.model, &ids, window)?);
                own = own_text(self.dev, &base, &subject, &ids, OwnTextOptions::default())?;
            }
            let mut scores = Vec::new();
            for path in &settings.tasks {
                let options = TaskOptions {
                    num_fewshot: Some(settings.num_fewshot).filter(|&n| n > 0),
                    limit: settings.limit,
                    apply_chat_template: false,
                };
                let result = tasks::run(self.dev, &subject, &Task::load(path)?, &options)?;
                let metric = result.primary();
                let (task, metric_name) = (result.name, result.metric);
                scores.push(TaskScore { task, metric: metric_name, value: metric.value, stderr: metric.stderr });
            }
            let flops = Flops::new(&subject.model.config, settings.seq_len as u64);
            Ok(ModelRow {
                name: title.to_string(),
                layers: flops.num_hidden_layers,
                parameters: flops.parameters,
                weight_bytes: WeightFiles::open(dir)?.total_bytes(),
                flops_params_2n: flops.params_2n as f64,
                flops_matmul: flops.matmul as f64,
                flops_total: flops.total(),
                prefill_tokens_per_second: None,
                perplexity: quality.perplexity,
                kl: distance.map(|d| d.kl),
                top1_agreement: distance.map(|d| d.top1_agreement),
                base_text_nll: own.map(|o| o.nll),
                tasks: scores,
                recovery: None,
            })
        })
    }

    /// Tokens per second of reading a prompt: medians of the base and of the cut model, measured in turn in one go, because a
    /// machine's speed drifts. The students have the cut model's shape and so its speed.
    fn speeds(&self, cut_key: &str) -> Result<Stamp<[f64; 2]>> {
        let stage = Stage { name: "bench", makes: &[], leaves: &[] };
        run_stage(self.dev, self.output, stage, &key(&PREFILL, &[cut_key]), || {
            let (n, rounds) = PREFILL;
            let n = n.min(Config::load(&self.base)?.max_position_embeddings);
            let options = BenchOptions { repetitions: 1, ..BenchOptions::default() };
            let dirs = [self.base.clone(), self.output.join("cut")];
            let mut models = [Llama::load(&dirs[0])?, Llama::load(&dirs[1])?];
            models.iter_mut().try_for_each(|model| model.prepare(self.dev))?;
            let benches = [
                Bench::new(self.dev, &models[0], &dirs[0], &options)?,
                Bench::new(self.dev, &models[1], &dirs[1], &options)?,
            ];
            let mut samples = [Vec::new(), Vec::new()];
            for _ in 0..rounds {
                for (bench, samples) in benches.iter().zip(&mut samples) {
                    crate::interrupt::check()?;
                    samples.push(bench.prefill(n)?.avg_ts);
                }
            }
            Ok(samples.map(|mut samples| {
                samples.sort_by(f64::total_cmp);
                samples[samples.len() / 2]
            }))
        })
    }
}

/// The recipe's training settings as the fine-tuning stage takes them. Rows that are too long are dropped and counted.
pub(super) fn finetune_options(
    settings: &FinetuneSettings,
    model: PathBuf,
    data: PathBuf,
    output: PathBuf,
) -> FinetuneOptions {
    let method = if settings.full {
        Method::Full
    } else {
        Method::Lora(LoraConfig {
            r: settings.lora_r,
            lora_alpha: settings.lora_alpha,
            lora_dropout: settings.lora_dropout,
            target_modules: settings.lora_target_modules.clone(),
            layers_to_transform: None,
            use_rslora: false,
        })
    };
    FinetuneOptions {
        learning_rate: settings.learning_rate,
        lr_scheduler_type: settings.lr_scheduler_type,
        warmup_steps: settings.warmup_steps,
        optimizer: OptimizerOptions {
            weight_decay: settings.weight_decay,
            max_grad_norm: settings.max_grad_norm,
            ..OptimizerOptions::default()
        },
        max_steps: Some(settings.max_steps),
        per_device_train_batch_size: settings.per_device_train_batch_size,
        gradient_accumulation_steps: settings.gradient_accumulation_steps,
        max_length: settings.max_length,
        on_overflow: OnOverflow::Drop,
        save_steps: Some(settings.save_steps),
        save_total_limit: Some(1),
        ..FinetuneOptions::new(model, data, output, method)
    }
}

/// Processor and threads, for the report.
pub(super) fn machine() -> String {
    format!("{}, {} threads", peak::cpu_name(), rayon::current_num_threads())
}
