//! Merges for a SentencePiece vocabulary, which has scores instead.
//!
//! SentencePiece joins, again and again, the neighbouring pair whose joined piece scores highest (Kudo and Richardson 2018). BPE with
//! merges ranked by the score of their result does the same, so every way to split a piece into two others becomes a merge.

use std::cmp::Ordering;
use std::collections::BTreeMap;

/// All merges, first the ones to apply first: by score of the result, then by length in characters of the left and of the right part
/// (longer first), then by the order of the vocabulary, as Hugging Face's converter ranks them.
pub(super) fn merges<'a>(tokens: &'a [String], ids: &BTreeMap<&str, usize>, scores: &[f32]) -> Vec<(&'a str, &'a str)> {
    struct Merge<'a> {
        parts: (&'a str, &'a str),
        score: f32,
        lengths: (usize, usize),
    }
    let mut all: Vec<Merge> = Vec::new();
    for (token, &score) in tokens.iter().zip(scores) {
        let mut own: Vec<((usize, usize), Merge)> = Vec::new();
        for (at, _) in token.char_indices().skip(1) {
            let parts = token.split_at(at);
            if let (Some(&left), Some(&right)) = (ids.get(parts.0), ids.get(parts.1)) {
                let lengths = (parts.0.chars().count(), parts.1.chars().count());
                own.push(((left, right), Merge { parts, score, lengths }));
            }
        }
        own.sort_by_key(|(pair, _)| *pair);
        all.extend(own.into_iter().map(|(_, merge)| merge));
    }
    // A stable sort keeps the vocabulary's order among equals.
    all.sort_by(|a, b| {
        let by_score = b.score.partial_cmp(&a.score).unwrap_or(Ordering::Equal);
        by_score.then(b.lengths.cmp(&a.lengths))
    });
    all.into_iter().map(|merge| merge.parts).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_come_in_order_of_score_then_length() {
        let tokens: Vec<String> = ["a", "b", "ab", "aba", "ba", "\u{e9}", "a\u{e9}"].map(String::from).to_vec();
        let ids = tokens.iter().enumerate().map(|(i, t)| (t.as_str(), i)).collect();
        let scores = [-9.0, -9.0, -1.0, -2.0, -1.0, -9.0, -1.5];
        let expected = [("a", "b"), ("b", "a"), ("a", "\u{e9}"), ("ab", "a"), ("a", "ba")];
        assert_eq!(merges(&tokens, &ids, &scores), expected);
    }
}
