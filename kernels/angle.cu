// Cosine of the angle between two hidden states (Gromov et al. 2024): out[t] = a[t] b[t] / (|a[t]| |b[t]|), 0 where either is
// the zero vector. One block a token.
//
// Floor: 2 * tokens * hidden * 2 bytes. Sums in f64, since a small angle is the difference of nearly equal numbers: 3 f64
// products an element, below the floor even where f64 runs at 1/64 of f32.
#include "tile.cuh"

extern "C" __global__ void __launch_bounds__(ROW_THREADS) cosine(const cosine_params __grid_constant__ p) {
    const bf16* a = p.a + static_cast<uint64_t>(blockIdx.x) * p.hidden;
    const bf16* b = p.b + static_cast<uint64_t>(blockIdx.x) * p.hidden;
    double dot = 0.0, aa = 0.0, bb = 0.0;
    for (uint32_t i = 8 * threadIdx.x; i < p.hidden; i += 8 * blockDim.x) {
        const Eight x = load8(a, i, p.hidden), y = load8(b, i, p.hidden);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            const double u = x.at[j], v = y.at[j];
            dot = fma(u, v, dot);
            aa = fma(u, u, aa);
            bb = fma(v, v, bb);
        }
    }
    dot = block_sum(dot);
    aa = block_sum(aa);
    bb = block_sum(bb);
    if (threadIdx.x == 0) p.out[blockIdx.x] = aa == 0.0 || bb == 0.0 ? 0.0f : static_cast<float>(dot / (sqrt(aa) * sqrt(bb)));
}
