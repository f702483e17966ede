// Gated activation (Shazeer 2020) and its gradients, element by element. With s = 1 / (1 + exp(-gate)):
//   y = gate s up;  d_up = dy gate s;  d_gate = dy up s (1 + gate (1 - s))
//
// Floor: 3 * n * 2 bytes forward, 5 * n * 2 backward. Eight elements a thread.
#include "tile.cuh"

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + exp2_approx(-1.44269504f * x)); }

extern "C" __global__ void __launch_bounds__(ROW_THREADS) swiglu(const swiglu_params __grid_constant__ p) {
    launch_dependents();
    wait_for_prerequisites();
    const uint64_t first = 8 * (static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x);
    if (first >= p.n) return;
    const uint32_t width = static_cast<uint32_t>(min(p.n - first, uint64_t(8)));
    const Eight gate = load8(p.gate + first, 0, width), up = load8(p.up + first, 0, width);
    Eight y;
#pragma unroll
    for (int i = 0; i < 8; ++i) y.at[i] = gate.at[i] * sigmoid(gate.at[i]) * up.at[i];
    store8(p.y + first, 0, width, y);
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS)
    swiglu_backward(const swiglu_backward_params __grid_constant__ p) {
    const uint64_t first = 8 * (static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x);
    if (first >= p.n) return;
    const uint32_t width = static_cast<uint32_t>(min(p.n - first, uint64_t(8)));
    const Eight dy = load8(p.dy + first, 0, width);
    const Eight gate = load8(p.gate + first, 0, width), up = load8(p.up + first, 0, width);
    Eight d_gate, d_up;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const float s = sigmoid(gate.at[i]);
        d_up.at[i] = dy.at[i] * s * gate.at[i];
        d_gate.at[i] = dy.at[i] * s * up.at[i] * fmaf(gate.at[i], 1.0f - s, 1.0f);
    }
    store8(p.d_gate + first, 0, width, d_gate);
    store8(p.d_up + first, 0, width, d_up);
}
