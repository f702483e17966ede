//! Row lookup: `y[t] = table[ids[t]]`.

use super::{check, check_weight};
use crate::device::{Cost, DType, Device, Op, Tensor};
use crate::error::{Error, Result};

/// `y[t, :] = table[ids[t], :]`. `y`: F32 `[tokens, hidden]`, `table`: float `[vocab, hidden]`, `ids`: U32 `[tokens]`.
///
/// Errors when an id is not below `vocab`.
pub fn embedding(dev: &Device, y: &mut Tensor, table: &Tensor, ids: &Tensor) -> Result<()> {
    let (tokens, hidden, vocab) = (ids.rows(), table.row_len(), table.rows());
    check("embedding", "y", y, DType::F32, &[tokens, hidden])?;
    check_weight("embedding", "table", table, &[vocab, hidden])?;
    check("embedding", "ids", ids, DType::U32, &[tokens])?;
    let bytes = tokens * hidden * (4 + table.dtype().size()) + tokens * 4;
    let _span = dev.span(Op::Embedding, Cost { flops: 0, bytes: bytes as u64 });
    for (row, &id) in y.f32_mut().chunks_exact_mut(hidden).zip(ids.u32()) {
        if id as usize >= vocab {
            return Err(Error::shape("embedding", "ids", format!("ids below {vocab}"), id.to_string()));
        }
        table.read_f32(id as usize * hidden, row);
    }
    Ok(())
}
