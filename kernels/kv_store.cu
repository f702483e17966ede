// Puts keys and values into their pages: row t goes to slot slots[t]. One block a token.
//
// Floor: 2 * 2 * tokens * width * 2 bytes.
#include "tile.cuh"

extern "C" __global__ void __launch_bounds__(ROW_THREADS) kv_store(const kv_store_params __grid_constant__ p) {
    launch_dependents();
    const uint64_t from = static_cast<uint64_t>(blockIdx.x) * p.width;
    const uint64_t to = static_cast<uint64_t>(p.slots[blockIdx.x]) * p.width;
    wait_for_prerequisites();
    for (uint32_t i = 8 * threadIdx.x; i < p.width; i += 8 * blockDim.x) {
        store8(p.k_pages + to, i, p.width, load8(p.k + from, i, p.width));
        store8(p.v_pages + to, i, p.width, load8(p.v + from, i, p.width));
    }
}
