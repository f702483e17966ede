//! The chat template of a model: messages to prompt text.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};

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
pub struct ChatTemplate {
    source: String,
    special: Vec<(String, String)>,
    path: PathBuf,
}

impl ChatTemplate {
    /// The template of a model directory; `None` when the model has none.
    pub fn load(dir: &Path) -> Result<Option<ChatTemplate>> {
        let path = dir.join("tokenizer_config.json");
        let Ok(text) = std::fs::read_to_string(&path) else { return Ok(None) };
        let config: Value = serde_json::from_str(&text)
            .map_err(|e| Error::format(&path, format!("line {}", e.line()), "a JSON object", e.to_string()))?;
        let Some(source) = config["chat_template"].as_str() else { return Ok(None) };
        let special = ["bos_token", "eos_token", "pad_token", "unk_token"]
            .iter()
            .filter_map(|&key| Some((key.to_string(), config[key].as_str()?.to_string())))
            .collect();
        Ok(Some(ChatTemplate { source: source.to_string(), special, path }))
    }

    /// The prompt text of a conversation; `add_generation_prompt` opens the assistant's turn.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let broken = |e: minijinja::Error| {
            Error::format(&self.path, "chat_template", "a template that renders these messages", e.to_string())
        };
        let mut env = minijinja::Environment::new();
        let syntax = minijinja::syntax::SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        env.set_syntax(syntax.map_err(broken)?);
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        let template = env.template_from_str(&self.source).map_err(broken)?;
        let special: minijinja::Value = self.special.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let messages = minijinja::Value::from(minijinja::value::Serde(messages));
        let context = minijinja::context! { messages, add_generation_prompt, ..special };
        template.render(context).map_err(broken)
    }
}
