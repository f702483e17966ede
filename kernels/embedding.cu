// Row lookup: y[t] = table[ids[t]].
//
// Floor: 2 * tokens * hidden * 2 bytes. Each thread moves 16 bytes at a time.
#include "tile.cuh"

extern "C" __global__ void __launch_bounds__(ROW_THREADS) embedding(const embedding_params __grid_constant__ p) {
    launch_dependents();
    wait_for_prerequisites();
    const uint64_t hidden = p.hidden;
    const bf16* from = p.table + p.ids[blockIdx.x] * hidden;
    bf16* to = p.y + blockIdx.x * hidden;
    for (uint32_t i = 8 * threadIdx.x; i < p.hidden; i += 8 * blockDim.x) {
        store8(to, i, p.hidden, load8(from, i, p.hidden));
    }
}
