//! Draws on a card: only ids and log-probabilities come back to the host.

use super::{Draw, Drawn, on_host};
use crate::device::Tensor;
use crate::device::cuda::{Cuda, Grid, abi};
use crate::error::Result;
use std::sync::Arc;

const _: () = assert!(size_of::<abi::sample_draw>() == 32, "DRAW_BYTES is of this");

/// Whether the kernel makes this draw: nothing but the logits, temperature, top-k and top-p decides it, and no other id is reported.
/// That is a property of the request, so what runs beside it does not change how its tokens are drawn.
pub(super) fn makes(draw: &Draw) -> bool {
    draw.logit_bias.is_empty() && draw.sampling.repetition_penalty == 1.0 && draw.sampling.min_p == 0.0 && draw.top == 0
}

/// One token a row; `logits`: F32 `[rows, vocab]` on the card. What [`makes`] leaves out, and rows that cannot be drawn from, are
/// drawn on the host, or refused there.
pub(super) fn sample(cuda: &Arc<Cuda>, logits: &Tensor, draws: &[Draw]) -> Result<Vec<Drawn>> {
    let drawn = launch(cuda, logits, draws)?;
    if drawn.iter().zip(draws).all(|(drawn, draw)| drawn.is_some() && makes(draw)) {
        return Ok(drawn.into_iter().flatten().collect());
    }
    let host = logits.host()?;
    let rows = host.f32().chunks_exact(logits.row_len()).zip(draws).zip(drawn);
    rows.map(|((row, draw), drawn)| drawn.filter(|_| makes(draw)).map_or_else(|| on_host(row, draw), Ok)).collect()
}

/// The kernel's token of each row, `None` where the row cannot be drawn from.
fn launch(cuda: &Arc<Cuda>, logits: &Tensor, draws: &[Draw]) -> Result<Vec<Option<Drawn>>> {
    let (rows, vocab) = (draws.len(), logits.row_len() as u32);
    let of = |draw: &Draw| abi::sample_draw {
        seed: draw.sampling.seed,
        request: draw.request,
        temperature: draw.sampling.temperature,
        top_p: draw.sampling.top_p,
        top_k: draw.sampling.top_k.min(vocab as usize) as u32,
        position: draw.position,
    };
    let draws = cuda.upload_structs(&draws.iter().map(of).collect::<Vec<abi::sample_draw>>(), logits.room())?;
    // Ids, and log-probabilities behind them: one copy brings both.
    let out = cuda.allocate(8 * logits.room())?;
    let params = abi::sample_params {
        ids: out.address() as *mut u32,
        log_probs: (out.address() + 4 * rows as u64) as *mut f32,
        logits: logits.kernel_ptr(cuda)?,
        draws: draws.address() as *const abi::sample_draw,
        vocab,
    };
    let grid = Grid { blocks: [rows, 1, 1], threads: abi::SAMPLE_THREADS, shared: 0 };
    cuda.launch("sample", grid, &params)?;
    let mut words = vec![0u32; 2 * rows];
    cuda.read(&out, bytemuck::cast_slice_mut(&mut words))?;
    let (ids, log_probs) = words.split_at(rows);
    let drawn = |(&id, &bits): (&u32, &u32)| Drawn { id, log_prob: f32::from_bits(bits), top: Vec::new() };
    Ok(ids.iter().zip(log_probs).map(|row| (*row.0 != abi::SAMPLE_NOT_FINITE).then(|| drawn(row))).collect())
}
