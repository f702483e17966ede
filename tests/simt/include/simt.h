// CUDA C++ for the host's compiler: included before every kernel file.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "runtime.h"

#define __global__ __attribute__((visibility("default")))
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
// Kernels take their parameters as `const T __grid_constant__ p`: by reference here, so the driver can pass a pointer.
#define __grid_constant__ &

struct uint2 {
    unsigned x, y;
};
struct uint4 {
    unsigned x, y, z, w;
};
struct float2 {
    float x, y;
};
struct float4 {
    float x, y, z, w;
};

extern const simt_runtime* simt;
extern thread_local simt_lane* simt_current __attribute__((tls_model("initial-exec")));

#define threadIdx (simt_current->thread)
#define blockIdx (simt_current->block)
#define blockDim (simt_current->block_size)
#define gridDim (simt_current->grid_size)

inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

template <class T> inline T min(T a, T b) { return b < a ? b : a; }
template <class T> inline T max(T a, T b) { return a < b ? b : a; }

inline unsigned __float_as_uint(float x) {
    unsigned bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
inline float __uint_as_float(unsigned bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((uint64_t(a) * b) >> 32); }
inline uint64_t __umul64hi(uint64_t a, uint64_t b) { return static_cast<uint64_t>((static_cast<unsigned __int128>(a) * b) >> 64); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }

template <class T> inline T atomicAdd(T* at, T value) { return __atomic_fetch_add(at, value, __ATOMIC_RELAXED); }
inline unsigned atomicMax(unsigned* at, unsigned value) {
    unsigned old = __atomic_load_n(at, __ATOMIC_RELAXED);
    while (value > old && !__atomic_compare_exchange_n(at, &old, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
    return old;
}
inline int atomicMin(int* at, int value) {
    int old = __atomic_load_n(at, __ATOMIC_RELAXED);
    while (value < old && !__atomic_compare_exchange_n(at, &old, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
    return old;
}
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

inline void __syncthreads() { simt->barrier(0, 0); }

inline void __syncwarp(unsigned mask = 0xffffffffu) {
    if (simt->gather(SIMT_SYNC, mask, nullptr)) simt->release();
}

inline unsigned simt_lane_number() {
    return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32;
}

struct simt_exchange_arguments {
    uint64_t value, result;
    unsigned source;
};

// Every lane's value goes to the lanes that name it; the value of a lane outside the mask is undefined.
template <class T> inline T simt_exchange(unsigned mask, T value, unsigned source) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    simt_exchange_arguments mine{0, 0, source};
    memcpy(&mine.value, &value, sizeof value);
    if (void** lanes = simt->gather(SIMT_EXCHANGE, mask, &mine)) {
        for (unsigned i = 0; i < 32; ++i) {
            if (!(mask >> i & 1)) continue;
            auto& lane = *static_cast<simt_exchange_arguments*>(lanes[i]);
            bool known = lane.source < 32 && (mask >> lane.source & 1);
            lane.result = known ? static_cast<simt_exchange_arguments*>(lanes[lane.source])->value : ~uint64_t(0);
        }
        simt->release();
    }
    memcpy(&value, &mine.result, sizeof value);
    return value;
}

template <class T> inline T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    unsigned lane = simt_lane_number();
    return simt_exchange(mask, value, (lane & ~(width - 1u)) | (source & (width - 1u)));
}
template <class T> inline T __shfl_xor_sync(unsigned mask, T value, int with, int width = 32) {
    unsigned lane = simt_lane_number(), source = lane ^ with;
    return simt_exchange(mask, value, (source & ~(width - 1u)) == (lane & ~(width - 1u)) ? source : lane);
}
template <class T> inline T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
    unsigned lane = simt_lane_number();
    return simt_exchange(mask, value, (lane & (width - 1u)) + by < unsigned(width) ? lane + by : lane);
}
template <class T> inline T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
    unsigned lane = simt_lane_number();
    return simt_exchange(mask, value, (lane & (width - 1u)) >= by ? lane - by : lane);
}

struct simt_vote_arguments {
    bool predicate;
    unsigned ballot;
};

inline unsigned __ballot_sync(unsigned mask, int predicate) {
    simt_vote_arguments mine{predicate != 0, 0};
    if (void** lanes = simt->gather(SIMT_VOTE, mask, &mine)) {
        unsigned ballot = 0;
        for (unsigned i = 0; i < 32; ++i) {
            if (mask >> i & 1) ballot |= unsigned(static_cast<simt_vote_arguments*>(lanes[i])->predicate) << i;
        }
        for (unsigned i = 0; i < 32; ++i) {
            if (mask >> i & 1) static_cast<simt_vote_arguments*>(lanes[i])->ballot = ballot;
        }
        simt->release();
    }
    return mine.ballot;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }
