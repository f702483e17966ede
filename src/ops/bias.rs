//! Gradient of a bias. The forward pass adds it inside [`matmul_nt`](super::matmul::matmul_nt).

use super::check;
use crate::device::{Cost, DType, Device, Op, Tensor};
use crate::error::Result;

/// `db[j] += Σ_t dy[t, j]`, tokens in order. `db`: F32 `[out]`, `dy`: F32 `[tokens, out]`. Error at most `tokens * 2^-24 * Σ|dy|`.
pub fn bias_backward(dev: &Device, db: &mut Tensor, dy: &Tensor) -> Result<()> {
    let (tokens, out) = (dy.rows(), dy.row_len());
    check("bias_backward", "dy", dy, DType::F32, &[tokens, out])?;
    check("bias_backward", "db", db, DType::F32, &[out])?;
    let n = dy.elements() as u64;
    let _span = dev.span(Op::BiasBackward, Cost { flops: n, bytes: 4 * n + 8 * out as u64 });
    for row in dy.f32().chunks_exact(out) {
        db.f32_mut().iter_mut().zip(row).for_each(|(d, y)| *d += y);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bias_gradient_is_the_column_sum_added_to_what_was_there() {
        let mut db = Tensor::from_f32(&[1.0, -1.0, 0.5], &[3]);
        let dy = Tensor::from_f32(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3]);
        bias_backward(&Device::cpu(), &mut db, &dy).unwrap();
        assert_eq!(db.f32(), &[6.0, 6.0, 9.5]);
    }
}
