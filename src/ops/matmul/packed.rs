//! A weight in the order in which the tiles read it: made once, for inference.

use super::pack::Right;
use super::tile::{Kind, PANEL};
use crate::device::buffer::HostBuffer;
use crate::device::{DType, Tensor};
use crate::error::{Error, Result};
use half::f16;
use rayon::prelude::*;

/// A weight `[n, k]` as panels `[n / 32][k][32]` of its own dtype, the last one padded with zeros.
pub struct PackedWeight {
    n: usize,
    k: usize,
    kind: Kind,
    data: HostBuffer,
}

impl PackedWeight {
    /// Packs a float weight `[out_features, in_features]`. Errors on another rank or dtype.
    pub fn new(weight: &Tensor) -> Result<PackedWeight> {
        let (n, k) = (weight.rows(), weight.row_len());
        let kind = match weight.dtype() {
            DType::F32 => Kind::F32,
            DType::BF16 => Kind::Bf16,
            DType::F16 => Kind::F16,
            DType::U32 => return Err(Error::shape("PackedWeight", "weight", "a float dtype", "U32")),
        };
        if weight.shape().len() != 2 {
            let found = format!("{:?}", weight.shape());
            return Err(Error::shape("PackedWeight", "weight", "[out_features, in_features]", found));
        }
        let element = weight.dtype().size();
        let mut data = HostBuffer::zeroed(n.div_ceil(PANEL) * PANEL * k * element);
        let bytes = (PANEL * k * element).max(1);
        data.bytes_mut().par_chunks_exact_mut(bytes).enumerate().for_each_init(
            || vec![0.0f32; PANEL * k],
            |panel, (i, out)| {
                let columns = PANEL.min(n - i * PANEL);
                Right::Rows(weight, 0).pack(panel, (n, k), i * PANEL, columns, 0, k);
                narrow(kind, panel, out);
            },
        );
        Ok(PackedWeight { n, k, kind, data })
    }

    /// Rows of the weight.
    pub fn out_features(&self) -> usize {
        self.n
    }

    /// Columns of the weight.
    pub fn in_features(&self) -> usize {
        self.k
    }

    /// Bytes held, padding included.
    pub fn size_bytes(&self) -> usize {
        self.data.bytes().len()
    }

    /// Bytes of one element.
    pub(super) fn element(&self) -> usize {
        if self.kind == Kind::F32 { 4 } else { 2 }
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// The panels from the one that holds row `first` (a multiple of [`PANEL`]) on.
    pub(super) fn panels(&self, first: usize) -> &[u8] {
        &self.data.bytes()[first * self.k * self.element()..]
    }
}

/// Stores packed f32 values, which came from the narrower kind and so fit it exactly.
fn narrow(kind: Kind, panel: &[f32], out: &mut [u8]) {
    match kind {
        Kind::F32 => out.copy_from_slice(bytemuck::cast_slice(panel)),
        Kind::Bf16 => {
            let pairs: &mut [u32] = bytemuck::cast_slice_mut(out);
            for (pairs, row) in pairs.chunks_exact_mut(PANEL / 2).zip(panel.chunks_exact(PANEL)) {
                for (j, pair) in pairs.iter_mut().enumerate() {
                    *pair = row[j].to_bits() >> 16 | row[j + PANEL / 2].to_bits() & 0xffff_0000;
                }
            }
        }
        Kind::F16 => {
            let halves: &mut [f16] = bytemuck::cast_slice_mut(out);
            halves.iter_mut().zip(panel).for_each(|(half, v)| *half = f16::from_f32(*v));
        }
    }
}

impl std::fmt::Debug for PackedWeight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackedWeight({:?} [{}, {}])", self.kind, self.n, self.k)
    }
}
