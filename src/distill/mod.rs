//! Self-data distillation (Thangarasa et al. 2024, arXiv 2410.09982): the uncut model rewrites each answer; the rewrite is
//! kept only when it is right.
//!
//! For every row the model sees the instruction with its answer and writes its own; [`select::judge`] keeps that or falls back
//! to the original. The result has one line a row, in input order, in the row's own form, with `source` (`distilled` or
//! `original`), `reason` and the number of generated tokens beside it; `NAME.manifest.json` counts the reasons. The prompts
//! follow SDFT (Yang et al. 2024, arXiv 2402.13669), where the method comes from, in substance.
//!
//! | file | subject |
//! |-|-|
//! | `template.rs`, `templates/` | the prompt that asks for the rewrite |
//! | `select.rs` | whether a rewrite is kept |

pub mod select;
pub mod template;

use crate::data::{self, Example, ReadOptions, Row};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::generate::resume::{self, Opened, Unfinished};
use crate::generate::{
    EngineOptions, OnOverflow, Request, Runtime, Sampling, Shard, Stats, generate, provenance, stream_of,
};
use crate::model::Message;
use crate::output::refuse_inputs;
use select::Reason;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;
use template::Template;

/// What [`distill`] does.
#[derive(Clone, Debug)]
pub struct DistillOptions {
    /// Directory of the uncut model.
    pub model: PathBuf,
    /// Directory of a PEFT adapter for the model.
    pub adapter: Option<PathBuf>,
    /// Directory of a model that drafts for it.
    pub draft: Option<PathBuf>,
    /// Rows with prompts and answers, JSONL or Parquet.
    pub data: PathBuf,
    /// `math`, `general` or the path of a template file.
    pub template: String,
    /// The result, JSONL.
    pub output: PathBuf,
    /// How tokens are drawn. Unknown for the paper; others used temperature 0.9 and top-p 0.95.
    pub sampling: Sampling,
    /// Most tokens of a rewrite; one that reaches it is refused.
    pub max_tokens: usize,
    /// Only the first rows.
    pub limit: Option<usize>,
    /// Of these, only the rows of one shard.
    pub shard: Shard,
    /// Field of the rows that holds their id, instead of `id` or `custom_id`.
    pub id_field: Option<String>,
    /// Limits of the engine; what is too long is always counted as [`Reason::Error`].
    pub engine: EngineOptions,
    /// Start again instead of going on with, or keeping, what is there.
    pub overwrite: bool,
}

impl DistillOptions {
    /// The defaults of the command line.
    pub fn new(model: PathBuf, data: PathBuf, template: impl Into<String>, output: PathBuf) -> DistillOptions {
        DistillOptions {
            model,
            adapter: None,
            draft: None,
            data,
            template: template.into(),
            output,
            sampling: Sampling { temperature: 0.9, top_p: 0.95, ..Sampling::GREEDY },
            max_tokens: 512,
            limit: None,
            shard: Shard::ALL,
            id_field: None,
            engine: EngineOptions::default(),
            overwrite: false,
        }
    }
}

/// What [`distill`] did: the result's totals, then the work of this run.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct DistillReport {
    /// Rows of the result.
    pub rows: usize,
    /// Rows whose rewrite was kept.
    pub distilled: usize,
    /// Rows by reason.
    pub reasons: BTreeMap<Reason, usize>,
    /// Tokens generated for all rows.
    pub generated_tokens: u64,
    /// Rows that an earlier run had done.
    pub resumed_rows: usize,
    /// Tokens that went through the model in this run, prompts included.
    pub run_tokens: u64,
    /// Floating-point operations of this run.
    pub run_flops: u64,
    /// Seconds of this run.
    pub run_seconds: f64,
    /// What the engine did in this run.
    pub stats: Stats,
    /// Share of the draft's tokens that were kept; `None` without a draft.
    pub draft_acceptance: Option<f64>,
}

/// Rewrites the answers of a dataset. Resumable: the same call goes on behind the last whole row and gives the same bytes as
/// one that was not interrupted; with other settings it is an error that names the setting. A complete output with the
/// same settings is left as it is.
pub fn distill(dev: &Device, options: &DistillOptions) -> Result<DistillReport> {
    let start = Instant::now();
    let (tokens_before, flops_before) = (dev.ledger().tokens(), dev.ledger().flops());
    options.sampling.validate()?;
    let DistillOptions { model, adapter, draft, data, output, .. } = options;
    let template_file = Path::new(&options.template);
    let inputs = [model, data].into_iter().chain(adapter).chain(draft).map(PathBuf::as_path);
    refuse_inputs(output, inputs.chain([template_file]))?;
    let template = Template::load(&options.template)?;
    let read = ReadOptions { limit: options.limit, id_field: options.id_field.clone(), allow_torn_tail: false };
    let mut rows = data::read(&options.data, &read)?;
    rows.retain(|row| options.shard.contains(&row.id));
    let tasks = rows.iter().map(|row| Task::new(&options.data, row)).collect::<Result<Vec<Task>>>()?;
    let settings = settings(dev, options, &template)?;
    let mut out = match resume::open(&options.output, settings, options.overwrite)? {
        Opened::Finished(_) => {
            let lines = data::objects(&options.output, false)?.map(|line| Ok(Value::Object(line?.1)));
            let lines = lines.collect::<Result<Vec<Value>>>()?;
            return tally(&options.output, &rows, lines.iter().enumerate(), lines.len());
        }
        Opened::Unfinished(out) => out,
    };
    let resumed = out.earlier().len();
    let earlier = out.earlier().iter().map(|(&index, line)| (index, line));
    tally(&options.output, &rows, earlier, resumed)?;
    let mut lines: Vec<Value> = vec![Value::Null; rows.len()];
    for (&index, line) in out.earlier() {
        lines[index] = line.clone();
    }
    let mut stats = Stats::default();
    if resumed < rows.len() {
        stats = rewrite(dev, options, &template, &rows, &tasks, &mut out, &mut lines)?;
    }
    let report = DistillReport {
        run_tokens: dev.ledger().tokens() - tokens_before,
        run_flops: dev.ledger().flops() - flops_before,
        run_seconds: start.elapsed().as_secs_f64(),
        draft_acceptance: stats.acceptance(),
        stats,
        ..tally(&options.output, &rows, lines.iter().enumerate(), resumed)?
    };
    out.finish(json!(report).as_object().cloned().unwrap_or_default())?;
    Ok(report)
}

/// What the rows of the result depend on.
fn settings(dev: &Device, options: &DistillOptions, template: &Template) -> Result<Map<String, Value>> {
    let draft = options.draft.as_deref().map(|draft| (draft, options.engine.draft_tokens));
    let mut settings = provenance::models(dev, &options.model, options.adapter.as_deref(), draft)?;
    let others = json!({
        "data_sha256": provenance::file_sha256(&options.data)?,
        "template": options.template,
        "template_sha256": template.sha256(),
        "temperature": options.sampling.temperature,
        "top_k": options.sampling.top_k,
        "top_p": options.sampling.top_p,
        "min_p": options.sampling.min_p,
        "repetition_penalty": options.sampling.repetition_penalty,
        "seed": options.sampling.seed,
        "max_tokens": options.max_tokens,
        "limit": options.limit,
        "shard": options.shard.to_string(),
        "id_field": options.id_field,
    });
    settings.extend(others.as_object().cloned().unwrap_or_default());
    Ok(settings)
}

/// A row seen as something to rewrite.
struct Task<'a> {
    /// Turns before the instruction.
    earlier: &'a [Message],
    instruction: &'a str,
    reference: &'a str,
}

impl<'a> Task<'a> {
    /// An error when the row has no answer to rewrite.
    fn new(path: &Path, row: &'a Row) -> Result<Task<'a>> {
        let found = match &row.example {
            Example::Completion { prompt, completion } => {
                return Ok(Task { earlier: &[], instruction: prompt, reference: completion });
            }
            Example::Chat(turns) => match turns.as_slice() {
                [earlier @ .., user, reply] if user.role == "user" && reply.role == "assistant" => {
                    return Ok(Task { earlier, instruction: &user.content, reference: &reply.content });
                }
                _ => "a conversation that does not end with a user's and an assistant's turn",
            },
            Example::Text(_) => "plain text",
        };
        Err(Error::format(path, format!("line {}", row.line), "a prompt with an answer to rewrite", found))
    }

    fn system(&self) -> &str {
        self.earlier.iter().find(|m| m.role == "system").map_or("", |m| &m.content)
    }
}

/// Generates and judges the rewrites of the rows that have no line yet, and adds these.
fn rewrite(
    dev: &Device,
    options: &DistillOptions,
    template: &Template,
    rows: &[Row],
    tasks: &[Task],
    out: &mut Unfinished,
    lines: &mut [Value],
) -> Result<Stats> {
    let runtime = Runtime::load_adapted(dev, &options.model, options.adapter.as_deref())?
        .with_draft(dev, options.draft.as_deref())?;
    let (mut requests, mut openings, mut row_of) = (Vec::new(), Vec::new(), Vec::new());
    for (index, (row, task)) in rows.iter().zip(tasks).enumerate() {
        if !lines[index].is_null() {
            continue;
        }
        let rendered = template.render(task.instruction, task.reference, task.system())?;
        let (text, special) = prompt(&runtime, &rendered.conversation(task.earlier), &rendered.prefill)?;
        if runtime.tokenizer.least_tokens(&text) >= runtime.model.config.max_position_embeddings {
            lines[index] = line(row, None, Reason::Error, 0);
            out.push(index, &lines[index])?;
            continue;
        }
        let ids = runtime.tokenizer.encode(&text, special)?;
        let request = Request::new(stream_of(&row.id, 0), ids, options.max_tokens);
        let name = format!("row {} (line {})", row.id, row.line);
        requests.push(Request { name, sampling: options.sampling, ..request });
        openings.push(rendered.prefill);
        row_of.push(index);
    }
    let engine = EngineOptions { on_overflow: OnOverflow::Drop, label: "distill".into(), ..options.engine.clone() };
    generate(dev, runtime.models(), &requests, &engine, &mut |i, completion| {
        let (index, row) = (row_of[i], &rows[row_of[i]]);
        let reply = format!("{}{}", openings[i], completion.text.trim_end());
        let reason = select::judge(&completion, &reply, row.answer.as_deref());
        lines[index] = line(row, reason.kept().then_some(reply.trim()), reason, completion.ids.len());
        out.push(index, &lines[index])
    })
}

/// The text to continue, and whether special tokens are put around it. A model without a chat template gets the turns as plain
/// paragraphs.
fn prompt(runtime: &Runtime, conversation: &[Message], prefill: &str) -> Result<(String, bool)> {
    if runtime.template.is_some() {
        return Ok((runtime.render_chat(conversation)? + prefill, false));
    }
    let text: String = conversation.iter().map(|m| format!("{}\n\n", m.content)).collect();
    Ok((text + prefill, true))
}

/// A line of the result: the row in its form, with the rewrite in the answer's place where it is kept.
fn line(row: &Row, rewrite: Option<&str>, reason: Reason, generated_tokens: usize) -> Value {
    let mut line = Map::from_iter([("id".to_string(), json!(row.id))]);
    match &row.example {
        Example::Chat(turns) => {
            let mut turns = turns.clone();
            if let (Some(last), Some(rewrite)) = (turns.last_mut(), rewrite) {
                last.content = rewrite.to_string();
            }
            line.insert("messages".into(), json!(turns));
        }
        Example::Completion { prompt, completion } => {
            line.insert("prompt".into(), json!(prompt));
            // What parts prompt and completion in the original parts them in the rewrite.
            let space = &completion[..completion.len() - completion.trim_start().len()];
            let rewritten = rewrite.map_or_else(|| completion.clone(), |rewrite| format!("{space}{rewrite}"));
            line.insert("completion".into(), json!(rewritten));
        }
        Example::Text(text) => {
            line.insert("text".into(), json!(text));
        }
    }
    if let Some(answer) = &row.answer {
        line.insert("answer".into(), json!(answer));
    }
    line.insert("source".into(), json!(if rewrite.is_some() { "distilled" } else { "original" }));
    line.insert("reason".into(), json!(reason));
    line.insert("generated_tokens".into(), json!(generated_tokens));
    Value::Object(line)
}

/// Counts the lines of a result, each with its index; an error when they are not those of the rows.
fn tally<'a>(
    path: &Path,
    rows: &[Row],
    lines: impl Iterator<Item = (usize, &'a Value)>,
    resumed_rows: usize,
) -> Result<DistillReport> {
    let mut report = DistillReport {
        rows: 0,
        distilled: 0,
        reasons: Reason::ALL.iter().map(|&reason| (reason, 0)).collect(),
        generated_tokens: 0,
        resumed_rows,
        run_tokens: 0,
        run_flops: 0,
        run_seconds: 0.0,
        stats: Stats::default(),
        draft_acceptance: None,
    };
    for (i, line) in lines {
        let id = rows.get(i).map(|row| row.id.as_str());
        let reason = serde_json::from_value::<Reason>(line["reason"].clone());
        let (true, Ok(reason)) = (line["id"].as_str() == id, reason) else {
            let expected = format!("row {} with its reason", id.unwrap_or("none"));
            return Err(Error::format(path, format!("line {}", i + 1), expected, line["id"].to_string()));
        };
        *report.reasons.entry(reason).or_default() += 1;
        report.generated_tokens += line["generated_tokens"].as_u64().unwrap_or(0);
        report.rows += 1;
    }
    report.distilled = report.reasons.iter().filter(|(reason, _)| reason.kept()).map(|(_, n)| n).sum();
    Ok(report)
}
