//! The host's CUDA device, through cudarc.

use cudarc::driver::{
    CudaContext, CudaModule, CudaSlice, CudaStream, DevicePtr, DeviceRepr, LaunchConfig, PushKernelArg,
};
use cudarc::nvrtc::Ptx;
use std::sync::{Arc, OnceLock};

/// Schedules that every launch is tried in.
pub const SCHEDULES: usize = 3;

/// The device with its kernels.
pub struct Gpu {
    stream: Arc<CudaStream>,
    module: Arc<CudaModule>,
}

/// A buffer on the device.
pub struct Buffer<T> {
    slice: CudaSlice<T>,
    address: u64,
}

impl<T> Buffer<T> {
    /// For a parameter struct; the element type there is the caller's promise.
    pub fn ptr<U>(&self) -> *mut U {
        self.address as *mut U
    }
}

impl Gpu {
    /// The device. The library is loaded before cudarc asks for `libcuda.so`, whose name it bears.
    pub fn get() -> &'static Gpu {
        static GPU: OnceLock<Gpu> = OnceLock::new();
        GPU.get_or_init(|| {
            let tests = std::env::current_exe().expect("a test binary");
            let library = tests.with_file_name("libratoon_simt.so");
            // SAFETY: the library runs nothing when it is loaded.
            let library = unsafe { libloading::Library::new(&library) };
            std::mem::forget(library.expect("cargo builds the library beside the tests"));
            let context = CudaContext::new(0).expect("the host's device");
            let module = context.load_module(Ptx::from_binary(vec![0])).expect("any image");
            Gpu { stream: context.default_stream(), module }
        })
    }

    /// A copy on the device.
    pub fn upload<T: DeviceRepr>(&self, values: &[T]) -> Buffer<T> {
        let slice = self.stream.clone_htod(values).expect("room");
        let address = slice.device_ptr(&self.stream).0;
        Buffer { slice, address }
    }

    /// A buffer full of NaN.
    pub fn fresh<T: DeviceRepr>(&self, len: usize) -> Buffer<T> {
        // SAFETY: any bytes are a number.
        let slice = unsafe { self.stream.alloc::<T>(len) }.expect("room");
        let address = slice.device_ptr(&self.stream).0;
        Buffer { slice, address }
    }

    /// A copy on the host.
    pub fn download<T: DeviceRepr + Clone + Default>(&self, buffer: &Buffer<T>) -> Vec<T> {
        self.stream.clone_dtoh(&buffer.slice).expect("a buffer of this device")
    }

    /// Runs a kernel; false when the device says that it did something wrong.
    pub fn try_launch<P: DeviceRepr>(
        &self,
        kernel: &str,
        grid: (u32, u32, u32),
        threads: u32,
        shared_mem_bytes: u32,
        params: &P,
    ) -> bool {
        let function = self.module.load_function(kernel).unwrap_or_else(|e| panic!("{kernel}: {e}"));
        if shared_mem_bytes > 48 << 10 {
            let attribute =
                cudarc::driver::sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(attribute, shared_mem_bytes as i32).expect("a size that the card has");
        }
        let config = LaunchConfig { grid_dim: grid, block_dim: (threads, 1, 1), shared_mem_bytes };
        // SAFETY: the parameters are those of the kernel; its accesses are what is tested.
        unsafe { self.stream.launch_builder(&function).arg(params).launch(config) }.is_ok()
    }

    /// Runs a kernel that must do nothing wrong.
    pub fn launch<P: DeviceRepr>(&self, kernel: &str, grid: (u32, u32, u32), threads: u32, shared: u32, params: &P) {
        assert!(self.try_launch(kernel, grid, threads, shared, params), "{kernel}: see stderr");
    }
}

/// Threads of a row block, see `kernels/abi.h`.
pub fn row_threads(width: usize) -> u32 {
    width.div_ceil(8).next_multiple_of(32).min(crate::abi::ROW_THREADS as usize) as u32
}

/// Runs `launch` in several schedules, each on fresh memory; all must give the same bits.
pub fn in_every_schedule<T: PartialEq + std::fmt::Debug>(mut launch: impl FnMut() -> T) -> T {
    let first = launch();
    for schedule in 1..SCHEDULES {
        assert!(launch() == first, "schedule {schedule} gives other bits");
    }
    first
}
