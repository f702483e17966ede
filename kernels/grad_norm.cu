// The Euclidean norm of all gradients together, for clipping: each block sums the squares of its stretch in f64, then one block
// adds up the sums, in a fixed order.
//
// Floor: 4 bytes an element. One f64 multiply-add an element, below the floor even where f64 runs at 1/64 of f32.
#include "optimizer.cuh"

extern "C" __global__ void __launch_bounds__(ROW_THREADS) grad_norm_partials(const grad_norm_params __grid_constant__ p) {
    const Stretch s = stretch_of_block(p.tensors, p.n_tensors, blockIdx.x);
    double sum = 0.0;
    for (uint64_t i = s.first + threadIdx.x; i < s.end; i += blockDim.x) {
        const double g = s.tensor->g[i];
        sum = fma(g, g, sum);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) p.partial[blockIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS) grad_norm(const grad_norm_params __grid_constant__ p) {
    double sum = 0.0;
    for (uint32_t i = threadIdx.x; i < p.n_partials; i += blockDim.x) sum += p.partial[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) *p.norm = sqrt(sum);
}
