//! The operations, one room each: contract, cost, public function, CPU implementation, tests.
//!
//! Destination first, nothing allocated: `rmsnorm(dev, &mut y, &x, &w, eps)`. Each call checks its shapes, books its cost in
//! the ledger and runs on the device. Activations are F32 `[tokens, features]`; sequences are packed end to end and told
//! apart by `cu_seqlens` (`[sequences + 1]`, U32, starting at 0); weights may be F32, F16 or BF16.
//!
//! Every reduction has one order that does not depend on how many rows or sequences run beside it, so a token's numbers
//! are the same whatever the batch.

pub mod adamw;
pub mod adamw_8bit;
pub mod angle;
pub mod argmax;
pub mod attention;
pub mod bias;
pub mod copy;
pub mod cross_entropy;
mod cross_entropy_cpu;
pub mod divergence;
pub mod dropout;
mod element;
pub mod embedding;
pub mod gather;
pub mod grad_norm;
#[cfg(feature = "cuda")]
mod largest;
pub mod log_probs;
mod log_sum_exp;
pub mod matmul;
mod parallel;
pub mod philox;
pub mod rmsnorm;
pub mod rope;
mod rounding;
pub mod sample;
pub mod scale;
mod scratch;
mod simd;
pub mod swiglu;
mod team;
#[cfg(test)]
mod testing;

use crate::device::{DType, Tensor};
use crate::error::{Error, Result};

/// Checks a shape and dtype, naming the operation and argument when they do not fit.
pub(crate) fn check(op: &'static str, argument: &'static str, t: &Tensor, dtype: DType, shape: &[usize]) -> Result<()> {
    if t.dtype() == dtype && t.shape() == shape {
        return Ok(());
    }
    Err(Error::shape(op, argument, format!("{dtype} {shape:?}"), format!("{} {:?}", t.dtype(), t.shape())))
}

/// Checks activations, which are F32 or BF16.
pub(crate) fn check_activations(op: &'static str, argument: &'static str, t: &Tensor, shape: &[usize]) -> Result<()> {
    if matches!(t.dtype(), DType::F32 | DType::BF16) && t.shape() == shape {
        return Ok(());
    }
    Err(Error::shape(op, argument, format!("F32 {shape:?}"), format!("{} {:?}", t.dtype(), t.shape())))
}

/// Checks the shape of a weight, which may have any float dtype.
pub(crate) fn check_weight(op: &'static str, argument: &'static str, t: &Tensor, shape: &[usize]) -> Result<()> {
    if t.dtype() != DType::U32 && t.shape() == shape {
        return Ok(());
    }
    Err(Error::shape(op, argument, format!("float {shape:?}"), format!("{} {:?}", t.dtype(), t.shape())))
}
