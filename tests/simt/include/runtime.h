// What the driver and the compiled kernels tell each other. Mirrored in src/kernels.rs.
#pragma once
#include <stdint.h>

struct simt_index {
    uint32_t x, y, z;
};

// A copy of cp.async that was issued and not yet carried out.
struct simt_copy {
    void* to;
    const void* from;
    uint32_t bytes;  // copied; the rest of `size` is zeroed
    uint32_t size;
    uint32_t group;  // number of the group it was committed to
};

// A wgmma that was issued and not yet carried out: what the thread gave to the instruction.
struct simt_product {
    float* d;       // n / 2 sums
    uint64_t a, b;  // descriptors
    uint32_t left[4];  // a, when in registers
    uint32_t n;
    uint32_t add, in_registers, a_transposed, b_transposed;
    uint32_t group;  // number of the group it was committed to
};

// Copies, and wgmmas, that one thread can have in flight.
enum { SIMT_COPIES = 256, SIMT_PRODUCTS = 64 };

// One CUDA thread.
struct simt_lane {
    simt_index thread, block, block_size, grid_size;
    uint32_t cluster_rank;
    uint32_t ahead;  // may run before the kernels before have ended
    uint32_t copies, groups;  // pending copies, committed groups
    simt_copy copy[SIMT_COPIES];
    uint32_t products, product_groups, fenced;
    simt_product product[SIMT_PRODUCTS];
};

// Kinds of collectives. Lanes of one warp that meet must bring the same kind.
enum simt_kind : uint32_t { SIMT_SYNC, SIMT_EXCHANGE, SIMT_VOTE, SIMT_LDMATRIX, SIMT_MMA };

struct simt_runtime {
    // Waits for the lanes of `mask`. The last one gets the arguments of all (by lane) and must call `release`; the others
    // get null once it has.
    void** (*gather)(uint32_t kind, uint32_t mask, void* arguments);
    void (*release)();
    // Waits for `threads` threads (0: all that have not ended) at barrier `id`.
    void (*barrier)(uint32_t id, uint32_t threads);
    // Shared memory of the block: the one object under `key`, or the bytes given at launch.
    void* (*shared)(const void* key, uint64_t bytes);
    void* (*dynamic_shared)();
    // Ends the launch with an error.
    void (*fail)(const char* what);

    // Compute capability 9.0. As gather and release, of the 128 threads of a warpgroup.
    void** (*gather_warpgroup)(void* arguments);
    void (*release_warpgroup)();
    // Counts as there at barrier `id` of `threads` threads.
    void (*barrier_arrive)(uint32_t id, uint32_t threads);
    // A place in shared memory, and the number by which instructions name it.
    uint32_t (*shared_address)(const void* at);
    void* (*shared_at)(uint32_t address);
    // See ptx_sm90.cuh; src/mbarrier.rs and src/tensor_map.rs. `at` has four coordinates.
    void (*mbarrier_init)(uint64_t* barrier, uint32_t count);
    void (*mbarrier_arrive)(uint64_t* barrier, uint32_t expected_bytes);
    void (*mbarrier_wait)(uint64_t* barrier, uint32_t parity);
    void (*tensor_load)(void* to, const void* map, uint32_t axes, const uint32_t* at, uint64_t* barrier);
    // Clusters; see ptx_sm90.cuh and src/cluster.rs.
    void (*cluster_wait)();
    void (*mbarrier_arrive_at)(uint64_t* barrier, uint32_t rank);
    void (*tensor_load_to)(uint32_t ranks, void* to, const void* map, uint32_t axes, const uint32_t* at, uint64_t* barrier);
    // Waits for the kernels before; see ptx.cuh and src/dependent.rs.
    void (*wait_for_prerequisites)();
};
