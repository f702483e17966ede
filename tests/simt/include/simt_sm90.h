// kernels/ptx_sm90.cuh for the host: the same functions, by what their instructions are documented to do.
//
// What is asynchronous happens as late as it may: a tensor copy when somebody waits for its barrier, a product when somebody
// waits for its group. So a missing wait leaves what was there before, and an operand given back too early has been overwritten.
#pragma once
#include "abi.h"

inline uint32_t shared_address(const void* shared) { return simt->shared_address(shared); }

inline void mbarrier_init(uint64_t* barrier, uint32_t count) { simt->mbarrier_init(barrier, count); }
inline void mbarrier_init_fence() {}
inline void mbarrier_arrive(uint64_t* barrier) { simt->mbarrier_arrive(barrier, 0); }
inline void mbarrier_arrive_expect(uint64_t* barrier, uint32_t bytes) { simt->mbarrier_arrive(barrier, bytes); }
inline void mbarrier_wait(uint64_t* barrier, uint32_t parity) { simt->mbarrier_wait(barrier, parity); }

inline void prefetch_tensor_map(const tensor_map&) {}
inline void tensor_load(void* to, const tensor_map& map, uint32_t x, uint32_t y, uint64_t* barrier) {
    const uint32_t at[4] = {x, y, 0, 0};
    simt->tensor_load(to, &map, 2, at, barrier);
}
inline void tensor_load(void* to, const tensor_map& map, uint32_t x, uint32_t y, uint32_t z, uint32_t w, uint64_t* barrier) {
    const uint32_t at[4] = {x, y, z, w};
    simt->tensor_load(to, &map, 4, at, barrier);
}

// The driver asks the function beside the kernel.
#define CLUSTERS_OF(BLOCKS, KERNEL)                                      \
    extern "C" __global__ uint32_t KERNEL##_cluster() { return BLOCKS; } \
    extern "C" __global__ void
inline uint32_t cluster_rank() { return simt_current->cluster_rank; }
inline void cluster_wait() { simt->cluster_wait(); }
inline void mbarrier_arrive_at(uint64_t* barrier, uint32_t rank) { simt->mbarrier_arrive_at(barrier, rank); }
inline void tensor_load_to(uint16_t ranks, void* to, const tensor_map& map, uint32_t x, uint32_t y, uint64_t* barrier) {
    const uint32_t at[4] = {x, y, 0, 0};
    simt->tensor_load_to(ranks, to, &map, 2, at, barrier);
}

inline void async_fence() {}
template <int REGISTERS> inline void give_registers() {}
template <int REGISTERS> inline void take_registers() {}

inline void named_barrier_wait(uint32_t id, uint32_t threads) { simt->barrier(id, threads); }
inline void named_barrier_arrive(uint32_t id, uint32_t threads) { simt->barrier_arrive(id, threads); }

inline void wgmma_fence() { simt_current->fenced = 1; }
inline void wgmma_commit() { ++simt_current->product_groups; }
template <int N> inline void wgmma_hold(float (&)[N]) {}

// Carries out the products of groups that are not among the last `pending`; the threads of the warpgroup must have issued the
// same.
void simt_multiply(void** lanes, uint32_t pending);

template <int PENDING> inline void wgmma_wait() {
    simt_current->fenced = 0;
    if (void** lanes = simt->gather_warpgroup(simt_current)) {
        simt_multiply(lanes, PENDING);
        simt->release_warpgroup();
    }
}

inline void simt_issue(simt_product product) {
    simt_lane& lane = *simt_current;
    if (!lane.fenced) return simt->fail("a wgmma without a fence before it");
    if (lane.products == SIMT_PRODUCTS) return simt->fail("too many wgmma in flight");
    product.group = lane.product_groups;
    lane.product[lane.products++] = product;
}

template <int N, bool A_TRANSPOSED, bool B_TRANSPOSED> struct Wgmma {
    static void issue(float (&d)[N / 2], uint64_t a, uint64_t b, bool add) {
        simt_issue({d, a, b, {}, N, add, false, A_TRANSPOSED, B_TRANSPOSED, 0});
    }
};

template <int N, bool B_TRANSPOSED> struct WgmmaRegisters {
    static void issue(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool add) {
        simt_issue({d, 0, b, {a[0], a[1], a[2], a[3]}, N, add, true, false, B_TRANSPOSED, 0});
    }
};
