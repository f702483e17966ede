//! The ledger: FLOPs, bytes, calls and seconds of every operation.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Work of one operation call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Floating-point operations; a fused multiply-add counts as 2.
    pub flops: u64,
    /// The fewest bytes that can move between memory and the chip: each operand once.
    pub bytes: u64,
}

macro_rules! operations {
    ($($variant:ident $name:literal),* $(,)?) => {
        /// Operations that the ledger tells apart.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Op { $(#[doc = concat!("`", $name, "`")] $variant),* }

        impl Op {
            /// Every operation, in the order of a forward and backward pass.
            pub const ALL: &'static [Op] = &[$(Op::$variant),*];

            /// Name in reports, the same as the file in `ops/`.
            pub const fn name(self) -> &'static str {
                match self { $(Op::$variant => $name),* }
            }
        }
    };
}

operations! {
    Embedding "embedding",
    EmbeddingBackward "embedding_backward",
    RmsNorm "rmsnorm",
    RmsNormBackward "rmsnorm_backward",
    Gather "gather",
    Matmul "matmul",
    BiasBackward "bias_backward",
    Rope "rope",
    RopeBackward "rope_backward",
    Attention "attention",
    AttentionBackward "attention_backward",
    PagedAttention "paged_attention",
    KvStore "kv_store",
    SwiGlu "swiglu",
    SwiGluBackward "swiglu_backward",
    CrossEntropy "cross_entropy",
    LogProbs "log_probs",
    Divergence "divergence",
    Sample "sample",
    Dropout "dropout",
    Scale "scale",
    AdamW "adamw",
    GradNorm "grad_norm",
    Angle "angle",
    Cast "cast",
}

#[derive(Default)]
struct Counter {
    calls: AtomicU64,
    flops: AtomicU64,
    bytes: AtomicU64,
    nanoseconds: AtomicU64,
}

/// Totals of one operation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Entry {
    /// Number of calls.
    pub calls: u64,
    /// Floating-point operations.
    pub flops: u64,
    /// Fewest bytes that had to move.
    pub bytes: u64,
    /// Wall-clock seconds inside the operation.
    pub seconds: f64,
}

impl std::ops::Sub for Entry {
    type Output = Entry;

    /// Work done between two snapshots.
    fn sub(self, earlier: Entry) -> Entry {
        Entry {
            calls: self.calls - earlier.calls,
            flops: self.flops - earlier.flops,
            bytes: self.bytes - earlier.bytes,
            seconds: self.seconds - earlier.seconds,
        }
    }
}

/// The two halves of generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Reading prompts.
    Prefill,
    /// Writing.
    Decode,
}

/// Work of one [`Phase`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct PhaseWork {
    /// Tokens that went through a model.
    pub tokens: u64,
    /// Floating-point operations.
    pub flops: u64,
    /// Fewest bytes that had to move.
    pub bytes: u64,
}

impl std::ops::Sub for PhaseWork {
    type Output = PhaseWork;

    /// Work done between two looks.
    fn sub(self, earlier: PhaseWork) -> PhaseWork {
        PhaseWork {
            tokens: self.tokens - earlier.tokens,
            flops: self.flops - earlier.flops,
            bytes: self.bytes - earlier.bytes,
        }
    }
}

/// FLOPs, bytes, calls and seconds of every operation since the device was opened.
#[derive(Default)]
pub struct Ledger {
    counters: [Counter; Op::ALL.len()],
    phases: [[AtomicU64; 3]; 2],
    tokens: AtomicU64,
}

impl Ledger {
    /// Adds one call; the returned guard adds its seconds when dropped.
    pub fn span(&self, op: Op, cost: Cost) -> Span<'_> {
        self.add_call(op, cost);
        Span { clock: Clock::Wall { ledger: self, op, start: Instant::now() } }
    }

    /// Adds one call whose work is done elsewhere, for the time `clock` to be booked later.
    #[cfg(feature = "cuda")]
    pub(super) fn span_elsewhere<'a>(&self, op: Op, cost: Cost, clock: Option<super::cuda::Interval<'a>>) -> Span<'a> {
        self.add_call(op, cost);
        Span { clock: Clock::Elsewhere { _interval: clock } }
    }

    fn add_call(&self, op: Op, cost: Cost) {
        let counter = &self.counters[op as usize];
        counter.calls.fetch_add(1, Relaxed);
        counter.flops.fetch_add(cost.flops, Relaxed);
        counter.bytes.fetch_add(cost.bytes, Relaxed);
    }

    /// Books time that an operation took.
    pub(super) fn add_time(&self, op: Op, time: Duration) {
        self.counters[op as usize].nanoseconds.fetch_add(time.as_nanos() as u64, Relaxed);
    }

    /// Totals so far of one operation.
    pub fn entry(&self, op: Op) -> Entry {
        let counter = &self.counters[op as usize];
        Entry {
            calls: counter.calls.load(Relaxed),
            flops: counter.flops.load(Relaxed),
            bytes: counter.bytes.load(Relaxed),
            seconds: counter.nanoseconds.load(Relaxed) as f64 * 1e-9,
        }
    }

    /// Totals so far of all operations, in the order of [`Op::ALL`]. Subtract two snapshots to measure what lies between.
    pub fn snapshot(&self) -> Vec<(Op, Entry)> {
        Op::ALL.iter().map(|&op| (op, self.entry(op))).collect()
    }

    /// Books work, which the operations have booked already, under a phase of generation.
    pub fn add_phase(&self, phase: Phase, work: PhaseWork) {
        let values = [work.tokens, work.flops, work.bytes];
        for (counter, value) in self.phases[phase as usize].iter().zip(values) {
            counter.fetch_add(value, Relaxed);
        }
    }

    /// Work so far that was booked under a phase.
    pub fn phase(&self, phase: Phase) -> PhaseWork {
        let [tokens, flops, bytes] = &self.phases[phase as usize];
        PhaseWork { tokens: tokens.load(Relaxed), flops: flops.load(Relaxed), bytes: bytes.load(Relaxed) }
    }

    /// Counts tokens that went through a model.
    pub fn add_tokens(&self, n: usize) {
        self.tokens.fetch_add(n as u64, Relaxed);
    }

    /// Tokens that went through a model so far.
    pub fn tokens(&self) -> u64 {
        self.tokens.load(Relaxed)
    }

    /// FLOPs of all operations so far.
    pub fn flops(&self) -> u64 {
        self.counters.iter().map(|c| c.flops.load(Relaxed)).sum()
    }
}

/// A running operation; dropping it ends its time.
pub struct Span<'a> {
    clock: Clock<'a>,
}

enum Clock<'a> {
    /// The calling thread does the work.
    Wall { ledger: &'a Ledger, op: Op, start: Instant },
    /// A device does it, and tells the time later where it was asked to.
    #[cfg(feature = "cuda")]
    Elsewhere { _interval: Option<super::cuda::Interval<'a>> },
}

impl Drop for Span<'_> {
    fn drop(&mut self) {
        match &self.clock {
            Clock::Wall { ledger, op, start } => ledger.add_time(*op, start.elapsed()),
            #[cfg(feature = "cuda")]
            Clock::Elsewhere { .. } => {}
        }
    }
}
