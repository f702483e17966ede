// The sum of exponentials of a row of logits, for losses and log-probabilities.
#pragma once
#include "tile.cuh"

constexpr float LOG2E = 1.44269504f;

// e^x for x <= 0.
__device__ __forceinline__ float exp_below_0(float x) { return exp2_approx(x * LOG2E); }

// log(sum(exp(row))) is max + log(sum).
struct LogSumExp {
    float max, sum;
};

// Over a block, in every thread: each thread's elements in one pass (Milakov & Gimelshein 2018), then threads in a fixed order.
// NaN in the row gives a sum of NaN.
__device__ __forceinline__ LogSumExp row_log_sum_exp(const float* row, uint32_t n) {
    float max = -INFINITY, sum = 0.0f;
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
        const float x = row[i], larger = fmaxf(max, x);
        if (larger > max) {
            sum = sum * exp_below_0(max - larger);
            max = larger;
        }
        sum += x == -INFINITY ? 0.0f : exp_below_0(x - max);
    }
    const float all = block_max(max);
    return {all, block_sum(max == -INFINITY ? sum : sum * exp_below_0(max - all))};
}
