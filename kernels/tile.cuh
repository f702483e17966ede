// What row kernels share: bf16 rows eight elements (16 bytes) at a time, sums over a block, shared objects.
#pragma once
#include "ptx.cuh"

constexpr uint32_t FULL_WARP = 0xffffffffu;

// The block's one object of type T in shared memory, not initialised.
template <class T> __device__ __forceinline__ T& shared_object() {
#ifdef RATOON_SIMT
    static char key;
    return *static_cast<T*>(simt->shared(&key, sizeof(T)));
#else
    __shared__ T object;
    return object;
#endif
}

// The shared memory that the launch asked for, aligned to 16 bytes.
__device__ __forceinline__ void* dynamic_shared() {
#ifdef RATOON_SIMT
    return simt->dynamic_shared();
#else
    extern __shared__ uint4 memory[];
    return memory;
#endif
}

__device__ __forceinline__ float widen(bf16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }

__device__ __forceinline__ float widen(float x) { return x; }

__device__ __forceinline__ bf16 narrow(float x) { return bf16{static_cast<uint16_t>(pack_bf16(x, 0.0f))}; }

// Eight neighbouring elements of a row.
struct Eight {
    float at[8];
};

// Elements column .. column + 8 of a row of `width`; 0 past its end. Rows of whole eights are read 16 bytes at a time: their
// width keeps every row aligned.
__device__ __forceinline__ Eight load8(const bf16* row, uint32_t column, uint32_t width) {
    Eight x;
    if (width % 8 == 0) {
        const uint4 words = *reinterpret_cast<const uint4*>(row + column);
        const uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            x.at[2 * i] = __uint_as_float(word[i] << 16);
            x.at[2 * i + 1] = __uint_as_float(word[i] & 0xffff0000u);
        }
    } else {
#pragma unroll
        for (uint32_t i = 0; i < 8; ++i) x.at[i] = column + i < width ? widen(row[column + i]) : 0.0f;
    }
    return x;
}

// The reverse of load8; elements past the end of the row are dropped.
__device__ __forceinline__ void store8(bf16* row, uint32_t column, uint32_t width, const Eight& x) {
    if (width % 8 == 0) {
        *reinterpret_cast<uint4*>(row + column) =
            make_uint4(pack_bf16(x.at[0], x.at[1]), pack_bf16(x.at[2], x.at[3]), pack_bf16(x.at[4], x.at[5]),
                       pack_bf16(x.at[6], x.at[7]));
    } else {
#pragma unroll
        for (uint32_t i = 0; i < 8; ++i) {
            if (column + i < width) row[column + i] = narrow(x.at[i]);
        }
    }
}

// The sum over a warp, in every lane; the order depends on nothing.
template <class T> __device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(FULL_WARP, x, step);
    return x;
}

// One number of each warp of a block.
template <class T> struct PerWarp {
    T of[32];
};

// The sum over a block of whole warps, in every thread: by lanes, then warps in order. May be called again at once.
template <class T> __device__ __forceinline__ T block_sum(T x) {
    auto& partial = shared_object<PerWarp<T>>();
    x = warp_sum(x);
    __syncthreads();  // whoever still reads the last call's sums
    if (threadIdx.x % 32 == 0) partial.of[threadIdx.x / 32] = x;
    __syncthreads();
    T sum = partial.of[0];
    for (uint32_t w = 1; w < blockDim.x / 32; ++w) sum += partial.of[w];
    return sum;
}

// The largest over a block of whole warps, in every thread. May be called again at once.
template <class T> __device__ __forceinline__ T block_max(T x) {
    auto& partial = shared_object<PerWarp<T>>();
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x = max(x, __shfl_xor_sync(FULL_WARP, x, step));
    __syncthreads();  // whoever still reads the last call's numbers
    if (threadIdx.x % 32 == 0) partial.of[threadIdx.x / 32] = x;
    __syncthreads();
    T largest = partial.of[0];
    for (uint32_t w = 1; w < blockDim.x / 32; ++w) largest = max(largest, partial.of[w]);
    return largest;
}
