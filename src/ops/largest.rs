//! The largest magnitude of a gradient, by which cards before compute capability 8.0 scale it in products: those round to F16,
//! where gradients below 6e-8 would vanish.
//!
//! A scale of its own for each matrix takes the place of one for the loss: it needs no state, no step is lost to an overflow, and
//! small gradients beside large ones of other matrices keep their bits. Its price is one more reading of the gradient, 2 bytes an
//! element, some 5 % of a product with 4,096 columns on a T4 (on paper).

use crate::device::Tensor;
use crate::device::cuda::{Buffer, Cuda, Grid, abi};
use crate::error::Result;
use std::ptr;
use std::sync::Arc;

/// The bits of largest magnitudes, on the card.
pub(super) struct Largest(Option<Buffer>);

impl Largest {
    /// Of `x` (BF16), where the card's products need it.
    pub fn of(cuda: &Arc<Cuda>, x: &Tensor) -> Result<Largest> {
        Largest::of_parts(cuda, x, ptr::null(), (1, x.rows()), 1)
    }

    /// Of each sequence's rows of `x` (BF16 `[tokens, features]`), so that no other sequence shows in its gradients; at most `longest`
    /// of them a sequence.
    pub fn of_sequences(cuda: &Arc<Cuda>, x: &Tensor, cu_seqlens: &Tensor, longest: usize) -> Result<Largest> {
        let (sequences, room) = (cu_seqlens.elements() - 1, cu_seqlens.room() - 1);
        Largest::of_parts(cuda, x, cu_seqlens.kernel_ptr(cuda)?, (sequences, longest), room)
    }

    fn of_parts(
        cuda: &Arc<Cuda>,
        x: &Tensor,
        cu_seqlens: *const u32,
        (sequences, longest): (usize, usize),
        room: usize,
    ) -> Result<Largest> {
        if cuda.card.multiplies_bf16() {
            return Ok(Largest(None));
        }
        let bytes = size_of::<u32>() * sequences;
        let found = cuda.allocate(size_of::<u32>() * room)?;
        found.zero(bytes)?;
        let (largest, width) = (found.address() as *mut u32, x.row_len());
        let (tokens, x) = (x.rows() as u32, x.kernel_ptr(cuda)?);
        let params = abi::largest_params { largest, x, cu_seqlens, tokens, width: width as u32 };
        let blocks = (longest * width).div_ceil(abi::LARGEST_CHUNK as usize);
        cuda.launch("largest", Grid { blocks: [blocks, sequences, 1], ..Grid::blocks(1) }, &params)?;
        Ok(Largest(Some(found)))
    }

    /// For kernels; null where products take BF16. Of use as long as `self` lives.
    pub fn ptr(&self) -> *const u32 {
        self.0.as_ref().map_or(ptr::null(), |found| found.address() as *const u32)
    }
}
