//! A model with what turns text into tokens and back.

use super::{Completion, EngineOptions, Models, Request, Stats, generate};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::model::{ChatTemplate, GenerationConfig, Llama, Message, Tokenizer};
use std::path::{Path, PathBuf};

/// Weights, tokenizer, chat template and end-of-text ids of one model directory.
pub struct Runtime {
    /// The directory.
    pub dir: PathBuf,
    /// Weights.
    pub model: Llama,
    /// Text to ids and back.
    pub tokenizer: Tokenizer,
    /// Messages to prompt text; `None` for a base model.
    pub template: Option<ChatTemplate>,
    /// Ids that end an output.
    pub generation: GenerationConfig,
    /// A model that drafts for this one.
    pub draft: Option<Llama>,
}

impl Runtime {
    /// Loads a model directory for products as the device computes them.
    pub fn load(dev: &Device, dir: &Path) -> Result<Runtime> {
        Runtime::load_adapted(dev, dir, None)
    }

    /// Loads a model directory with a PEFT adapter beside its weights, where one is given.
    pub fn load_adapted(dev: &Device, dir: &Path, adapter: Option<&Path>) -> Result<Runtime> {
        let mut model = Llama::load_adapted(dir, adapter)?;
        model.prepare(dev)?;
        Ok(Runtime {
            dir: dir.to_path_buf(),
            model,
            tokenizer: Tokenizer::load(dir)?,
            template: ChatTemplate::load(dir)?,
            generation: GenerationConfig::load(dir)?,
            draft: None,
        })
    }

    /// The same with the model in directory `draft` as its draft, where one is given.
    pub fn with_draft(self, dev: &Device, draft: Option<&Path>) -> Result<Runtime> {
        Ok(Runtime { draft: draft.map(|draft| Llama::load_packed(dev, draft)).transpose()?, ..self })
    }

    /// What [`generate`] takes.
    pub fn models(&self) -> Models<'_> {
        Models {
            target: &self.model,
            tokenizer: &self.tokenizer,
            generation: &self.generation,
            draft: self.draft.as_ref(),
        }
    }

    /// The prompt of a conversation, the assistant's turn opened. An error when the model has no chat template.
    pub fn render_chat(&self, messages: &[Message]) -> Result<String> {
        let Some(template) = &self.template else {
            let instead = "give plain prompts ({\"prompt\"}), or add chat_template.jinja";
            return Err(Error::unsupported(
                &self.dir,
                "a conversation with a model that has no chat template",
                instead,
            ));
        };
        template.render(messages, true)
    }

    /// Token ids of [`Runtime::render_chat`], the assistant's turn begun with `prefill`.
    pub fn chat_prompt(&self, messages: &[Message], prefill: &str) -> Result<Vec<u32>> {
        self.tokenizer.encode(&(self.render_chat(messages)? + prefill), false)
    }

    /// Continues some requests; results in their order.
    pub fn complete(
        &self,
        dev: &Device,
        requests: &[Request],
        options: &EngineOptions,
    ) -> Result<(Vec<Completion>, Stats)> {
        let mut out = vec![None; requests.len()];
        let stats = generate(dev, self.models(), requests, options, &mut |index, completion| {
            out[index] = Some(completion);
            Ok(())
        })?;
        Ok((out.into_iter().flatten().collect(), stats))
    }
}
