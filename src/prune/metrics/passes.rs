//! The sequences of a data set as forward passes.

use crate::model::Batch;

/// Tokens of one forward pass; several short sequences share a pass, none is split. Results do not depend on it.
pub(super) const PASS_TOKENS: usize = 1024;

/// Sequences packed for one pass after another, and what the metrics need to know of them.
pub(super) struct Passes {
    /// The sequences in their order.
    pub batches: Vec<Batch>,
    /// Tokens of all passes.
    pub tokens: usize,
    /// Tokens of the longest pass.
    pub longest: usize,
    /// Tokens that one before them predicts: all but the first of each sequence.
    pub scored: usize,
}

impl Passes {
    pub(super) fn new(sequences: &[Vec<u32>]) -> Passes {
        let batches: Vec<Batch> = groups(sequences).into_iter().map(Batch::pack).collect();
        Passes {
            tokens: batches.iter().map(Batch::tokens).sum(),
            longest: batches.iter().map(Batch::tokens).max().unwrap_or(0),
            scored: sequences.iter().map(|s| s.len().saturating_sub(1)).sum(),
            batches,
        }
    }
}

/// Groups of consecutive sequences of at most [`PASS_TOKENS`] tokens, or one longer sequence.
fn groups(sequences: &[Vec<u32>]) -> Vec<&[Vec<u32>]> {
    let (mut groups, mut start, mut tokens) = (Vec::new(), 0, 0);
    for (i, sequence) in sequences.iter().enumerate() {
        if i > start && tokens + sequence.len() > PASS_TOKENS {
            groups.push(&sequences[start..i]);
            (start, tokens) = (i, 0);
        }
        tokens += sequence.len();
    }
    if start < sequences.len() {
        groups.push(&sequences[start..]);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_hold_every_sequence_once_in_order() {
        let sequences: Vec<Vec<u32>> = [300, 700, 24, 1, 3000, 5].iter().map(|&n| vec![0; n]).collect();
        let lens: Vec<Vec<usize>> = groups(&sequences).iter().map(|pass| pass.iter().map(Vec::len).collect()).collect();
        assert_eq!(lens, [vec![300, 700, 24], vec![1], vec![3000], vec![5]]);
        let passes = Passes::new(&sequences);
        assert_eq!((passes.tokens, passes.longest, passes.scored), (4030, 3000, 4024));
    }
}
