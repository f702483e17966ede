// How far two models' next-token distributions lie apart, from rows of logits, one block a row:
//   kl[t] = sum of p log(p / q);  agree[t] = 1 where both have the same most likely token, ties to the lowest id, else 0
//
// Floor: 2 * rows * vocab * 4 bytes; the second pass reads the rows from L2.
#include "log_sum_exp.cuh"

// The id of the largest logit, the lowest of equal ones; NaN is never chosen.
__device__ __forceinline__ uint32_t row_argmax(const float* row, uint32_t n, float largest) {
    uint32_t id = n;
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
        if (row[i] == largest) id = min(id, i);
    }
    return ~block_max(~id);
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS) divergence(const divergence_params __grid_constant__ p) {
    const uint64_t at = static_cast<uint64_t>(blockIdx.x) * p.vocab;
    const float *row_p = p.logits_p + at, *row_q = p.logits_q + at;
    const LogSumExp lse_p = row_log_sum_exp(row_p, p.vocab), lse_q = row_log_sum_exp(row_q, p.vocab);
    const float log_p = logf(lse_p.sum), log_q = logf(lse_q.sum);
    float sum = 0.0f;
    for (uint32_t i = threadIdx.x; i < p.vocab; i += blockDim.x) {
        const float x = row_p[i] - lse_p.max - log_p, y = row_q[i] - lse_q.max - log_q;
        const float a = exp_below_0(x), b = exp_below_0(y);
        // Each term p log(p / q) - p + q is at least 0, so rounding of the normalisation does not pile up; the two extra terms
        // add up to 0 over the vocabulary.
        sum += (a == 0.0f ? 0.0f : a * (x - y)) - a + b;
    }
    sum = block_sum(sum);
    const uint32_t top_p = row_argmax(row_p, p.vocab, lse_p.max), top_q = row_argmax(row_q, p.vocab, lse_q.max);
    if (threadIdx.x == 0) {
        p.kl[blockIdx.x] = sum;
        p.agree[blockIdx.x] = top_p == top_q ? 1.0f : 0.0f;
    }
}
