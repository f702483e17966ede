// Gradients of rmsnorm. With r = 1 / sqrt(mean(x^2) + eps) and g = dy w:
//   dx (+)= r (g - x r^2 mean(g x));  partial[chunk] = sum over the chunk's tokens of dy x r, which add_rows adds to dw
//
// Floor: 3 (4 when added to) * tokens * hidden * 2 bytes. A block takes RMSNORM_CHUNK tokens: its warps first find each row's
// two sums, then every thread goes down the tokens in its eight columns, so that dw needs one write a chunk; the second look at
// x and dy is served by the caches.
#include "tile.cuh"

struct RowSums {
    float scale[RMSNORM_CHUNK], shrink[RMSNORM_CHUNK];
};

extern "C" __global__ void __launch_bounds__(ROW_THREADS, 4)
    rmsnorm_backward(const rmsnorm_backward_params __grid_constant__ p) {
    auto& sums = shared_object<RowSums>();
    const uint32_t first = blockIdx.x * RMSNORM_CHUNK, n = min(p.tokens - first, uint32_t(RMSNORM_CHUNK));
    const uint64_t start = static_cast<uint64_t>(first) * p.hidden;
    const uint32_t lane = threadIdx.x % 32;
    for (uint32_t t = threadIdx.x / 32; t < n; t += blockDim.x / 32) {
        const bf16* x = p.x + start + static_cast<uint64_t>(t) * p.hidden;
        const bf16* dy = p.dy + start + static_cast<uint64_t>(t) * p.hidden;
        float squares = 0.0f, dot = 0.0f;
        for (uint32_t i = 8 * lane; i < p.hidden; i += 256) {
            const Eight a = load8(x, i, p.hidden), d = load8(dy, i, p.hidden), w = load8(p.w, i, p.hidden);
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                squares = fmaf(a.at[j], a.at[j], squares);
                dot = fmaf(d.at[j] * w.at[j], a.at[j], dot);
            }
        }
        squares = warp_sum(squares);
        dot = warp_sum(dot);
        if (lane == 0) {
            const float scale = 1.0f / sqrtf(squares / p.hidden + p.eps);
            sums.scale[t] = scale;
            sums.shrink[t] = -scale * scale * scale * (dot / p.hidden);
        }
    }
    __syncthreads();
    for (uint32_t i = 8 * threadIdx.x; i < p.hidden; i += 8 * blockDim.x) {
        const Eight w = load8(p.w, i, p.hidden);
        float dw[8] = {};
        for (uint32_t t = 0; t < n; ++t) {
            const uint64_t row = start + static_cast<uint64_t>(t) * p.hidden;
            const Eight x = load8(p.x + row, i, p.hidden), dy = load8(p.dy + row, i, p.hidden);
            Eight dx;
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                dx.at[j] = fmaf(x.at[j], sums.shrink[t], dy.at[j] * w.at[j] * sums.scale[t]);
                dw[j] = fmaf(dy.at[j] * x.at[j], sums.scale[t], dw[j]);
            }
            if (p.add) {
                const Eight before = load8(p.dx + row, i, p.hidden);
#pragma unroll
                for (int j = 0; j < 8; ++j) dx.at[j] += before.at[j];
            }
            store8(p.dx + row, i, p.hidden, dx);
        }
        if (p.partial) {
            float* to = p.partial + static_cast<uint64_t>(blockIdx.x) * p.hidden + i;
#pragma unroll
            for (uint32_t j = 0; j < 8; ++j) {
                if (i + j < p.hidden) to[j] = dw[j];
            }
        }
    }
}
