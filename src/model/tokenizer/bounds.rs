//! How few ids a text can have, and the part of a long text that decides its first or last ids: so that a row of a hundred
//! megabytes costs no more than the tokens that are kept of it.

use super::Tokenizer;
use crate::error::Result;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::{ModelWrapper, SplitDelimiterBehavior};

/// Bytes of text beside the part that is needed, so that what a cut tears does not reach into that part: a special token, or
/// the last words in front of the cut (the patterns of Llama's tokenizers look no further ahead than the run of white space that
/// follows a word).
const MARGIN: usize = 64 << 10;

/// Bytes of a text up to which it is encoded in any case: that takes a second, and tells how many ids it has.
pub const CHEAP_BYTES: usize = 1 << 20;

/// What is certain of a tokenizer's ids without encoding a text.
pub(super) struct Bounds {
    /// Most bytes of text that one id stands for.
    longest: usize,
    /// Bytes that have no id: what they are part of may be dropped.
    silent: [bool; 256],
}

impl Tokenizer {
    /// A number of ids that [`encode`](Tokenizer::encode) certainly gives for `text`, without encoding it: its bytes by those of the
    /// longest entry of the vocabulary. 0 where a tokenizer may drop text or take any amount of it as one token.
    pub fn least_tokens(&self, text: &str) -> usize {
        let Some(Bounds { longest, silent }) = &self.bounds else { return 0 };
        text.bytes().filter(|&byte| !silent[usize::from(byte)]).count().div_ceil(*longest)
    }

    /// The first `n` ids of [`encode`](Tokenizer::encode), from no more of the text than is needed.
    ///
    /// They are those of the whole text when no word (what the pre-tokenizer keeps together) of the part that is read is longer
    /// than 64 KiB. In a longer word, and for tokenizers that have no words (Llama 2), ids near the cut can be those of the cut
    /// text: merges may reach across it.
    pub fn encode_first(&self, text: &str, add_special_tokens: bool, n: usize) -> Result<Vec<u32>> {
        let end = self.needed(text.bytes(), n).min(text.len());
        let mut ids = self.encode(&text[..text.ceil_char_boundary(end)], add_special_tokens)?;
        ids.truncate(n);
        Ok(ids)
    }

    /// The end of a text that certainly has more than `n` ids, cut so that this holds for it, too; the text itself when that is
    /// not long enough. Of its ids the first ones can be others than in the whole text, up to the first word behind the cut.
    pub fn tail<'a>(&self, text: &'a str, n: usize) -> &'a str {
        let start = text.len().saturating_sub(self.needed(text.bytes().rev(), n));
        &text[text.floor_char_boundary(start)..]
    }

    /// How many of the bytes certainly hold `n` ids and the margin.
    fn needed(&self, bytes: impl Iterator<Item = u8>, n: usize) -> usize {
        let Some(Bounds { longest, silent }) = &self.bounds else { return usize::MAX };
        let mut missing = n.saturating_mul(*longest);
        let read = bytes.take_while(|&byte| {
            let more = missing > 0;
            missing = missing.saturating_sub(usize::from(!silent[usize::from(byte)]));
            more
        });
        read.count().saturating_add(MARGIN)
    }
}

impl Bounds {
    /// `None` when the parts of the tokenizer do not say.
    pub(super) fn of(inner: &tokenizers::Tokenizer) -> Option<Bounds> {
        let vocab = inner.get_vocab(true);
        let ModelWrapper::BPE(_) = inner.get_model() else { return None };
        let words = inner.get_pre_tokenizer();
        let mut silent = [false; 256];
        if words.is_some_and(is_byte_level) {
            for (byte, silent) in (0..).zip(&mut silent) {
                *silent = !vocab.contains_key(byte_level_char(byte).encode_utf8(&mut [0; 4]) as &str);
            }
        } else if (0..=255u8).any(|byte| !vocab.contains_key(&format!("<0x{byte:02X}>"))) {
            // Unknown text has one id for any amount of it, or none.
            return None;
        }
        let keeps = inner.get_normalizer().is_none_or(normalizer_keeps) && words.is_none_or(words_keep);
        // A token that takes the white space around it takes any amount.
        let greedy = inner.get_added_tokens_decoder().values().any(|token| token.lstrip || token.rstrip);
        let longest = vocab.keys().map(String::len).max().filter(|&longest| longest > 0)?;
        (keeps && !greedy).then_some(Bounds { longest, silent })
    }
}

/// How a byte is written in a byte-level vocabulary: printable Latin-1 stands for itself, the other bytes in their order for U+0100
/// and up (GPT-2, Radford et al. 2019).
fn byte_level_char(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    match printable(byte) {
        true => char::from(byte),
        false => {
            let others = (0..byte).filter(|&byte| !printable(byte)).count() as u32;
            // Below U+0200, where every number is a character.
            char::from_u32(0x100 + others).unwrap_or_default()
        }
    }
}

/// Whether the normalizer never makes text shorter.
fn normalizer_keeps(normalizer: &NormalizerWrapper) -> bool {
    match normalizer {
        NormalizerWrapper::Prepend(_) => true,
        NormalizerWrapper::Replace(replace) => {
            // The pattern of this type can only be seen when it is written out.
            serde_json::to_value(replace).is_ok_and(|json| json["pattern"]["String"] == " ")
                && !replace.content.is_empty()
        }
        NormalizerWrapper::Sequence(parts) => parts.as_ref().iter().all(normalizer_keeps),
        _ => false,
    }
}

/// Whether the pre-tokenizer drops nothing.
fn words_keep(words: &PreTokenizerWrapper) -> bool {
    match words {
        PreTokenizerWrapper::ByteLevel(_) | PreTokenizerWrapper::Digits(_) | PreTokenizerWrapper::Metaspace(_) => true,
        PreTokenizerWrapper::Split(split) => split.behavior != SplitDelimiterBehavior::Removed,
        PreTokenizerWrapper::Sequence(parts) => parts.as_ref().iter().all(words_keep),
        _ => false,
    }
}

fn is_byte_level(words: &PreTokenizerWrapper) -> bool {
    match words {
        PreTokenizerWrapper::ByteLevel(_) => true,
        PreTokenizerWrapper::Sequence(parts) => parts.as_ref().iter().any(is_byte_level),
        _ => false,
    }
}
