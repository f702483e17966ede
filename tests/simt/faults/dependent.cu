// A kernel that may start before those in front of it have ended, and the same with one mistake each, which the host's device must
// catch (tests/sm90/dependent.rs).
#include "operand.cuh"
#include "sm90.h"
#include "tile_sm90.cuh"

#ifdef RATOON_SM90

enum Ahead {
    NOTHING_AHEAD,
    READ,   // reads x ahead of the kernels before
    TILE,   // starts a tensor copy of x: right where no kernel before writes it
    COPY,   // starts an asynchronous copy of x
    WRITE,  // writes y
    ALL,    // never waits
};

// y = x + 1. Block: 64, a row each.
template <int AHEAD> __device__ void add_one(const dependent_params& p) {
    auto& full = shared_object<uint64_t>();
    char* const tile = patterned_shared();
    const uint32_t row = threadIdx.x;
    float x[64];
    auto read = [&] {
        for (uint32_t i = 0; i < 64; ++i) x[i] = widen(p.x[64 * row + i]);
    };
    launch_dependents();
    if (AHEAD == READ) read();
    if (AHEAD == TILE && row == 0) {
        mbarrier_init(&full, 1);
        mbarrier_init_fence();
        mbarrier_arrive_expect(&full, 64 * 64 * 2);
        tensor_load(tile, p.map, 0, 0, &full);
    }
    if (AHEAD == COPY) copy_operands_async(tile + 16 * row, p.x + 64 * row, true);
    if (AHEAD == WRITE) p.y[64 * row] = narrow(0.0f);
    if (AHEAD != ALL) wait_for_prerequisites();
    if (AHEAD == TILE) {
        __syncthreads();
        mbarrier_wait(&full, 0);
        const auto* halves = reinterpret_cast<const bf16*>(tile);
        for (uint32_t i = 0; i < 64; ++i) x[i] = widen(halves[64 * row + (i / 8 ^ row % 8) * 8 + i % 8]);
    } else if (AHEAD != READ) {
        read();
    }
    for (uint32_t i = 0; i < 64; ++i) p.y[64 * row + i] = narrow(x[i] + 1.0f);
}

#define ADD_ONE(NAME, AHEAD) \
    extern "C" __global__ void dependent_##NAME(const dependent_params __grid_constant__ p) { add_one<AHEAD>(p); }
ADD_ONE(nothing, NOTHING_AHEAD)
ADD_ONE(read, READ)
ADD_ONE(tile, TILE)
ADD_ONE(copy, COPY)
ADD_ONE(write, WRITE)
ADD_ONE(all, ALL)

#endif
