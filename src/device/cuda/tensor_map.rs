//! Tensors as the copy engine of compute capability 9.0 (TMA) sees them.

use super::abi;
use cudarc::driver::{DriverError, sys};
use std::ffi::c_void;

/// Bytes that an address and every stride of a tensor are a multiple of.
pub(crate) const ALIGNMENT: usize = 16;

/// Describes a dense tensor of bf16 at `address` on the card, of `size` elements along its axes, the innermost first, which is
/// copied in boxes of `boxed` elements, 64 along the innermost axis: zeros outside the tensor, in the order of the 128-byte
/// swizzle (`kernels/tile_sm90.cuh`). Two to five axes. Errors where the driver refuses: a row that is no multiple of
/// [`ALIGNMENT`], more than 256 elements of a box along an axis.
pub(crate) fn encode<const AXES: usize>(
    address: u64,
    size: [usize; AXES],
    boxed: [usize; AXES],
) -> Result<abi::tensor_map, DriverError> {
    let mut map = abi::tensor_map { words: [0; 16] };
    // Bytes from one index to the next, of all axes but the innermost.
    let mut strides = [0; AXES];
    let mut bytes = size_of::<abi::bf16>() as u64;
    for (stride, n) in strides.iter_mut().zip(size) {
        bytes *= n as u64;
        *stride = bytes;
    }
    let (size, boxed) = (size.map(|n| n as u64), boxed.map(|n| n as u32));
    // SAFETY: the map is 128 bytes, aligned to 128; the arrays have AXES elements, of which the driver reads one stride less.
    unsafe {
        sys::cuTensorMapEncodeTiled(
            std::ptr::from_mut(&mut map).cast(),
            sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            AXES as u32,
            address as *mut c_void,
            size.as_ptr(),
            strides.as_ptr(),
            boxed.as_ptr(),
            [1; AXES].as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    }
    .result()?;
    Ok(map)
}
