//! Where an output ends, and its text.

use crate::error::Result;
use crate::model::Tokenizer;

/// Text of `ids` up to the first stop string; `Some` only when one is there. The whole text is looked at, so a stop string may
/// lie across any number of tokens, and in the middle of one.
pub(super) fn stopped(tokenizer: &Tokenizer, ids: &[u32], stop: &[String]) -> Result<Option<String>> {
    if stop.is_empty() {
        return Ok(None);
    }
    let mut text = tokenizer.decode(ids, true)?;
    let first = stop.iter().filter(|s| !s.is_empty()).filter_map(|s| text.find(s.as_str())).min();
    Ok(first.map(|at| {
        text.truncate(at);
        text
    }))
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
