// The largest magnitude of each sequence's rows, which products of cards before sm_80 scale gradients by (operand.cuh).
//
// Floor: 2 bytes a number. Magnitudes are ordered as their bits are, so the maximum over blocks is an atomic one: the same in any order.
#include "tile.cuh"

extern "C" __global__ void __launch_bounds__(ROW_THREADS) largest(const largest_params __grid_constant__ p) {
    const uint64_t start = p.cu_seqlens ? p.cu_seqlens[blockIdx.y] : 0;
    const uint64_t tokens = (p.cu_seqlens ? p.cu_seqlens[blockIdx.y + 1] : p.tokens) - start;
    const bf16* const x = p.x + start * p.width;
    const uint64_t first = static_cast<uint64_t>(blockIdx.x) * LARGEST_CHUNK;
    const uint64_t end = min(first + LARGEST_CHUNK, tokens * p.width);
    uint32_t found = 0;
    for (uint64_t i = first + threadIdx.x; i < end; i += blockDim.x) {
        found = max(found, __float_as_uint(fabsf(widen(x[i]))));
    }
    found = block_max(found);
    if (threadIdx.x == 0) atomicMax(p.largest + blockIdx.y, found);
}
