// The primitives of compute capability 9.0 (ptx_sm90.cuh) in small kernels, and the same with one mistake each, which the host's
// device must catch (tests/sm90/primitives.rs).
#include "sm90.h"
#include "tile_sm90.cuh"

#ifdef RATOON_SM90

enum Mistake {
    NONE,
    NO_WAIT,          // reads a tile without waiting for its bytes
    FEW_BYTES,        // announces fewer bytes than come
    MANY_BYTES,       // announces more
    EARLY_RELEASE,    // gives a tile back while products still read it
    NO_PRODUCT_WAIT,  // reads sums whose products are on their way
    NO_FENCE,         // products without a fence
    UNEVEN,           // one warp names another operand than the others
    NO_ARRIVAL,       // never gives a tile back
};

constexpr uint32_t TILE = 64 * 64 * 2;

struct Barriers {
    uint64_t full, empty;
};

// y = sum over p.tiles of a b, tile after tile through one place in shared memory: warpgroup 0 multiplies, thread 128 copies. A
// and B transposed: k down the columns. Block: 160.
template <int MISTAKE, bool A_TRANSPOSED, bool B_TRANSPOSED, bool REGISTERS> __device__ void products(const sm90_params& p) {
    auto& barriers = shared_object<Barriers>();
    char* const a = patterned_shared();
    char* const b = a + TILE;
    if (threadIdx.x == 0) {
        mbarrier_init(&barriers.full, 1);
        mbarrier_init(&barriers.empty, 4);
        mbarrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x >= 128) {
        if (threadIdx.x > 128) return;
        for (uint32_t i = 0; i < p.tiles; ++i) {
            mbarrier_wait(&barriers.empty, i % 2 ^ 1);
            mbarrier_arrive_expect(&barriers.full, MISTAKE == FEW_BYTES ? TILE : MISTAKE == MANY_BYTES ? 3 * TILE : 2 * TILE);
            tensor_load(a, p.a, A_TRANSPOSED ? 0 : 64 * i, A_TRANSPOSED ? 64 * i : 0, &barriers.full);
            tensor_load(b, p.b, B_TRANSPOSED ? 0 : 64 * i, B_TRANSPOSED ? 64 * i : 0, &barriers.full);
        }
        return;
    }
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = 16 * warp + lane / 4, t = 2 * (lane % 4);
    auto release = [&] {
        if (MISTAKE != NO_ARRIVAL && lane == 0) mbarrier_arrive(&barriers.empty);
    };
    float d[32];
    for (uint32_t i = 0; i < p.tiles; ++i) {
        if (MISTAKE != NO_WAIT) mbarrier_wait(&barriers.full, i % 2);
        if (MISTAKE != NO_FENCE) wgmma_fence();
        for (uint32_t k = 0; k < 64; k += 16) {
            const uint64_t right = B_TRANSPOSED ? down_columns(b, k, TILE) : along_rows(b, k);
            if (REGISTERS) {
                uint32_t left[4];
                for (uint32_t r = 0; r < 4; ++r) {
                    const uint32_t at = (row + r % 2 * 8) * 64 * p.tiles + 64 * i + k + t + r / 2 * 8;
                    left[r] = p.left[at].bits | static_cast<uint32_t>(p.left[at + 1].bits) << 16;
                }
                WgmmaRegisters<64, B_TRANSPOSED>::issue(d, left, right, i > 0 || k > 0);
            } else {
                const uint64_t left = A_TRANSPOSED ? down_columns(a, k, TILE) : along_rows(a, k);
                const bool other = MISTAKE == UNEVEN && warp == 2;
                Wgmma<64, A_TRANSPOSED, B_TRANSPOSED>::issue(d, other ? right : left, right, i > 0 || k > 0);
            }
        }
        wgmma_commit();
        if (MISTAKE == EARLY_RELEASE) release();
        if (MISTAKE == NO_PRODUCT_WAIT && i + 1 == p.tiles) {
            wgmma_wait<1>();
        } else {
            wgmma_wait<0>();
        }
        if (MISTAKE != EARLY_RELEASE) release();
    }
    for (uint32_t j = 0; j < 32; ++j) p.y[(row + j / 2 % 2 * 8) * 64 + j / 4 * 8 + t + j % 2] = d[j];
    if (MISTAKE == NO_PRODUCT_WAIT) wgmma_wait<0>();
}

#define PRODUCTS(NAME, ...)                                                               \
    extern "C" __global__ void sm90_##NAME(const sm90_params __grid_constant__ p) { \
        products<__VA_ARGS__>(p);                                                   \
    }
PRODUCTS(products_nt, NONE, false, false, false)
PRODUCTS(products_nn, NONE, false, true, false)
PRODUCTS(products_tn, NONE, true, true, false)
PRODUCTS(products_tt, NONE, true, false, false)
PRODUCTS(products_registers_nt, NONE, false, false, true)
PRODUCTS(products_registers_nn, NONE, false, true, true)
PRODUCTS(no_wait, NO_WAIT, false, false, false)
PRODUCTS(few_bytes, FEW_BYTES, false, false, false)
PRODUCTS(many_bytes, MANY_BYTES, false, false, false)
PRODUCTS(early_release, EARLY_RELEASE, false, false, false)
PRODUCTS(no_product_wait, NO_PRODUCT_WAIT, false, false, false)
PRODUCTS(no_fence, NO_FENCE, false, false, false)
PRODUCTS(uneven, UNEVEN, false, false, false)
PRODUCTS(no_arrival, NO_ARRIVAL, false, false, false)

// y = the box of a at (p.x, p.y0), its swizzle undone. Block: 64.
extern "C" __global__ void sm90_copy(const sm90_params __grid_constant__ p) {
    auto& barriers = shared_object<Barriers>();
    char* const tile = patterned_shared();
    if (threadIdx.x == 0) {
        mbarrier_init(&barriers.full, 1);
        mbarrier_init_fence();
        mbarrier_arrive_expect(&barriers.full, TILE);
        tensor_load(tile, p.a, p.x, p.y0, &barriers.full);
    }
    __syncthreads();
    mbarrier_wait(&barriers.full, 0);
    const auto* halves = reinterpret_cast<const bf16*>(tile);
    for (uint32_t row = 0; row < 64; ++row) {
        const uint32_t word = threadIdx.x / 8 ^ row % 8;
        p.y[row * 64 + threadIdx.x] = widen(halves[row * 64 + word * 8 + threadIdx.x % 8]);
    }
}

// Two warps write y in turns, by named barriers: 0 writes its half of a row and lets 1 go, and so on. Each adds what the other
// wrote last. Block: 64.
extern "C" __global__ void sm90_turns(const sm90_params __grid_constant__ p) {
    float* const last = static_cast<float*>(dynamic_shared());
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (warp == 1) {
        last[lane] = 0.0f;
        named_barrier_arrive(1, 64);
    }
    for (uint32_t row = 0; row < 64; ++row) {
        named_barrier_wait(1 + warp, 64);
        last[lane] += 1.0f;
        p.y[row * 64 + threadIdx.x] = last[lane];
        if (warp == 0 || row < 63) named_barrier_arrive(2 - warp, 64);
    }
}

enum ClusterMistake {
    NO_CLUSTER_MISTAKE,
    NO_START,     // reaches the other block before it is there
    OWN_RELEASE,  // tells its own block alone that a tile is done with
    NO_END,       // ends while the other block still reaches it
};

// Two blocks: y[block] = sum of the first p.tiles 64 x 64 tiles of a. Each copies one half of a tile's rows to both. Block: 96.
template <int MISTAKE> __device__ void shared_tiles(const sm90_params& p) {
    auto& barriers = shared_object<Barriers>();
    char* const tile = patterned_shared();
    const uint32_t rank = cluster_rank();
    // A block that comes late.
    for (uint32_t turn = 0; MISTAKE == NO_START && turn < 8 * rank; ++turn) __syncthreads();
    if (threadIdx.x == 0) {
        mbarrier_init(&barriers.full, 1);
        mbarrier_init(&barriers.empty, 4);
        mbarrier_init_fence();
    }
    if (MISTAKE == NO_START) {
        __syncthreads();
    } else {
        cluster_wait();
    }
    if (threadIdx.x == 64) {
        for (uint32_t i = 0; i < p.tiles; ++i) {
            mbarrier_wait(&barriers.empty, i % 2 ^ 1);
            mbarrier_arrive_expect(&barriers.full, TILE);
            tensor_load_to(3, tile + rank * TILE / 2, p.a, 64 * i, 32 * rank, &barriers.full);
        }
    } else if (threadIdx.x < 64) {
        float sum[64] = {};
        for (uint32_t i = 0; i < p.tiles; ++i) {
            mbarrier_wait(&barriers.full, i % 2);
            // A block that takes its time.
            for (uint32_t turn = 0; MISTAKE == OWN_RELEASE && turn < 8 * rank; ++turn) __syncwarp();
            const auto* halves = reinterpret_cast<const bf16*>(tile);
            for (uint32_t row = 0; row < 64; ++row) {
                sum[row] += widen(halves[row * 64 + (threadIdx.x / 8 ^ row % 8) * 8 + threadIdx.x % 8]);
            }
            __syncwarp();
            if (threadIdx.x % 32 < 2) mbarrier_arrive_at(&barriers.empty, MISTAKE == OWN_RELEASE ? rank : threadIdx.x % 2);
        }
        for (uint32_t row = 0; row < 64; ++row) p.y[(64 * rank + row) * 64 + threadIdx.x] = sum[row];
    }
    if (MISTAKE != NO_END) cluster_wait();
}

#define SHARED_TILES(NAME, MISTAKE)                                                                       \
    CLUSTERS_OF(2, sm90_##NAME) sm90_##NAME(const sm90_params __grid_constant__ p) { shared_tiles<MISTAKE>(p); }
SHARED_TILES(shared_tiles, NO_CLUSTER_MISTAKE)
SHARED_TILES(no_start, NO_START)
SHARED_TILES(own_release, OWN_RELEASE)
SHARED_TILES(no_end, NO_END)

#endif
