//! The model that is measured, with what turns text into its ids.

use crate::device::Device;
use crate::error::{Error, Result};
use crate::model::{ChatTemplate, GenerationConfig, Llama, Message, Tokenizer};
use std::path::{Path, PathBuf};

/// A model, its tokenizer and its chat template.
pub struct Subject {
    /// Where it was loaded from.
    pub dir: PathBuf,
    /// Weights and shape.
    pub model: Llama,
    /// Text to ids.
    pub tokenizer: Tokenizer,
    /// Where its output ends.
    pub generation: GenerationConfig,
    template: Option<ChatTemplate>,
}

impl Subject {
    /// Loads a model directory for products as the device computes them.
    pub fn load(dev: &Device, dir: &Path) -> Result<Subject> {
        Ok(Subject {
            dir: dir.to_path_buf(),
            model: Llama::load_packed(dev, dir)?,
            tokenizer: Tokenizer::load(dir)?,
            generation: GenerationConfig::load(dir)?,
            template: ChatTemplate::load(dir)?,
        })
    }

    /// The prompt of a conversation, the assistant's turn opened. Errors when the model has no chat template.
    pub fn chat(&self, messages: &[Message]) -> Result<String> {
        let template = self.template.as_ref().ok_or_else(|| {
            Error::usage("--apply-chat-template", "a model with a chat template", self.dir.display().to_string())
        })?;
        template.render(messages, true)
    }
}
