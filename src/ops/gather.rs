//! Rows of a matrix by number: the hidden states that go through the output head, the tokens that a metric looks at.

use super::check;
#[cfg(feature = "cuda")]
use crate::device::{
    Backend,
    cuda::{Grid, abi::embedding_params},
};
use crate::device::{Cost, DType, Device, Op, Tensor};
use crate::error::{Error, Result};

/// `y[i, :] = x[rows[i], :]`. `y`: `[n, width]` of the dtype of `x`, `x`: float `[tokens, width]`, `rows`: U32 `[n]`.
///
/// Errors on a row that `x` does not have.
pub fn gather_rows(dev: &Device, y: &mut Tensor, x: &Tensor, rows: &Tensor) -> Result<()> {
    let (n, width) = (rows.rows(), x.row_len());
    check("gather_rows", "rows", rows, DType::U32, &[n])?;
    check("gather_rows", "y", y, x.dtype(), &[n, width])?;
    if let Some(row) = rows.u32().iter().find(|&&row| row as usize >= x.rows()) {
        return Err(Error::shape("gather_rows", "rows", format!("rows below {}", x.rows()), row.to_string()));
    }
    let row_bytes = width * x.dtype().size();
    let _span = dev.span(Op::Gather, Cost { flops: 0, bytes: (n * (2 * row_bytes + 4)) as u64 });
    #[cfg(feature = "cuda")]
    if let Backend::Cuda(cuda) = dev.backend() {
        // A lookup in a table.
        let (y, table, ids) = (y.kernel_mut(cuda)?, x.kernel_ptr(cuda)?, rows.kernel_ptr(cuda)?);
        let params = embedding_params { y, table, ids, hidden: width as u32 };
        return cuda.launch_dependent("embedding", Grid::rows(n, width), &params, &[]);
    }
    let from = x.bytes();
    for (to, &row) in y.bytes_mut().chunks_exact_mut(row_bytes.max(1)).zip(rows.u32()) {
        to.copy_from_slice(&from[row as usize * row_bytes..][..row_bytes]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{random_tensor, to_bf16, unwritten};

    #[test]
    fn rows_come_in_the_order_asked_for_and_unknown_ones_are_refused() {
        let x = random_tensor(&[5, 3], 1);
        let rows = Tensor::from_u32(&[4, 0, 4]);
        let mut y = unwritten(&[3, 3]);
        gather_rows(&Device::cpu(), &mut y, &x, &rows).unwrap();
        assert_eq!(y.f32(), [&x.f32()[12..], &x.f32()[..3], &x.f32()[12..]].concat());
        let half = to_bf16(&x);
        let mut y = Tensor::zeros(&[3, 3], DType::BF16);
        gather_rows(&Device::cpu(), &mut y, &half, &rows).unwrap();
        assert_eq!(y.bf16()[6..], half.bf16()[12..]);
        let error = gather_rows(&Device::cpu(), &mut y, &half, &Tensor::from_u32(&[0, 5, 1])).unwrap_err().to_string();
        assert_eq!(error, "gather_rows: rows: expected rows below 5, found 5");
    }
}
