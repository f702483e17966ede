// Matrix products in the three layouts of a linear layer, y[m, n] (+)= a b (+ bias[n]), the reduction over k:
//   matmul_nt  a[m, k] b[n, k]^T   forward
//   matmul_nn  a[m, k] b[k, n]     gradient of the input
//   matmul_tn  a[k, m]^T b[k, n]   gradient of the weight
//
// Floor: max(2 m n k / peak, bytes / bandwidth). Tensor cores (mma m16n8k16, f32 sums) fed by ldmatrix from a ring of stages
// that cp.async fills. Neighbouring blocks share operands in L2.
//
// Every element of y is one chain of mma over k in increasing order, whatever the tile and whatever m: a row has the same bits
// in any batch and under any of the tile shapes, then the bias is added, then the old value.
#include "matmul.cuh"
#include "operand.cuh"

// One operand's tile: OUTER x BK elements of a matrix, with k along its rows (K_ROWS) or down its columns.
template <int OUTER, int BK, bool K_ROWS, int THREADS> struct Operand {
    static constexpr int ROWS = K_ROWS ? OUTER : BK, COLUMNS = K_ROWS ? BK : OUTER, STRIDE = COLUMNS + PAD;
    static constexpr int ELEMENTS = ROWS * STRIDE;

    // Copies the tile at (first, k) of a matrix with `outer` x `k_size` elements.
    static __device__ __forceinline__ void stage(uint16_t* to, const bf16* from, uint32_t first, uint32_t outer, uint32_t k,
                                                 uint32_t k_size, float scale = 1.0f) {
        const uint32_t row0 = K_ROWS ? first : k, column0 = K_ROWS ? k : first;
        const uint32_t rows = K_ROWS ? outer : k_size, width = K_ROWS ? k_size : outer;
        static_assert(ROWS * COLUMNS / 8 % THREADS == 0, "every thread copies as much");
#pragma unroll
        for (int c = threadIdx.x; c < ROWS * COLUMNS / 8; c += THREADS) {
            const uint32_t r = c / (COLUMNS / 8), column = c % (COLUMNS / 8) * 8;
            stage8(to + r * STRIDE + column, from + static_cast<uint64_t>(row0 + r) * width, column0 + column, width,
                   row0 + r < rows, scale);
        }
    }
};

// Writes two neighbours of a row, with bias and old value.
__device__ __forceinline__ void store_pair(const matmul_params& p, uint32_t row, uint32_t column, float x, float y) {
    if (column >= p.n) return;
    const bool both = column + 1 < p.n;
    const uint64_t at = static_cast<uint64_t>(row) * p.n + column;
    if (p.bias) {
        x += widen(p.bias[column]);
        if (both) y += widen(p.bias[column + 1]);
    }
    if (p.flags & MATMUL_F32) {
        float* to = static_cast<float*>(p.y) + at;
        if (p.flags & MATMUL_ADD) {
            x += to[0];
            if (both) y += to[1];
        }
        if (both && p.n % 2 == 0) {
            *reinterpret_cast<float2*>(to) = make_float2(x, y);
        } else {
            to[0] = x;
            if (both) to[1] = y;
        }
    } else {
        bf16* to = static_cast<bf16*>(p.y) + at;
        if (p.flags & MATMUL_ADD) {
            x += widen(to[0]);
            if (both) y += widen(to[1]);
        }
        if (both && p.n % 2 == 0) {
            *reinterpret_cast<uint32_t*>(to) = pack_bf16(x, y);
        } else {
            to[0] = narrow(x);
            if (both) to[1] = narrow(y);
        }
    }
}

// A block computes BM x BN elements, a warp WM x WN of them, BK steps of the reduction a stage.
template <int BM, int BN, int BK, int WM, int WN, int STAGES, bool A_K_ROWS, bool B_K_ROWS>
__device__ __forceinline__ void matmul(const matmul_params& p) {
    constexpr int THREADS = BM / WM * (BN / WN) * 32;
    using A = Operand<BM, BK, A_K_ROWS, THREADS>;
    using B = Operand<BN, BK, B_K_ROWS, THREADS>;
    constexpr int STAGE = A::ELEMENTS + B::ELEMENTS;
    uint16_t* const stages = reinterpret_cast<uint16_t*>(dynamic_shared());

    const Place place = place_of_tile(blockIdx.x, (p.m + BM - 1) / BM, (p.n + BN - 1) / BN);
    const uint32_t m0 = place.down * BM, n0 = place.right * BN;
    const OperandScale scale = operand_scale<14>(p.largest_a);

    auto stage = [&](uint32_t i) {
        if (i * BK < p.k) {
            uint16_t* to = stages + i % STAGES * STAGE;
            A::stage(to, p.a, m0, p.m, i * BK, p.k, scale.by);
            B::stage(to + A::ELEMENTS, p.b, n0, p.n, i * BK, p.k);
        }
        commit_copies();
    };
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int wm = warp / (BN / WN) * WM, wn = warp % (BN / WN) * WN;
    float sum[WM / 16][WN / 8][4] = {};
#pragma unroll
    for (int i = 0; i < STAGES - 1; ++i) stage(i);
    for (uint32_t i = 0; i * BK < p.k; ++i) {
        wait_copies<STAGES - 2>();
        __syncthreads();  // stage i is whole, and everybody is done with the one that is filled next
        stage(i + STAGES - 1);
        const uint16_t* a_tile = stages + i % STAGES * STAGE;
        const uint16_t* b_tile = a_tile + A::ELEMENTS;
#pragma unroll
        for (int k = 0; k < BK; k += 16) {
            uint32_t a[WM / 16][4], b[WN / 16][4];
#pragma unroll
            for (int x = 0; x < WM / 16; ++x) load_left<A::STRIDE, A_K_ROWS>(a[x], a_tile, wm + 16 * x, k);
#pragma unroll
            for (int y = 0; y < WN / 16; ++y) load_right<B::STRIDE, B_K_ROWS>(b[y], b_tile, wn + 16 * y, k);
#pragma unroll
            for (int x = 0; x < WM / 16; ++x) {
#pragma unroll
                for (int y = 0; y < WN / 8; ++y) mma_16x8x16(sum[x][y], a[x], b[y / 2][y % 2 * 2], b[y / 2][y % 2 * 2 + 1]);
            }
        }
    }
    // A thread has pairs of neighbours in a row.
#pragma unroll
    for (int x = 0; x < WM / 16; ++x) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint32_t row = m0 + wm + 16 * x + 8 * half + lane / 4;
            if (row >= p.m) continue;
#pragma unroll
            for (int y = 0; y < WN / 8; ++y) {
                const uint32_t column = n0 + wn + 8 * y + lane % 4 * 2;
                store_pair(p, row, column, sum[x][y][2 * half] * scale.back, sum[x][y][2 * half + 1] * scale.back);
            }
        }
    }
}

// The tile shapes. Large: 128 x 128 by 8 warps; medium: 64 x 64 by 4, for fewer rows; small: 16 x 32 by 2, for decoding, where
// many narrow blocks with many stages keep the memory busy.
#define LARGE 128, 128, 32, 64, 32, MATMUL_LARGE_STAGES
#define MEDIUM 64, 64, 32, 32, 32, MATMUL_MEDIUM_STAGES
#define SMALL 16, 32, 64, 16, 16, MATMUL_SMALL_STAGES

#define PRODUCT(NAME, THREADS, TILE, A_K_ROWS, B_K_ROWS)                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS) matmul_##NAME(const matmul_params __grid_constant__ p) {          \
        matmul<TILE, A_K_ROWS, B_K_ROWS>(p);                                                                                \
    }
PRODUCT(nt_large, 256, LARGE, true, true)
PRODUCT(nt_medium, 128, MEDIUM, true, true)
PRODUCT(nt_small, 64, SMALL, true, true)
PRODUCT(nn_large, 256, LARGE, true, false)
PRODUCT(nn_medium, 128, MEDIUM, true, false)
PRODUCT(tn_large, 256, LARGE, false, false)
PRODUCT(tn_medium, 128, MEDIUM, false, false)
