// matmul.cu's products on Hopper (compute capability 9.0), y[m, n] (+)= a b (+ bias[n]): nt, nn and tn as there.
//
// Floor: max(2 m n k / 788 TFLOP/s, bytes / 4.3 TB/s) on an H200. Sources: the warp-specialised persistent kernel of CUTLASS 3,
// fast.cu (Pranjal Shankhdhar, 2024), DeepGEMM. On paper, measured: not yet:
//   - tensor copies by one thread into a ring, products by wgmma from shared memory: no instruction of the eight multiplying
//     warps loads, so the tensor cores wait for nothing but data (mma.sync with ldmatrix reaches about 60 % of the card's peak);
//   - tiles of 128 x 256 x 64: 48 KB for 4.2 MFLOP. At 788 TFLOP/s that is 70 GB/s for each of 132 multiprocessors, 9.2 TB/s, where
//     the L2 cache is expected to give 6 (measured on other H100: 5.5 to 7) and the way into one multiprocessor 112 GB/s. So two
//     tiles below each other are a cluster, and each block copies half of their columns of b to both: 6.2 TB/s from the cache;
//   - 128 x 128, not in clusters, is for shapes where 256 columns would leave multiprocessors idle;
//   - registers from the copying warpgroup to the others (setmaxnreg 40 / 232): 128 sums a thread and no spills;
//   - a persistent grid: the copies of the next tile run under the stores of this one;
//   - stores straight from registers, two exchanged words at a time so that four lanes write a whole sector of 32 bytes: all
//     epilogues and any n with one code, about 1,000 cycles of 33,000 at k = 4096. Stores by the copy engine would hide them and
//     cost a stage of the ring.
//
// Few rows (decoding): y^T = b a^T, the weights as the 64 rows of wgmma and the rows of a as its 8 to 128 columns, so that
// nothing is padded but registers. A block streams `rows` weights of each tile, chosen so that every block has the same number: of
// 4,096 weights 32, of 1,024 8, by 128 blocks. The ring of 192 KB keeps 64 KB of weights or more in flight on each, where 4.3 TB/s at
// 1 us latency need 33. But each block also needs all rows of a: of 64 rows and n = 4096 twice the bytes of its weights. From 32 rows on
// clusters of four copy a quarter of them each to all four. The larger of bytes / 4.3 TB/s and bytes from the cache / 6 TB/s, us,
// with the launch and the first bytes (some 3 us) still to come where no dependent launch hides them; without clusters in brackets:
//   | n x k | 1, 8 rows | 32 | 64 | 256 (and of 788 TFLOP/s) |
//   | 4096 x 4096 | 7.8 | 7.9 (11.2) | 8.4 (16.8) | 16.8 (33.6; 10.9) |
//   | 1024 x 4096 | 2.8 | 2.8 (7.0) | 4.2 (12.6) | 8.4 (25.2; 2.7) |
//   | 14336 x 4096 | 27.3 | 27.6 | 27.9 (30.8) | 50.3 (83.9; 38.2) |
//   | 4096 x 14336 | 27.3 | 27.6 (39.1) | 29.4 (58.7) | 58.7 (117; 38.2) |
//   | 128256 x 4096 | 245 | 246 | 248 (263) | 438 (700; 341) |
// A dependent launch (src/device/cuda/launch.rs) fills the ring with weights, 160 KB of them at 48 rows, before it waits for the kernels
// that make a: 128 blocks have 20 MB, 4.8 us, on the way while those still run. Unmeasured.
// Products with the same a (q, k and v; gate and up) are one launch: 11.7 us for the 6,144 weights of q, k and v, where three take
// 13.4, and two launches less.
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

// The blocks of a cluster copy parts of what they share into the same stage of each: it is empty when the multiplying warps of all
// of them are done with it.
template <uint32_t CLUSTER> struct Ring {
    char* tiles;
    Barriers& barriers;
    uint32_t stages, bytes, stage = 0, parity = 0;

    __device__ __forceinline__ Ring(uint32_t bytes, uint32_t multiplying_warps)
        : tiles(patterned_shared()), barriers(shared_object<Barriers>()), bytes(bytes) {
        stages = min(MATMUL_SM90_RING / bytes, static_cast<uint32_t>(MOST_STAGES));
        if (threadIdx.x == 0) {
            for (uint32_t i = 0; i < stages; ++i) {
                mbarrier_init(&barriers.full[i], 1);
                mbarrier_init(&barriers.empty[i], multiplying_warps * CLUSTER);
            }
            mbarrier_init_fence();
        }
        // Before anybody reaches them.
        if (CLUSTER > 1) {
            cluster_wait();
        } else {
            __syncthreads();
        }
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
        uint64_t* const empty = &barriers.empty[(stage == 0 ? stages : stage) - 1];
        const uint32_t lane = threadIdx.x % 32;
        if (CLUSTER > 1) {
            if (lane < CLUSTER) mbarrier_arrive_at(empty, lane);
        } else if (lane == 0) {
            mbarrier_arrive(empty);
        }
    }
};

// A tile of one operand: OUTER rows or columns of a matrix by 64 steps of k, along the rows (K_ROWS) or down the columns. SHARED
// blocks of a cluster copy a part of it each, to all of them.
template <int OUTER, bool K_ROWS, uint32_t SHARED = 1> struct Tile {
    static constexpr uint32_t BYTES = OUTER * BK * 2, BOX = SWIZZLED * BK * 2, PART = OUTER / SHARED;

    static __device__ __forceinline__ void load(char* to, const tensor_map& map, uint32_t outer, uint32_t k, uint64_t* full) {
        const uint32_t part = SHARED > 1 ? cluster_rank() * PART : 0;
        auto copy = [&](char* there, uint32_t x, uint32_t y) {
            if (SHARED > 1) {
                tensor_load_to((1 << SHARED) - 1, there, map, x, y, full);
            } else {
                tensor_load(there, map, x, y, full);
            }
        };
        if (K_ROWS) {
            copy(to + part * BK * 2, k, outer + part);
        } else {
#pragma unroll
            for (int box = 0; box < static_cast<int>(PART) / SWIZZLED; ++box) {
                copy(to + part / SWIZZLED * BOX + box * BOX, outer + part + box * SWIZZLED, k);
            }
        }
    }

    // The operand of 16 steps from k, from row or column `outer` (a multiple of 64) of the tile on.
    static __device__ __forceinline__ uint64_t at(const char* tile, int outer, int k) {
        return K_ROWS ? along_rows(tile + outer * BK * 2, k) : down_columns(tile + outer / SWIZZLED * BOX, k, BOX);
    }
};

// Multiplies the stages of one tile of y, STEPS of k each; d is what a warpgroup holds of it.
template <int N, int STEPS, bool A_K_ROWS, bool B_K_ROWS, class Ring, class A, class B>
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

// Tiles of y of 128 x BN; a cluster computes some below each other, which share their columns of b.
template <int BN, bool A_K_ROWS, bool B_K_ROWS, uint32_t CLUSTER>
__device__ __forceinline__ void matmul(const matmul_sm90_params& p) {
    constexpr int BM = 128;
    using A = Tile<BM, A_K_ROWS>;
    using B = Tile<BN, B_K_ROWS, CLUSTER>;
    const uint32_t m = p.product.m, n = p.product.n;
    const uint32_t down = (m + BM * CLUSTER - 1) / (BM * CLUSTER), right = (n + BN - 1) / BN;
    const uint32_t stages = (p.product.k + BK * SLABS - 1) / (BK * SLABS) * SLABS;
    const uint32_t warpgroup = threadIdx.x / 128, rank = CLUSTER > 1 ? cluster_rank() : 0;
    Ring<CLUSTER> ring(A::BYTES + B::BYTES, 8);
    auto place_of = [&](uint32_t tile) {
        const Place of_cluster = place_of_tile(tile, down, right);
        return Place{(of_cluster.down * CLUSTER + rank) * BM, of_cluster.right * BN};
    };
    if (warpgroup == COPIER) {
        give_registers<40>();
        if (threadIdx.x % 128 != 0) return;
        for (uint32_t tile = blockIdx.x / CLUSTER; tile < down * right; tile += gridDim.x / CLUSTER) {
            const Place place = place_of(tile);
            for (uint32_t i = 0; i < stages; ++i) {
                ring.claim();
                A::load(ring.tile(), p.a, place.down, i * BK, ring.full());
                B::load(ring.tile() + A::BYTES, p.b, place.right, i * BK, ring.full());
                ring.advance();
            }
        }
    } else {
        take_registers<232>();
        float d[BN / 2];
        for (uint32_t tile = blockIdx.x / CLUSTER; tile < down * right; tile += gridDim.x / CLUSTER) {
            multiply<BN, BK, A_K_ROWS, B_K_ROWS>(
                d, ring, stages, [&](const char* at, int k) { return A::at(at, 64 * warpgroup, k); },
                [&](const char* at, int k) { return B::at(at + A::BYTES, 0, k); });
            const Place place = place_of(tile);
            const uint32_t row = place.down + 64 * warpgroup + threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
#pragma unroll
            for (int j = 0; j < BN / 2; j += 8) {
                const uint32_t column = place.right + 2 * j;
                store_blocks(p.product, row, column, make_float2(d[j], d[j + 1]), make_float2(d[j + 4], d[j + 5]));
                store_blocks(p.product, row + 8, column, make_float2(d[j + 2], d[j + 3]), make_float2(d[j + 6], d[j + 7]));
            }
        }
    }
    if (CLUSTER > 1) cluster_wait();  // others still reach this block
}

// A tile of few rows: of which product, its first weight, its first row of a.
struct RowsPlace {
    uint32_t product, weight, row;
};

// Tiles of y^T, M rows of a in each; a cluster computes some of other weights, which share their rows of a. A warpgroup has 64
// weights; where there are fewer, it multiplies what lies behind the tile and stores nothing of it.
template <int M, uint32_t CLUSTER> __device__ __forceinline__ void matmul_rows(const matmul_sm90_rows_params& p) {
    using A = Tile<M, true, CLUSTER>;
    const uint32_t m = p.product[0].m, groups = (m + M - 1) / M, of_cluster = p.rows * CLUSTER;
    auto tiles_of = [&](uint32_t product) { return (p.product[product].n + of_cluster - 1) / of_cluster; };
    uint32_t tiles = 0;
    for (uint32_t i = 0; i < p.products; ++i) tiles += tiles_of(i) * groups;
    const uint32_t stages = (p.product[0].k + BK * SLABS - 1) / (BK * SLABS);
    const uint32_t warpgroup = threadIdx.x / 128, multiplying = (p.rows + 63) / 64, rank = CLUSTER > 1 ? cluster_rank() : 0;
    // A stage: slabs of weights, then slabs of a.
    const uint32_t weights = p.rows * BK * 2;
    launch_dependents();
    Ring<CLUSTER> ring((weights + A::BYTES) * SLABS, 4 * multiplying);
    // Tiles of the same weights are neighbours.
    auto place_of = [&](uint32_t tile) {
        RowsPlace place = {0, tile / groups, tile % groups * M};
        while (place.weight >= tiles_of(place.product)) place.weight -= tiles_of(place.product++);
        place.weight = place.weight * of_cluster + rank * p.rows;
        return place;
    };
    if (warpgroup == COPIER) {
        if (threadIdx.x % 128 != 0) return;
        auto load_weights = [&](const Ring<CLUSTER>& at, const RowsPlace& place, uint32_t stage) {
#pragma unroll
            for (uint32_t slab = 0; slab < SLABS; ++slab) {
                const uint32_t k = (stage * SLABS + slab) * BK;
                tensor_load(at.tile() + slab * weights, p.b[place.product], k, place.weight, at.full());
            }
        };
        auto load_rows = [&](const Ring<CLUSTER>& at, const RowsPlace& place, uint32_t stage) {
#pragma unroll
            for (uint32_t slab = 0; slab < SLABS; ++slab) {
                const uint32_t k = (stage * SLABS + slab) * BK;
                A::load(at.tile() + SLABS * weights + slab * A::BYTES, p.a, place.row, k, at.full());
            }
        };
        // Weights of the first tile, as many as the ring holds, ahead of the kernels before; then the rows that belong to them.
        const uint32_t first = blockIdx.x / CLUSTER, ahead = min(stages, ring.stages);
        const RowsPlace place_of_first = place_of(first);
        Ring<CLUSTER> rows = ring;
        prefetch_tensor_map(p.a);
        for (uint32_t i = 0; i < ahead; ++i) {
            ring.claim();
            load_weights(ring, place_of_first, i);
            ring.advance();
        }
        wait_for_prerequisites();
        for (uint32_t i = 0; i < ahead; ++i) {
            load_rows(rows, place_of_first, i);
            rows.advance();
        }
        for (uint32_t tile = first; tile < tiles; tile += gridDim.x / CLUSTER) {
            const RowsPlace place = place_of(tile);
            for (uint32_t i = tile == first ? ahead : 0; i < stages; ++i) {
                ring.claim();
                load_weights(ring, place, i);
                load_rows(ring, place, i);
                ring.advance();
            }
        }
    } else if (warpgroup < multiplying) {
        wait_for_prerequisites();  // y is theirs until then
        float d[M / 2];
        for (uint32_t tile = blockIdx.x / CLUSTER; tile < tiles; tile += gridDim.x / CLUSTER) {
            multiply<M, BK * SLABS, true, true>(
                d, ring, stages,
                [&](const char* at, int k) {
                    return along_rows(at + k / BK * weights + 64 * warpgroup * BK * 2, k % BK);
                },
                [&](const char* at, int k) { return along_rows(at + SLABS * weights + k / BK * A::BYTES, k % BK); });
            const RowsPlace place = place_of(tile);
            const matmul_params& product = p.product[place.product];
            const uint32_t warp = threadIdx.x / 32 % 4, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
            for (uint32_t half = 0; half < 2; ++half) {
                const uint32_t row = 64 * warpgroup + 16 * warp + g + 8 * half, column = place.weight + row;
                if (row >= p.rows || column >= product.n) continue;
#pragma unroll
                for (uint32_t j = 0; j < M / 4; ++j) {
                    const uint32_t of_a = place.row + 8 * (j / 2) + 2 * t + j % 2;
                    if (of_a < m) store_one(product, of_a, column, d[j / 2 * 4 + 2 * half + j % 2]);
                }
            }
        }
    }
    if (CLUSTER > 1) cluster_wait();  // others still reach this block
}

#define PRODUCT(NAME, A_K_ROWS, B_K_ROWS)                                                                          \
    CLUSTERS_OF(MATMUL_SM90_CLUSTER, matmul_sm90_##NAME##_256) __launch_bounds__(384, 1)                           \
        matmul_sm90_##NAME##_256(const matmul_sm90_params __grid_constant__ p) {                                   \
        matmul<256, A_K_ROWS, B_K_ROWS, MATMUL_SM90_CLUSTER>(p);                                                   \
    }                                                                                                              \
    extern "C" __global__ void __launch_bounds__(384, 1)                                                           \
        matmul_sm90_##NAME##_128(const matmul_sm90_params __grid_constant__ p) {                                   \
        matmul<128, A_K_ROWS, B_K_ROWS, 1>(p);                                                                     \
    }
PRODUCT(nt, true, true)
PRODUCT(nn, true, false)
PRODUCT(tn, false, false)

#define ROWS(M)                                                          \
    extern "C" __global__ void __launch_bounds__(384, 1)                 \
        matmul_sm90_rows_##M(const matmul_sm90_rows_params __grid_constant__ p) { \
        matmul_rows<M, 1>(p);                                            \
    }
ROWS(8)
ROWS(16)

#define ROWS_IN_CLUSTERS(M)                                                               \
    CLUSTERS_OF(MATMUL_SM90_ROWS_CLUSTER, matmul_sm90_rows_##M) __launch_bounds__(384, 1) \
        matmul_sm90_rows_##M(const matmul_sm90_rows_params __grid_constant__ p) {         \
        matmul_rows<M, MATMUL_SM90_ROWS_CLUSTER>(p);                                      \
    }
ROWS_IN_CLUSTERS(32)
ROWS_IN_CLUSTERS(64)
ROWS_IN_CLUSTERS(128)

#endif
