//! `tokenizer.json`: text to ids and back.
//!
//! | file | subject |
//! |-|-|
//! | `mod.rs` | loading, encoding, decoding |
//! | `bounds.rs` | how few ids a long text can have, and the part of it that is needed |
//! | `stream.rs` | decoding id by id |
//! | `guard.rs` | panics of the `tokenizers` crate as errors |

mod bounds;
mod guard;
mod stream;

pub use bounds::CHEAP_BYTES;
pub use stream::Decoder;

use super::json;
use crate::error::{Error, Result};
use crate::input::refuse_lfs_pointer;
use std::path::{Path, PathBuf};

/// A model's tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    /// Highest id with a text.
    max_id: u32,
    /// Rows of the model's embedding table, where a `config.json` lies beside.
    model_vocab: Option<usize>,
    /// What is certain of its ids.
    bounds: Option<bounds::Bounds>,
}

impl Tokenizer {
    /// Reads `dir/tokenizer.json`, and `vocab_size` of `dir/config.json` where there is one: an id that the model does not
    /// have is then an error of [`encode`](Tokenizer::encode).
    ///
    /// Truncation and padding that the file asks for are turned off: nothing is cut silently.
    pub fn load(dir: &Path) -> Result<Tokenizer> {
        let path = dir.join("tokenizer.json");
        let bytes = std::fs::read(&path).map_err(Error::io(&path, "read"))?;
        refuse_lfs_pointer(&path, &bytes)?;
        let config = json::read_optional(&dir.join("config.json"))?;
        let model_vocab = config.and_then(|c| Some(c.get("vocab_size")?.as_u64()? as usize));
        let broken = |found: String| Error::format(&path, "file", "a tokenizer", found);
        let loaded = guard::catch(|| {
            let mut inner = tokenizers::Tokenizer::from_bytes(&bytes)?;
            inner.with_truncation(None)?;
            inner.with_padding(None);
            let max_id = inner.get_vocab(true).into_values().max();
            let bounds = bounds::Bounds::of(&inner);
            Ok::<_, tokenizers::Error>((inner, max_id, bounds))
        });
        let (inner, max_id, bounds) = loaded
            .map_err(|panic| broken(format!("one that the tokenizers library fails on: {panic}")))?
            .map_err(|e| broken(e.to_string()))?;
        let max_id = max_id.ok_or_else(|| broken("an empty vocabulary".into()))?;
        Ok(Tokenizer { inner, path, max_id, model_vocab, bounds })
    }

    /// Token ids of `text`. `add_special_tokens` runs the post-processor (BOS where the model has one): right for plain
    /// text, wrong for a rendered chat template, which already holds its special tokens. A text that itself starts with the
    /// special token that would be put before it gets it once.
    ///
    /// [`Error::Format`] for an id that the model's embedding table does not have.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let wrong = |found: String| Error::format(&self.path, "encode", "text that tokenizes", found);
        let encoding = guard::catch(|| self.inner.encode_fast(text, add_special_tokens))
            .map_err(|panic| wrong(format!("a failure of the tokenizers library: {panic}")))?
            .map_err(|e| wrong(e.to_string()))?;
        let mut ids = encoding.get_ids();
        if let [first, second, ..] = *ids
            && add_special_tokens
            && first == second
            && self.inner.get_added_vocabulary().is_special_token(&self.token(first).unwrap_or_default())
        {
            ids = &ids[1..];
        }
        if let Some(rows) = self.model_vocab
            && let Some(&id) = ids.iter().find(|&&id| id as usize >= rows)
        {
            let token = self.token(id).unwrap_or_default();
            let expected = format!("ids below the model's vocab_size {rows}");
            return Err(Error::format(&self.path, format!("token {token:?}"), expected, id.to_string()));
        }
        Ok(ids.to_vec())
    }

    /// Text of `ids`; bytes that are no UTF-8 become U+FFFD. An id of the model's table that the tokenizer has no text for
    /// gives none.
    ///
    /// [`Error::Format`] for an id that neither has.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        let ids_known = (self.max_id as usize + 1).max(self.model_vocab.unwrap_or(0));
        let wrong = |expected: &str, found: String| Error::format(&self.path, "decode", expected, found);
        if let Some(id) = ids.iter().find(|&&id| id as usize >= ids_known) {
            return Err(wrong(&format!("ids below {ids_known}"), id.to_string()));
        }
        guard::catch(|| self.inner.decode(ids, skip_special_tokens))
            .map_err(|panic| wrong("ids with a text", format!("a failure of the tokenizers library: {panic}")))?
            .map_err(|e| wrong("ids with a text", e.to_string()))
    }

    /// Decodes ids as they come, special tokens left out.
    pub fn stream(&self) -> Decoder<'_> {
        Decoder::new(self)
    }

    /// Id of a token's exact text.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// A token as the vocabulary spells it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Special tokens (BOS, EOS, turn markers) by id.
    pub fn special_tokens(&self) -> Vec<(u32, String)> {
        let added = self.inner.get_added_tokens_decoder();
        let mut special: Vec<_> = added.into_iter().filter(|(_, t)| t.special).map(|(id, t)| (id, t.content)).collect();
        special.sort();
        special
    }

    /// Number of ids, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Highest id that has a text.
    pub fn max_id(&self) -> u32 {
        self.max_id
    }
}
