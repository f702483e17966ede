//! The inputs of a forward pass against a paged cache, in buffers that are used again.

use super::{Config, KvCache, Llama, Workspace, lora};
use crate::device::{DType, Device, Repeated, Tensor};
use crate::error::Result;
use crate::ops::attention::{PagedBatch, split_bytes};

/// New tokens of some sequences, packed end to end, with where their keys and values go.
///
/// Within a pass every key is stored before any query reads it: a sequence may lean on pages that another one fills in the same
/// pass.
pub struct PagedStep {
    ids: Tensor,
    positions: Tensor,
    slots: Tensor,
    cu_seqlens: Tensor,
    context_lens: Tensor,
    page_table: Tensor,
    page_size: usize,
    tokens: usize,
    sequences: usize,
    repeated: Repeated,
}

impl PagedStep {
    /// Room for `tokens` new tokens of `sequences` sequences, each with `max_pages` pages of `page_size` tokens at most.
    pub fn new(tokens: usize, sequences: usize, max_pages: usize, page_size: usize) -> PagedStep {
        let buffer = |n: usize| Tensor::zeros(&[n], DType::U32);
        PagedStep {
            ids: buffer(tokens),
            positions: buffer(tokens),
            slots: buffer(tokens),
            cu_seqlens: buffer(sequences + 1),
            context_lens: buffer(sequences),
            page_table: Tensor::zeros(&[sequences, max_pages], DType::U32),
            page_size,
            tokens: 0,
            sequences: 0,
            repeated: Repeated::default(),
        }
    }

    /// Bytes that the passes of [`PagedStep::new`] need on a card beside those of any pass over `tokens` tokens: copies of the inputs,
    /// and what attention finds in splits of the context. Steps that are graphs have memory of their own, for these splits and for
    /// adapters of rank `rank` (0 without any), in powers of two: with that of smaller steps at most twice that of the largest.
    pub fn scratch_bytes(
        dev: &Device,
        config: &Config,
        rank: usize,
        tokens: usize,
        sequences: usize,
        max_pages: usize,
        page_size: usize,
    ) -> usize {
        if dev.is_cpu() {
            return 0;
        }
        let inputs = [tokens, tokens, tokens, sequences + 1, sequences, sequences * max_pages];
        let inputs: usize = inputs.iter().map(|n| (4 * n).next_multiple_of(16)).sum();
        let longest = max_pages * page_size;
        let splits = |tokens| split_bytes(dev, tokens, sequences, longest, config.heads);
        let adapters = lora::forward_bytes(dev, config, rank, tokens);
        inputs + splits(tokens) + 2 * (splits(sequences).next_power_of_two() + adapters)
    }

    /// Starts the next pass.
    pub fn clear(&mut self) {
        (self.tokens, self.sequences) = (0, 0);
    }

    /// New tokens so far.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Adds a sequence: `ids` stand at positions `first ..` of it, `pages` hold it from its start. Gives the row of its first id
    /// in the pass. Errors when the buffers are too small.
    pub fn push(&mut self, ids: &[u32], first: usize, pages: &[u32]) -> Result<usize> {
        let (start, end, sequences) = (self.tokens, self.tokens + ids.len(), self.sequences + 1);
        for buffer in [&mut self.ids, &mut self.positions, &mut self.slots] {
            buffer.set_rows(end)?;
        }
        self.cu_seqlens.set_rows(sequences + 1)?;
        self.context_lens.set_rows(sequences)?;
        self.page_table.set_rows(sequences)?;
        self.ids.u32_mut()[start..].copy_from_slice(ids);
        let (positions, slots) = (&mut self.positions.u32_mut()[start..], &mut self.slots.u32_mut()[start..]);
        for (i, (position, slot)) in positions.iter_mut().zip(slots).enumerate() {
            let at = first + i;
            *position = at as u32;
            *slot = pages[at / self.page_size] * self.page_size as u32 + (at % self.page_size) as u32;
        }
        self.cu_seqlens.u32_mut()[sequences] = end as u32;
        self.context_lens.u32_mut()[sequences - 1] = (first + ids.len()) as u32;
        let width = self.page_table.row_len();
        let used = (first + ids.len()).div_ceil(self.page_size);
        self.page_table.u32_mut()[(sequences - 1) * width..][..used].copy_from_slice(&pages[..used]);
        (self.tokens, self.sequences) = (end, sequences);
        Ok(start)
    }

    /// The forward pass; `ws.hidden` holds the normed hidden states of the new tokens afterwards.
    pub fn forward(&mut self, dev: &Device, model: &Llama, cache: &mut KvCache, ws: &mut Workspace) -> Result<()> {
        let PagedStep { ids, positions, slots, cu_seqlens, context_lens, page_table, repeated, .. } = self;
        let batch = PagedBatch { cu_seqlens, context_lens, page_table, page_size: self.page_size };
        let mut pass = || model.forward_paged(dev, ids, positions, slots, &batch, cache, ws);
        if self.tokens > self.sequences {
            return pass(); // Prompts are cut in many lengths, so such a pass seldom comes again.
        }
        let inputs: [&Tensor; 6] = [ids, positions, slots, cu_seqlens, context_lens, page_table];
        dev.repeat(repeated, &inputs, pass)
    }

    /// Of each sequence: tokens that are new, and pairs of a new token with one that it sees.
    pub fn pairs(&self) -> impl Iterator<Item = (u64, u64)> {
        let offsets = self.cu_seqlens.u32()[..=self.sequences].windows(2);
        offsets.zip(self.context_lens.u32()).map(|(w, &context)| {
            let (new, context) = (u64::from(w[1] - w[0]), u64::from(context));
            (new, new * (context - new) + new * (new + 1) / 2)
        })
    }
}
