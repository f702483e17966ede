//! Kernels by name, their parameters by value.
//!
//! # Dependent launches
//!
//! From one kernel's end to the next one's first bytes a card loses some 1 to 3 us: blocks end one by one, the next launch begins,
//! its kernel sets up and asks for data. On compute capability 9.0 a kernel may start when every block of the one before has said
//! that it may (`launch_dependents` in `kernels/ptx.cuh`), and waits itself until those before have ended
//! (`wait_for_prerequisites`). The rules:
//!
//! 1. What [`Cuda::launch_dependent`] launches waits in every block, and each thread before it writes to global memory or reads
//!    what is not named in 2. So when such a kernel has ended, so have all before it, however early each of them started.
//! 2. Before it waits it reads only buffers that its launch names. Where the step has written to one of them, the launch is an
//!    ordinary one.
//! 3. Launches are dependent in graphs alone ([`Cuda::repeat`]), and there behind another launch. The first of a step, and one
//!    behind a fill, wait for everything before: uploads of inputs and changes of weights too.
//! 4. Ordinary launches, fills, copies and the end of a graph wait for the end of the kernel before, by 1 for that of all. A
//!    kernel that does not wait itself is always launched so.
//! 5. The driver can capture such launches (CUDA 12.3), and the code that it loaded is for 9.0 or later: other code does not wait.
//!
//! `tests/simt` runs the launches of a graph in the worst order that this allows.

use super::{Cuda, graph};
use crate::device::DType;
use crate::error::Result;
use cudarc::driver::sys;
use cudarc::driver::sys::CUfunction_attribute_enum::{
    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, CU_FUNC_ATTRIBUTE_PTX_VERSION,
};
use cudarc::driver::sys::cudaError_enum::CUDA_ERROR_NOT_FOUND;
use cudarc::driver::{CudaFunction, DeviceRepr, DriverError, LaunchConfig, PushKernelArg};
use std::ffi::c_void;
use std::ptr;
use std::sync::PoisonError;

/// Shared memory that a kernel may use without asking for more.
const SHARED_DEFAULT: u32 = 48 << 10;

/// Oldest driver that captures dependent launches: CUDA 12.3. Oldest target whose code waits: compute capability 9.0.
const DEPENDENT_DRIVER: i32 = 12030;
const DEPENDENT_TARGET: i32 = 90;

/// How many blocks of how many threads, and bytes of shared memory of each.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Grid {
    /// Blocks in x, y and z.
    pub blocks: [usize; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

/// A type in `kernels/abi.h` and the dtype of tensors of such elements.
pub(crate) trait Element {
    /// The dtype.
    const DTYPE: DType;
}

impl Element for super::abi::bf16 {
    const DTYPE: DType = DType::BF16;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
}

impl Element for u32 {
    const DTYPE: DType = DType::U32;
}

impl Grid {
    /// Enough blocks for one thread to take eight of `n` elements.
    pub fn eights(n: u64) -> Grid {
        let threads = super::abi::ROW_THREADS;
        Grid { blocks: [n.div_ceil(8 * u64::from(threads)) as usize, 1, 1], threads, shared: 0 }
    }

    /// `n` blocks of the most threads that a row block has.
    pub fn blocks(n: usize) -> Grid {
        Grid { blocks: [n, 1, 1], threads: super::abi::ROW_THREADS, shared: 0 }
    }

    /// One block for each of `rows` rows of `width` elements: `row_threads(width)` threads, see `kernels/abi.h`.
    pub fn rows(rows: usize, width: usize) -> Grid {
        let most = super::abi::ROW_THREADS as usize;
        let threads = width.div_ceil(8).next_multiple_of(32).clamp(32, most) as u32;
        Grid { blocks: [rows, 1, 1], threads, shared: 0 }
    }
}

impl Cuda {
    /// Launches a kernel; returns before it is done. A grid without blocks is nothing to do.
    ///
    /// `params` is the kernel's struct from `kernels/abi.h`; its pointers come from [`Tensor::kernel_ptr`] and
    /// [`Tensor::kernel_mut`], and the caller has checked the shapes.
    ///
    /// [`Tensor::kernel_ptr`]: crate::device::Tensor::kernel_ptr
    /// [`Tensor::kernel_mut`]: crate::device::Tensor::kernel_mut
    pub fn launch<P>(&self, kernel: &'static str, grid: Grid, params: &P) -> Result<()>
    where
        P: DeviceRepr + Copy + PartialEq + 'static,
    {
        self.note_or_launch(kernel, grid, params, None)
    }

    /// [`Cuda::launch`] of a kernel that waits itself for those before it, so that it may start early: see the rules above.
    /// `ahead`: addresses of the buffers that it reads before it waits.
    pub fn launch_dependent<P>(&self, kernel: &'static str, grid: Grid, params: &P, ahead: &[u64]) -> Result<()>
    where
        P: DeviceRepr + Copy + PartialEq + 'static,
    {
        self.note_or_launch(kernel, grid, params, Some(ahead))
    }

    fn note_or_launch<P>(&self, kernel: &'static str, grid: Grid, params: &P, ahead: Option<&[u64]>) -> Result<()>
    where
        P: DeviceRepr + Copy + PartialEq + 'static,
    {
        if grid.blocks.contains(&0) {
            return Ok(());
        }
        match graph::noting(|notes| notes.launch(kernel, grid, params, ahead)) {
            Some(()) => Ok(()),
            None => self.launch_now(kernel, grid, params, false),
        }
    }

    /// [`Cuda::launch`], also in a step that is walked through. `dependent`: it may start early where driver and code allow it.
    pub(super) fn launch_now<P: DeviceRepr>(
        &self,
        kernel: &'static str,
        grid: Grid,
        params: &P,
        dependent: bool,
    ) -> Result<()> {
        self.bind()?;
        let function = self.function(kernel)?;
        let refused = |e| self.error(&format!("launch {kernel}"), e);
        if grid.shared > SHARED_DEFAULT {
            function
                .set_attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, grid.shared as i32)
                .map_err(refused)?;
        }
        let [x, y, z] = grid.blocks.map(|n| n as u32);
        if dependent && self.card.driver >= DEPENDENT_DRIVER {
            let target = function.get_attribute(CU_FUNC_ATTRIBUTE_PTX_VERSION).map_err(refused)?;
            if target >= DEPENDENT_TARGET {
                return self.capture_dependent(&function, [x, y, z], grid, params).map_err(refused);
            }
        }
        let config =
            LaunchConfig { grid_dim: (x, y, z), block_dim: (grid.threads, 1, 1), shared_mem_bytes: grid.shared };
        // SAFETY: the struct is the kernel's own (one header makes both sides); its buffers have the checked shapes and are
        // given back to this stream's memory only, so they outlive the kernel.
        unsafe { self.stream.launch_builder(&function).arg(params).launch(config) }.map_err(refused)?;
        Ok(())
    }

    fn capture_dependent<P: DeviceRepr>(
        &self,
        function: &CudaFunction,
        blocks: [u32; 3],
        grid: Grid,
        params: &P,
    ) -> std::result::Result<(), DriverError> {
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: blocks[0],
            gridDimY: blocks[1],
            gridDimZ: blocks[2],
            blockDimX: grid.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: grid.shared,
            hStream: self.stream.cu_stream(),
            attrs: &mut attribute,
            numAttrs: 1,
        };
        let mut params = [ptr::from_ref(params).cast_mut().cast::<c_void>()];
        // SAFETY: as in `launch_now`; the driver copies attribute and struct before it returns.
        unsafe { sys::cuLaunchKernelEx(&config, function.cu_function(), params.as_mut_ptr(), ptr::null_mut()) }.result()
    }

    /// How many clusters of a kernel with blocks of `grid`, `blocks` each, run at the same time: multiprocessors that a cluster needs lie
    /// together, so some may stay without one.
    pub fn clusters_at_once(&self, kernel: &'static str, blocks: usize, grid: Grid) -> Result<usize> {
        if blocks == 1 {
            return Ok(self.card.multiprocessors as usize);
        }
        let mut known = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&clusters) = known.get(kernel) {
            return Ok(clusters);
        }
        self.bind()?;
        let refused = |e| self.error(&format!("place {kernel}"), e);
        let function = self.function(kernel)?;
        function.set_attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, grid.shared as i32).map_err(refused)?;
        let config = LaunchConfig {
            grid_dim: (blocks as u32, 1, 1),
            block_dim: (grid.threads, 1, 1),
            shared_mem_bytes: grid.shared,
        };
        let clusters = function.occupancy_max_active_clusters(config, &self.stream).map_err(refused)?.max(1) as usize;
        known.insert(kernel, clusters);
        Ok(clusters)
    }

    fn function(&self, kernel: &'static str) -> Result<CudaFunction> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(kernel) {
            return Ok(function.clone());
        }
        let mut found = self.modules.iter().map(|module| module.load_function(kernel));
        let first = found.next().unwrap_or(Err(DriverError(CUDA_ERROR_NOT_FOUND)));
        let function = found.fold(first, |so_far, next| so_far.or(next));
        let function = function.map_err(|e| self.error(&format!("find kernel {kernel}"), e))?;
        functions.insert(kernel, function.clone());
        Ok(function)
    }
}
