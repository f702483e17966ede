// matmul.cu's products on Hopper (compute capability 9.0), y[m, n] (+)= a b (+ bias[n]): nt, nn and tn as there.
//
// Floor: max(2 m n k / 788 TFLOP/s, bytes / 4.3 TB/s) on an H200. Sources: the warp-specialised persistent kernel of CUTLASS 3,
// fast.cu (Pranjal Shankhdhar, 2024), DeepGEMM. On paper, measured: not yet:
//   - tensor copies by one thread into a ring, products by wgmma from shared memory: no instruction of the eight multiplying
//     warps loads, so the tensor cores wait for nothing but data (mma.sync with ldmatrix reaches about 60 % of the card's peak);
//   - tiles of 128 x 256 x 64: 48 KB for 4.2 MFLOP, 70 GB/s a multiprocessor at 788 TFLOP/s, of about 110 that the L2 cache gives;
//     128 x 128 would need 94 and is for shapes where 256 columns would leave multiprocessors idle;
//   - registers from the copying warpgroup to the others (setmaxnreg 40 / 232): 128 sums a thread and no spills;
//   - a persistent grid: the copies of the next tile run under the stores of this one;
//   - stores straight from registers, two exchanged words at a time so that four lanes write a whole sector of 32 bytes: all
//     epilogues and any n with one code, about 1,000 cycles of 33,000 at k = 4096. Stores by the copy engine would hide them and
//     cost a stage of the ring; clusters with multicast would save a third of the L2 traffic. Neither is here yet.
//
// Few rows (decoding): y^T = b a^T, the weights as the 64 rows of wgmma and the rows of a as its 8 to 128 columns, so that
// nothing is padded but registers. A block streams `rows` weights of each tile, chosen so that every multiprocessor has the same
// number; the ring of 192 KB keeps far more in flight than the 33 KB a multiprocessor that 4.3 TB/s at 1 us latency needs. Each
// block also reads all rows of a: with 64 of them and n = 4096 twice the bytes of its weights, 96 of about 110 GB/s, where
// multicast would begin to pay.
//
// Every element of y is one chain of wgmma over 16 steps of k at a time in increasing order, from zero, in every kernel here and
// for any m. The instruction computes an element from its 16 pairs of operands and its old sum; that neither the
// shape nor which operand is called a shows in the bits is an assumption about the hardware that tests/cuda checks on a card.
#include "matmul.cuh"
#include "tile_sm90.cuh"

#ifdef RATOON_SM90

// Warpgroup 2 copies, 0 and 1 multiply.
constexpr uint32_t COPIER = 2;
constexpr int MOST_STAGES = 24;
// Steps of k in a tile; slabs of them that come together: the reduction is zero-padded to the same length in all kernels.
constexpr int BK = SWIZZLED, SLABS = 2;

// The ring of stages in shared memory. Stage i % stages is full when its bytes are there, empty when every multiplying warp is
// done with it.
struct Barriers {
    uint64_t full[MOST_STAGES], empty[MOST_STAGES];
};

struct Ring {
    char* tiles;
    Barriers& barriers;
    uint32_t stages, bytes, stage = 0, parity = 0;

    __device__ __forceinline__ Ring(uint32_t bytes, uint32_t multiplying_warps)
        : tiles(patterned_shared()), barriers(shared_object<Barriers>()), bytes(bytes) {
        stages = min(MATMUL_SM90_RING / bytes, static_cast<uint32_t>(MOST_STAGES));
        if (threadIdx.x == 0) {
            for (uint32_t i = 0; i < stages; ++i) {
                mbarrier_init(&barriers.full[i], 1);
                mbarrier_init(&barriers.empty[i], multiplying_warps);
            }
            mbarrier_init_fence();
        }
        __syncthreads();
    }

    __device__ __forceinline__ char* tile() const { return tiles + stage * bytes; }
    __device__ __forceinline__ uint64_t* full() const { return &barriers.full[stage]; }

    __device__ __forceinline__ void advance() {
        if (++stage == stages) {
            stage = 0;
            parity ^= 1;
        }
    }

    // The copying thread: waits until the stage is empty, and announces the bytes to come.
    __device__ __forceinline__ void claim() {
        mbarrier_wait(&barriers.empty[stage], parity ^ 1);
        mbarrier_arrive_expect(full(), bytes);
    }

    // A multiplying warp: gives back the stage before this one.
    __device__ __forceinline__ void release_previous() {
        if (threadIdx.x % 32 == 0) mbarrier_arrive(&barriers.empty[(stage == 0 ? stages : stage) - 1]);
    }
};

// A tile of one operand: OUTER rows or columns of a matrix by 64 steps of k, along the rows (K_ROWS) or down the columns.
template <int OUTER, bool K_ROWS> struct Tile {
    static constexpr uint32_t BYTES = OUTER * BK * 2, BOX = SWIZZLED * BK * 2;

    static __device__ __forceinline__ void load(char* to, const tensor_map& map, uint32_t outer, uint32_t k, uint64_t* full) {
        if (K_ROWS) {
            tensor_load(to, map, k, outer, full);
        } else {
#pragma unroll
            for (int box = 0; box < OUTER / SWIZZLED; ++box) {
                tensor_load(to + box * BOX, map, outer + box * SWIZZLED, k, full);
            }
        }
    }

    // The operand of 16 steps from k, from row or column `outer` (a multiple of 64) of the tile on.
    static __device__ __forceinline__ uint64_t at(const char* tile, int outer, int k) {
        return K_ROWS ? along_rows(tile + outer * BK * 2, k) : down_columns(tile + outer / SWIZZLED * BOX, k, BOX);
    }
};

// Multiplies the stages of one tile of y, STEPS of k each; d is what a warpgroup holds of it.
template <int N, int STEPS, bool A_K_ROWS, bool B_K_ROWS, class A, class B>
__device__ __forceinline__ void multiply(float (&d)[N / 2], Ring& ring, uint32_t stages, A a, B b) {
    for (uint32_t i = 0; i < stages; ++i) {
        mbarrier_wait(ring.full(), ring.parity);
        wgmma_hold(d);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < STEPS; k += 16) {
            Wgmma<N, !A_K_ROWS, !B_K_ROWS>::issue(d, a(ring.tile(), k), b(ring.tile(), k), i > 0 || k > 0);
        }
        wgmma_commit();
        wgmma_wait<1>();  // the stage before has been read
        if (i > 0) ring.release_previous();
        ring.advance();
    }
    wgmma_wait<0>();
    wgmma_hold(d);
    ring.release_previous();
}

// Writes one element, with bias and old value.
__device__ __forceinline__ void store_one(const matmul_params& p, uint32_t row, uint32_t column, float x) {
    const uint64_t at = static_cast<uint64_t>(row) * p.n + column;
    if (p.bias) x += widen(p.bias[column]);
    if (p.flags & MATMUL_F32) {
        float* to = static_cast<float*>(p.y) + at;
        *to = p.flags & MATMUL_ADD ? *to + x : x;
    } else {
        bf16* to = static_cast<bf16*>(p.y) + at;
        *to = narrow(p.flags & MATMUL_ADD ? widen(*to) + x : x);
    }
}

// Adds bias and, from a y of type T, the old values to two neighbours of a row; n is a multiple of 4.
template <class T> __device__ __forceinline__ float2 finish(const matmul_params& p, uint32_t row, uint32_t column, float2 x) {
    if (row >= p.m || column >= p.n) return x;
    if (p.bias) x = make_float2(x.x + widen(p.bias[column]), x.y + widen(p.bias[column + 1]));
    if (p.flags & MATMUL_ADD) {
        const T* old = static_cast<const T*>(p.y) + static_cast<uint64_t>(row) * p.n + column;
        x = make_float2(x.x + widen(old[0]), x.y + widen(old[1]));
    }
    return x;
}

// Writes this lane's pairs, x and y, of two neighbouring blocks of eight columns.
__device__ __forceinline__ void store_blocks(const matmul_params& p, uint32_t row, uint32_t column, float2 x, float2 y) {
    const uint32_t t = threadIdx.x % 4;
    if (p.flags & MATMUL_F32) {
        x = finish<float>(p, row, column + 2 * t, x);
        y = finish<float>(p, row, column + 8 + 2 * t, y);
        if (row >= p.m) return;
        float* const to = static_cast<float*>(p.y) + static_cast<uint64_t>(row) * p.n + column + 2 * t;
        if (column + 2 * t < p.n) *reinterpret_cast<float2*>(to) = x;
        if (column + 8 + 2 * t < p.n) *reinterpret_cast<float2*>(to + 8) = y;
        return;
    }
    x = finish<bf16>(p, row, column + 2 * t, x);
    y = finish<bf16>(p, row, column + 8 + 2 * t, y);
    const uint32_t word[2] = {pack_bf16(x.x, x.y), pack_bf16(y.x, y.y)};
    // Lanes 0 and 1 take the first block, 2 and 3 the second; then each two neighbouring words, four columns.
    const uint32_t other = __shfl_xor_sync(FULL_WARP, t < 2 ? word[1] : word[0], 2);
    const uint32_t first = t < 2 ? word[0] : other, second = t < 2 ? other : word[1];
    const uint32_t swapped = __shfl_xor_sync(FULL_WARP, t % 2 ? first : second, 1);
    const uint32_t at = column + 4 * t;
    if (row >= p.m || at >= p.n) return;
    *reinterpret_cast<uint2*>(static_cast<bf16*>(p.y) + static_cast<uint64_t>(row) * p.n + at) =
        t % 2 ? uint2{swapped, second} : uint2{first, swapped};
}

template <int BN, bool A_K_ROWS, bool B_K_ROWS> __device__ __forceinline__ void matmul(const matmul_sm90_params& p) {
    constexpr int BM = 128;
    using A = Tile<BM, A_K_ROWS>;
    using B = Tile<BN, B_K_ROWS>;
    const uint32_t m = p.product.m, n = p.product.n;
    const uint32_t down = (m + BM - 1) / BM, right = (n + BN - 1) / BN;
    const uint32_t stages = (p.product.k + BK * SLABS - 1) / (BK * SLABS) * SLABS;
    const uint32_t warpgroup = threadIdx.x / 128;
    Ring ring(A::BYTES + B::BYTES, 8);
    if (warpgroup == COPIER) {
        give_registers<40>();
        if (threadIdx.x % 128 != 0) return;
        for (uint32_t tile = blockIdx.x; tile < down * right; tile += gridDim.x) {
            const Place place = place_of_tile(tile, down, right);
            for (uint32_t i = 0; i < stages; ++i) {
                ring.claim();
                A::load(ring.tile(), p.a, place.down * BM, i * BK, ring.full());
                B::load(ring.tile() + A::BYTES, p.b, place.right * BN, i * BK, ring.full());
                ring.advance();
            }
        }
    } else {
        take_registers<232>();
        float d[BN / 2];
        for (uint32_t tile = blockIdx.x; tile < down * right; tile += gridDim.x) {
            multiply<BN, BK, A_K_ROWS, B_K_ROWS>(
                d, ring, stages, [&](const char* at, int k) { return A::at(at, 64 * warpgroup, k); },
                [&](const char* at, int k) { return B::at(at + A::BYTES, 0, k); });
            const Place place = place_of_tile(tile, down, right);
            const uint32_t row = place.down * BM + 64 * warpgroup + threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
#pragma unroll
            for (int j = 0; j < BN / 2; j += 8) {
                const uint32_t column = place.right * BN + 2 * j;
                store_blocks(p.product, row, column, make_float2(d[j], d[j + 1]), make_float2(d[j + 4], d[j + 5]));
                store_blocks(p.product, row + 8, column, make_float2(d[j + 2], d[j + 3]), make_float2(d[j + 6], d[j + 7]));
            }
        }
    }
}

// Tiles of y^T, M rows of a in each. A warpgroup has 64 weights; where there are fewer, it multiplies what lies behind the tile
// and stores nothing of it.
template <int M> __device__ __forceinline__ void matmul_rows(const matmul_sm90_params& p) {
    const uint32_t m = p.product.m, n = p.product.n;
    // Tiles of the same weights are neighbours.
    const uint32_t groups = (m + M - 1) / M, tiles = (n + p.rows - 1) / p.rows * groups;
    const uint32_t stages = (p.product.k + BK * SLABS - 1) / (BK * SLABS);
    const uint32_t warpgroup = threadIdx.x / 128, multiplying = (p.rows + 63) / 64;
    // A stage: slabs of weights, then slabs of a.
    const uint32_t weights = p.rows * BK * 2;
    constexpr uint32_t ROWS = M * BK * 2;
    Ring ring((weights + ROWS) * SLABS, 4 * multiplying);
    if (warpgroup == COPIER) {
        if (threadIdx.x % 128 != 0) return;
        for (uint32_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
            for (uint32_t i = 0; i < stages * SLABS; i += SLABS) {
                ring.claim();
#pragma unroll
                for (uint32_t slab = 0; slab < SLABS; ++slab) {
                    const uint32_t k = (i + slab) * BK;
                    tensor_load(ring.tile() + slab * weights, p.b, k, tile / groups * p.rows, ring.full());
                    tensor_load(ring.tile() + SLABS * weights + slab * ROWS, p.a, k, tile % groups * M, ring.full());
                }
                ring.advance();
            }
        }
    } else if (warpgroup < multiplying) {
        float d[M / 2];
        for (uint32_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
            multiply<M, BK * SLABS, true, true>(
                d, ring, stages,
                [&](const char* at, int k) {
                    return along_rows(at + k / BK * weights + 64 * warpgroup * BK * 2, k % BK);
                },
                [&](const char* at, int k) { return along_rows(at + SLABS * weights + k / BK * ROWS, k % BK); });
            const uint32_t warp = threadIdx.x / 32 % 4, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
            for (uint32_t half = 0; half < 2; ++half) {
                const uint32_t row = 64 * warpgroup + 16 * warp + g + 8 * half, column = tile / groups * p.rows + row;
                if (row >= p.rows || column >= n) continue;
#pragma unroll
                for (uint32_t j = 0; j < M / 4; ++j) {
                    const uint32_t of_a = tile % groups * M + 8 * (j / 2) + 2 * t + j % 2;
                    if (of_a < m) store_one(p.product, of_a, column, d[j / 2 * 4 + 2 * half + j % 2]);
                }
            }
        }
    }
}

#define PRODUCT(NAME, COLUMNS, A_K_ROWS, B_K_ROWS)                                   \
    extern "C" __global__ void __launch_bounds__(384, 1)                             \
        matmul_sm90_##NAME##_##COLUMNS(const matmul_sm90_params __grid_constant__ p) { \
        matmul<COLUMNS, A_K_ROWS, B_K_ROWS>(p);                                      \
    }
PRODUCT(nt, 256, true, true)
PRODUCT(nt, 128, true, true)
PRODUCT(nn, 256, true, false)
PRODUCT(nn, 128, true, false)
PRODUCT(tn, 256, false, false)
PRODUCT(tn, 128, false, false)

#define ROWS(M)                                                                                                             \
    extern "C" __global__ void __launch_bounds__(384, 1) matmul_sm90_rows_##M(const matmul_sm90_params __grid_constant__ p) { \
        matmul_rows<M>(p);                                                                                                  \
    }
ROWS(8)
ROWS(16)
ROWS(32)
ROWS(64)
ROWS(128)

#endif
