//! A weight in the order in which the tiles read it: made once, for inference.

use super::int8;
use super::lossless;
use super::pack::{Right, Source};
use super::tile::{Inputs, Isa, Kind, PANEL};
use crate::device::buffer::HostBuffer;
use crate::device::{Compute, Cost, DType, Device, Tensor, Weights};
use crate::error::{Error, Result};
use half::f16;
use rayon::prelude::*;

/// A weight `[n, k]` as panels of 32 rows, the last one padded with zeros.
pub struct PackedWeight {
    n: usize,
    k: usize,
    kind: Kind,
    /// Whether the elements were rounded from another dtype, for products of bf16.
    rounded: bool,
    data: HostBuffer,
    /// Blocks of [`Kind::Lossless`] that stay as they are.
    raw: HostBuffer,
}

impl PackedWeight {
    /// Packs a float weight `[out_features, in_features]` for products computed as `compute`: in its own dtype, or rounded to
    /// bf16 where products round it anyway. Errors on another rank or dtype.
    pub fn new(weight: &Tensor, compute: Compute) -> Result<PackedWeight> {
        let kind = match (weight.dtype(), compute) {
            (DType::U32, _) => return Err(Error::shape("PackedWeight", "weight", "a float dtype", "U32")),
            (DType::BF16, _) | (_, Compute::Bf16) => Self::bf16_kind(compute),
            (DType::F32, Compute::F32) => Kind::F32,
            (DType::F16, Compute::F32) => Kind::F16,
        };
        Self::of_kind(weight, kind)
    }

    /// Packs a float weight as the device wants it: [`PackedWeight::new`] or [`PackedWeight::int8`].
    pub fn for_device(dev: &Device, weight: &Tensor) -> Result<PackedWeight> {
        match dev.weights() {
            Weights::Stored => Self::new(weight, dev.compute()),
            Weights::Int8 => Self::int8(weight),
        }
    }

    /// Packs a float weight as integers of 8 bits with a scale for each 32 of a row, 8.5 bits a weight (see `int8.rs`); products
    /// then quantise their activations likewise, whatever the device computes. Errors as [`PackedWeight::new`].
    pub fn int8(weight: &Tensor) -> Result<PackedWeight> {
        if weight.dtype() == DType::U32 {
            return Err(Error::shape("PackedWeight", "weight", "a float dtype", "U32"));
        }
        Self::of_kind(weight, Kind::Int8)
    }

    /// Packs a float weight as panels of `kind`, or of [`Kind::Bf16`] where [`Kind::Lossless`] would not pay.
    pub(super) fn of_kind(weight: &Tensor, kind: Kind) -> Result<PackedWeight> {
        if weight.shape().len() != 2 {
            let found = format!("{:?}", weight.shape());
            return Err(Error::shape("PackedWeight", "weight", "[out_features, in_features]", found));
        }
        let (n, k) = (weight.rows(), weight.row_len());
        let rounded = matches!(kind, Kind::Bf16 | Kind::Lossless) && weight.dtype() != DType::BF16;
        if kind == Kind::Lossless {
            return Ok(match lossless::pack(weight) {
                Some((data, raw)) => PackedWeight { n, k, kind, rounded, data, raw },
                None => Self::of_kind(weight, Kind::Bf16)?,
            });
        }
        let bytes = kind.bytes(k);
        let mut data = HostBuffer::zeroed(n.div_ceil(PANEL) * bytes);
        data.bytes_mut().par_chunks_exact_mut(bytes.max(1)).enumerate().for_each(|(i, out)| {
            let (first, columns) = (i * PANEL, PANEL.min(n - i * PANEL));
            let right = Right::Rows(weight, 0);
            match kind {
                Kind::F32 => right.pack(bytemuck::cast_slice_mut(out), (n, k), first, columns, 0, k),
                Kind::Bf16 | Kind::Lossless => {
                    right.pack_pairs(bytemuck::cast_slice_mut(out), (n, k), first, columns, 0, k)
                }
                Kind::Int8 => int8::pack_panel(out, Source::of(weight, 0), k, first, columns),
                Kind::F16 => {
                    let mut panel = vec![0.0f32; PANEL * k];
                    right.pack(&mut panel, (n, k), first, columns, 0, k);
                    let halves: &mut [f16] = bytemuck::cast_slice_mut(out);
                    halves.iter_mut().zip(&panel).for_each(|(half, v)| *half = f16::from_f32(*v));
                }
            }
        });
        Ok(PackedWeight { n, k, kind, rounded, data, raw: HostBuffer::zeroed(0) })
    }

    /// Errors unless products computed as `compute` can use these panels.
    pub(super) fn check(&self, op: &'static str, compute: Compute) -> Result<()> {
        let fits = self.kind == Kind::Int8
            || match compute {
                Compute::F32 => !self.rounded,
                Compute::Bf16 => matches!(self.kind, Kind::Bf16 | Kind::Lossless),
            };
        if fits {
            return Ok(());
        }
        Err(Error::shape(op, "w", format!("a weight packed for {compute} products"), format!("{self:?}")))
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
        self.data.bytes().len() + self.raw.bytes().len()
    }

    /// Bytes that so many trained weights take, packed for products of bf16.
    pub(crate) fn plan_bytes(weights: u64) -> u64 {
        match Self::bf16_kind(Compute::Bf16) {
            Kind::Lossless => weights * lossless::bytes(lossless::BLOCK) as u64 / (PANEL * lossless::BLOCK) as u64,
            _ => 2 * weights,
        }
    }

    /// How weights of bf16, or rounded to it, are packed for products computed as `compute`.
    fn bf16_kind(compute: Compute) -> Kind {
        if compute == Compute::Bf16 && Isa::best().restores(Inputs::Bf16) { Kind::Lossless } else { Kind::Bf16 }
    }

    /// Fewest bytes that a product with rows of `m` activations and `n` of the weight's rows moves.
    pub(super) fn cost(&self, m: usize, n: usize) -> Cost {
        let mut cost = super::cost(m, n, self.k, 0);
        cost.bytes += (n * self.kind.bytes(self.k) / PANEL) as u64;
        cost
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// The blocks that panels of [`Kind::Lossless`] name by their place.
    pub(super) fn raw(&self) -> &[u8] {
        self.raw.bytes()
    }

    /// The panels from the one that holds row `first` (a multiple of [`PANEL`]) on.
    pub(super) fn panels(&self, first: usize) -> &[u8] {
        &self.data.bytes()[first / PANEL * self.kind.bytes(self.k)..]
    }
}

impl std::fmt::Debug for PackedWeight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackedWeight({:?} [{}, {}])", self.kind, self.n, self.k)
    }
}
