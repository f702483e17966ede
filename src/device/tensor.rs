//! A dense row-major array.

use super::DType;
use super::buffer::{HostBuffer, MappedSlice};
use crate::error::{Error, Result};
use half::{bf16, f16, slice::HalfFloatSliceExt};

enum Storage {
    Host(HostBuffer),
    Mapped(MappedSlice),
}

/// A dense row-major array. Activations are `[tokens, features]`, weights `[out_features, in_features]`.
///
/// A tensor that was made for `n` rows can be [reused for fewer](Tensor::set_rows), so that buffers are planned once.
pub struct Tensor {
    shape: Vec<usize>,
    dtype: DType,
    storage: Storage,
}

impl Tensor {
    /// Zeros on the host.
    pub fn zeros(shape: &[usize], dtype: DType) -> Tensor {
        let elements: usize = shape.iter().product();
        Tensor { shape: shape.to_vec(), dtype, storage: Storage::Host(HostBuffer::zeroed(elements * dtype.size())) }
    }

    /// A copy of `values` with `shape`. Panics when the counts differ: shapes are the caller's own.
    pub fn from_f32(values: &[f32], shape: &[usize]) -> Tensor {
        assert_eq!(values.len(), shape.iter().product::<usize>(), "Tensor::from_f32: shape {shape:?}");
        let mut tensor = Tensor::zeros(shape, DType::F32);
        tensor.f32_mut().copy_from_slice(values);
        tensor
    }

    /// A copy of `values` as a vector of ids, positions or offsets.
    pub fn from_u32(values: &[u32]) -> Tensor {
        let mut tensor = Tensor::zeros(&[values.len()], DType::U32);
        tensor.u32_mut().copy_from_slice(values);
        tensor
    }

    /// A tensor over a window of a mapped file; `None` when the window has the wrong length or alignment for the dtype.
    pub fn mapped(slice: MappedSlice, shape: &[usize], dtype: DType) -> Option<Tensor> {
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
        let bytes = slice.bytes();
        let fits = bytes.len() == elements.checked_mul(dtype.size())?;
        let aligned = (bytes.as_ptr() as usize).is_multiple_of(dtype.size());
        (fits && aligned).then(|| Tensor { shape: shape.to_vec(), dtype, storage: Storage::Mapped(slice) })
    }

    /// Dimensions, slowest first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Size of the first dimension.
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Elements in one row: the product of all dimensions but the first.
    pub fn row_len(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Bytes of the elements.
    pub fn size_bytes(&self) -> usize {
        self.elements() * self.dtype.size()
    }

    /// Uses the first `rows` rows of the buffer from now on. Errors when the buffer is smaller than that.
    pub fn set_rows(&mut self, rows: usize) -> Result<()> {
        let needed = rows * self.row_len() * self.dtype.size();
        let capacity = match &self.storage {
            Storage::Host(buffer) => buffer.bytes().len(),
            Storage::Mapped(slice) => slice.bytes().len(),
        };
        if needed > capacity {
            let row_bytes = (self.row_len() * self.dtype.size()).max(1);
            let expected = format!("at most {} rows", capacity / row_bytes);
            return Err(Error::shape("set_rows", "rows", expected, rows.to_string()));
        }
        self.shape[0] = rows;
        Ok(())
    }

    /// The elements as bytes, little-endian.
    pub fn bytes(&self) -> &[u8] {
        let bytes = match &self.storage {
            Storage::Host(buffer) => buffer.bytes(),
            Storage::Mapped(slice) => slice.bytes(),
        };
        &bytes[..self.size_bytes()]
    }

    /// The elements as bytes, writable. Panics on a mapped tensor: files are never written through a map.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let len = self.size_bytes();
        match &mut self.storage {
            Storage::Host(buffer) => &mut buffer.bytes_mut()[..len],
            Storage::Mapped(_) => panic!("Tensor: a mapped file is read-only"),
        }
    }

    /// Elements of an F32 tensor. Panics on another dtype.
    pub fn f32(&self) -> &[f32] {
        self.expect(DType::F32);
        bytemuck::cast_slice(self.bytes())
    }

    /// Elements of an F32 tensor, writable. Panics on another dtype or a mapped tensor.
    pub fn f32_mut(&mut self) -> &mut [f32] {
        self.expect(DType::F32);
        bytemuck::cast_slice_mut(self.bytes_mut())
    }

    /// Elements of a BF16 tensor. Panics on another dtype.
    pub fn bf16(&self) -> &[bf16] {
        self.expect(DType::BF16);
        bytemuck::cast_slice(self.bytes())
    }

    /// Elements of a BF16 tensor, writable. Panics on another dtype or a mapped tensor.
    pub fn bf16_mut(&mut self) -> &mut [bf16] {
        self.expect(DType::BF16);
        bytemuck::cast_slice_mut(self.bytes_mut())
    }

    /// Elements of an F16 tensor. Panics on another dtype.
    pub fn f16(&self) -> &[f16] {
        self.expect(DType::F16);
        bytemuck::cast_slice(self.bytes())
    }

    /// Elements of a U32 tensor. Panics on another dtype.
    pub fn u32(&self) -> &[u32] {
        self.expect(DType::U32);
        bytemuck::cast_slice(self.bytes())
    }

    /// Elements of a U32 tensor, writable. Panics on another dtype or a mapped tensor.
    pub fn u32_mut(&mut self) -> &mut [u32] {
        self.expect(DType::U32);
        bytemuck::cast_slice_mut(self.bytes_mut())
    }

    /// Elements `start .. start + out.len()` as f32, whatever the float dtype. Panics on U32.
    pub fn read_f32(&self, start: usize, out: &mut [f32]) {
        let range = start..start + out.len();
        match self.dtype {
            DType::F32 => out.copy_from_slice(&self.f32()[range]),
            DType::BF16 => self.bf16()[range].convert_to_f32_slice(out),
            DType::F16 => self.f16()[range].convert_to_f32_slice(out),
            DType::U32 => panic!("Tensor::read_f32: U32 holds no floats"),
        }
    }

    /// The elements where the host can read them. Every look at what an operation has written goes through here.
    pub fn host(&self) -> Result<&Tensor> {
        Ok(self)
    }

    /// Copies the elements of a tensor of the same shape and dtype.
    pub fn copy_from(&mut self, from: &Tensor) -> Result<()> {
        if self.shape != from.shape || self.dtype != from.dtype {
            let expected = format!("{} {:?}", self.dtype, self.shape);
            return Err(Error::shape("copy_from", "from", expected, format!("{} {:?}", from.dtype, from.shape)));
        }
        self.bytes_mut().copy_from_slice(from.bytes());
        Ok(())
    }

    /// Sets every element to zero.
    pub fn zero(&mut self) -> Result<()> {
        self.bytes_mut().fill(0);
        Ok(())
    }

    /// An owned F32 copy.
    pub fn to_f32(&self) -> Tensor {
        let mut out = Tensor::zeros(&self.shape, DType::F32);
        self.read_f32(0, out.f32_mut());
        out
    }

    fn expect(&self, dtype: DType) {
        assert_eq!(self.dtype, dtype, "Tensor: element type");
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let place = if matches!(self.storage, Storage::Mapped(_)) { "mapped" } else { "host" };
        write!(f, "Tensor({} {:?} {place})", self.dtype, self.shape)
    }
}
