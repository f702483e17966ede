//! The shapes of rows that users have, told apart by their keys.

use super::{Example, answer};
use crate::error::{Error, Result};
use crate::model::Message;
use serde_json::{Map, Value};
use std::path::Path;

/// The accepted shapes, as error messages list them.
pub const FORMATS: &str = "{text}, {messages}, {prompt, completion}, {instruction, [input], output} (Alpaca), \
    {instruction, [context], response} (Dolly), {conversations} (ShareGPT) or {question, answer} (GSM8K)";

/// A JSON value's type, for error messages.
pub(super) fn kind(value: &Value) -> String {
    match value {
        Value::Null => "nothing".into(),
        Value::Bool(_) => "a boolean".into(),
        Value::Number(n) => format!("the number {n}"),
        Value::String(_) => "a string".into(),
        Value::Array(items) if items.is_empty() => "an empty list".into(),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
    }
}

/// Access to a row's fields with errors that name file, line and field.
struct Fields<'a> {
    path: &'a Path,
    at: &'a str,
    fields: &'a Map<String, Value>,
}

impl Fields<'_> {
    fn has(&self, key: &str) -> bool {
        self.fields.get(key).is_some_and(|v| !v.is_null())
    }

    fn error(&self, key: &str, expected: &str) -> Error {
        let found = kind(self.fields.get(key).unwrap_or(&Value::Null));
        Error::format(self.path, format!("{}, field {key:?}", self.at), expected, found)
    }

    fn text(&self, key: &str) -> Result<String> {
        match self.fields.get(key) {
            Some(Value::String(text)) => Ok(text.clone()),
            _ => Err(self.error(key, "a string")),
        }
    }

    /// A string, or the number or boolean that a file has in its place.
    fn scalar(&self, key: &str) -> Result<String> {
        match self.fields.get(key) {
            Some(Value::Number(n)) => Ok(n.to_string()),
            Some(Value::Bool(b)) => Ok(b.to_string()),
            _ => self.text(key),
        }
    }

    /// `instruction` with its optional second part below it.
    fn instruction(&self, second: &str) -> Result<String> {
        let instruction = self.text("instruction")?;
        match if self.has(second) { self.text(second)? } else { String::new() } {
            input if input.trim().is_empty() => Ok(instruction),
            input => Ok(format!("{instruction}\n\n{input}")),
        }
    }

    fn messages(&self, key: &str) -> Result<Vec<Message>> {
        messages(self.path, self.at, key, self.fields.get(key).unwrap_or(&Value::Null))
    }
}

/// Reads a list of messages: `{role, content}` as OpenAI has it (content a string or a list of text parts), or `{from, value}`
/// as ShareGPT has it. `at` and `key` say where, for errors.
pub fn messages(path: &Path, at: &str, key: &str, value: &Value) -> Result<Vec<Message>> {
    let fail = |place: String, expected: &str, found: String| Err(Error::format(path, place, expected, found));
    let items = match value.as_array() {
        Some(items) if !items.is_empty() => items,
        _ => return fail(format!("{at}, field {key:?}"), "a list of messages", kind(value)),
    };
    let mut out = Vec::with_capacity(items.len());
    for (i, item) in items.iter().enumerate() {
        let place = |name: &str| format!("{at}, field \"{key}[{i}].{name}\"");
        let (role_key, content_key) = if item.get("from").is_some() { ("from", "value") } else { ("role", "content") };
        let Some(role) = item[role_key].as_str() else {
            return fail(place(role_key), "system, user or assistant", kind(&item[role_key]));
        };
        let role = match role {
            "human" => "user",
            "gpt" | "chatgpt" | "bing" | "bard" | "model" => "assistant",
            "system" | "user" | "assistant" => role,
            other => return fail(place(role_key), "system, user or assistant", format!("{other:?}")),
        };
        let content = match &item[content_key] {
            Value::String(text) => text.clone(),
            Value::Array(parts) => {
                let texts = parts.iter().map(|p| p["text"].as_str().filter(|_| p["type"] == "text"));
                match texts.collect::<Option<String>>() {
                    Some(text) => text,
                    None => return fail(place(content_key), "text or parts of type text", "another part".into()),
                }
            }
            other => return fail(place(content_key), "text", kind(other)),
        };
        out.push(Message::new(role, content));
    }
    Ok(out)
}

/// What a row teaches, and its checkable answer. A `system` field beside a conversation is its first message.
pub(super) fn interpret(path: &Path, at: &str, fields: &Map<String, Value>) -> Result<(Example, Option<String>)> {
    let (mut example, answer) = form(path, at, fields)?;
    if let Example::Chat(turns) = &mut example
        && let Some(Value::String(system)) = fields.get("system")
        && !system.trim().is_empty()
        && turns.first().is_none_or(|first| first.role != "system")
    {
        turns.insert(0, Message::new("system", system));
    }
    Ok((example, answer))
}

fn form(path: &Path, at: &str, fields: &Map<String, Value>) -> Result<(Example, Option<String>)> {
    let row = Fields { path, at, fields };
    let turn =
        |user: String, reply: String| Example::Chat(vec![Message::new("user", user), Message::new("assistant", reply)]);
    let example = if row.has("messages") {
        Example::Chat(row.messages("messages")?)
    } else if row.has("conversations") {
        Example::Chat(row.messages("conversations")?)
    } else if row.has("prompt") && row.has("completion") {
        match (&fields["prompt"], &fields["completion"]) {
            (Value::Array(_), _) | (_, Value::Array(_)) => {
                let mut turns = row.messages("prompt")?;
                turns.extend(row.messages("completion")?);
                Example::Chat(turns)
            }
            _ => Example::Completion { prompt: row.text("prompt")?, completion: row.text("completion")? },
        }
    } else if row.has("instruction") && row.has("output") {
        turn(row.instruction("input")?, row.text("output")?)
    } else if row.has("instruction") && row.has("response") {
        turn(row.instruction("context")?, row.text("response")?)
    } else if row.has("question") && row.has("answer") {
        let reply = row.scalar("answer")?;
        let answer = marked(&reply).or_else(|| answer::is_short(&reply).then(|| reply.trim().to_string()));
        return Ok((turn(row.text("question")?, reply), answer));
    } else if row.has("text") {
        Example::Text(row.text("text")?)
    } else {
        let shown =
            |(key, value): (&String, &Value)| if value.is_null() { format!("{key} (null)") } else { key.clone() };
        let keys: Vec<String> = fields.iter().map(shown).collect();
        let found = if keys.is_empty() { "no keys".into() } else { format!("the keys {}", keys.join(", ")) };
        return Err(Error::format(path, at, format!("a row of the form {FORMATS}"), found));
    };
    if row.has("answer") {
        let given = row.scalar("answer")?;
        return Ok((example, Some(marked(&given).unwrap_or_else(|| given.trim().to_string()))));
    }
    let target = match &example {
        Example::Text(_) => None,
        Example::Completion { completion, .. } => Some(completion),
        Example::Chat(turns) => turns.last().filter(|m| m.role == "assistant").map(|m| &m.content),
    };
    let answer = target.and_then(|text| marked(text));
    Ok((example, answer))
}

/// The answer that `#### x` or `\boxed{x}` marks in a reference text.
fn marked(text: &str) -> Option<String> {
    answer::extract(text, answer::Style::Hash).or_else(|| answer::extract(text, answer::Style::Boxed))
}
