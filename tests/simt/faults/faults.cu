// Kernels with one mistake each, and the same without it: what the host's device must catch (tests/faults.rs).
#include "faults.h"
#include "operand.cuh"

// y[i] = x[63 - i], through shared memory. Block: 64.
template <bool BARRIER> __device__ void reverse(const fault_params& p) {
    float* shared = static_cast<float*>(dynamic_shared());
    shared[threadIdx.x] = p.x[threadIdx.x];
    if (BARRIER) __syncthreads();
    p.y[threadIdx.x] = shared[63 - threadIdx.x];
}

extern "C" __global__ void fault_none(const fault_params __grid_constant__ p) { reverse<true>(p); }
extern "C" __global__ void fault_no_barrier(const fault_params __grid_constant__ p) { reverse<false>(p); }

// The same between two uses of one array: the second write must wait for the reads of the first.
template <bool BARRIER> __device__ void reuse(const fault_params& p) {
    float* shared = static_cast<float*>(dynamic_shared());
    float sum = 0.0f;
    for (int round = 0; round < 2; ++round) {
        if (BARRIER || round == 0) __syncthreads();
        shared[threadIdx.x] = p.x[threadIdx.x] * (round + 1);
        __syncthreads();
        sum += shared[63 - threadIdx.x];
    }
    p.y[threadIdx.x] = sum / 3.0f;
}

extern "C" __global__ void fault_none_reuse(const fault_params __grid_constant__ p) { reuse<true>(p); }
extern "C" __global__ void fault_no_barrier_reuse(const fault_params __grid_constant__ p) { reuse<false>(p); }

// The same through asynchronous copies: 8 threads copy 8 bf16 each.
template <bool WAIT> __device__ void copied(const fault_params& p) {
    uint16_t* shared = static_cast<uint16_t*>(dynamic_shared());
    if (threadIdx.x < 8) copy_operands_async(shared + 8 * threadIdx.x, p.halves + 8 * threadIdx.x, true);
    commit_copies();
    if (WAIT) wait_copies<0>();
    __syncthreads();
    p.y[threadIdx.x] = simt_operand(shared[63 - threadIdx.x]);
}

extern "C" __global__ void fault_none_copy(const fault_params __grid_constant__ p) { copied<true>(p); }
extern "C" __global__ void fault_no_wait(const fault_params __grid_constant__ p) { copied<false>(p); }

// A barrier that one thread never reaches, since it waits for a warp that has ended; a shuffle that half of the warp never reaches.
extern "C" __global__ void fault_half_barrier(const fault_params __grid_constant__ p) {
    if (threadIdx.x < 32) __syncthreads();
    p.y[threadIdx.x] = threadIdx.x == 32 ? __shfl_sync(FULL_WARP, 1.0f, 0) : 0.0f;
}

extern "C" __global__ void fault_half_shuffle(const fault_params __grid_constant__ p) {
    if (threadIdx.x % 32 < 16) p.y[threadIdx.x] = __shfl_xor_sync(FULL_WARP, 1.0f, 1);
}

// One element beyond the buffer, before it, and beyond the shared memory.
extern "C" __global__ void fault_write_beyond(const fault_params __grid_constant__ p) { p.y[threadIdx.x + 1] = 0.0f; }
extern "C" __global__ void fault_write_before(const fault_params __grid_constant__ p) {
    (p.y - 1)[threadIdx.x] = 0.0f;
}
extern "C" __global__ void fault_read_beyond(const fault_params __grid_constant__ p) {
    p.y[threadIdx.x] = p.x[threadIdx.x + 1];
}
extern "C" __global__ void fault_shared_beyond(const fault_params __grid_constant__ p) {
    float* shared = static_cast<float*>(dynamic_shared());
    shared[threadIdx.x + 1] = p.x[threadIdx.x];
    p.y[threadIdx.x] = 0.0f;
}

// Elements that nobody wrote.
extern "C" __global__ void fault_unwritten(const fault_params __grid_constant__ p) {
    if (threadIdx.x != 5) p.y[threadIdx.x] = p.x[63 - threadIdx.x];
}

// One element beyond an array of the thread's own, which AddressSanitizer alone sees.
extern "C" __global__ void fault_local_beyond(const fault_params __grid_constant__ p) {
    float own[4];
    for (uint32_t i = 0; i < 4; ++i) own[i] = p.x[63 - threadIdx.x];
    const uint32_t beyond = p.x[1] == 1.0f ? 4 : 0;
    const float other = own[beyond + threadIdx.x % 2];
    p.y[threadIdx.x] = other == -1.0f ? other : own[threadIdx.x % 4];  // right, whatever was read
}
