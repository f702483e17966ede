// Tiles of wgmma operands in shared memory, as tensor copies with the 128-byte swizzle lay them: rows of 64 elements (128 bytes),
// whose 16-byte words are exchanged by the row's number modulo 8, so that eight words of a column lie in all banks.
#pragma once
#include "ptx_sm90.cuh"
#include "tile.cuh"

#ifdef RATOON_SM90

// Elements in a row of a tile.
constexpr int SWIZZLED = 64;
// Bytes after which the pattern of the swizzle begins anew; tiles begin at multiples of it.
constexpr uint32_t PATTERN = 1024;

// The shared memory that the launch asked for, from the first multiple of PATTERN: up to PATTERN - 16 bytes less.
__device__ __forceinline__ char* patterned_shared() {
    char* start = static_cast<char*>(dynamic_shared());
    return start + (PATTERN - shared_address(start) % PATTERN) % PATTERN;
}

// Where the 16 steps of the reduction from `k` (a multiple of 16, below 64) lie in a tile with k along its rows: a descriptor of
// wgmma (PTX ISA, "matrix descriptor"): address, bytes from eight rows to the next eight, 128-byte swizzle.
__device__ __forceinline__ uint64_t along_rows(const void* tile, int k) {
    const uint32_t at = shared_address(tile) + k * 2;
    return (at & 0x3ffff) >> 4 | uint64_t(1) << 16 | uint64_t(PATTERN >> 4) << 32 | uint64_t(1) << 62;
}

// The same for a tile with k down its columns; `next` is the distance in bytes from 64 columns to the next 64.
__device__ __forceinline__ uint64_t down_columns(const void* tile, int k, uint32_t next) {
    const uint32_t at = shared_address(tile) + k * SWIZZLED * 2;
    return (at & 0x3ffff) >> 4 | uint64_t(next >> 4) << 16 | uint64_t(PATTERN >> 4) << 32 | uint64_t(1) << 62;
}

// Puts zeros into the rows of a tile of SLABS x ROWS x 64 elements from row `first` on, and waits until this warpgroup's products
// may read them. All threads of the warpgroup call it; another that does the same at the same time writes the same.
template <int ROWS, int SLABS> __device__ __forceinline__ void clear_rows(char* tile, uint32_t first) {
    constexpr uint32_t WORDS = SWIZZLED * 2 / 16;
    for (uint32_t i = first * WORDS + threadIdx.x % 128; i < ROWS * WORDS; i += 128) {
#pragma unroll
        for (int slab = 0; slab < SLABS; ++slab) {
            reinterpret_cast<uint4*>(tile)[slab * ROWS * WORDS + i] = make_uint4(0, 0, 0, 0);
        }
    }
    async_fence();
    named_barrier_wait(8 + threadIdx.x / 128, 128);
}

#endif
