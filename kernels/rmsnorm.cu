// Root-mean-square normalisation (Zhang & Sennrich 2019): y = x / sqrt(mean(x^2) + eps) * w, one block a row.
//
// Floor: 2 * tokens * hidden * 2 bytes: the row is read once and kept in registers up to 8 * ROW_THREADS * KEPT elements;
// what is beyond is read again, from cache. The weights are asked for while the kernels before still run: for one row that hides one of
// two latencies of memory, some 0.4 us of 2. Unmeasured.
#include "tile.cuh"

// Eights that a thread keeps: rows up to 8,192 elements.
constexpr int KEPT = 4;

extern "C" __global__ void __launch_bounds__(ROW_THREADS) rmsnorm(const rmsnorm_params __grid_constant__ p) {
    launch_dependents();
    for (uint32_t i = 64 * threadIdx.x; i < p.hidden; i += 64 * blockDim.x) prefetch_to_l2(p.w + i);
    wait_for_prerequisites();
    const bf16* x = p.x + static_cast<uint64_t>(blockIdx.x) * p.hidden;
    bf16* y = p.y + static_cast<uint64_t>(blockIdx.x) * p.hidden;
    const uint32_t first = 8 * threadIdx.x, step = 8 * blockDim.x;
    Eight kept[KEPT];
    float squares = 0.0f;
    auto add = [&](const Eight& e) {
#pragma unroll
        for (int j = 0; j < 8; ++j) squares = fmaf(e.at[j], e.at[j], squares);
    };
#pragma unroll
    for (int k = 0; k < KEPT; ++k) {
        if (first + k * step < p.hidden) add(kept[k] = load8(x, first + k * step, p.hidden));
    }
    for (uint32_t i = first + KEPT * step; i < p.hidden; i += step) add(load8(x, i, p.hidden));
    const float scale = 1.0f / sqrtf(block_sum(squares) / p.hidden + p.eps);
    auto write = [&](const Eight& e, uint32_t i) {
        const Eight w = load8(p.w, i, p.hidden);
        Eight out;
#pragma unroll
        for (int j = 0; j < 8; ++j) out.at[j] = e.at[j] * scale * w.at[j];
        store8(y, i, p.hidden, out);
    };
#pragma unroll
    for (int k = 0; k < KEPT; ++k) {
        if (first + k * step < p.hidden) write(kept[k], first + k * step);
    }
    for (uint32_t i = first + KEPT * step; i < p.hidden; i += step) write(load8(x, i, p.hidden), i);
}
