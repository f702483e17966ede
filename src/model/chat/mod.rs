//! The chat template of a model: messages to prompt text.
//!
//! `functions.rs` holds what templates written for `transformers` call beyond plain Jinja.

mod functions;

use super::{Tokenizer, json};
use crate::error::{Error, Result};
use crate::input::read_text;
use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Instructions that a template may run, plus more for each message and one for each byte of it: a real one needs tens per message; an endless loop
/// stops within a second.
const FUEL: u64 = 5_000_000;
/// See [`FUEL`].
const FUEL_PER_MESSAGE: u64 = 10_000;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl Message {
    /// A message.
    pub fn new(role: &str, content: impl Into<String>) -> Message {
        Message { role: role.to_string(), content: content.into() }
    }
}

/// A Jinja template with the special tokens it may name.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    source: String,
    special: BTreeMap<String, String>,
    path: PathBuf,
}

impl ChatTemplate {
    /// The template of a model directory; `None` when the model has none.
    ///
    /// `chat_template.jinja` comes before `chat_template` of `tokenizer_config.json`, which is a string or a list of
    /// `{name, template}` of which `default` counts. Special tokens come from `tokenizer_config.json`, those it lacks from
    /// `special_tokens_map.json`.
    pub fn load(dir: &Path) -> Result<Option<ChatTemplate>> {
        let config_path = dir.join("tokenizer_config.json");
        let config = json::read_optional(&config_path)?.unwrap_or_default();
        let map = json::read_optional(&dir.join("special_tokens_map.json"))?.unwrap_or_default();
        let mut special = special_tokens(&map);
        special.extend(special_tokens(&config));
        let jinja = dir.join("chat_template.jinja");
        if std::fs::exists(&jinja).map_err(Error::io(&jinja, "read"))? {
            let source = read_text(&jinja)?;
            return Ok(Some(ChatTemplate { source, special, path: jinja }));
        }
        let source = match config.get("chat_template") {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::String(source)) => source.clone(),
            Some(Value::Array(list)) => named_default(list, &config_path)?,
            Some(other) => {
                let expected = "a template or a list of {name, template}";
                return Err(Error::format(&config_path, "chat_template", expected, json::kind(other)));
            }
        };
        Ok(Some(ChatTemplate { source, special, path: config_path }))
    }

    /// As [`ChatTemplate::load`]; a model without a template is an error that says what to do.
    pub fn require(dir: &Path) -> Result<ChatTemplate> {
        ChatTemplate::load(dir)?.ok_or_else(|| {
            let expected = "chat_template.jinja, or chat_template in tokenizer_config.json (messages need one; plain prompts do not)";
            Error::format(dir, "chat template", expected, "neither")
        })
    }

    /// The prompt text of a conversation; `add_generation_prompt` opens the assistant's turn.
    ///
    /// Templates see what `transformers` shows them: `messages`, `add_generation_prompt`, `tools` and `documents` (none), the
    /// special tokens, `raise_exception`, `strftime_now` (local time, or `SOURCE_DATE_EPOCH`). `{% generation %}` marks are
    /// accepted. A template that does not end is stopped.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let broken = |e: minijinja::Error| {
            let line = e.line().map_or(String::new(), |line| format!(", line {line}"));
            let expected = "a template that renders these messages";
            Error::format(&self.path, format!("chat_template{line}"), expected, reason(&e))
        };
        let mut env = minijinja::Environment::new();
        let syntax = minijinja::syntax::SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        env.set_syntax(syntax.map_err(broken)?);
        let bytes: usize = messages.iter().map(|message| message.content.len()).sum();
        env.set_fuel(Some(FUEL + FUEL_PER_MESSAGE * messages.len() as u64 + bytes as u64));
        functions::add(&mut env);
        let source = without_generation_marks(&self.source);
        let template = env.template_from_str(&source).map_err(broken)?;
        let special = minijinja::Value::from_pairs(self.special.iter().map(|(k, v)| (k.as_str(), v.as_str())));
        let messages = minijinja::Value::from(minijinja::value::Serde(messages));
        let context = minijinja::context! {
            messages, add_generation_prompt, tools => (), documents => (), ..special
        };
        template.render(context).map_err(broken)
    }

    /// Token ids of a conversation: rendered, then encoded without adding the special tokens that the template already wrote.
    pub fn encode(&self, tokenizer: &Tokenizer, messages: &[Message], add_generation_prompt: bool) -> Result<Vec<u32>> {
        tokenizer.encode(&self.render(messages, add_generation_prompt)?, false)
    }
}

/// Special tokens by key (`bos_token`): strings, or objects with `content`.
fn special_tokens(config: &Map<String, Value>) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_string);
    let tokens = config.iter().filter(|(key, _)| key.ends_with("_token"));
    tokens.filter_map(|(key, value)| Some((key.clone(), text(value)?))).collect()
}

fn named_default(list: &[Value], path: &Path) -> Result<String> {
    let named = list.iter().find(|entry| entry["name"] == "default");
    let source = named.and_then(|entry| entry["template"].as_str());
    source.map(str::to_string).ok_or_else(|| {
        let names: Vec<String> = list.iter().map(|entry| json::kind(&entry["name"])).collect();
        let found = format!("templates named {}", names.join(", "));
        Error::format(path, "chat_template", "one named \"default\"", found)
    })
}

/// `{% generation %}` only marks spans for training and is no Jinja: an `if true` in its place keeps the rendered text,
/// white-space control included.
fn without_generation_marks(source: &str) -> String {
    static MARK: OnceLock<Regex> = OnceLock::new();
    // The pattern is a constant that compiles.
    let mark =
        MARK.get_or_init(|| Regex::new(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})").expect("constant pattern"));
    let replaced = mark.replace_all(source, |found: &regex::Captures| {
        let tag = if found.get(2).is_some() { "endif" } else { "if true" };
        format!("{}{tag}{}", &found[1], &found[3])
    });
    replaced.into_owned()
}

/// The template engine's words in one line.
fn reason(e: &minijinja::Error) -> String {
    match e.kind() {
        minijinja::ErrorKind::OutOfFuel => "one that does not end".into(),
        kind => e.detail().map_or_else(|| kind.to_string(), |detail| format!("{kind}: {detail}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(source: &str) -> ChatTemplate {
        let special = BTreeMap::from([("bos_token".to_string(), "<s>".to_string())]);
        ChatTemplate { source: source.into(), special, path: "t.jinja".into() }
    }

    fn render(source: &str) -> Result<String> {
        template(source).render(&[Message::new("user", "hi <b> é")], true)
    }

    #[test]
    fn tojson_writes_as_python_does() {
        // json.dumps([{"role": "user", "content": "hi <b> é"}], ensure_ascii=False), and with indent=2.
        assert_eq!(render("{{ messages | tojson }}").unwrap(), r#"[{"role": "user", "content": "hi <b> é"}]"#);
        let indented = "{\n  \"role\": \"user\",\n  \"content\": \"hi <b> é\"\n}";
        assert_eq!(render("{{ messages[0] | tojson(indent=2) }}").unwrap(), indented);
    }

    #[test]
    fn generation_marks_change_no_text() {
        let marked = "a\n{%- generation -%}\n b\n{%- endgeneration %}\nc{% generation %}d{% endgeneration %}";
        assert_eq!(render(marked).unwrap(), "abcd");
    }

    #[test]
    fn a_template_that_does_not_end_is_stopped() {
        let endless = "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}";
        let start = std::time::Instant::now();
        let error = render(endless).unwrap_err().to_string();
        assert!(error.contains("t.jinja: chat_template") && error.contains("does not end"), "{error}");
        assert!(start.elapsed().as_secs() < 20);
    }

    #[test]
    fn a_template_may_refuse_messages() {
        let error = render("{{ raise_exception('roles must alternate') }}").unwrap_err().to_string();
        assert!(error.contains("line 1") && error.contains("roles must alternate"), "{error}");
    }

    #[test]
    fn templates_see_special_tokens_tools_and_the_date() {
        assert_eq!(render("{{ bos_token }}{{ tools is none }}{{ pad_token is defined }}").unwrap(), "<s>TrueFalse");
        assert_eq!(render("{{ strftime_now('%d %b %Y') | length }}").unwrap(), "11");
        assert!(render("{{ strftime_now('%!') }}").is_err());
    }
}
