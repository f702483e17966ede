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

// Copies that one thread can have in flight.
enum { SIMT_COPIES = 256 };

// One CUDA thread.
struct simt_lane {
    simt_index thread, block, block_size, grid_size;
    uint32_t copies, groups;  // pending copies, committed groups
    simt_copy copy[SIMT_COPIES];
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
};
