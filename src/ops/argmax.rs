//! Greedy choice: the index of the largest logit.

use super::check;
use super::log_sum_exp::max;
use crate::device::{Cost, DType, Device, Op, Tensor};
use crate::error::{Error, Result};

/// Index of the largest value of a row, the lowest of equal ones; 0 when no value is above negative infinity. NaN is never
/// chosen.
pub fn row(values: &[f32]) -> usize {
    let max = max(values);
    values.iter().position(|&v| v == max).unwrap_or(0)
}

/// `ids[t] = argmax_i logits[t, i]`, ties to the lowest id. `ids`: U32 `[rows]`, `logits`: F32 `[rows, vocab]`, `vocab` >= 1.
pub fn argmax(dev: &Device, ids: &mut Tensor, logits: &Tensor) -> Result<()> {
    let (rows, vocab) = (logits.rows(), logits.row_len());
    check("argmax", "ids", ids, DType::U32, &[rows])?;
    check("argmax", "logits", logits, DType::F32, &[rows, vocab])?;
    if vocab == 0 {
        return Err(Error::shape("argmax", "logits", "at least one column", "none"));
    }
    let n = (rows * vocab) as u64;
    let _span = dev.span(Op::Sample, Cost { flops: n, bytes: 4 * n });
    let logits = logits.host()?;
    for (id, values) in ids.u32_mut().iter_mut().zip(logits.f32().chunks_exact(vocab)) {
        *id = row(values) as u32;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_logits_give_the_lowest_id_and_nan_is_passed_over() {
        let mut logits = vec![f32::NEG_INFINITY; 3 * 40];
        (logits[17], logits[30], logits[39]) = (2.0, 2.0, 1.0);
        (logits[40], logits[79]) = (f32::NAN, -5.0);
        let logits = Tensor::from_f32(&logits, &[3, 40]);
        let mut ids = Tensor::from_u32(&[9; 3]);
        argmax(&Device::cpu(), &mut ids, &logits).unwrap();
        assert_eq!(ids.u32(), [17, 39, 0]);
    }
}
