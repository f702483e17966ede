// What attention kernels share: the softmax of rows that four lanes hold together.
#pragma once
#include "tile.cuh"

constexpr float LN2 = 0.693147181f, LOG2E = 1.44269504f;
constexpr float NOTHING = -INFINITY;

// A row's sum of exponentials relative to 2^largest.
struct Softmax {
    float largest, sum;
};

// Adds over the four lanes that share a row.
__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(FULL_WARP, x, 1);
    return x + __shfl_xor_sync(FULL_WARP, x, 2);
}

__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, 1));
    return fmaxf(x, __shfl_xor_sync(FULL_WARP, x, 2));
}
