// Log-probabilities of given tokens from rows of logits: out[t] = logits[t][target] - log(sum(exp(logits[t]))), one block a row.
//
// Floor: rows * vocab * 4 bytes; the row is read once.
#include "log_sum_exp.cuh"

extern "C" __global__ void __launch_bounds__(ROW_THREADS) log_probs(const log_probs_params __grid_constant__ p) {
    const uint32_t target = p.targets[blockIdx.x];
    if (target == IGNORED_TARGET) {
        if (threadIdx.x == 0) p.out[blockIdx.x] = 0.0f;
        return;
    }
    const float* row = p.logits + static_cast<uint64_t>(blockIdx.x) * p.vocab;
    const LogSumExp lse = row_log_sum_exp(row, p.vocab);
    if (threadIdx.x == 0) p.out[blockIdx.x] = (row[target] - lse.max) - logf(lse.sum);
}
