// A matrix times a number, or that added to another: the strength of a low-rank adapter, the gradient behind a dropout.
//
// Floor: 2 * n * 2 bytes, 3 with the addition. Eight elements a thread.
#include "tile.cuh"

extern "C" __global__ void __launch_bounds__(ROW_THREADS) scale(const scale_params __grid_constant__ p) {
    launch_dependents();
    wait_for_prerequisites();
    const uint64_t first = 8 * (static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x);
    if (first >= p.n) return;
    const uint32_t width = static_cast<uint32_t>(min(p.n - first, uint64_t(8)));
    Eight x = load8(p.x + first, 0, width);
    Eight before = {};
    if (p.add) before = load8(p.y + first, 0, width);
#pragma unroll
    for (int i = 0; i < 8; ++i) x.at[i] = fmaf(x.at[i], p.factor, before.at[i]);
    store8(p.y + first, 0, width, x);
}
