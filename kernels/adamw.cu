// AdamW (Loshchilov & Hutter 2019), in the order of operations of torch.optim.AdamW, all parameters in one launch. With g scaled:
//   p -= lr weight_decay p;  m += (1 - beta1) (g - m);  v = beta2 v + (1 - beta2) g^2
//   p -= lr / (1 - beta1^step) m / (sqrt(v) / sqrt(1 - beta2^step) + eps)
//
// Where a parameter has an f32 master, that is what is stepped, and the bf16 copy is it rounded to the nearest. Without one the
// bf16 parameter itself is stepped and rounded up or down at random, in proportion, so that small steps count on average; the
// random bits are a function of seed, step and element.
//
// Floor: 30 bytes an element with a master, 24 without.
#include "optimizer.cuh"
#include "philox.cuh"

// Rounds to one of the two neighbours in bf16, by 16 random bits.
__device__ __forceinline__ bf16 round_at_random(float x, uint32_t random) {
    const uint32_t bits = __float_as_uint(x);
    // Infinity and NaN have nothing to round.
    return bf16{static_cast<uint16_t>(((bits & 0x7f800000u) == 0x7f800000u ? bits : bits + (random & 0xffffu)) >> 16)};
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS) adamw(const adamw_params __grid_constant__ p) {
    const Stretch s = stretch_of_block(p.tensors, p.n_tensors, blockIdx.x);
    const optimizer_tensor t = *s.tensor;
    const float keep = t.decayed ? p.keep : 1.0f;
    for (uint64_t i = s.first + threadIdx.x; i < s.end; i += blockDim.x) {
        const float g = t.g[i] * p.grad_scale;
        const float m = t.m[i] + p.gain1 * (g - t.m[i]);
        const float v = t.v[i] * p.beta2 + p.gain2 * g * g;
        const float change = p.step_size * m / (sqrtf(v) / p.root + p.eps);
        const float stepped = (t.master ? t.master[i] : widen(t.p[i])) * keep - change;
        t.m[i] = m;
        t.v[i] = v;
        if (t.master) {
            t.master[i] = stepped;
            t.p[i] = narrow(stepped);
        } else {
            const uint4 words = philox(p.seed, static_cast<uint64_t>(p.step) << 32 | (s.tensor - p.tensors), i);
            t.p[i] = round_at_random(stepped, words.x);
        }
    }
}
