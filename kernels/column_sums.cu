// Sums over tokens in two stages, for the gradients of biases and norm weights: a row of partial sums for each chunk of tokens,
// then the rows in order. So the result does not depend on how many blocks run.
//
// Floor: tokens * width * 2 bytes.
#include "tile.cuh"

extern "C" __global__ void __launch_bounds__(ROW_THREADS) column_sums(const column_sums_params __grid_constant__ p) {
    const uint32_t column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= p.width) return;
    const uint32_t first = blockIdx.y * COLUMN_SUMS_CHUNK, end = min(first + COLUMN_SUMS_CHUNK, p.tokens);
    float sum = 0.0f;
    for (uint32_t t = first; t < end; ++t) sum += widen(p.x[static_cast<uint64_t>(t) * p.width + column]);
    p.partial[static_cast<uint64_t>(blockIdx.y) * p.width + column] = sum;
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS) add_rows(const add_rows_params __grid_constant__ p) {
    const uint32_t column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= p.width) return;
    float sum = 0.0f;
    for (uint32_t r = 0; r < p.rows; ++r) sum += p.partial[static_cast<uint64_t>(r) * p.width + column];
    p.y[column] += sum;
}
