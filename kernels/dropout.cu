// Dropout (Srivastava et al. 2014) with counter-based masks, as src/ops/dropout.rs: y[i] = x[i] / (1 - p) where word i of the
// stream (seed, stream) is at least p, else 0. The backward pass draws the same mask.
//
// Floor: 2 * n * 2 bytes. Eight elements, two Philox blocks, a thread.
#include "philox.cuh"

extern "C" __global__ void __launch_bounds__(ROW_THREADS) dropout(const dropout_params __grid_constant__ p) {
    const uint64_t first = 8 * (static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x);
    if (first >= p.n) return;
    const uint32_t width = static_cast<uint32_t>(min(p.n - first, uint64_t(8)));
    Eight x = load8(p.x + first, 0, width);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const uint4 words = philox(p.seed, p.stream, first / 4 + half);
        const uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float& value = x.at[4 * half + i];
            value = unit(word[i]) >= p.probability ? value * (1.0f / (1.0f - p.probability)) : 0.0f;
        }
    }
    store8(p.y + first, 0, width, x);
}
