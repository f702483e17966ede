//! Tensor maps of the copy engine (TMA): `cuTensorMapEncodeTiled`, and the copy of a box into shared memory. bf16, tiles of
//! 128-byte rows with the 128-byte swizzle, zeros outside the tensor: what the kernels use.

use crate::driver::{INVALID_VALUE, SUCCESS, Status};
use crate::memory::MEMORY;
use crate::shared::Shared;
use std::ffi::{c_int, c_uint, c_void};

/// Most axes of a tensor here.
const AXES: usize = 4;
const ELEMENT: u64 = 2;
/// Bytes of a row of a tile, and of a pattern of the swizzle.
const ROW: u32 = 128;
const PATTERN: u32 = 1024;
/// Tells a map from other bytes.
const MARK: u64 = 0x7261_746f_6f6e_746d;

/// What `cuTensorMapEncodeTiled` writes into the 128 bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct TensorMap {
    mark: u64,
    address: u64,
    /// Elements along each axis, the innermost first.
    size: [u64; AXES],
    /// Bytes from one index to the next.
    stride: [u64; AXES],
    boxed: [u32; AXES],
    axes: u32,
    /// Zero: maps of one tensor are the same bytes.
    unused: u32,
}

/// A copy that was started.
pub struct Load {
    map: TensorMap,
    at: [u32; AXES],
    to: u32,
    /// The box, where it was read when the copy was started.
    read: Option<Vec<u8>>,
}

impl Load {
    /// Fills the destination with NaN. Errors for what the copy engine does not do. `ahead`: the kernels before may not have ended, and
    /// the box is read now.
    pub fn new(
        map: &TensorMap,
        axes: u32,
        at: [u32; AXES],
        to: u32,
        ahead: bool,
        shared: &mut Shared,
    ) -> Result<Load, &'static str> {
        if map.mark != MARK || map.axes != axes {
            return Err("a tensor copy without a map of its number of axes");
        }
        if !to.is_multiple_of(PATTERN) {
            return Err("a tensor copy to a place that is no multiple of 1024");
        }
        let mut load = Load { map: *map, at, to, read: None };
        let Some(bytes) = shared.range(to, load.bytes() as usize) else {
            return Err("a tensor copy past shared memory");
        };
        bytes.fill(0xFF);
        load.read = ahead.then(|| load.fetch());
        Ok(load)
    }

    /// Bytes of the box.
    pub fn bytes(&self) -> u64 {
        self.map.boxed.iter().map(|&n| u64::from(n)).product::<u64>() * ELEMENT
    }

    /// The box, row after row.
    fn fetch(&self) -> Vec<u8> {
        let TensorMap { size, stride, boxed, address, .. } = self.map;
        let mut bytes = Vec::with_capacity(self.bytes() as usize);
        for row in 0..self.bytes() / u64::from(ROW) {
            let (mut rest, mut from, mut inside) = (row, address, true);
            for axis in 1..AXES {
                let n = u64::from(boxed[axis]);
                // Coordinates are signed: one below zero is outside as well.
                let index = u64::from(self.at[axis]) + rest % n;
                (inside, from, rest) = (inside && index < size[axis], from + index * stride[axis], rest / n);
            }
            for element in 0..u64::from(ROW) / ELEMENT {
                let index = u64::from(self.at[0]) + element;
                let source = (from + index * ELEMENT) as *const [u8; 2];
                // SAFETY: inside the tensor, which lay in one device buffer when the map was made.
                bytes.extend(if inside && index < size[0] { unsafe { *source } } else { [0; 2] });
            }
        }
        bytes
    }

    /// Copies the box.
    pub fn carry_out(mut self, shared: &mut Shared) {
        let bytes = self.read.take().unwrap_or_else(|| self.fetch());
        for (word, bytes) in (0..).zip(bytes.chunks_exact(16)) {
            let place = self.to + word * 16;
            let place = place ^ (place >> 7 & 7) << 4;
            shared.range(place, 16).expect("checked when the copy was started").copy_from_slice(bytes);
        }
    }
}

/// Refuses what the driver refuses, and what the emulation does not have.
#[unsafe(no_mangle)]
pub extern "C" fn cuTensorMapEncodeTiled(
    map: *mut TensorMap,
    data_type: c_int,
    axes: c_uint,
    address: *mut c_void,
    size: *const u64,
    stride: *const u64,
    boxed: *const c_uint,
    element_stride: *const c_uint,
    interleave: c_int,
    swizzle: c_int,
    _l2_promotion: c_int,
    fill: c_int,
) -> Status {
    const BF16: c_int = 9;
    const SWIZZLE_128B: c_int = 3;
    let refuse = |what: &str| {
        eprintln!("simt: cuTensorMapEncodeTiled: {what}");
        INVALID_VALUE
    };
    let n = axes as usize;
    if !(2..=AXES).contains(&n) || (data_type, interleave, swizzle, fill) != (BF16, 0, SWIZZLE_128B, 0) {
        return refuse("not bf16 of 2 to 4 axes with the 128-byte swizzle and zeros outside");
    }
    // SAFETY: arrays of `axes` numbers, of strides one less, by the driver's contract.
    let (size, stride, boxed, element_stride) = unsafe {
        use std::slice::from_raw_parts;
        (
            from_raw_parts(size, n),
            from_raw_parts(stride, n - 1),
            from_raw_parts(boxed, n),
            from_raw_parts(element_stride, n),
        )
    };
    let mut made = TensorMap {
        mark: MARK,
        address: address as u64,
        size: [1; AXES],
        stride: [ELEMENT, 0, 0, 0],
        boxed: [1; AXES],
        axes,
        unused: 0,
    };
    made.size[..n].copy_from_slice(size);
    made.stride[1..n].copy_from_slice(stride);
    made.boxed[..n].copy_from_slice(boxed);
    if !(address as u64).is_multiple_of(16) || stride.iter().any(|s| !s.is_multiple_of(16) || *s >= 1 << 40) {
        return refuse("an address or stride that is no multiple of 16");
    }
    if size.iter().any(|&s| s == 0 || s > 1 << 32) || element_stride.iter().any(|&s| s != 1) {
        return refuse("a size out of range");
    }
    if boxed.iter().any(|b| !(1..=256).contains(b)) || boxed[0] * ELEMENT as u32 != ROW {
        return refuse("a box that is not of 64 by at most 256 elements");
    }
    let last: u64 = made.size.iter().zip(made.stride).map(|(n, stride)| (n - 1) * stride).sum();
    if !MEMORY.holds(address as usize, (last + ELEMENT) as usize) {
        return refuse("a tensor that leaves its buffer");
    }
    // SAFETY: 128 bytes by the driver's contract.
    unsafe { map.write(made) };
    SUCCESS
}
