// Blocks over the elements of all parameters together.
#pragma once
#include "tile.cuh"

// A stretch of OPTIMIZER_CHUNK elements of one parameter.
struct Stretch {
    const optimizer_tensor* tensor;
    uint64_t first, end;
};

// Block `number`'s stretch: the last tensor whose first block is not beyond it.
__device__ __forceinline__ Stretch stretch_of_block(const optimizer_tensor* tensors, uint32_t n, uint32_t number) {
    uint32_t low = 0, high = n;
    while (high - low > 1) {
        const uint32_t middle = (low + high) / 2;
        (tensors[middle].first_block <= number ? low : high) = middle;
    }
    const optimizer_tensor* tensor = tensors + low;
    const uint64_t first = static_cast<uint64_t>(number - tensor->first_block) * OPTIMIZER_CHUNK;
    return {tensor, first, min(first + OPTIMIZER_CHUNK, tensor->n)};
}
