// Rotary position embedding (Su et al. 2021), in place, "rotate halves": with a = x[i], b = x[i + head_dim / 2] and the angle
// position * inv_freq[i], a' = a cos - b sin, b' = b cos + a sin. The backward pass turns the other way. One block a token.
//
// Floor: 2 * tokens * width * 2 bytes. Sine and cosine are computed once for all heads of a token, in f64: some 30 operations
// per pair of features, below a tenth of the floor even where f64 runs at 1/64 of f32, and right at any position. They are computed
// while the kernels before still run: for one token that hides a latency of memory and the series, some 1 us of 2. Unmeasured.
#include "tile.cuh"

// pi / 2 in two parts; the first has 33 bits, so that its product with a whole number below 2^20 is exact.
constexpr double HALF_PI_HIGH = 1.57079632673412561417e+00, HALF_PI_LOW = 6.07710050650619224932e-11;

// Sine and cosine of an angle below 2^20: less a multiple of pi / 2, then Taylor's series to r^13 and r^14 on |r| <= pi / 4
// (remainders 2e-14 and 1e-15).
__device__ __forceinline__ float2 sin_cos(float angle) {
    const double x = angle, n = rint(x * 6.36619772367581382433e-01);
    const double r = fma(n, -HALF_PI_LOW, fma(n, -HALF_PI_HIGH, x)), z = r * r;
    double s = 1.0 / 6227020800.0;
    s = fma(s, z, -1.0 / 39916800.0);
    s = fma(s, z, 1.0 / 362880.0);
    s = fma(s, z, -1.0 / 5040.0);
    s = fma(s, z, 1.0 / 120.0);
    s = fma(s, z, -1.0 / 6.0);
    const double sine = fma(r * z, s, r);
    double c = -1.0 / 87178291200.0;
    c = fma(c, z, 1.0 / 479001600.0);
    c = fma(c, z, -1.0 / 3628800.0);
    c = fma(c, z, 1.0 / 40320.0);
    c = fma(c, z, -1.0 / 720.0);
    c = fma(c, z, 1.0 / 24.0);
    c = fma(c, z, -0.5);
    const double cosine = fma(z, c, 1.0);
    const int quadrant = static_cast<int>(n);
    const double sin_q = quadrant & 1 ? cosine : sine, cos_q = quadrant & 1 ? sine : cosine;
    return make_float2(static_cast<float>(quadrant & 2 ? -sin_q : sin_q),
                       static_cast<float>((quadrant + 1) & 2 ? -cos_q : cos_q));
}

struct RopeAngles {
    float2 of[ROPE_MAX_HALF];
};

extern "C" __global__ void __launch_bounds__(ROW_THREADS) rope(const rope_params __grid_constant__ p) {
    launch_dependents();
    auto& angles = shared_object<RopeAngles>();
    // Of what no kernel of the step writes.
    const float position = static_cast<float>(p.positions[blockIdx.x]);
    for (uint32_t i = threadIdx.x; i < p.half; i += blockDim.x) {
        const float2 angle = sin_cos(position * p.inv_freq[i]);
        angles.of[i] = make_float2(angle.x * p.direction, angle.y);
    }
    wait_for_prerequisites();
    __syncthreads();
    bf16* row = p.x + static_cast<uint64_t>(blockIdx.x) * p.width;
    if (p.half % 8 == 0) {
        // Eight pairs a thread.
        for (uint32_t pair = 8 * threadIdx.x; pair < p.width / 2; pair += 8 * blockDim.x) {
            const uint32_t i = pair % p.half, low = pair / p.half * 2 * p.half + i, high = low + p.half;
            Eight a = load8(row, low, p.width), b = load8(row, high, p.width);
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                const float2 angle = angles.of[i + j];
                const float turned = a.at[j] * angle.y - b.at[j] * angle.x;
                b.at[j] = b.at[j] * angle.y + a.at[j] * angle.x;
                a.at[j] = turned;
            }
            store8(row, low, p.width, a);
            store8(row, high, p.width, b);
        }
    } else {
        for (uint32_t pair = threadIdx.x; pair < p.width / 2; pair += blockDim.x) {
            const uint32_t i = pair % p.half, low = pair / p.half * 2 * p.half + i, high = low + p.half;
            const float a = widen(row[low]), b = widen(row[high]);
            row[low] = narrow(a * angles.of[i].y - b * angles.of[i].x);
            row[high] = narrow(b * angles.of[i].y + a * angles.of[i].x);
        }
    }
}
