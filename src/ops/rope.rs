//! Rotary position embedding (Su et al. 2021), in the "rotate halves" layout of Hugging Face's Llama.

use super::check;
use crate::device::{Cost, DType, Device, Op, Tensor};
use crate::error::{Error, Result};

/// Rotates each head of `x` in place by the angles of its token's position.
///
/// `x`: F32 `[tokens, heads * head_dim]`, `positions`: U32 `[tokens]`, `inv_freq`: F32 `[head_dim / 2]`, radians per position.
/// With `a = x[i]`, `b = x[i + head_dim / 2]`: `a' = a cos - b sin`, `b' = b cos + a sin`.
pub fn rope(dev: &Device, x: &mut Tensor, positions: &Tensor, inv_freq: &Tensor) -> Result<()> {
    let half = inv_freq.elements();
    let (tokens, width) = (x.rows(), x.row_len());
    check("rope", "positions", positions, DType::U32, &[tokens])?;
    if half == 0 || !width.is_multiple_of(2 * half) {
        return Err(Error::shape("rope", "x", format!("rows of whole heads of {}", 2 * half), format!("{width}")));
    }
    let n = (tokens * width) as u64;
    let _span = dev.span(Op::Rope, Cost { flops: 3 * n, bytes: 8 * n });
    for (row, &position) in x.f32_mut().chunks_exact_mut(width).zip(positions.u32()) {
        for head in row.chunks_exact_mut(2 * half) {
            let (a, b) = head.split_at_mut(half);
            for ((a, b), f) in a.iter_mut().zip(b).zip(inv_freq.f32()) {
                let (sin, cos) = (position as f32 * f).sin_cos();
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
    Ok(())
}

/// Gradient of [`rope`], in place: the rotation by the opposite angles. Arguments as there.
pub fn rope_backward(dev: &Device, dx: &mut Tensor, positions: &Tensor, inv_freq: &Tensor) -> Result<()> {
    let half = inv_freq.elements();
    let (tokens, width) = (dx.rows(), dx.row_len());
    check("rope_backward", "positions", positions, DType::U32, &[tokens])?;
    if half == 0 || !width.is_multiple_of(2 * half) {
        return Err(Error::shape(
            "rope_backward",
            "dx",
            format!("rows of whole heads of {}", 2 * half),
            format!("{width}"),
        ));
    }
    let n = (tokens * width) as u64;
    let _span = dev.span(Op::RopeBackward, Cost { flops: 3 * n, bytes: 8 * n });
    for (row, &position) in dx.f32_mut().chunks_exact_mut(width).zip(positions.u32()) {
        for head in row.chunks_exact_mut(2 * half) {
            let (a, b) = head.split_at_mut(half);
            for ((a, b), f) in a.iter_mut().zip(b).zip(inv_freq.f32()) {
                let (sin, cos) = (position as f32 * f).sin_cos();
                (*a, *b) = (*a * cos + *b * sin, *b * cos - *a * sin);
            }
        }
    }
    Ok(())
}
