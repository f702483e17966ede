// Cross-entropy of rows of logits and its gradient, one block a row:
//   losses[t] = log(sum(exp(logits[t]))) - logits[t][target];  d_logits[t] = scale (softmax(logits[t]) - onehot(target))
//
// The logits are those of some tokens at a time, by matmul_nt; matmul_nn and matmul_tn make the gradients of hidden states and
// head of d_logits, so that all logits never exist at once. Floor: rows * vocab * (4 + 4 + 2) bytes.
#include "log_sum_exp.cuh"

extern "C" __global__ void __launch_bounds__(ROW_THREADS) cross_entropy(const cross_entropy_params __grid_constant__ p) {
    const uint64_t at = static_cast<uint64_t>(blockIdx.x) * p.vocab;
    const uint32_t target = p.targets[blockIdx.x];
    if (target == IGNORED_TARGET) {
        if (threadIdx.x == 0) p.losses[blockIdx.x] = 0.0f;
        for (uint32_t i = threadIdx.x; i < p.vocab; i += blockDim.x) p.d_logits[at + i] = bf16{0};
        return;
    }
    const float* row = p.logits + at;
    const LogSumExp lse = row_log_sum_exp(row, p.vocab);
    if (threadIdx.x == 0) p.losses[blockIdx.x] = logf(lse.sum) - (row[target] - lse.max);
    const float share = 1.0f / lse.sum;
    for (uint32_t i = threadIdx.x; i < p.vocab; i += blockDim.x) {
        const float probability = exp_below_0(row[i] - lse.max) * share;
        p.d_logits[at + i] = narrow(p.scale * (probability - (i == target ? 1.0f : 0.0f)));
    }
}
