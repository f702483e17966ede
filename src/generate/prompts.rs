//! Prompt files: rows to requests, completions to result lines.
//!
//! A row is `{"prompt": TEXT or ids or messages}`, `{"messages": [...]}` or a line of an OpenAI batch
//! (`custom_id, method, url, body`); the last two go through the model's chat template. The result of a plain row is
//! `{"id", "completion", "finish_reason", "usage"}`, or with several samples `{"id", "completions": [...], "usage"}`; that of a
//! batch line is what the batch interface answers. Of a prompt that was too long, `truncated_tokens` were left out at its start, and
//! before these `truncated_bytes` of its text that were certainly outside the context and so never encoded.

use super::batch_line::{self, BatchLine};
use super::resume::{self, Opened};
use super::runtime::Runtime;
use super::{Completion, EngineOptions, Finish, OnOverflow, Request, Shard, Stats, generate, provenance, stream_of};
use crate::data;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::model::tokenizer::CHEAP_BYTES;
use crate::output::refuse_inputs;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What [`generate_file`] does.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// Model directory.
    pub model: PathBuf,
    /// Directory of a PEFT adapter for the model.
    pub adapter: Option<PathBuf>,
    /// Directory of a model that drafts for it.
    pub draft: Option<PathBuf>,
    /// Prompt file, JSONL or Parquet.
    pub input: PathBuf,
    /// Result file, JSONL.
    pub output: PathBuf,
    /// What every row asks for, id and prompt apart. A batch line's own parameters override it.
    pub request: Request,
    /// Samples of each row, each with random numbers of its own.
    pub n: usize,
    /// Only the first rows.
    pub limit: Option<usize>,
    /// Of these, only the rows of one shard.
    pub shard: Shard,
    /// Limits of the engine.
    pub engine: EngineOptions,
    /// Start again instead of going on with, or keeping, what is there.
    pub overwrite: bool,
}

impl GenerateOptions {
    /// The defaults of the command line: greedy, at most 256 tokens.
    pub fn new(model: PathBuf, input: PathBuf, output: PathBuf) -> GenerateOptions {
        GenerateOptions {
            model,
            adapter: None,
            draft: None,
            input,
            output,
            request: Request::new(0, Vec::new(), 256),
            n: 1,
            limit: None,
            shard: Shard::ALL,
            engine: EngineOptions::default(),
            overwrite: false,
        }
    }
}

/// What [`generate_file`] did.
#[derive(Clone, Debug, serde::Serialize)]
#[non_exhaustive]
pub struct GenerateReport {
    /// Rows of the result file.
    pub rows: usize,
    /// Of these, rows that an earlier run had done.
    pub resumed: usize,
    /// Rows by how they ended (of several samples the first): `stop`, `length`, `dropped`, `error`.
    pub finish: BTreeMap<String, usize>,
    /// Work of this run.
    pub stats: Stats,
}

/// One input row.
struct Row {
    line: usize,
    id: String,
    /// `None` for a plain row.
    batch: Option<BatchLine>,
    /// Bytes at the start of the prompt's text that were not encoded.
    cut_bytes: usize,
    /// One request a sample; a sentence when the row asks for something that is not supported.
    samples: std::result::Result<Vec<Request>, String>,
}

/// Generates for a file of prompts; resumable, with results in input order. Errors: a row that cannot be understood, a prompt
/// that is too long (unless dropped or truncated), another output there already. A batch line that asks for what is not
/// supported gets an `error` of its own instead.
pub fn generate_file(dev: &Device, options: &GenerateOptions) -> Result<GenerateReport> {
    let GenerateOptions { model, adapter, draft, input, output, .. } = options;
    refuse_inputs(output, [model, input].into_iter().chain(adapter).chain(draft).map(PathBuf::as_path))?;
    let runtime = Runtime::load_adapted(dev, &options.model, options.adapter.as_deref())?
        .with_draft(dev, options.draft.as_deref())?;
    let rows = read(&runtime, options)?;
    let mut out = match resume::open(&options.output, settings(dev, options)?, options.overwrite)? {
        Opened::Finished(manifest) => {
            let finish = serde_json::from_value(manifest["finish"].clone()).unwrap_or_default();
            return Ok(GenerateReport { rows: rows.len(), resumed: rows.len(), finish, stats: Stats::default() });
        }
        Opened::Unfinished(out) => out,
    };
    let resumed = out.earlier().len();
    let mut finish = BTreeMap::new();
    out.earlier().values().for_each(|line| *finish.entry(finish_of(line)).or_default() += 1);
    // The requests, the row of each, and the samples of each row that have come.
    let (mut requests, mut row_of, mut came) = (Vec::new(), Vec::new(), Vec::new());
    for (index, row) in rows.iter().enumerate() {
        came.push(Vec::new());
        match &row.samples {
            _ if out.earlier().contains_key(&index) => {}
            Ok(samples) => {
                requests.extend(samples.iter().cloned());
                row_of.extend(samples.iter().enumerate().map(|(sample, _)| (index, sample)));
                came[index] = vec![None; samples.len()];
            }
            Err(message) => {
                let line = batch_line::refusal(&row.id, row.line, "unsupported_parameter", message);
                *finish.entry(finish_of(&line)).or_default() += 1;
                out.push(index, &line)?;
            }
        }
    }
    let stats = generate(dev, runtime.models(), &requests, &options.engine, &mut |request, completion| {
        let (index, sample) = row_of[request];
        came[index][sample] = Some(completion);
        if came[index].iter().any(Option::is_none) {
            return Ok(());
        }
        let samples: Vec<Completion> = came[index].drain(..).flatten().collect();
        let line = result(&rows[index], &samples, &runtime)?;
        *finish.entry(finish_of(&line)).or_default() += 1;
        out.push(index, &line)
    })?;
    let report = GenerateReport { rows: rows.len(), resumed, finish, stats };
    out.finish(Map::from_iter([
        ("rows".to_string(), json!(report.rows)),
        ("resumed_rows".to_string(), json!(resumed)),
        ("finish".to_string(), json!(report.finish)),
        ("stats".to_string(), json!(report.stats)),
        ("draft_acceptance".to_string(), json!(report.stats.acceptance())),
    ]))?;
    Ok(report)
}

/// What the rows of the result depend on.
fn settings(dev: &Device, options: &GenerateOptions) -> Result<Map<String, Value>> {
    let Request { max_tokens, sampling, logit_bias, stop, logprobs, .. } = &options.request;
    let draft = options.draft.as_deref().map(|draft| (draft, options.engine.draft_tokens));
    let mut settings = provenance::models(dev, &options.model, options.adapter.as_deref(), draft)?;
    let others = json!({
        "input_sha256": provenance::file_sha256(&options.input)?,
        "max_tokens": max_tokens,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "logit_bias": logit_bias,
        "seed": sampling.seed,
        "n": options.n,
        "stop": stop,
        "limit": options.limit,
        "shard": options.shard.to_string(),
        "on_overflow": format!("{:?}", options.engine.on_overflow).to_lowercase(),
        "logprobs": logprobs.output,
        "top_logprobs": logprobs.top,
        "prompt_logprobs": logprobs.prompt,
    });
    settings.extend(others.as_object().cloned().unwrap_or_default());
    Ok(settings)
}

/// How a result line ended.
fn finish_of(line: &Value) -> String {
    let places = ["/finish_reason", "/completions/0/finish_reason", "/response/body/choices/0/finish_reason"];
    let finish = places.iter().find_map(|place| line.pointer(place)?.as_str());
    finish.unwrap_or("error").to_string()
}

fn read(runtime: &Runtime, options: &GenerateOptions) -> Result<Vec<Row>> {
    let (path, mut seen, mut rows) = (&options.input, BTreeMap::new(), Vec::new());
    let mut objects = data::objects(path, false)?;
    while options.limit.is_none_or(|limit| seen.len() < limit) {
        let Some(object) = objects.next() else { break };
        let (line, fields) = object?;
        let at = objects.place(line);
        let id_field = fields.contains_key("body").then_some("custom_id");
        let id = data::row_id(path, &at, &fields, id_field, seen.len())?;
        data::note_id(path, &at, line, &id, &mut seen)?;
        if !options.shard.contains(&id) {
            continue;
        }
        rows.push(prepare(runtime, options, &fields, path, &at, line, id)?);
    }
    Ok(rows)
}

fn prepare(
    runtime: &Runtime,
    options: &GenerateOptions,
    fields: &Map<String, Value>,
    path: &Path,
    at: &str,
    line: usize,
    id: String,
) -> Result<Row> {
    let (mut request, mut n) = (options.request.clone(), options.n);
    let body = fields.get("body");
    let body = body.map(|body| {
        let wrong = || Error::format(path, format!("{at}, field \"body\""), "an object", body.to_string());
        body.as_object().ok_or_else(wrong)
    });
    let body = body.transpose()?;
    let batch = body.map(BatchLine::new);
    if let (Some(batch), Some(body)) = (&batch, body)
        && let Err(message) = batch.parameters(body, &mut request, &mut n)
    {
        return Ok(Row { line, id, batch: None, cut_bytes: 0, samples: Err(message) });
    }
    request.name = format!("row {id} (line {line})");
    let context = runtime.model.config.max_position_embeddings;
    let refuses = options.engine.on_overflow == OnOverflow::Error;
    let too_long = |found: String| {
        let expected = format!("a prompt of fewer than {context} tokens, or --on-overflow drop|truncate");
        Err(Error::format(path, at, expected, format!("{found} tokens")))
    };
    let mut cut_bytes = 0;
    request.prompt = match prompt(runtime, body.unwrap_or(fields), path, at)? {
        Prompt::Ids(ids) => ids,
        Prompt::Text(text, special) => {
            // What is certainly outside the context is not encoded.
            let long = text.len() > CHEAP_BYTES;
            let least = if long { runtime.tokenizer.least_tokens(&text) } else { 0 };
            if least >= context && refuses {
                return too_long(format!("{least} or more"));
            }
            let read = if long && request.max_tokens > 0 { runtime.tokenizer.tail(&text, context) } else { &text };
            cut_bytes = text.len() - read.len();
            runtime.tokenizer.encode(read, special)?
        }
    };
    match request.prompt.len() {
        0 => return Err(Error::format(path, at, "a prompt of at least one token", "0 tokens")),
        n if n >= context && refuses => return too_long(n.to_string()),
        _ => {}
    }
    let samples = (0..n).map(|sample| Request { id: stream_of(&id, sample), ..request.clone() }).collect();
    Ok(Row { line, id, batch, cut_bytes, samples: Ok(samples) })
}

/// A row's prompt: ids as they are given, or text and whether special tokens are put around it.
enum Prompt {
    Ids(Vec<u32>),
    Text(String, bool),
}

/// The prompt that a row's `messages` or `prompt` is.
fn prompt(runtime: &Runtime, fields: &Map<String, Value>, path: &Path, at: &str) -> Result<Prompt> {
    let chat = |key: &str, list: &Value| -> Result<Prompt> {
        Ok(Prompt::Text(runtime.render_chat(&data::messages(path, at, key, list)?)?, false))
    };
    let keys = || fields.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    match (fields.get("messages"), fields.get("prompt")) {
        (Some(messages), _) => chat("messages", messages),
        (None, Some(Value::String(text))) => Ok(Prompt::Text(text.clone(), true)),
        (None, Some(list @ Value::Array(items))) if items.first().is_some_and(Value::is_object) => chat("prompt", list),
        (None, Some(Value::Array(items))) => {
            let ids = items.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()));
            ids.collect::<Option<Vec<u32>>>().map(Prompt::Ids).ok_or_else(|| {
                let found = "a list of something else";
                Error::format(path, format!("{at}, field \"prompt\""), "text, token ids or messages", found)
            })
        }
        _ => Err(Error::format(path, at, "a row with \"prompt\" or \"messages\"", format!("the keys {}", keys()))),
    }
}

/// The result line of a row.
fn result(row: &Row, samples: &[Completion], runtime: &Runtime) -> Result<Value> {
    let dropped = samples.iter().any(|sample| sample.finish == Finish::Dropped);
    let (read, truncated) = samples.first().map_or((0, 0), |first| (first.prompt_tokens, first.truncated));
    let prompt_tokens = if dropped { 0 } else { read };
    let completion_tokens: usize = samples.iter().map(|sample| sample.ids.len()).sum();
    let total_tokens = prompt_tokens + completion_tokens;
    let usage =
        json!({"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total_tokens});
    if let Some(batch) = &row.batch {
        if dropped {
            let more = if row.cut_bytes > 0 { " or more" } else { "" };
            let message = format!("the prompt has {read}{more} tokens");
            return Ok(batch_line::refusal(&row.id, row.line, "context_length_exceeded", &message));
        }
        let prompt = row.samples.iter().flatten().next().map_or(&[] as &[u32], |first| &first.prompt[truncated..]);
        return batch.answer(&row.id, prompt, samples, &usage, &runtime.tokenizer);
    }
    let mut line = match samples {
        [one] => plain(one),
        several => json!({"completions": several.iter().map(plain).collect::<Vec<Value>>()}),
    };
    if let Some(fields) = line.as_object_mut() {
        fields.shift_insert(0, "id".into(), json!(row.id));
        fields.insert("usage".into(), usage);
        if truncated > 0 {
            fields.insert("truncated_tokens".into(), json!(truncated));
        }
        if row.cut_bytes > 0 && !dropped {
            fields.insert("truncated_bytes".into(), json!(row.cut_bytes));
        }
    }
    Ok(line)
}

/// One sample of a plain row.
fn plain(sample: &Completion) -> Value {
    let mut out = json!({"completion": sample.text, "finish_reason": sample.finish.name()});
    if sample.finish == Finish::Dropped {
        out["completion"] = Value::Null;
    }
    if let Some(logprobs) = &sample.logprobs {
        out["token_ids"] = json!(sample.ids);
        out["logprobs"] = json!(logprobs);
    }
    if let Some(top) = &sample.top_logprobs {
        out["top_logprobs"] = json!(top);
    }
    if let Some(logprobs) = &sample.prompt_logprobs {
        out["prompt_logprobs"] = json!(logprobs);
    }
    out
}
