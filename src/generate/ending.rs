//! Where an output ends, and its text.

use crate::error::Result;
use crate::model::Tokenizer;
use crate::model::tokenizer::Decoder;

/// Looks for stop strings in an output while it grows. A stop string may lie across any number of tokens, and in the middle of
/// one: what is searched is the text, in which a character appears once all its bytes are there.
pub(super) struct Search<'a> {
    decoder: Decoder<'a>,
    stop: Vec<&'a str>,
    /// Text so far; after a hit, the text before the stop string.
    text: String,
    found: bool,
}

impl<'a> Search<'a> {
    /// `None` when there is nothing to look for.
    pub(super) fn new(tokenizer: &'a Tokenizer, stop: &'a [String]) -> Option<Search<'a>> {
        let stop: Vec<&str> = stop.iter().map(String::as_str).filter(|s| !s.is_empty()).collect();
        (!stop.is_empty()).then(|| Search { decoder: tokenizer.stream(), stop, text: String::new(), found: false })
    }

    /// Takes in the next id; whether a stop string is there now.
    pub(super) fn push(&mut self, id: u32) -> Result<bool> {
        let Some(new) = self.decoder.push(id)? else { return Ok(false) };
        let before = self.text.len();
        self.text.push_str(&new);
        let first = self.stop.iter().filter_map(|stop| {
            // A new hit ends in the new text, so it begins less than its length before it.
            let mut from = before.saturating_sub(stop.len() - 1);
            while !self.text.is_char_boundary(from) {
                from -= 1;
            }
            self.text[from..].find(stop).map(|at| from + at)
        });
        if let Some(at) = first.min() {
            self.text.truncate(at);
            self.found = true;
        }
        Ok(self.found)
    }

    /// The text before the stop string, once one was found.
    pub(super) fn text(self) -> Option<String> {
        self.found.then_some(self.text)
    }
}

/// Text of finished `ids`. `cut`: the length limit ended it, so the bytes of half a character may stand at the end (a decoder
/// gives U+FFFD for them, one at most for each of the up to three bytes); they are left out.
pub(super) fn text(tokenizer: &Tokenizer, ids: &[u32], cut: bool) -> Result<String> {
    let mut text = tokenizer.decode(ids, true)?;
    if cut {
        for _ in 0..3 {
            if text.ends_with('\u{FFFD}') {
                text.pop();
            }
        }
    }
    Ok(text)
}
