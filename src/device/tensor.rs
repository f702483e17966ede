//! A dense row-major array.

#[cfg(feature = "cuda")]
use super::Backend;
use super::buffer::{HostBuffer, MappedSlice};
#[cfg(feature = "cuda")]
use super::cuda::{Buffer, Cuda, Element, Indices};
use super::{DType, Device};
use crate::error::{Error, Result};
use half::{bf16, f16, slice::HalfFloatSliceExt};
use rayon::prelude::*;

enum Storage {
    Host(HostBuffer),
    Mapped(MappedSlice),
    #[cfg(feature = "cuda")]
    Cuda(Buffer),
}

/// A dense row-major array. Activations are `[tokens, features]`, weights `[out_features, in_features]`.
///
/// A tensor that was made for `n` rows can be [reused for fewer](Tensor::set_rows), so that buffers are planned once.
///
/// Ids, positions and offsets (U32) stay on the host, where shapes are checked and costs counted; the first kernel that reads
/// such a tensor leaves a copy of it on the card, for those that follow.
pub struct Tensor {
    shape: Vec<usize>,
    /// Rows that it was made for.
    room: usize,
    dtype: DType,
    storage: Storage,
    /// The card's copy of a U32 tensor on the host.
    #[cfg(feature = "cuda")]
    indices: Indices,
}

/// A tensor's elements on the host: the tensor itself, or a copy of what lies on a card.
pub enum OnHost<'a> {
    /// It is there already.
    Itself(&'a Tensor),
    /// What the card had when it was asked for.
    Copy(Box<Tensor>),
}

impl std::ops::Deref for OnHost<'_> {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        match self {
            OnHost::Itself(tensor) => tensor,
            OnHost::Copy(tensor) => tensor,
        }
    }
}

impl Tensor {
    /// Zeros on the host.
    pub fn zeros(shape: &[usize], dtype: DType) -> Tensor {
        let elements: usize = shape.iter().product();
        Tensor::new(shape, dtype, Storage::Host(HostBuffer::zeroed(elements * dtype.size())))
    }

    fn new(shape: &[usize], dtype: DType, storage: Storage) -> Tensor {
        Tensor {
            shape: shape.to_vec(),
            room: shape.first().copied().unwrap_or(1),
            dtype,
            storage,
            #[cfg(feature = "cuda")]
            indices: Indices::default(),
        }
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

    /// [`Tensor::from_u32`] with room for `room` values: copies on a card then have one size however many values there are.
    pub fn from_u32_in(values: &[u32], room: usize) -> Tensor {
        let mut tensor = Tensor::zeros(&[room.max(values.len())], DType::U32);
        tensor.shape[0] = values.len();
        tensor.u32_mut().copy_from_slice(values);
        tensor
    }

    /// Zeros in the device's memory, on a card with room for `room` rows. [`Error::Budget`] when a card has no room.
    ///
    /// Buffers that come and go in a step have the room of the largest step: so every step asks for the same sizes in the same order
    /// and finds the memory of the one before. Were they as long as their step, a shorter one could take memory that a
    /// later buffer of the same step needs, and that one would have to be allocated long after the first step.
    pub fn zeros_in(dev: &Device, shape: &[usize], room: usize, dtype: DType) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let Backend::Cuda(cuda) = dev.backend() {
            return Tensor::zeros_on_in(cuda, shape, room, dtype);
        }
        let _ = room;
        dev.zeros(shape, dtype)
    }

    /// A tensor over a window of a mapped file; `None` when the window has the wrong length or alignment for the dtype.
    pub fn mapped(slice: MappedSlice, shape: &[usize], dtype: DType) -> Option<Tensor> {
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
        let bytes = slice.bytes();
        let fits = bytes.len() == elements.checked_mul(dtype.size())?;
        let aligned = (bytes.as_ptr() as usize).is_multiple_of(dtype.size());
        (fits && aligned).then(|| Tensor::new(shape, dtype, Storage::Mapped(slice)))
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

    /// Rows that it was made for.
    pub fn room(&self) -> usize {
        self.room
    }

    /// Uses the first `rows` rows of the buffer from now on. Errors when it was made for fewer.
    pub fn set_rows(&mut self, rows: usize) -> Result<()> {
        if rows > self.room {
            let expected = format!("at most {} rows", self.room);
            return Err(Error::shape("set_rows", "rows", expected, rows.to_string()));
        }
        #[cfg(feature = "cuda")]
        self.indices.outdate();
        self.shape[0] = rows;
        Ok(())
    }

    /// The elements as bytes, little-endian. Panics, as all access to elements does, on a tensor in a card's memory: ask
    /// [`Tensor::host`] for those.
    pub fn bytes(&self) -> &[u8] {
        let bytes = match &self.storage {
            Storage::Host(buffer) => buffer.bytes(),
            Storage::Mapped(slice) => slice.bytes(),
            #[cfg(feature = "cuda")]
            Storage::Cuda(_) => panic!("Tensor: the elements are in a card's memory"),
        };
        &bytes[..self.size_bytes()]
    }

    /// The elements as bytes, writable. Panics on a mapped tensor: files are never written through a map.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let len = self.size_bytes();
        #[cfg(feature = "cuda")]
        self.indices.outdate();
        match &mut self.storage {
            Storage::Host(buffer) => &mut buffer.bytes_mut()[..len],
            Storage::Mapped(_) => panic!("Tensor: a mapped file is read-only"),
            #[cfg(feature = "cuda")]
            Storage::Cuda(_) => panic!("Tensor: the elements are in a card's memory"),
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
    pub fn host(&self) -> Result<OnHost<'_>> {
        match &self.storage {
            Storage::Host(_) | Storage::Mapped(_) => Ok(OnHost::Itself(self)),
            #[cfg(feature = "cuda")]
            Storage::Cuda(buffer) => {
                let mut copy = Tensor::zeros(&self.shape, self.dtype);
                buffer.cuda().read(buffer, copy.bytes_mut())?;
                Ok(OnHost::Copy(Box::new(copy)))
            }
        }
    }

    /// Copies the elements of a tensor of the same shape and dtype, from wherever they are to wherever these are.
    pub fn copy_from(&mut self, from: &Tensor) -> Result<()> {
        if self.shape != from.shape || self.dtype != from.dtype {
            let expected = format!("{} {:?}", self.dtype, self.shape);
            return Err(Error::shape("copy_from", "from", expected, format!("{} {:?}", from.dtype, from.shape)));
        }
        #[cfg(feature = "cuda")]
        match (&self.storage, &from.storage) {
            (Storage::Cuda(to), Storage::Cuda(buffer)) => return to.copy_from(0, buffer, from.size_bytes()),
            (Storage::Cuda(to), _) => return to.cuda().write(to, from, from.dtype),
            (_, Storage::Cuda(buffer)) => return buffer.cuda().clone().read(buffer, self.bytes_mut()),
            _ => {}
        }
        self.bytes_mut().copy_from_slice(from.bytes());
        Ok(())
    }

    /// Copies the elements of a host tensor of the same shape and any float dtype, rounded to the nearest of this tensor's.
    pub fn convert_from(&mut self, from: &Tensor) -> Result<()> {
        if self.dtype == from.dtype || self.shape != from.shape {
            return self.copy_from(from);
        }
        #[cfg(feature = "cuda")]
        if let Storage::Cuda(to) = &self.storage {
            return to.cuda().write(to, from, self.dtype);
        }
        convert(from, 0, self.dtype, self.bytes_mut());
        Ok(())
    }

    /// Sets every element to zero.
    pub fn zero(&mut self) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Storage::Cuda(buffer) = &self.storage {
            return buffer.zero(self.size_bytes());
        }
        self.bytes_mut().fill(0);
        Ok(())
    }

    /// Lets the system take back the memory of a mapped tensor, after it was copied; reading it again is allowed.
    pub fn release_mapped(&self) {
        if let Storage::Mapped(slice) = &self.storage {
            slice.release();
        }
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

/// Elements that one thread converts at a time.
const PART: usize = 1 << 16;

/// Writes elements `first ..` of a host tensor to `to` as `dtype`; floats only, unless the dtypes are the same.
pub(super) fn convert(from: &Tensor, first: usize, dtype: DType, to: &mut [u8]) {
    if from.dtype() == dtype {
        let from = &from.bytes()[first * dtype.size()..][..to.len()];
        let parts = to.par_chunks_mut(PART).zip(from.par_chunks(PART));
        return parts.for_each(|(to, from)| to.copy_from_slice(from));
    }
    let parts = to.par_chunks_mut(PART * dtype.size()).enumerate();
    parts.for_each_init(
        || vec![0.0f32; PART],
        |wide, (i, to)| {
            let wide = &mut wide[..to.len() / dtype.size()];
            from.read_f32(first + i * PART, wide);
            match dtype {
                DType::F32 => bytemuck::cast_slice_mut(to).copy_from_slice(wide),
                DType::BF16 => bytemuck::cast_slice_mut::<u8, bf16>(to).convert_from_f32_slice(wide),
                DType::F16 => bytemuck::cast_slice_mut::<u8, f16>(to).convert_from_f32_slice(wide),
                DType::U32 => panic!("Tensor: floats are not converted to U32"),
            }
        },
    );
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let place = match &self.storage {
            Storage::Host(_) => "host".to_string(),
            Storage::Mapped(_) => "mapped".to_string(),
            #[cfg(feature = "cuda")]
            Storage::Cuda(buffer) => buffer.cuda().card.device_name(),
        };
        write!(f, "Tensor({} {:?} {place})", self.dtype, self.shape)
    }
}

/// What the CUDA launches need.
#[cfg(feature = "cuda")]
impl Tensor {
    /// Zeros on a card.
    pub(super) fn zeros_on(cuda: &std::sync::Arc<Cuda>, shape: &[usize], dtype: DType) -> Result<Tensor> {
        Tensor::zeros_on_in(cuda, shape, 0, dtype)
    }

    /// [`Tensor::zeros_in`] on a card; `room` may be less than the rows that there are.
    fn zeros_on_in(cuda: &std::sync::Arc<Cuda>, shape: &[usize], room: usize, dtype: DType) -> Result<Tensor> {
        let row_bytes = shape.iter().skip(1).product::<usize>() * dtype.size();
        let rows = shape.first().copied().unwrap_or(1);
        let room = room.max(rows);
        let buffer = cuda.allocate(room * row_bytes)?;
        buffer.zero(rows * row_bytes)?;
        Ok(Tensor { room, ..Tensor::new(shape, dtype, Storage::Cuda(buffer)) })
    }

    /// Copies the rows of another tensor on the card to row `first` and those after it.
    pub(crate) fn copy_rows_from(&mut self, from: &Tensor, first: usize) -> Result<()> {
        match (&self.storage, &from.storage) {
            (Storage::Cuda(to), Storage::Cuda(rows))
                if self.dtype == from.dtype && self.row_len() == from.row_len() =>
            {
                to.copy_from(first * self.row_len() * self.dtype.size(), rows, from.size_bytes())
            }
            _ => Err(Error::shape("copy_rows_from", "from", format!("{self:?}"), format!("{from:?}"))),
        }
    }

    /// Where a kernel on the card reads the elements; `T` is their type in `kernels/abi.h`. Errors for another dtype and for
    /// floats on the host.
    pub(crate) fn kernel_ptr<T: Element>(&self, cuda: &std::sync::Arc<Cuda>) -> Result<*const T> {
        let address = match &self.storage {
            Storage::Cuda(buffer) if self.dtype == T::DTYPE => buffer.address(),
            Storage::Host(buffer) if T::DTYPE == DType::U32 && self.dtype == DType::U32 => {
                self.indices.address(cuda, self, buffer.bytes().len())?
            }
            _ => return Err(self.not_for_kernel::<T>(cuda)),
        };
        Ok(address as *const T)
    }

    /// Where a kernel on the card writes the elements. Errors for another dtype and for a tensor on the host.
    pub(crate) fn kernel_mut<T: Element>(&mut self, cuda: &std::sync::Arc<Cuda>) -> Result<*mut T> {
        match &self.storage {
            Storage::Cuda(buffer) if self.dtype == T::DTYPE => {
                buffer.note_write();
                Ok(buffer.address() as *mut T)
            }
            _ => Err(self.not_for_kernel::<T>(cuda)),
        }
    }

    fn not_for_kernel<T: Element>(&self, cuda: &Cuda) -> Error {
        Error::shape("kernel", "tensor", format!("{} on {}", T::DTYPE, cuda.card.device_name()), format!("{self:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_has_room_for_the_rows_that_it_was_made_for() {
        let mut ids = Tensor::from_u32_in(&[7, 8], 3);
        assert_eq!((ids.u32(), ids.room()), (&[7, 8][..], 3));
        ids.set_rows(3).unwrap();
        assert!(ids.set_rows(4).unwrap_err().to_string().contains("at most 3 rows"));
        assert_eq!(Tensor::from_u32_in(&[7, 8], 0).room(), 2);
    }

    #[test]
    fn conversion_rounds_to_the_nearest_and_back_is_exact() {
        // More than two parts, ties to even both ways, infinity and the largest bf16.
        let mut values: Vec<f32> = (0..2 * PART + 7).map(|i| (i as f32 - 70_000.0) * 0.37).collect();
        values.extend([1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, f32::INFINITY, 3.389e38]);
        let (wide, n) = (Tensor::from_f32(&values, &[values.len()]), values.len());
        let mut half = Tensor::zeros(&[n], DType::BF16);
        half.convert_from(&wide).unwrap();
        assert!(half.bf16().iter().zip(&values).all(|(h, v)| *h == bf16::from_f32(*v)));
        assert_eq!(half.bf16()[n - 4..n - 2].iter().map(|v| v.to_f32()).collect::<Vec<_>>(), [1.0, 1.015625]);
        let mut again = Tensor::zeros(&[n], DType::F32);
        again.convert_from(&half).unwrap();
        assert!(again.f32().iter().zip(half.bf16()).all(|(f, h)| *f == h.to_f32()));
        assert!(half.convert_from(&Tensor::zeros(&[n, 1], DType::F32)).is_err(), "another shape");
    }
}
