//! Which blocks are cut, checked against the model: nothing empty, reversed, twice, out of range, nor everything.

use super::{Score, mergekit, scores_csv};
use crate::error::{Error, Result};
use crate::model::Config;
use std::path::Path;

/// The blocks to cut from a model of `num_hidden_layers` blocks, and how they were chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    drop: Vec<usize>,
    num_hidden_layers: usize,
    /// The metric that chose them, where one did.
    pub metric: Option<String>,
    /// The scores that they were chosen by: one row for a run of blocks, or one for each block.
    pub scores: Vec<Score>,
}

impl Plan {
    /// Cuts `drop` (0-based, any order). `option` is named in errors.
    pub fn new(drop: &[usize], num_hidden_layers: usize, option: &str) -> Result<Plan> {
        let usage = |expected: String, found: String| Err(Error::usage(option, expected, found));
        let mut sorted = drop.to_vec();
        sorted.sort_unstable();
        if sorted.is_empty() {
            return usage("at least one block".into(), "none".into());
        }
        if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return usage("each block once".into(), format!("block {} more than once (overlapping ranges)", twice[0]));
        }
        if let Some(&block) = sorted.iter().find(|&&block| block >= num_hidden_layers) {
            let last = num_hidden_layers.saturating_sub(1);
            return usage(format!("blocks 0 to {last} (the model has {num_hidden_layers})"), block.to_string());
        }
        if sorted.len() == num_hidden_layers {
            return usage("at least one block left".into(), format!("all {num_hidden_layers} blocks"));
        }
        Ok(Plan { drop: sorted, num_hidden_layers, metric: None, scores: Vec::new() })
    }

    /// Reads `--drop`: block numbers and inclusive ranges, `13-18` or `3,7,21` or `3,7-9`.
    pub fn parse(spec: &str, num_hidden_layers: usize) -> Result<Plan> {
        let grammar = || Error::usage("--drop", "block numbers or ranges such as 13-18 or 3,7,21", format!("{spec:?}"));
        let number = |text: &str| text.trim().parse::<usize>().map_err(|_| grammar());
        let mut drop = Vec::new();
        for part in spec.split(',').filter(|_| !spec.trim().is_empty()) {
            let (first, last) = match part.split_once('-') {
                Some((first, last)) => (number(first)?, number(last)?),
                None => (number(part)?, number(part)?),
            };
            if first > last {
                return Err(Error::usage("--drop", "a range whose first block is not after its last", part.trim()));
            }
            if last >= num_hidden_layers {
                let expected = format!("blocks 0 to {}", num_hidden_layers.saturating_sub(1));
                return Err(Error::usage("--drop", expected, part.trim()));
            }
            drop.extend(first..=last);
        }
        Plan::new(&drop, num_hidden_layers, "--drop")
    }

    /// The best cut of `block_size` blocks in a file that [`super::write_scores`] (or another tool) wrote.
    ///
    /// Rows of `block_size` blocks: the lowest, the earlier of equals. A file that has rows of single blocks only is a
    /// ranking: the `block_size` lowest blocks, wherever they stand.
    pub fn from_scores(path: &Path, block_size: usize, num_hidden_layers: usize) -> Result<Plan> {
        let rows = scores_csv::read_scores(path, num_hidden_layers)?;
        let chosen = choose(&rows, block_size).ok_or_else(|| {
            let mut sizes: Vec<usize> = rows.iter().map(|row| row.end - row.start).collect();
            sizes.sort_unstable();
            sizes.dedup();
            Error::usage(
                "--block-size",
                format!("a size that {} has: {sizes:?}", path.display()),
                block_size.to_string(),
            )
        })?;
        let drop: Vec<usize> = chosen.iter().flat_map(|row| row.start..row.end).collect();
        let plan = Plan::new(&drop, num_hidden_layers, "--scores")?;
        Ok(Plan { metric: scores_csv::recorded_metric(path), scores: chosen, ..plan })
    }

    /// The blocks that a mergekit passthrough configuration leaves out.
    pub fn from_mergekit(path: &Path, config: &Config) -> Result<Plan> {
        let num_hidden_layers = config.num_hidden_layers;
        let kept = mergekit::read_kept(path, num_hidden_layers, mergekit::dtype(config))?;
        let drop: Vec<usize> = (0..num_hidden_layers).filter(|block| !kept.contains(block)).collect();
        Plan::new(&drop, num_hidden_layers, "--config")
    }

    /// The blocks that go, in order.
    pub fn dropped(&self) -> &[usize] {
        &self.drop
    }

    /// The blocks that stay, in order; block `kept()[i]` becomes block `i`.
    pub fn kept(&self) -> Vec<usize> {
        (0..self.num_hidden_layers).filter(|block| self.drop.binary_search(block).is_err()).collect()
    }

    /// Blocks of the model that the plan is for.
    pub fn num_hidden_layers(&self) -> usize {
        self.num_hidden_layers
    }
}

/// The best rows for `block_size`: the lowest run, or the lowest single blocks of a ranking. `None` when there are not enough.
pub(super) fn choose(rows: &[Score], block_size: usize) -> Option<Vec<Score>> {
    let run = rows.iter().filter(|row| row.end - row.start == block_size);
    if let Some(best) = run.min_by(|a, b| a.value.total_cmp(&b.value).then(a.start.cmp(&b.start))) {
        return Some(vec![*best]);
    }
    if block_size == 0 || rows.len() < block_size || rows.iter().any(|row| row.end - row.start != 1) {
        return None;
    }
    let mut ranked = rows.to_vec();
    ranked.sort_by(|a, b| a.value.total_cmp(&b.value).then(a.start.cmp(&b.start)));
    ranked.truncate(block_size);
    Some(ranked)
}

/// Blocks as people write them: `13-18` or `3, 7, 21`.
pub fn describe(blocks: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &block in blocks {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == block => *last = block,
            _ => runs.push((block, block)),
        }
    }
    let parts: Vec<String> =
        runs.iter().map(|&(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") }).collect();
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_include_both_ends_and_lists_may_be_mixed() {
        assert_eq!(Plan::parse("13-18", 30).unwrap().dropped(), [13, 14, 15, 16, 17, 18]);
        assert_eq!(Plan::parse("21,3,7-8", 30).unwrap().dropped(), [3, 7, 8, 21]);
        assert_eq!(Plan::parse("0-1", 3).unwrap().kept(), [2]);
    }

    #[test]
    fn bad_cuts_name_the_option_what_it_accepts_and_what_was_given() {
        for (spec, word) in [
            ("", "at least one block"),
            ("18-13", "not after its last"),
            ("28-30", "blocks 0 to 29"),
            ("0-18446744073709551615", "blocks 0 to 29"),
            ("3-7,5-9", "more than once"),
            ("4,4", "more than once"),
            ("0-29", "all 30 blocks"),
            ("a-b", "block numbers"),
            ("3-", "block numbers"),
            ("-3", "block numbers"),
            ("1,,2", "block numbers"),
        ] {
            let message = Plan::parse(spec, 30).unwrap_err().to_string();
            assert!(message.starts_with("--drop: expected") && message.contains(word), "{spec}: {message}");
        }
    }

    #[test]
    fn single_block_rows_are_a_ranking_and_runs_are_compared_whole() {
        let row = |start, end, value| Score { start, end, value };
        let ranking = [row(0, 1, 0.9), row(1, 2, 0.1), row(2, 3, 0.5), row(3, 4, 0.1)];
        assert_eq!(choose(&ranking, 2).unwrap(), [ranking[1], ranking[3]]);
        let runs = [row(0, 2, 0.3), row(1, 3, 0.2), row(2, 4, 0.2)];
        assert_eq!(choose(&runs, 2).unwrap(), [runs[1]], "the earlier of equals");
        assert_eq!(choose(&runs, 3), None);
        assert_eq!(choose(&ranking, 5), None);
        assert_eq!(describe(&[3, 7, 8, 9, 21]), "3,7-9,21");
    }
}
