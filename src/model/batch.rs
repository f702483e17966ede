//! Sequences packed end to end, without padding.

use crate::device::Tensor;
use crate::ops::log_probs::IGNORE;

/// Sequences packed end to end, each starting at position 0.
pub struct Batch {
    /// U32 `[tokens]`.
    pub ids: Tensor,
    /// U32 `[tokens]`: position of each token in its own sequence.
    pub positions: Tensor,
    /// U32 `[sequences + 1]`: where each sequence starts; the last entry is the number of tokens.
    pub cu_seqlens: Tensor,
}

impl Batch {
    /// Packs the sequences in their order.
    pub fn pack<S: AsRef<[u32]>>(sequences: &[S]) -> Batch {
        Batch::pack_in(sequences, 0)
    }

    /// [`Batch::pack`] with room for `room` tokens, see [`Tensor::from_u32_in`].
    pub fn pack_in<S: AsRef<[u32]>>(sequences: &[S], room: usize) -> Batch {
        let (mut ids, mut positions, mut offsets) = (Vec::new(), Vec::new(), vec![0u32]);
        for sequence in sequences.iter().map(AsRef::as_ref) {
            ids.extend_from_slice(sequence);
            positions.extend(0..sequence.len() as u32);
            offsets.push(ids.len() as u32);
        }
        Batch {
            ids: Tensor::from_u32_in(&ids, room),
            positions: Tensor::from_u32_in(&positions, room),
            cu_seqlens: Tensor::from_u32_in(&offsets, room + 1),
        }
    }

    /// U32 `[tokens]`: the id that follows each token in its sequence, [`IGNORE`] at the last one.
    pub fn next_tokens(&self) -> Tensor {
        let ids = self.ids.u32();
        let mut next: Vec<u32> = ids.iter().skip(1).copied().chain([IGNORE]).take(ids.len()).collect();
        for last in self.cu_seqlens.u32()[1..].iter().filter_map(|&end| end.checked_sub(1)) {
            next[last as usize] = IGNORE;
        }
        Tensor::from_u32(&next)
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.ids.rows()
    }
}
