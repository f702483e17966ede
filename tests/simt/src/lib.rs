//! `libcuda.so` for the host: the CUDA driver functions that Ratoon calls, over host memory, running `kernels/*.cu` as the
//! host's C++ compiler built them. cudarc loads it as if it were NVIDIA's.
//!
//! One coroutine is one CUDA thread. Barriers and warp collectives are the places where they switch; which one runs next is
//! drawn from `RATOON_SIMT_SEED`, so that an order which only luck guarantees does not hold. Fresh device and shared memory is
//! full of NaN; a device buffer ends at a page that nobody may touch; an asynchronous copy arrives when it is waited for, not
//! before; a launch of a graph that may start early runs before those in front of it. So a missing barrier, a missing wait and an access
//! out of bounds fail.
//!
//! | file | subject |
//! |-|-|
//! | `driver.rs` | `cu*` functions: device, context, modules, streams, events |
//! | `driver_launch.rs` | `cu*` functions: launches |
//! | `driver_memory.rs` | `cu*` functions: allocation, copies, fills |
//! | `graph.rs` | `cu*` functions: stream capture, graphs |
//! | `dependent.rs` | launches that start before those in front of them have ended |
//! | `calls.rs` | how often they were called |
//! | `memory.rs` | device buffers between guards |
//! | `launch.rs` | a grid over the host's cores |
//! | `cluster.rs` | the blocks that run at the same time |
//! | `block.rs` | the threads of one block: scheduling, barriers, collectives |
//! | `warpgroup.rs`, `mbarrier.rs`, `tensor_map.rs` | compute capability 9.0: collectives of 128 threads, barriers in shared memory, tensor copies |
//! | `segv.rs` | says which thread touched what it must not |
//! | `shared.rs` | shared memory of one block |
//! | `kernels.rs` | the compiled kernels and their interface (`include/runtime.h`) |
//!
//! | variable | meaning |
//! |-|-|
//! | `RATOON_SIMT_SEED` | order of threads and blocks; 0 |
//! | `RATOON_SIMT_ARCH` | compute capability, 75, 80 or 90; 80 |
//! | `RATOON_SIMT_MEMORY` | device memory in MiB; 4096 |

mod asan;
mod block;
mod calls;
mod cluster;
mod dependent;
mod driver;
mod driver_launch;
mod driver_memory;
mod graph;
mod kernels;
mod launch;
mod mbarrier;
mod memory;
mod segv;
mod shared;
mod tensor_map;
mod warpgroup;

/// A number from the environment.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |value| {
        value.parse().unwrap_or_else(|_| panic!("{name}: expected a whole number, found {value}"))
    })
}
