//! The compiled kernels: a shared library per instruction path, opened once, and its interface (`include/runtime.h`).

use crate::tensor_map::TensorMap;
use crate::{block, cluster, dependent, mbarrier, setting, warpgroup};
use libloading::Library;
use std::ffi::{CStr, c_char, c_void};
use std::sync::OnceLock;

/// `uint3` of CUDA: a thread's or block's index, or a size.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Index {
    pub x: u32,
    pub y: u32,
    pub z: u32,
}

impl Index {
    /// Number of indices below this one.
    pub fn count(self) -> u64 {
        u64::from(self.x) * u64::from(self.y) * u64::from(self.z)
    }

    /// The `i`-th index below this one, x fastest.
    pub fn at(self, i: u64) -> Index {
        let (x, y) = (u64::from(self.x), u64::from(self.y));
        Index { x: (i % x) as u32, y: (i / x % y) as u32, z: (i / x / y) as u32 }
    }
}

/// `simt_copy`: an asynchronous copy in flight.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Copy {
    to: *mut c_void,
    from: *const c_void,
    bytes: u32,
    size: u32,
    group: u32,
}

/// `simt_product`: a wgmma in flight.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Product {
    d: *mut f32,
    descriptors: [u64; 2],
    left: [u32; 4],
    numbers: [u32; 6],
}

/// `simt_lane`: what a kernel knows of the thread that it runs as.
#[repr(C)]
pub struct Lane {
    pub thread: Index,
    pub block: Index,
    pub block_size: Index,
    pub grid_size: Index,
    pub cluster_rank: u32,
    pub ahead: u32,
    pub copies: u32,
    pub groups: u32,
    copy: [Copy; 256],
    pub products: u32,
    pub product_groups: u32,
    pub fenced: u32,
    product: [Product; 64],
}

impl Lane {
    /// A thread without copies in flight.
    pub fn new() -> Box<Lane> {
        // SAFETY: numbers and pointers that are not read before they are written; all zeros is valid for each.
        unsafe { Box::new(std::mem::zeroed()) }
    }
}

/// `simt_runtime`: what a kernel may ask of the driver.
#[repr(C)]
struct Runtime {
    gather: extern "C" fn(u32, u32, *mut c_void) -> *mut *mut c_void,
    release: extern "C" fn(),
    barrier: extern "C" fn(u32, u32),
    shared: extern "C" fn(*const c_void, u64) -> *mut c_void,
    dynamic_shared: extern "C" fn() -> *mut c_void,
    fail: extern "C" fn(*const c_char),
    gather_warpgroup: extern "C" fn(*mut c_void) -> *mut *mut c_void,
    release_warpgroup: extern "C" fn(),
    barrier_arrive: extern "C" fn(u32, u32),
    shared_address: extern "C" fn(*const c_void) -> u32,
    shared_at: extern "C" fn(u32) -> *mut c_void,
    mbarrier_init: extern "C" fn(*mut u64, u32),
    mbarrier_arrive: extern "C" fn(*mut u64, u32),
    mbarrier_wait: extern "C" fn(*mut u64, u32),
    tensor_load: extern "C" fn(*mut u8, *const TensorMap, u32, *const [u32; 4], *mut u64),
    cluster_wait: extern "C" fn(),
    mbarrier_arrive_at: extern "C" fn(*mut u64, u32),
    tensor_load_to: extern "C" fn(u32, *mut u8, *const TensorMap, u32, *const [u32; 4], *mut u64),
    wait_for_prerequisites: extern "C" fn(),
}

static RUNTIME: Runtime = Runtime {
    gather: block::gather,
    release: block::release,
    barrier: block::barrier,
    shared: block::shared,
    dynamic_shared: block::dynamic_shared,
    fail: block::fail,
    gather_warpgroup: warpgroup::gather,
    release_warpgroup: warpgroup::release,
    barrier_arrive: block::barrier_arrive,
    shared_address: block::shared_address,
    shared_at: block::shared_at,
    mbarrier_init: mbarrier::init,
    mbarrier_arrive: mbarrier::arrive,
    mbarrier_wait: mbarrier::wait,
    tensor_load: mbarrier::tensor_load,
    cluster_wait: cluster::wait,
    mbarrier_arrive_at: mbarrier::arrive_at,
    tensor_load_to: mbarrier::tensor_load_to,
    wait_for_prerequisites: dependent::wait,
};

/// A kernel: takes its parameter struct by address.
pub type Kernel = unsafe extern "C" fn(*const c_void);

/// The kernels of one compute capability.
pub struct Kernels {
    /// Times 10.
    pub compute_capability: i32,
    library: Library,
    slot: unsafe extern "C" fn() -> *mut *mut Lane,
}

impl Kernels {
    /// Those that `RATOON_SIMT_ARCH` chooses.
    pub fn get() -> &'static Kernels {
        static KERNELS: OnceLock<Kernels> = OnceLock::new();
        KERNELS.get_or_init(|| match setting("RATOON_SIMT_ARCH", 80) {
            75 => Kernels::open(75, concat!(env!("OUT_DIR"), "/kernels_75.so")),
            80 => Kernels::open(80, concat!(env!("OUT_DIR"), "/kernels_80.so")),
            90 => Kernels::open(90, concat!(env!("OUT_DIR"), "/kernels_90.so")),
            other => panic!("RATOON_SIMT_ARCH: expected 75, 80 or 90, found {other}"),
        })
    }

    fn open(compute_capability: i32, path: &str) -> Kernels {
        // SAFETY: the library was built from this crate's own sources; these are the types of its functions.
        unsafe {
            let library = Library::new(path).unwrap_or_else(|e| panic!("simt: {e}"));
            let bind = library.get::<unsafe extern "C" fn(*const Runtime)>(b"simt_bind").expect("in runtime.cpp");
            bind(&RUNTIME);
            let slot = *library.get(b"simt_slot").expect("in runtime.cpp");
            Kernels { compute_capability, library, slot }
        }
    }

    /// The kernel of that name.
    pub fn kernel(&self, name: &CStr) -> Option<Kernel> {
        // SAFETY: every exported function but the two above is a kernel, and kernels have this type.
        unsafe { self.library.get::<Kernel>(name.to_bytes()).ok().map(|symbol| *symbol) }
    }

    /// Blocks of that kernel that run as a cluster.
    pub fn cluster(&self, name: &CStr) -> usize {
        let beside = [name.to_bytes(), b"_cluster"].concat();
        // SAFETY: `CLUSTERS_OF` defines a function of this type beside the kernel.
        unsafe { self.library.get::<unsafe extern "C" fn() -> u32>(&beside[..]).map_or(1, |blocks| blocks() as usize) }
    }

    /// Bytes of the struct that the kernel of that name takes.
    pub fn parameter_bytes(&self, name: &str) -> usize {
        let table = format!("simt_bytes_{name}");
        // SAFETY: `build.rs` makes such a constant for every kernel.
        unsafe { **self.library.get::<*const u64>(table.as_bytes()).unwrap_or_else(|e| panic!("simt: {e}")) as usize }
    }

    /// Where this OS thread keeps the address of the CUDA thread that it runs.
    pub fn slot(&self) -> *mut *mut Lane {
        // SAFETY: takes the address of a thread-local variable.
        unsafe { (self.slot)() }
    }
}
