//! How precisely products are computed and weights kept.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What the inputs of matrix products and of attention are rounded to. Sums, softmax, norms and the residual stream are F32
/// in both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Compute {
    /// Nothing: F32 activations times the weights as stored. The reference, and what measures of quality use.
    #[default]
    F32,
    /// Both sides rounded to BF16 (nearest, ties to even), products summed in F32: twice the speed where the processor has
    /// AVX-512 BF16, the same bits everywhere else. Keys and values are cached in BF16.
    Bf16,
}

impl fmt::Display for Compute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Compute::F32 => "f32",
            Compute::Bf16 => "bf16",
        })
    }
}

/// How the weights of products are kept for inference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Weights {
    /// As the model stores them. Products of bf16 with AVX-512 BF16 keep them in 12 bits, the same to the bit.
    #[default]
    Stored,
    /// Integers of 8 bits with a scale for each 32 of a row; activations are quantised likewise in each product. Half the
    /// memory traffic of bf16, another result.
    Int8,
}
