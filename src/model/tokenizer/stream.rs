//! Ids to text one by one, for output that is shown or searched for stop strings while it grows.

use super::Tokenizer;
use crate::error::Result;

/// What a decoder writes for bytes that are no UTF-8 (yet).
const REPLACEMENT: char = '\u{FFFD}';

/// Decodes ids as they come; see [`Tokenizer::stream`].
///
/// A character whose bytes are spread over several ids is held back until it is whole, so the pieces put together, with
/// [`finish`](Decoder::finish), are the text that [`Tokenizer::decode`] gives for all ids at once.
pub struct Decoder<'a> {
    tokenizer: &'a Tokenizer,
    /// Ids that the next text depends on: one whose text is out already, then those that are held back.
    window: Vec<u32>,
    /// Bytes of the window's text that are out already.
    emitted: usize,
}

impl<'a> Decoder<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Decoder<'a> {
        Decoder { tokenizer, window: Vec::new(), emitted: 0 }
    }

    /// Takes the next id; gives the text that is now certain, `None` when there is none. Special tokens have no text.
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        self.window.push(id);
        let text = self.tokenizer.decode(&self.window, true)?;
        let certain = text.trim_end_matches(REPLACEMENT);
        let new = certain.get(self.emitted..).unwrap_or("").to_string();
        self.emitted += new.len();
        if self.emitted == text.len() && self.window.len() > 1 {
            // The last id becomes the context of the next ones, when its own text is whole.
            let alone = self.tokenizer.decode(&[id], true)?;
            if !alone.is_empty() && !alone.contains(REPLACEMENT) {
                self.window = vec![id];
                self.emitted = alone.len();
            }
        }
        Ok((!new.is_empty()).then_some(new))
    }

    /// The text that was held back, with U+FFFD for bytes that never became a character.
    pub fn finish(self) -> Result<String> {
        let text = self.tokenizer.decode(&self.window, true)?;
        Ok(text.get(self.emitted..).unwrap_or("").to_string())
    }
}
