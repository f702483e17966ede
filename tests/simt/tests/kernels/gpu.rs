//! The CUDA device, through cudarc: the host's, or with `RATOON_TEST_FATBINS=FOLDER` NVIDIA's with the `*.fatbin` of that folder,
//! which a build of `ratoon` with the feature `cuda` makes.

use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr, DeviceRepr, LaunchConfig, PushKernelArg,
    result, sys,
};
use cudarc::nvrtc::Ptx;
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// Schedules that every launch is tried in; on a card, times that it is repeated.
pub const SCHEDULES: usize = 3;

/// The device with its kernels.
pub struct Gpu {
    /// Where all its work goes.
    pub stream: Arc<CudaStream>,
    modules: Vec<Arc<CudaModule>>,
    /// Whether products are of bf16, and not of f16 made from it.
    pub multiplies_bf16: bool,
    /// Bytes of shared memory that a block may have.
    pub most_shared: u32,
}

/// A buffer on the device.
pub struct Buffer<T> {
    slice: CudaSlice<T>,
    address: u64,
}

impl<T> Buffer<T> {
    /// Elements.
    pub fn len(&self) -> usize {
        self.slice.len()
    }

    /// For a parameter struct; the element type there is the caller's promise.
    pub fn ptr<U>(&self) -> *mut U {
        self.address as *mut U
    }
}

impl Gpu {
    /// The device.
    pub fn get() -> &'static Gpu {
        static GPU: OnceLock<Gpu> = OnceLock::new();
        GPU.get_or_init(|| {
            let images = match std::env::var_os("RATOON_TEST_FATBINS") {
                Some(folder) => fatbins(Path::new(&folder)),
                None => {
                    stand_in();
                    vec![vec![0]] // It brings its kernels and takes any image.
                }
            };
            let context = CudaContext::new(0).expect("a device");
            let load = |image| context.load_module(Ptx::from_binary(image)).expect("kernels for this device");
            let modules = images.into_iter().map(load).collect();
            let multiplies_bf16 = context.compute_capability().expect("a device") >= (8, 0);
            let most_shared = context
                .attribute(sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
                .expect("a device") as u32;
            Gpu { stream: context.default_stream(), modules, multiplies_bf16, most_shared }
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
        // SAFETY: the whole of the buffer; the stream orders the fill.
        unsafe { result::memset_d8_async(address, 0xFF, len * size_of::<T>(), self.stream.cu_stream()) }
            .expect("a fill");
        Buffer { slice, address }
    }

    /// A copy on the host.
    pub fn download<T: DeviceRepr + Clone + Default>(&self, buffer: &Buffer<T>) -> Vec<T> {
        self.stream.clone_dtoh(&buffer.slice).expect("a buffer of this device")
    }

    /// A kernel by its name.
    pub fn function(&self, kernel: &str) -> CudaFunction {
        let found = self.modules.iter().find_map(|module| module.load_function(kernel).ok());
        found.unwrap_or_else(|| panic!("{kernel}: in none of the modules"))
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
        let function = self.function(kernel);
        if shared_mem_bytes > 48 << 10 {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(attribute, shared_mem_bytes as i32).expect("a size that the card has");
        }
        let config = LaunchConfig { grid_dim: grid, block_dim: (threads, 1, 1), shared_mem_bytes };
        // SAFETY: the parameters are those of the kernel; its accesses are what is tested.
        unsafe { self.stream.launch_builder(&function).arg(params).launch(config) }.is_ok()
            && self.stream.synchronize().is_ok()
    }

    /// Runs a kernel that must do nothing wrong.
    pub fn launch<P: DeviceRepr>(&self, kernel: &str, grid: (u32, u32, u32), threads: u32, shared: u32, params: &P) {
        assert!(self.try_launch(kernel, grid, threads, shared, params), "{kernel}: see stderr");
    }
}

/// Loads the host's stand-in before cudarc asks for `libcuda.so`, whose name it bears.
fn stand_in() {
    let tests = std::env::current_exe().expect("a test binary");
    // SAFETY: the library runs nothing when it is loaded.
    let library = unsafe { libloading::Library::new(tests.with_file_name("libratoon_simt.so")) };
    std::mem::forget(library.expect("cargo builds the library beside the tests"));
}

/// The contents of the folder's fatbins.
fn fatbins(folder: &Path) -> Vec<Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let paths = entries.map(|entry| entry.expect("a folder entry").path());
    let images: Vec<Vec<u8>> = paths
        .filter(|path| path.extension().is_some_and(|e| e == "fatbin"))
        .map(|path| std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
        .collect();
    assert!(!images.is_empty(), "{}: no *.fatbin", folder.display());
    images
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
