// attention_backward.cu's gradients on Hopper (compute capability 9.0). With P = exp(S - lse), S = scale q k^T,
//   dv = P^T dy;  dS = P (dy v^T - delta), delta = rowsum(dy y);  dk = scale dS^T q;  dq = scale dS k
// in the way of FlashAttention-3 (Shah et al. 2024), but in one order of sums: no atomics.
//
// Floor: 2.5 times the forward pass. As in attention_backward.cu, one kernel has 128 keys a block and goes down the queries, one
// 128 rows of queries and goes along the keys: 7 products instead of 5, so at best 5/7 of the card's peak is seen. On paper, measured:
// not yet:
//   - both products of a step are transposed such that P and dS are left operands of the next ones in registers: they never pass
//     through shared memory;
//   - one thread copies, three steps ahead; two warpgroups of 64 rows multiply, and while one computes exponentials the other has the
//     tensor cores. Within a warpgroup P and dS wait for both of their products: exponentials under the second one spilled 16
//     bytes of registers with heads of 128.
// Where the last step reaches into the next sequence, zeros replace its rows: a weight of 0 does not hide a NaN.
#include "softmax.cuh"
#include "tile_sm90.cuh"

#ifdef RATOON_SM90

// Rows of a warpgroup, and rows that a block goes through in a step.
constexpr int OWN = 64, STEP = 64, STAGES = 3;
// Warpgroup 2 copies, 0 and 1 multiply.
constexpr uint32_t COPIER = 2;

// Log of the sum of exponentials, to base 2, and delta of the rows of a step.
struct RowNumbers {
    float lse[STEP], delta[STEP];
};

struct Common {
    uint64_t own_full[2], full[STAGES], empty[STAGES];
    RowNumbers numbers[STAGES];
};

// One sequence and one key/value head. Rows of queries are (token, head of the group), `tokens` of them to 64 rows.
struct Head {
    uint32_t start, len, group, tokens;
};

__device__ __forceinline__ Head head_of_block(const attention_backward_params& p) {
    Head h;
    h.group = p.n_heads / p.n_kv_heads;
    h.tokens = STEP / h.group;
    h.start = p.cu_seqlens[blockIdx.z];
    h.len = p.cu_seqlens[blockIdx.z + 1] - h.start;
    return h;
}

// Where row r of the queries from token `first` lies, counted in heads.
__device__ __forceinline__ uint64_t query_row(const attention_backward_params& p, const Head& h, uint32_t first, uint32_t r) {
    return static_cast<uint64_t>(h.start + first + r / h.group) * p.n_heads + blockIdx.y * h.group + r % h.group;
}

// Two tiles of 64 rows of D features each for every warpgroup and every stage.
template <int D> struct Tiles {
    static constexpr uint32_t TILE = 64 * D * 2, SLAB = 64 * SWIZZLED * 2;
    char *own, *steps;

    __device__ __forceinline__ Tiles() : own(patterned_shared()), steps(own + 4 * TILE) {}
    __device__ __forceinline__ char* of_warpgroup(uint32_t w) const { return own + w * 2 * TILE; }
    __device__ __forceinline__ char* of_step(uint32_t i) const { return steps + i % STAGES * 2 * TILE; }
};

// Copies a pair of tiles whose first token is `token` of the sequence; `rows` of them, of at most 64, exist in a box.
template <int D>
__device__ __forceinline__ void copy_pair(char* to, const tensor_map& first, const tensor_map& second, const Head& h, uint32_t token,
                                          uint32_t rows, uint64_t* full) {
    mbarrier_arrive_expect(full, 2 * rows * D * 2);
    for (uint32_t slab = 0; slab < D / SWIZZLED; ++slab) {
        char* const at = to + slab * Tiles<D>::SLAB;
        tensor_load(at, first, slab * SWIZZLED, 0, blockIdx.y, h.start + token, full);
        tensor_load(at + Tiles<D>::TILE, second, slab * SWIZZLED, 0, blockIdx.y, h.start + token, full);
    }
}

// x = own[0] step[0]^T and y = own[1] step[1]^T.
template <int D>
__device__ __forceinline__ void two_products(float (&x)[STEP / 2], float (&y)[STEP / 2], const char* own, const char* step) {
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < D; k += 16) {
        const uint32_t slab = k / SWIZZLED * Tiles<D>::SLAB;
        Wgmma<STEP, false, false>::issue(x, along_rows(own + slab, k % SWIZZLED), along_rows(step + slab, k % SWIZZLED), k > 0);
    }
#pragma unroll
    for (int k = 0; k < D; k += 16) {
        const uint32_t slab = k / SWIZZLED * Tiles<D>::SLAB + Tiles<D>::TILE;
        Wgmma<STEP, false, false>::issue(y, along_rows(own + slab, k % SWIZZLED), along_rows(step + slab, k % SWIZZLED), k > 0);
    }
    wgmma_commit();
}

// Rounds sums to a left operand.
__device__ __forceinline__ void pack(uint32_t (&to)[STEP / 16][4], const float (&x)[STEP / 2]) {
#pragma unroll
    for (int j = 0; j < STEP / 4; ++j) to[j / 4][j % 4] = pack_bf16(x[2 * j], x[2 * j + 1]);
}

// sum[64, D] += left[64, STEP] tile[STEP, D], a group.
template <int D>
__device__ __forceinline__ void add_product(float (&sum)[D / 2], const uint32_t (&left)[STEP / 16][4], const char* tile) {
    wgmma_hold(sum);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < STEP; j += 16) {
        WgmmaRegisters<D, true>::issue(sum, left[j / 16], down_columns(tile, j, Tiles<D>::SLAB), true);
    }
    wgmma_commit();
}

// Writes this warpgroup's rows of a sum, times `scale`; row(i) says where row i lies, rows from `n` on are dropped.
template <int D, class Row>
__device__ __forceinline__ void store_rows(bf16* to, const float (&sum)[D / 2], float scale, uint32_t n, Row row) {
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const uint32_t i = threadIdx.x / 32 % 4 * 16 + lane / 4 + 8 * h;
        if (i >= n) continue;
        bf16* const out = to + row(i) * D + lane % 4 * 2;
#pragma unroll
        for (int d = 0; d < D / 8; ++d) {
            *reinterpret_cast<uint32_t*>(out + 8 * d) = pack_bf16(sum[4 * d + 2 * h] * scale, sum[4 * d + 2 * h + 1] * scale);
        }
    }
}

// Barriers of a block; arrivals that fill a step.
__device__ __forceinline__ void start(Common& common, uint32_t filling) {
    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < 2; ++i) mbarrier_init(&common.own_full[i], 1);
        for (uint32_t i = 0; i < STAGES; ++i) {
            mbarrier_init(&common.full[i], filling);
            mbarrier_init(&common.empty[i], 8);  // a lane of each multiplying warp
        }
        mbarrier_init_fence();
    }
    __syncthreads();
}

__device__ __forceinline__ void release(Common& common, uint32_t i) {
    if (threadIdx.x % 32 == 0) mbarrier_arrive(&common.empty[i % STAGES]);
}

template <int D> __device__ __forceinline__ void backward_keys(const attention_backward_sm90_params& params) {
    const attention_backward_params& p = params.attention;
    auto& common = shared_object<Common>();
    const Tiles<D> tiles;
    const Head h = head_of_block(p);
    const uint32_t key0 = blockIdx.x * 2 * OWN, rows = h.tokens * h.group;
    if (key0 >= h.len) return;
    // Rows that no box fills hold zeros, since a weight of 0 does not hide a NaN.
    for (uint32_t i = threadIdx.x; rows < STEP && i < STAGES * 2 * tiles.TILE / 16; i += 384) {
        reinterpret_cast<uint4*>(tiles.steps)[i] = make_uint4(0, 0, 0, 0);
    }
    async_fence();
    start(common, 1 + STEP);
    // Steps are counted from the start of the sequence; those before the keys see none of them.
    const uint32_t first_step = key0 / h.tokens, steps = (h.len + h.tokens - 1) / h.tokens - first_step;
    const uint32_t w = threadIdx.x / 128, thread = threadIdx.x % 128, lane = threadIdx.x % 32, t = lane % 4 * 2;
    if (w == COPIER) {
        give_registers<40>();
        if (thread == 0) {
            for (uint32_t own = 0; own < 2; ++own) {
                copy_pair<D>(tiles.of_warpgroup(own), params.k, params.v, h, key0 + own * OWN, OWN, &common.own_full[own]);
            }
            for (uint32_t i = 0; i < steps; ++i) {
                mbarrier_wait(&common.empty[i % STAGES], i / STAGES % 2 ^ 1);
                copy_pair<D>(tiles.of_step(i), params.q, params.dy, h, (first_step + i) * h.tokens, rows, &common.full[i % STAGES]);
            }
        } else if (thread >= 64) {
            for (uint32_t i = 0; i < steps; ++i) {
                const uint32_t r = thread - 64, token = (first_step + i) * h.tokens + r / h.group;
                const bool exists = r < rows && token < h.len;
                const uint64_t row = exists ? query_row(p, h, token, r % h.group) : 0;
                const float lse = exists ? p.lse[row] * LOG2E : INFINITY, delta = exists ? p.delta[row] : 0.0f;
                mbarrier_wait(&common.empty[i % STAGES], i / STAGES % 2 ^ 1);
                common.numbers[i % STAGES].lse[r] = lse;
                common.numbers[i % STAGES].delta[r] = delta;
                mbarrier_arrive(&common.full[i % STAGES]);
            }
        }
        return;
    }
    take_registers<232>();
    const uint32_t first_key = key0 + w * OWN, key = first_key + thread / 32 * 16 + lane / 4;
    const float scale = p.scale * LOG2E;
    const char* const own = tiles.of_warpgroup(w);
    float s[STEP / 2], ds[STEP / 2], dk[D / 2] = {}, dv[D / 2] = {};
    uint32_t weights[STEP / 16][4], left[STEP / 16][4];
    mbarrier_wait(&common.own_full[w], 0);
    for (uint32_t i = 0; i < steps; ++i) {
        char* const step = tiles.of_step(i);
        const RowNumbers& numbers = common.numbers[i % STAGES];
        const uint32_t token = (first_step + i) * h.tokens;
        mbarrier_wait(&common.full[i % STAGES], i / STAGES % 2);
        if (token + h.tokens > h.len) clear_rows<STEP, 2 * D / SWIZZLED>(step, (h.len - token) * h.group);
        // Transposed: rows are keys, columns queries.
        two_products<D>(s, ds, own, step);
        wgmma_wait<0>();
        wgmma_hold(s);
        wgmma_hold(ds);
#pragma unroll
        for (int j = 0; j < STEP / 2; ++j) {
            const uint32_t r = j / 4 * 8 + t + j % 2;
            const bool seen = key + j / 2 % 2 * 8 <= token + r / h.group && r < rows;
            s[j] = seen ? exp2_approx(fmaf(s[j], scale, -numbers.lse[r])) : 0.0f;
            ds[j] = seen ? s[j] * (ds[j] - numbers.delta[r]) : 0.0f;
        }
        pack(weights, s);
        pack(left, ds);
        add_product<D>(dv, weights, step + tiles.TILE);
        add_product<D>(dk, left, step);
        wgmma_wait<0>();
        wgmma_hold(dv);
        wgmma_hold(dk);
        release(common, i);
    }
    const uint32_t n = first_key < h.len ? h.len - first_key : 0;
    auto row = [&](uint32_t i) { return static_cast<uint64_t>(h.start + first_key + i) * p.n_kv_heads + blockIdx.y; };
    store_rows<D>(p.dk, dk, p.scale, n, row);
    store_rows<D>(p.dv, dv, 1.0f, n, row);
}

template <int D> __device__ __forceinline__ void backward_queries(const attention_backward_sm90_params& params) {
    const attention_backward_params& p = params.attention;
    auto& common = shared_object<Common>();
    const Tiles<D> tiles;
    const Head h = head_of_block(p);
    // The last tokens of a sequence have the most to do and start first.
    const uint32_t first = (gridDim.x - 1 - blockIdx.x) * 2 * h.tokens, rows = h.tokens * h.group;
    if (first >= h.len) return;
    start(common, 1);
    const uint32_t steps = (min(h.len, first + 2 * h.tokens) + STEP - 1) / STEP;
    const uint32_t w = threadIdx.x / 128, thread = threadIdx.x % 128, lane = threadIdx.x % 32, t = lane % 4 * 2;
    if (w == COPIER) {
        give_registers<40>();
        if (thread != 0) return;
        for (uint32_t own = 0; own < 2; ++own) {
            copy_pair<D>(tiles.of_warpgroup(own), params.q, params.dy, h, first + own * h.tokens, rows, &common.own_full[own]);
        }
        for (uint32_t i = 0; i < steps; ++i) {
            mbarrier_wait(&common.empty[i % STAGES], i / STAGES % 2 ^ 1);
            copy_pair<D>(tiles.of_step(i), params.k, params.v, h, i * STEP, STEP, &common.full[i % STAGES]);
        }
        return;
    }
    take_registers<232>();
    const uint32_t first_token = first + w * h.tokens, r = thread / 32 * 16 + lane / 4;
    const uint32_t n = first_token < h.len ? min(h.tokens, h.len - first_token) * h.group : 0;
    const float scale = p.scale * LOG2E;
    const char* const own = tiles.of_warpgroup(w);
    float lse[2], delta[2];
    uint32_t position[2];
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
        const bool exists = r + 8 * half < n;
        const uint64_t row = exists ? query_row(p, h, first_token, r + 8 * half) : 0;
        lse[half] = exists ? p.lse[row] * LOG2E : INFINITY;
        delta[half] = exists ? p.delta[row] : 0.0f;
        position[half] = first_token + (r + 8 * half) / h.group;
    }
    float s[STEP / 2], ds[STEP / 2], dq[D / 2] = {};
    uint32_t left[STEP / 16][4];
    mbarrier_wait(&common.own_full[w], 0);
    for (uint32_t i = 0; i < steps; ++i) {
        char* const step = tiles.of_step(i);
        mbarrier_wait(&common.full[i % STAGES], i / STAGES % 2);
        if ((i + 1) * STEP > h.len) clear_rows<STEP, 2 * D / SWIZZLED>(step, h.len - i * STEP);
        two_products<D>(s, ds, own, step);
        wgmma_wait<0>();
        wgmma_hold(s);
        wgmma_hold(ds);
#pragma unroll
        for (int j = 0; j < STEP / 2; ++j) {
            const uint32_t half = j / 2 % 2;
            const bool seen = i * STEP + j / 4 * 8 + t + j % 2 <= position[half];
            const float weight = seen ? exp2_approx(fmaf(s[j], scale, -lse[half])) : 0.0f;
            ds[j] = seen ? weight * (ds[j] - delta[half]) : 0.0f;
        }
        pack(left, ds);
        add_product<D>(dq, left, step);
        wgmma_wait<0>();
        wgmma_hold(dq);
        release(common, i);
    }
    store_rows<D>(p.dq, dq, p.scale, n, [&](uint32_t i) { return query_row(p, h, first_token, i); });
}

#define BACKWARD(D)                                                                           \
    extern "C" __global__ void __launch_bounds__(384, 1)                                      \
        attention_backward_sm90_keys_##D(const attention_backward_sm90_params __grid_constant__ p) { \
        backward_keys<D>(p);                                                                  \
    }                                                                                         \
    extern "C" __global__ void __launch_bounds__(384, 1)                                      \
        attention_backward_sm90_queries_##D(const attention_backward_sm90_params __grid_constant__ p) { \
        backward_queries<D>(p);                                                               \
    }
BACKWARD(64)
BACKWARD(128)

#endif
