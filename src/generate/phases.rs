//! How the ledger's work divides into reading prompts (prefill) and writing (decode).
//!
//! One pass does both. Its FLOPs divide exactly: those of attention by the pairs of tokens, all others by tokens. So do
//! the bytes, of which weights that both need are the larger part: that division is a convention.

use crate::device::{Device, Op, Phase, PhaseWork};
use crate::model::PagedStep;

/// Looks at the ledger after each piece of work and books what was new.
pub(super) struct Meter<'a> {
    dev: &'a Device,
    seen: Totals,
}

/// FLOPs and bytes of attention and of everything else.
#[derive(Clone, Copy, Default)]
struct Totals {
    attention: [u64; 2],
    rest: [u64; 2],
}

fn totals(dev: &Device) -> Totals {
    let mut totals = Totals::default();
    for (op, entry) in Op::ALL.iter().map(|&op| (op, dev.ledger().entry(op))) {
        let sum = if op == Op::PagedAttention { &mut totals.attention } else { &mut totals.rest };
        *sum = [sum[0] + entry.flops, sum[1] + entry.bytes];
    }
    totals
}

/// `value * part / whole` without overflow.
fn share(value: u64, part: u64, whole: u64) -> u64 {
    if whole == 0 { 0 } else { (u128::from(value) * u128::from(part) / u128::from(whole)) as u64 }
}

impl<'a> Meter<'a> {
    /// Starts at what the ledger holds now.
    pub(super) fn new(dev: &'a Device) -> Meter<'a> {
        Meter { dev, seen: totals(dev) }
    }

    /// What was done since the last look.
    fn new_work(&mut self) -> Totals {
        let now = totals(self.dev);
        let minus = |a: [u64; 2], b: [u64; 2]| [a[0] - b[0], a[1] - b[1]];
        let seen = std::mem::replace(&mut self.seen, now);
        Totals { attention: minus(now.attention, seen.attention), rest: minus(now.rest, seen.rest) }
    }

    /// Books a forward pass; `reading` says of each of its sequences whether it is read.
    pub(super) fn book_pass(&mut self, step: &PagedStep, reading: impl Iterator<Item = bool>) {
        let Totals { attention, rest } = self.new_work();
        let (mut tokens, mut pairs, mut read_tokens, mut read_pairs) = (0, 0, 0, 0);
        for ((new, seen), reading) in step.pairs().zip(reading) {
            (tokens, pairs) = (tokens + new, pairs + seen);
            if reading {
                (read_tokens, read_pairs) = (read_tokens + new, read_pairs + seen);
            }
        }
        let read = |i: usize| share(attention[i], read_pairs, pairs) + share(rest[i], read_tokens, tokens);
        let [flops, bytes] = [read(0), read(1)];
        let written = PhaseWork {
            tokens: tokens - read_tokens,
            flops: attention[0] + rest[0] - flops,
            bytes: attention[1] + rest[1] - bytes,
        };
        self.dev.ledger().add_phase(Phase::Prefill, PhaseWork { tokens: read_tokens, flops, bytes });
        self.dev.ledger().add_phase(Phase::Decode, written);
    }

    /// Books what was done since the last look under one phase: logits and draws.
    pub(super) fn book(&mut self, phase: Phase) {
        let Totals { attention, rest } = self.new_work();
        let work = PhaseWork { tokens: 0, flops: attention[0] + rest[0], bytes: attention[1] + rest[1] };
        self.dev.ledger().add_phase(phase, work);
    }
}
