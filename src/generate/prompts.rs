//! Prompt files: rows to requests, completions to result lines.
//!
//! A row is `{"prompt": TEXT or ids or messages}`, `{"messages": [...]}` or a line of an OpenAI batch
//! (`custom_id, method, url, body`); the last two go through the model's chat template. The result of a plain row is
//! `{"id", "completion", "finish_reason", "usage"}`, that of a batch line what the batch interface answers.

use super::resume::{self, Opened};
use super::runtime::Runtime;
use super::{Completion, EngineOptions, Finish, OnOverflow, Request, Sampling, Stats, generate, provenance, stream_of};
use crate::data;
use crate::device::Device;
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What [`generate_file`] does. A batch line's own parameters override these.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// Model directory.
    pub model: PathBuf,
    /// Directory of a PEFT adapter for the model.
    pub adapter: Option<PathBuf>,
    /// Prompt file, JSONL or Parquet.
    pub input: PathBuf,
    /// Result file, JSONL.
    pub output: PathBuf,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Most tokens of a completion.
    pub max_tokens: usize,
    /// Texts that end a completion.
    pub stop: Vec<String>,
    /// Only the first rows.
    pub limit: Option<usize>,
    /// Limits of the engine.
    pub engine: EngineOptions,
    /// Start again instead of going on with, or keeping, what is there.
    pub overwrite: bool,
}

/// What [`generate_file`] did.
#[derive(Clone, Debug, serde::Serialize)]
pub struct GenerateReport {
    /// Rows of the result file.
    pub rows: usize,
    /// Of these, rows that an earlier run had done.
    pub resumed: usize,
    /// Rows by how they ended: `stop`, `length`, `dropped`, `error`.
    pub finish: BTreeMap<String, usize>,
    /// Work of this run.
    pub stats: Stats,
}

/// A row that is ready to run, or what is wrong with it.
enum Prepared {
    Ready(Request),
    Refused { code: &'static str, message: String },
}

/// One input row.
struct Row {
    line: usize,
    id: String,
    /// The `model` field of a batch line, which its answer repeats; `None` for a plain row.
    batch: Option<Batch>,
    prepared: Prepared,
}

struct Batch {
    model: Value,
    chat: bool,
}

/// Generates for a file of prompts; resumable, with results in input order. Errors: a row that cannot be understood, a prompt
/// that is too long (unless dropped or truncated), another output there already. A batch line that asks for what is not
/// supported gets an `error` of its own instead.
pub fn generate_file(dev: &Device, options: &GenerateOptions) -> Result<GenerateReport> {
    let runtime = Runtime::load_adapted(dev, &options.model, options.adapter.as_deref())?;
    let rows = read(&runtime, options)?;
    let settings = json!({
        "compute": dev.compute(),
        "weights": dev.weights(),
        "model": provenance::model_fingerprint(&options.model)?,
        "adapter": options.adapter.as_deref().map(provenance::model_fingerprint).transpose()?,
        "input_sha256": provenance::file_sha256(&options.input)?,
        "max_tokens": options.max_tokens,
        "temperature": options.sampling.temperature,
        "top_k": options.sampling.top_k,
        "top_p": options.sampling.top_p,
        "seed": options.sampling.seed,
        "stop": options.stop,
        "limit": options.limit,
        "on_overflow": format!("{:?}", options.engine.on_overflow).to_lowercase(),
        "logprobs": options.engine.logprobs,
    });
    let settings = settings.as_object().cloned().unwrap_or_default();
    let mut out = match resume::open(&options.output, settings, options.overwrite)? {
        Opened::Finished(manifest) => {
            let finish = serde_json::from_value(manifest["finish"].clone()).unwrap_or_default();
            return Ok(GenerateReport { rows: rows.len(), resumed: rows.len(), finish, stats: Stats::default() });
        }
        Opened::Unfinished(out) => out,
    };
    let resumed = out.earlier().len().min(rows.len());
    let mut finish = BTreeMap::new();
    out.earlier().iter().for_each(|line| *finish.entry(finish_of(line)).or_default() += 1);
    let (mut requests, mut indices) = (Vec::new(), Vec::new());
    for (index, row) in rows.iter().enumerate().skip(resumed) {
        match &row.prepared {
            Prepared::Ready(request) => {
                requests.push(request.clone());
                indices.push(index);
            }
            Prepared::Refused { code, message } => {
                let line = refusal(row, code, message);
                *finish.entry(finish_of(&line)).or_default() += 1;
                out.push(index, &line)?;
            }
        }
    }
    let Runtime { model, tokenizer, generation, .. } = &runtime;
    let stats = generate(dev, model, tokenizer, generation, &requests, &options.engine, &mut |i, completion| {
        let line = result(&rows[indices[i]], &completion);
        *finish.entry(finish_of(&line)).or_default() += 1;
        out.push(indices[i], &line)
    })?;
    let report = GenerateReport { rows: rows.len(), resumed, finish, stats };
    out.finish(Map::from_iter([
        ("rows".to_string(), json!(report.rows)),
        ("resumed_rows".to_string(), json!(resumed)),
        ("finish".to_string(), json!(report.finish)),
        ("stats".to_string(), json!(report.stats)),
    ]))?;
    Ok(report)
}

/// How a result line ended.
fn finish_of(line: &Value) -> String {
    let plain = line["finish_reason"].as_str();
    let finish = plain.or_else(|| line["response"]["body"]["choices"][0]["finish_reason"].as_str());
    finish.unwrap_or("error").to_string()
}

fn read(runtime: &Runtime, options: &GenerateOptions) -> Result<Vec<Row>> {
    let (path, mut seen, mut rows) = (&options.input, BTreeMap::new(), Vec::new());
    let mut objects = data::objects(path, false)?;
    let context = runtime.model.config.max_position_embeddings;
    while options.limit.is_none_or(|limit| rows.len() < limit) {
        let Some(object) = objects.next() else { break };
        let (line, fields) = object?;
        let at = objects.place(line);
        let row = prepare(runtime, options, &fields, path, &at, line, rows.len())?;
        data::note_id(path, &at, line, &row.id, &mut seen)?;
        if let Prepared::Ready(request) = &row.prepared {
            let expected = match request.prompt.len() {
                0 => "a prompt of at least one token".to_string(),
                n if n >= context && options.engine.on_overflow == OnOverflow::Error => {
                    format!("a prompt of fewer than {context} tokens, or --on-overflow drop|truncate")
                }
                _ => {
                    rows.push(row);
                    continue;
                }
            };
            return Err(Error::format(path, at, expected, format!("{} tokens", request.prompt.len())));
        }
        rows.push(row);
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
    number: usize,
) -> Result<Row> {
    let id = data::row_id(path, at, fields, fields.contains_key("body").then_some("custom_id"), number)?;
    let mut request = Request {
        id: stream_of(&id),
        prompt: Vec::new(),
        max_tokens: options.max_tokens,
        sampling: options.sampling,
        stop: options.stop.clone(),
    };
    let Some(body) = fields.get("body") else {
        request.prompt = prompt(runtime, fields, path, at)?;
        return Ok(Row { line, id, batch: None, prepared: Prepared::Ready(request) });
    };
    let Some(body) = body.as_object() else {
        return Err(Error::format(path, format!("{at}, field \"body\""), "an object", body.to_string()));
    };
    let batch = Batch { model: body.get("model").cloned().unwrap_or_default(), chat: body.contains_key("messages") };
    let prepared = match parameters(body, &mut request) {
        Ok(()) => {
            request.prompt = prompt(runtime, body, path, at)?;
            Prepared::Ready(request)
        }
        Err(message) => Prepared::Refused { code: "unsupported_parameter", message },
    };
    Ok(Row { line, id, batch: Some(batch), prepared })
}

/// Token ids of a row's `messages` or `prompt`.
fn prompt(runtime: &Runtime, fields: &Map<String, Value>, path: &Path, at: &str) -> Result<Vec<u32>> {
    let keys = || fields.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    match (fields.get("messages"), fields.get("prompt")) {
        (Some(messages), _) => runtime.chat_prompt(&data::messages(path, at, "messages", messages)?, ""),
        (None, Some(Value::String(text))) => runtime.tokenizer.encode(text, true),
        (None, Some(list @ Value::Array(items))) if items.first().is_some_and(Value::is_object) => {
            runtime.chat_prompt(&data::messages(path, at, "prompt", list)?, "")
        }
        (None, Some(Value::Array(items))) => {
            let ids = items.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()));
            ids.collect::<Option<Vec<u32>>>().ok_or_else(|| {
                let found = "a list of something else";
                Error::format(path, format!("{at}, field \"prompt\""), "text, token ids or messages", found)
            })
        }
        _ => Err(Error::format(path, at, "a row with \"prompt\" or \"messages\"", format!("the keys {}", keys()))),
    }
}

/// The parameters of a batch line's body, or a sentence about the one that is not supported.
fn parameters(body: &Map<String, Value>, request: &mut Request) -> Result<(), String> {
    let bad = |key: &str, value: &Value| Err(format!("{key}: {value} is not supported"));
    for (key, value) in body.iter().filter(|(_, value)| !value.is_null()) {
        let number = value.as_f64().filter(|x| x.is_finite());
        let whole = value.as_u64();
        match (key.as_str(), number, whole) {
            ("messages" | "prompt" | "model" | "user" | "metadata", ..) => {}
            ("max_tokens" | "max_completion_tokens", _, Some(n)) => request.max_tokens = n as usize,
            ("temperature", Some(t), _) if t >= 0.0 => request.sampling.temperature = t as f32,
            ("top_p", Some(p), _) if p > 0.0 && p <= 1.0 => request.sampling.top_p = p as f32,
            ("top_k", _, Some(k)) => request.sampling.top_k = k as usize,
            ("seed", _, Some(seed)) => request.sampling.seed = seed,
            ("n" | "best_of", _, Some(1)) => {}
            ("stream" | "echo" | "logprobs", ..) if *value == json!(false) => {}
            ("presence_penalty" | "frequency_penalty", Some(0.0), _) => {}
            ("stop", ..) => match value {
                Value::String(text) => request.stop = vec![text.clone()],
                Value::Array(list) if list.iter().all(Value::is_string) => {
                    request.stop = list.iter().filter_map(Value::as_str).map(String::from).collect();
                }
                _ => return bad(key, value),
            },
            _ => return bad(key, value),
        }
    }
    Ok(())
}

fn refusal(row: &Row, code: &str, message: &str) -> Value {
    let error = json!({"code": code, "message": message, "line": row.line});
    json!({"id": row.id, "custom_id": row.id, "response": null, "error": error})
}

/// The result line of a row. `created` is 0, so that a run done twice gives the same bytes.
fn result(row: &Row, completion: &Completion) -> Value {
    let Completion { ids, text, finish, prompt_tokens, truncated, logprobs } = completion;
    let usage = json!({"prompt_tokens": prompt_tokens, "completion_tokens": ids.len(), "total_tokens": prompt_tokens + ids.len()});
    let Some(batch) = &row.batch else {
        let mut line = json!({"id": row.id, "completion": text, "finish_reason": finish.name(), "usage": usage});
        if *finish == Finish::Dropped {
            line["completion"] = Value::Null;
        }
        if *truncated > 0 {
            line["truncated_tokens"] = json!(truncated);
        }
        if let Some(logprobs) = logprobs {
            line["token_ids"] = json!(ids);
            line["logprobs"] = json!(logprobs);
        }
        return line;
    };
    if *finish == Finish::Dropped {
        return refusal(row, "context_length_exceeded", &format!("the prompt has {prompt_tokens} tokens"));
    }
    let (object, choice) = if batch.chat {
        (
            "chat.completion",
            json!({"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish.name()}),
        )
    } else {
        ("text_completion", json!({"index": 0, "text": text, "finish_reason": finish.name()}))
    };
    let body = json!({"id": row.id, "object": object, "created": 0, "model": batch.model, "choices": [choice], "usage": usage});
    let response = json!({"status_code": 200, "request_id": row.id, "body": body});
    json!({"id": row.id, "custom_id": row.id, "response": response, "error": null})
}
