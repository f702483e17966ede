//! One run as several that know nothing of each other: rows divided by their ids.

use super::stream_of;
use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// Part `index` of `count`, written `0/4` to `3/4`. Which part a row is in depends on its id alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Counted from 0.
    pub index: u64,
    /// Number of parts.
    pub count: u64,
}

impl Shard {
    /// The whole.
    pub const ALL: Shard = Shard { index: 0, count: 1 };

    /// Whether a row belongs to this part.
    pub fn contains(&self, row_id: &str) -> bool {
        stream_of(row_id, 0) % self.count == self.index
    }
}

impl FromStr for Shard {
    type Err = Error;

    fn from_str(text: &str) -> Result<Shard> {
        let parts = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match parts {
            Some((index, count)) if index < count => Ok(Shard { index, count }),
            _ => Err(Error::usage("--shard", "I/N with I from 0 to N - 1", text)),
        }
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_in_one_shard_and_the_shards_are_about_equal() {
        let mut counts = [0usize; 7];
        for row in 0..7000 {
            let within = |&index: &u64| Shard { index, count: 7 }.contains(&format!("row-{row}"));
            let shards: Vec<u64> = (0..7).filter(within).collect();
            assert_eq!(shards.len(), 1);
            counts[shards[0] as usize] += 1;
        }
        // Binomial with mean 1000 and standard deviation 29.
        assert!(counts.iter().all(|&n| (850..1150).contains(&n)), "{counts:?}");
        assert!(Shard::ALL.contains("anything"));
    }

    #[test]
    fn shards_are_written_as_index_and_count() {
        assert_eq!("3/4".parse::<Shard>().unwrap(), Shard { index: 3, count: 4 });
        for wrong in ["4/4", "0/0", "1", "a/b", "-1/2", ""] {
            assert!(wrong.parse::<Shard>().unwrap_err().to_string().contains("--shard"), "{wrong}");
        }
    }
}
