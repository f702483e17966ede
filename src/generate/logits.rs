//! Logits of the rows of a forward pass that are needed, some at a time.

use crate::device::{DType, Device, Tensor};
use crate::error::Result;
use crate::model::{Config, Llama};
use crate::ops::gather::gather_rows;
use crate::ops::sample::DRAW_BYTES;

/// Bytes of logits that are kept at a time: 341 rows of a vocabulary of 49,152 ids, 130 of one of 128,256.
const LOGIT_BYTES: usize = 64 << 20;

/// Buffers for the logits of some rows.
pub(super) struct Logits {
    /// U32: which rows of the hidden states.
    rows: Tensor,
    /// `[rows, hidden]` of the device's activation type.
    hidden: Tensor,
    /// F32 `[rows, vocab]`.
    logits: Tensor,
    /// Most rows of a call.
    pub capacity: usize,
}

/// How many rows [`Logits`] takes when `wanted` of them come at once and `together` of them must stay together.
pub(super) fn rows(config: &Config, wanted: usize, together: usize) -> usize {
    wanted.min((LOGIT_BYTES / (4 * config.vocab_size)).max(together))
}

impl Logits {
    /// Room for `rows` rows.
    pub(super) fn new(dev: &Device, config: &Config, rows: usize) -> Result<Logits> {
        Ok(Logits {
            rows: Tensor::zeros(&[rows], DType::U32),
            hidden: dev.zeros(&[rows, config.hidden_size], dev.activation())?,
            logits: dev.zeros(&[rows, config.vocab_size], DType::F32)?,
            capacity: rows,
        })
    }

    /// Bytes of [`Logits::new`], and of a draw from each row.
    pub(super) fn plan_bytes(config: &Config, rows: usize) -> usize {
        rows * (DRAW_BYTES + 4 * (config.hidden_size + config.vocab_size))
    }

    /// The hidden states of `rows`.
    pub(super) fn gather(&mut self, dev: &Device, hidden: &Tensor, rows: &[u32]) -> Result<&Tensor> {
        self.rows.set_rows(rows.len())?;
        self.hidden.set_rows(rows.len())?;
        self.rows.u32_mut().copy_from_slice(rows);
        gather_rows(dev, &mut self.hidden, hidden, &self.rows)?;
        Ok(&self.hidden)
    }

    /// The logits of `rows` of the hidden states, F32 `[rows, vocab]`.
    pub(super) fn of(&mut self, dev: &Device, model: &Llama, hidden: &Tensor, rows: &[u32]) -> Result<&Tensor> {
        self.gather(dev, hidden, rows)?;
        self.logits.set_rows(rows.len())?;
        model.logits(dev, &mut self.logits, &self.hidden)?;
        Ok(&self.logits)
    }
}
