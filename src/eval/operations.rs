//! Speed of every operation alone, in the shapes of a model, beside the least time that the device's limits allow.
//!
//! Inputs are N(0, 1) numbers, since zeros make a card faster than it is. Each operation runs on several sets of buffers in turn, and a
//! card's cache is written over before each round, so that nothing is read from a cache that would not be in a model. Times
//! are those of the [ledger](crate::device::Ledger): on a card by events, after enough other work that no kernel waits for its launch.

use super::bench::{median, total};
use super::ceiling::ceiling;
use crate::device::peak::Peak;
use crate::device::{DType, Device, Tensor};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::model::Config;
use crate::model::presets::Normal;
use crate::progress::Progress;
use serde::Serialize;
use std::cell::Cell;

mod cases;

/// Bytes that the buffers of an operation are spread over.
const SPREAD: u64 = 256 << 20;
/// Most sets of buffers.
const MOST_SETS: u64 = 8;
/// Bytes written over before a round, more than any card's cache, and how often: longer than the launches of a round take.
const FLUSH: (usize, usize) = (64 << 20, 4);

/// How large.
#[derive(Clone, Copy, Debug)]
pub struct OperationOptions {
    /// Tokens of a training or prefill pass, one sequence.
    pub tokens: usize,
    /// Sequences of a decoding step.
    pub batch: usize,
    /// Tokens that each of those has in the cache.
    pub context: usize,
    /// Measured rounds of each operation.
    pub repetitions: usize,
}

/// One operation in one shape.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OperationSpeed {
    /// Name of its file in `ops/`, and which of its uses.
    pub operation: String,
    /// Sizes: for products `m x n x k`.
    pub shape: String,
    /// Median microseconds of a call.
    pub microseconds: f64,
    /// FLOPs of a call, from the ledger.
    pub flops: u64,
    /// Fewest bytes of a call, from the ledger.
    pub bytes: u64,
    /// FLOP/s.
    pub flops_per_second: f64,
    /// Bytes/s.
    pub bytes_per_second: f64,
    /// The larger of both over the device's ceilings.
    pub floor_share: f64,
}

/// One call of an operation on buffers of its own.
type Call = Box<dyn FnMut(&Device) -> Result<()>>;

/// Makes buffers and measures.
struct Room<'a> {
    dev: &'a Device,
    config: &'a Config,
    options: OperationOptions,
    ceiling: Peak,
    normal: [Normal; 2],
    stream: Cell<u64>,
    flush: Option<Tensor>,
}

/// Measures every operation that a step of training, of prefill and of decoding is made of. Turns on profiling.
///
/// Needs no weights. Errors: [`Error::Usage`] for sizes of zero, [`Error::Budget`] where a card has no room for an operation's
/// buffers.
pub fn operations(dev: &Device, config: &Config, options: OperationOptions) -> Result<Vec<OperationSpeed>> {
    for (option, n) in [
        ("--n-prompt", options.tokens),
        ("--n-gen", options.context),
        ("--batch-size", options.batch),
        ("--repetitions", options.repetitions),
    ] {
        if n == 0 {
            return Err(Error::usage(option, "one or more with --operations", "0"));
        }
    }
    let ceiling = ceiling(dev)?;
    dev.profile();
    let mut room = Room {
        dev,
        config,
        options,
        ceiling,
        normal: [DType::BF16, DType::F32].map(|dtype| Normal::new(1.0, dtype)),
        stream: Cell::new(0),
        flush: if dev.is_cpu() { None } else { Some(dev.zeros(&[FLUSH.0 / 2], DType::BF16)?) },
    };
    let cases = cases::all(&room);
    let progress = Progress::start("operations", cases.len() as u64, "operations");
    let mut speeds = Vec::new();
    for case in cases {
        interrupt::check()?;
        progress.message(format!("{} {}", case.operation, case.shape));
        speeds.push(room.measure(case)?);
        progress.add(1);
    }
    Ok(speeds)
}

impl Room<'_> {
    fn tensor(&self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        self.stream.set(self.stream.get() + 1);
        let normal = &self.normal[usize::from(dtype == DType::F32)];
        let host = normal.tensor(shape, 0, self.stream.get());
        if self.dev.is_cpu() { Ok(host) } else { self.dev.upload(&host, dtype) }
    }

    /// `[rows, features]` of the device's activation type.
    fn activation(&self, rows: usize, features: usize) -> Result<Tensor> {
        self.tensor(&[rows, features], self.dev.activation())
    }

    fn measure(&mut self, case: cases::Case) -> Result<OperationSpeed> {
        let dev = self.dev;
        let mut calls = vec![(case.make)(self)?];
        let before = total(dev);
        calls[0](dev)?;
        dev.synchronize()?;
        let work = total(dev) - before;
        for _ in 1..(SPREAD / work.bytes.max(1)).clamp(1, MOST_SETS) {
            calls.push((case.make)(self)?);
        }
        calls.iter_mut().try_for_each(|call| call(dev))?;
        let mut seconds = Vec::new();
        for _ in 0..self.options.repetitions {
            if let Some(flush) = &mut self.flush {
                (0..FLUSH.1).try_for_each(|_| flush.zero())?;
            }
            let before = total(dev);
            calls.iter_mut().try_for_each(|call| call(dev))?;
            dev.synchronize()?;
            seconds.push((total(dev) - before).seconds / calls.len() as f64);
        }
        let seconds = median(seconds).max(1e-9);
        let (flops_per_second, bytes_per_second) = (work.flops as f64 / seconds, work.bytes as f64 / seconds);
        let Peak { flops_per_second: most_flops, bytes_per_second: most_bytes } = self.ceiling;
        Ok(OperationSpeed {
            operation: case.operation.to_string(),
            shape: case.shape,
            microseconds: seconds * 1e6,
            flops: work.flops,
            bytes: work.bytes,
            flops_per_second,
            bytes_per_second,
            floor_share: (flops_per_second / most_flops).max(bytes_per_second / most_bytes),
        })
    }
}
