//! Row lookup: `y[t] = table[ids[t]]`.

use super::parallel::{self, rows_per_task};
use super::{check, check_weight};
#[cfg(feature = "cuda")]
use crate::device::{
    Backend,
    cuda::{
        Grid,
        abi::{embedding_backward_params, embedding_params},
    },
};
use crate::device::{Cost, DType, Device, Op, Tensor};
use crate::error::{Error, Result};

/// `y[t, :] = table[ids[t], :]`. `y`: F32 `[tokens, hidden]`, `table`: float `[vocab, hidden]`, `ids`: U32 `[tokens]`.
///
/// Errors when an id is not below `vocab`.
pub fn embedding(dev: &Device, y: &mut Tensor, table: &Tensor, ids: &Tensor) -> Result<()> {
    let (tokens, hidden, vocab) = (ids.rows(), table.row_len(), table.rows());
    check("embedding", "y", y, dev.activation(), &[tokens, hidden])?;
    check_weight("embedding", "table", table, &[vocab, hidden])?;
    check("embedding", "ids", ids, DType::U32, &[tokens])?;
    let bytes = tokens * hidden * (y.dtype().size() + table.dtype().size()) + tokens * 4;
    let _span = dev.span(Op::Embedding, Cost { flops: 0, bytes: bytes as u64 });
    check_ids("embedding", ids, vocab)?;
    #[cfg(feature = "cuda")]
    if let Backend::Cuda(cuda) = dev.backend() {
        let (y, table, ids) = (y.kernel_mut(cuda)?, table.kernel_ptr(cuda)?, ids.kernel_ptr(cuda)?);
        let params = embedding_params { y, table, ids, hidden: hidden as u32 };
        return cuda.launch_dependent("embedding", Grid::rows(tokens, hidden), &params, &[]);
    }
    let rows = rows_per_task(tokens, hidden);
    let tasks = y.f32_mut().chunks_mut((rows * hidden).max(1)).zip(ids.u32().chunks(rows));
    parallel::for_each(tasks, |(y, ids)| {
        for (row, &id) in y.chunks_exact_mut(hidden).zip(ids) {
            table.read_f32(id as usize * hidden, row);
        }
    });
    Ok(())
}

/// Errors when an id is not below `vocab`.
fn check_ids(op: &'static str, ids: &Tensor, vocab: usize) -> Result<()> {
    match ids.u32().iter().find(|&&id| id as usize >= vocab) {
        Some(id) => Err(Error::shape(op, "ids", format!("ids below {vocab}"), id.to_string())),
        None => Ok(()),
    }
}

/// `d_table[ids[t], :] += dy[t, :]`. `d_table`: F32 `[vocab, hidden]`, `dy`: F32 `[tokens, hidden]`, `ids`: U32 `[tokens]`.
///
/// Rows with the same id are added in the order of their tokens. Errors when an id is not below `vocab`.
pub fn embedding_backward(dev: &Device, d_table: &mut Tensor, dy: &Tensor, ids: &Tensor) -> Result<()> {
    let (tokens, hidden, vocab) = (ids.rows(), d_table.row_len(), d_table.rows());
    check("embedding_backward", "dy", dy, dev.activation(), &[tokens, hidden])?;
    check("embedding_backward", "d_table", d_table, DType::F32, &[vocab, hidden])?;
    check("embedding_backward", "ids", ids, DType::U32, &[tokens])?;
    check_ids("embedding_backward", ids, vocab)?;
    let n = (tokens * hidden) as u64;
    let _span =
        dev.span(Op::EmbeddingBackward, Cost { flops: n, bytes: dy.size_bytes() as u64 + 8 * n + 4 * tokens as u64 });
    if n == 0 {
        return Ok(());
    }
    #[cfg(feature = "cuda")]
    if let Backend::Cuda(cuda) = dev.backend() {
        let (d_table, dy, ids) = (d_table.kernel_mut(cuda)?, dy.kernel_ptr(cuda)?, ids.kernel_ptr(cuda)?);
        let params = embedding_backward_params { d_table, dy, ids, tokens: tokens as u32, hidden: hidden as u32 };
        return cuda.launch("embedding_backward", Grid::blocks(tokens), &params);
    }
    // Each task owns a range of ids and looks at every token, so no two tasks meet in a row of the table.
    let rows = vocab.div_ceil(if n < 1 << 15 { 1 } else { 64 });
    let tasks = d_table.f32_mut().chunks_mut(rows * hidden).enumerate();
    parallel::for_each(tasks, |(task, d_table)| {
        for (dy, &id) in dy.f32().chunks_exact(hidden).zip(ids.u32()) {
            if id as usize / rows == task {
                let row = (id as usize - task * rows) * hidden;
                d_table[row..row + hidden].iter_mut().zip(dy).for_each(|(d, dy)| *d += dy);
            }
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{bits, random_tensor, to_bf16, unwritten};

    #[test]
    fn rows_are_looked_up_in_every_dtype_and_unknown_ids_are_refused() {
        let table = random_tensor(&[11, 7], 1);
        let half = to_bf16(&table);
        let ids = Tensor::from_u32(&[10, 0, 10]);
        let mut y = unwritten(&[3, 7]);
        embedding(&Device::cpu(), &mut y, &half, &ids).unwrap();
        assert_eq!(y.f32()[7..14], half.to_f32().f32()[..7]);
        assert_eq!(y.f32()[14..], half.to_f32().f32()[70..]);
        let error = embedding(&Device::cpu(), &mut y, &table, &Tensor::from_u32(&[0, 11, 1])).unwrap_err().to_string();
        assert!(error.contains("ids below 11") && error.contains("found 11"), "{error}");
    }

    #[test]
    fn repeated_ids_are_added_in_the_order_of_tokens() {
        let (tokens, hidden, vocab) = (3000, 13, 100);
        let ids: Vec<u32> = (0..tokens as u32).map(|t| t * t % 97).collect();
        let dy = random_tensor(&[tokens, hidden], 2);
        let mut got = random_tensor(&[vocab, hidden], 3);
        let mut want = got.f32().to_vec();
        for (t, &id) in ids.iter().enumerate() {
            for i in 0..hidden {
                want[id as usize * hidden + i] += dy.f32()[t * hidden + i];
            }
        }
        embedding_backward(&Device::cpu(), &mut got, &dy, &Tensor::from_u32(&ids)).unwrap();
        assert_eq!(bits(got.f32()), bits(&want));
    }
}
