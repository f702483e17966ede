// Element types: y[i] = x[i], rounded to the nearest.
//
// Floor: n * (size of x + size of y) bytes.
#include "tile.cuh"

template <class To, class From, class Convert>
__device__ __forceinline__ void cast(const cast_params& p, Convert convert) {
    const From* x = static_cast<const From*>(p.x);
    To* y = static_cast<To*>(p.y);
    const uint64_t step = static_cast<uint64_t>(gridDim.x) * blockDim.x;
    for (uint64_t i = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < p.n; i += step) y[i] = convert(x[i]);
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS) cast_f32_bf16(const cast_params __grid_constant__ p) {
    cast<bf16, float>(p, [](float x) { return narrow(x); });
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS) cast_bf16_f32(const cast_params __grid_constant__ p) {
    cast<float, bf16>(p, [](bf16 x) { return widen(x); });
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS) cast_f16_bf16(const cast_params __grid_constant__ p) {
    cast<bf16, uint16_t>(p, [](uint16_t x) { return narrow(widen_f16(x)); });
}
