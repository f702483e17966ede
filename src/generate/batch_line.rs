//! Lines of OpenAI batch files: parameters of a body, and answers.

use super::plan::MOST_TOP;
use super::{Completion, Request};
use crate::error::Result;
use crate::model::Tokenizer;
use serde_json::{Map, Value, json};

/// Most samples of one prompt, as in the OpenAI interface.
pub(super) const MOST_SAMPLES: usize = 128;

/// What the answer to a line repeats of it.
pub(super) struct BatchLine {
    model: Value,
    chat: bool,
    /// The text begins with the prompt, and its log-probabilities with the prompt's.
    echo: bool,
}

impl BatchLine {
    pub(super) fn new(body: &Map<String, Value>) -> BatchLine {
        let model = body.get("model").cloned().unwrap_or_default();
        BatchLine { model, chat: body.contains_key("messages"), echo: body.get("echo") == Some(&json!(true)) }
    }

    /// Takes over the parameters of a body; a sentence about the one that is not supported.
    pub(super) fn parameters(
        &self,
        body: &Map<String, Value>,
        request: &mut Request,
        n: &mut usize,
    ) -> Result<(), String> {
        let bad = |key: &str, value: &Value| Err(format!("{key}: {value} is not supported"));
        for (key, value) in body.iter().filter(|(_, value)| !value.is_null()) {
            let number = value.as_f64().filter(|x| x.is_finite());
            let whole = value.as_u64();
            match (key.as_str(), number, whole) {
                ("messages" | "prompt" | "model" | "user" | "metadata", ..) => {}
                ("max_tokens" | "max_completion_tokens", _, Some(n)) => request.max_tokens = n as usize,
                ("temperature", Some(t), _) if t >= 0.0 => request.sampling.temperature = t as f32,
                ("top_p", Some(p), _) if p > 0.0 && p <= 1.0 => request.sampling.top_p = p as f32,
                ("min_p", Some(p), _) if (0.0..=1.0).contains(&p) => request.sampling.min_p = p as f32,
                ("repetition_penalty", Some(p), _) if p > 0.0 => request.sampling.repetition_penalty = p as f32,
                ("top_k", _, Some(k)) => request.sampling.top_k = k as usize,
                ("seed", _, Some(seed)) => request.sampling.seed = seed,
                ("n", _, Some(count)) if (1..=MOST_SAMPLES as u64).contains(&count) => *n = count as usize,
                ("best_of", _, Some(1)) => {}
                ("stream", ..) if *value == json!(false) => {}
                ("echo", ..) if value.is_boolean() && !(self.chat && self.echo) => {
                    request.logprobs.prompt = self.echo && body.get("logprobs").is_some_and(Value::is_u64);
                }
                // The chat interface asks with a boolean and a count, the other with the count alone.
                ("logprobs", ..) if self.chat && value.is_boolean() => request.logprobs.output = *value == json!(true),
                ("top_logprobs", _, Some(k)) if self.chat && k <= MOST_TOP as u64 => request.logprobs.top = k as usize,
                ("logprobs", _, Some(k)) if !self.chat && k <= MOST_TOP as u64 => {
                    (request.logprobs.output, request.logprobs.top) = (true, k as usize);
                }
                ("presence_penalty" | "frequency_penalty", Some(0.0), _) => {}
                ("logit_bias", ..) => match value.as_object().and_then(logit_bias) {
                    Some(bias) => request.logit_bias = bias,
                    None => return bad(key, value),
                },
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
        if request.logprobs.top > 0 && !request.logprobs.output {
            return Err("top_logprobs: needs \"logprobs\": true".into());
        }
        Ok(())
    }

    /// The answer to a line. `created` is 0, so that a run done twice gives the same bytes.
    pub(super) fn answer(
        &self,
        id: &str,
        prompt: &[u32],
        samples: &[Completion],
        usage: &Value,
        tokenizer: &Tokenizer,
    ) -> Result<Value> {
        let mut choices = Vec::new();
        for (index, sample) in samples.iter().enumerate() {
            let finish = sample.finish.name();
            let mut choice = if self.chat {
                let message = json!({"role": "assistant", "content": sample.text});
                json!({"index": index, "message": message, "finish_reason": finish})
            } else {
                let prompt = if self.echo { tokenizer.decode(prompt, true)? } else { String::new() };
                json!({"index": index, "text": prompt + &sample.text, "finish_reason": finish})
            };
            if sample.logprobs.is_some() {
                choice["logprobs"] = match self.chat {
                    true => chat_logprobs(sample, tokenizer)?,
                    false => text_logprobs(if self.echo { prompt } else { &[] }, sample, tokenizer)?,
                };
            }
            choices.push(choice);
        }
        let object = if self.chat { "chat.completion" } else { "text_completion" };
        let body =
            json!({"id": id, "object": object, "created": 0, "model": self.model, "choices": choices, "usage": usage});
        let response = json!({"status_code": 200, "request_id": id, "body": body});
        Ok(json!({"id": id, "custom_id": id, "response": response, "error": null}))
    }
}

fn logit_bias(map: &Map<String, Value>) -> Option<Vec<(u32, f32)>> {
    map.iter().map(|(id, bias)| Some((id.parse().ok()?, bias.as_f64()? as f32))).collect()
}

/// An error in a line's place.
pub(super) fn refusal(id: &str, line: usize, code: &str, message: &str) -> Value {
    let error = json!({"code": code, "message": message, "line": line});
    json!({"id": id, "custom_id": id, "response": null, "error": error})
}

/// Log-probabilities as the chat interface gives them. Tokens that are parts of a character have no text of their own.
fn chat_logprobs(sample: &Completion, tokenizer: &Tokenizer) -> Result<Value> {
    let entry = |(id, logprob): (u32, f32)| -> Result<Value> {
        Ok(json!({"token": tokenizer.decode(&[id], false)?, "logprob": logprob, "bytes": null}))
    };
    let mut content = Vec::new();
    for (i, (&id, &logprob)) in sample.ids.iter().zip(sample.logprobs.iter().flatten()).enumerate() {
        let mut token = entry((id, logprob))?;
        let top = sample.top_logprobs.as_ref().map_or(&[] as &[_], |top| &top[i]);
        token["top_logprobs"] = top.iter().copied().map(entry).collect::<Result<Vec<Value>>>()?.into();
        content.push(token);
    }
    Ok(json!({"content": content}))
}

/// Log-probabilities as the text interface gives them; the first token of an echoed prompt has none.
fn text_logprobs(prompt: &[u32], sample: &Completion, tokenizer: &Tokenizer) -> Result<Value> {
    let text = |&id: &u32| tokenizer.decode(&[id], false);
    let tokens = prompt.iter().chain(&sample.ids).map(text).collect::<Result<Vec<String>>>()?;
    let of_prompt = sample.prompt_logprobs.iter().flatten().copied().map(Some);
    let of_prompt = (!prompt.is_empty()).then_some(None).into_iter().chain(of_prompt);
    let logprobs: Vec<Option<f32>> = of_prompt.chain(sample.logprobs.iter().flatten().copied().map(Some)).collect();
    let mut out = json!({"tokens": tokens, "token_logprobs": logprobs});
    if let Some(top) = &sample.top_logprobs {
        let map = |top: &Vec<(u32, f32)>| -> Result<Value> {
            let pairs = top.iter().map(|(id, logprob)| Ok((text(id)?, json!(logprob))));
            Ok(Value::Object(pairs.collect::<Result<Map<String, Value>>>()?))
        };
        let of_prompt = prompt.iter().map(|_| Ok(Value::Null));
        out["top_logprobs"] = of_prompt.chain(top.iter().map(map)).collect::<Result<Vec<Value>>>()?.into();
    }
    Ok(out)
}
