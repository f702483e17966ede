// Gradients of causal attention without the attention matrix (Dao 2023, FlashAttention-2): with P = exp(S - lse), S = scale q k^T,
//   dv = P^T dy;  dS = P (dy v^T - delta), delta = rowsum(dy y);  dk = scale dS^T q;  dq = scale dS k
//
// Floor: 2.5 times the forward pass. Three kernels and no atomics: delta; one with a block for 64 keys, which goes down the
// queries and sums dk and dv over the heads of a group; one with a block for 64 rows of queries, which goes along the keys and sums dq. S and
// dy v^T are computed in both, 7 products instead of 5: the price of sums in one order without a matrix of partial ones.
#include "operand.cuh"

constexpr float LOG2E = 1.44269504f;
// Rows that a block owns, and rows that it goes through in a step.
constexpr uint32_t OWN = 64, STEP = 32;

extern "C" __global__ void __launch_bounds__(128)
    attention_delta(const attention_backward_params __grid_constant__ p) {
    const uint64_t row = static_cast<uint64_t>(blockIdx.x) * 4 + threadIdx.x / 32;
    if (row >= static_cast<uint64_t>(p.tokens) * p.n_heads) return;
    const bf16 *y = p.y + row * p.head_dim, *dy = p.dy + row * p.head_dim;
    float sum = 0.0f;
    for (uint32_t i = threadIdx.x % 32; i < p.head_dim; i += 32) sum = fmaf(widen(y[i]), widen(dy[i]), sum);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) p.delta[row] = sum;
}

// One sequence and one key/value head.
struct Head {
    uint32_t start, len, kv_head, group;
};

__device__ __forceinline__ Head head_of_block(const attention_backward_params& p) {
    Head h;
    h.kv_head = blockIdx.y;
    h.group = p.n_heads / p.n_kv_heads;
    h.start = p.cu_seqlens[blockIdx.z];
    h.len = p.cu_seqlens[blockIdx.z + 1] - h.start;
    return h;
}

// Rows of queries are (token, head of the group), tokens from `first`: where row r lies, counted in heads.
__device__ __forceinline__ uint64_t query_row(const attention_backward_params& p, const Head& h, uint32_t first, uint32_t r) {
    return static_cast<uint64_t>(h.start + first + r / h.group) * p.n_heads + h.kv_head * h.group + r % h.group;
}

__device__ __forceinline__ uint64_t key_row(const attention_backward_params& p, const Head& h, uint32_t key) {
    return static_cast<uint64_t>(h.start + key) * p.n_kv_heads + h.kv_head;
}

// Copies N rows of head_dim elements; row(i) says where row i lies, counted in heads; zeros from row `n` on. F16 operands times
// `scale`.
template <int D, int N, class Row>
__device__ __forceinline__ void stage_rows(uint16_t* tile, const bf16* x, uint32_t head_dim, uint32_t n, Row row,
                                           float scale = 1.0f) {
    for (uint32_t c = threadIdx.x; c < N * (D / 8); c += 128) {
        const uint32_t i = c / (D / 8), column = c % (D / 8) * 8;
        stage8(tile + i * (D + PAD) + column, x + row(i < n ? i : 0) * head_dim, column, head_dim, i < n, scale);
    }
}

// Two products of this warp's 16 rows at `own` with STEP rows: x = a b^T and y = c d^T.
template <int D>
__device__ __forceinline__ void two_products(float (&x)[STEP / 8][4], float (&y)[STEP / 8][4], const uint16_t* a,
                                             const uint16_t* b, const uint16_t* c, const uint16_t* d, int own) {
    constexpr int STRIDE = D + PAD;
#pragma unroll
    for (int k = 0; k < D; k += 16) {
        uint32_t left[4], right[4];
        load_left<STRIDE, true>(left, a, own, k);
#pragma unroll
        for (uint32_t j = 0; j < STEP; j += 16) {
            load_right<STRIDE, true>(right, b, j, k);
            mma_16x8x16(x[j / 8], left, right[0], right[1]);
            mma_16x8x16(x[j / 8 + 1], left, right[2], right[3]);
        }
        load_left<STRIDE, true>(left, c, own, k);
#pragma unroll
        for (uint32_t j = 0; j < STEP; j += 16) {
            load_right<STRIDE, true>(right, d, j, k);
            mma_16x8x16(y[j / 8], left, right[0], right[1]);
            mma_16x8x16(y[j / 8 + 1], left, right[2], right[3]);
        }
    }
}

// sum[16, D] += x[16, STEP] b[STEP, D], x rounded to operands.
template <int D>
__device__ __forceinline__ void add_product(float (&sum)[D / 8][4], const float (&x)[STEP / 8][4], const uint16_t* b) {
#pragma unroll
    for (uint32_t j = 0; j < STEP; j += 16) {
        const float(&low)[4] = x[j / 8], (&high)[4] = x[j / 8 + 1];
        const uint32_t left[4] = {pack_operands(low[0], low[1]), pack_operands(low[2], low[3]),
                                  pack_operands(high[0], high[1]), pack_operands(high[2], high[3])};
#pragma unroll
        for (int d = 0; d < D; d += 16) {
            uint32_t right[4];
            load_right<D + PAD, false>(right, b, d, j);
            mma_16x8x16(sum[d / 8], left, right[0], right[1]);
            mma_16x8x16(sum[d / 8 + 1], left, right[2], right[3]);
        }
    }
}

// Writes this warp's rows of a sum, times `scale`; row(i) says where row i of the block lies, rows from `n` on are dropped.
template <int D, class Row>
__device__ __forceinline__ void store_rows(bf16* to, const float (&sum)[D / 8][4], float scale, uint32_t head_dim, uint32_t n,
                                           Row row) {
    const uint32_t warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const uint32_t i = 16 * warp + g + 8 * half;
        if (i >= n) continue;
        bf16* out = to + row(i) * head_dim;
#pragma unroll
        for (uint32_t d = 0; d < D / 8; ++d) {
#pragma unroll
            for (uint32_t e = 0; e < 2; ++e) {
                if (8 * d + t + e < head_dim) out[8 * d + t + e] = narrow(sum[d][2 * half + e] * scale);
            }
        }
    }
}

struct RowNumbers {
    float lse[OWN], delta[OWN];
};

// Log of the sum of exponentials, to base 2, and delta times `scale` of rows of queries; rows that do not exist have no weight anywhere.
__device__ __forceinline__ void load_numbers(RowNumbers& to, const attention_backward_params& p, const Head& h, uint32_t first,
                                             uint32_t n, uint32_t most, float scale) {
    for (uint32_t r = threadIdx.x; r < most; r += 128) {
        const uint64_t row = query_row(p, h, first, r < n ? r : 0);
        to.lse[r] = r < n ? p.lse[row] * LOG2E : INFINITY;
        to.delta[r] = r < n ? p.delta[row] * scale : 0.0f;
    }
}

// That of the block's sequence, with room for dy v^T: sums of head_dim products, which F16 operands hold up to 65,504.
__device__ __forceinline__ OperandScale scale_of_dy(const attention_backward_params& p) {
    return operand_scale<2>(p.largest_dy ? p.largest_dy + blockIdx.z : nullptr);
}

template <int D> __device__ __forceinline__ void backward_keys(const attention_backward_params& p) {
    constexpr int STRIDE = D + PAD;
    auto& numbers = shared_object<RowNumbers>();
    uint16_t* const k_tile = static_cast<uint16_t*>(dynamic_shared());
    uint16_t* const v_tile = k_tile + OWN * STRIDE;
    uint16_t* const q_tile = v_tile + OWN * STRIDE;
    uint16_t* const dy_tile = q_tile + STEP * STRIDE;
    const Head h = head_of_block(p);
    const uint32_t key0 = blockIdx.x * OWN;
    if (key0 >= h.len) return;
    const uint32_t n_keys = min(OWN, h.len - key0);
    auto key = [&](uint32_t i) { return key_row(p, h, key0 + i); };
    stage_rows<D, OWN>(k_tile, p.k, p.head_dim, n_keys, key);
    stage_rows<D, OWN>(v_tile, p.v, p.head_dim, n_keys, key);
    const uint32_t warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4 * 2;
    const float scale = p.scale * LOG2E;
    const OperandScale of_dy = scale_of_dy(p);
    float dk[D / 8][4] = {}, dv[D / 8][4] = {};
    // Steps are counted from the start of the sequence; those before the keys see none of them.
    const uint32_t tokens = STEP / h.group;
    for (uint32_t first = key0 / tokens * tokens; first < h.len; first += tokens) {
        const uint32_t n = min(tokens, h.len - first) * h.group;
        auto query = [&](uint32_t r) { return query_row(p, h, first, r); };
        __syncthreads();  // everybody is done with the queries before
        stage_rows<D, STEP>(q_tile, p.q, p.head_dim, n, query);
        stage_rows<D, STEP>(dy_tile, p.dy, p.head_dim, n, query, of_dy.by);
        commit_copies();
        load_numbers(numbers, p, h, first, n, STEP, of_dy.by);
        wait_copies<0>();
        __syncthreads();
        // Transposed: rows are keys, columns queries.
        float s[STEP / 8][4] = {}, ds[STEP / 8][4] = {};
        two_products<D>(s, ds, k_tile, q_tile, v_tile, dy_tile, 16 * warp);
#pragma unroll
        for (uint32_t j = 0; j < STEP / 8; ++j) {
#pragma unroll
            for (uint32_t e = 0; e < 4; ++e) {
                const uint32_t r = 8 * j + t + e % 2, position = first + r / h.group;
                const bool seen = key0 + 16 * warp + g + 8 * (e / 2) <= position;
                s[j][e] = seen ? exp2_approx(fmaf(s[j][e], scale, -numbers.lse[r])) : 0.0f;
                ds[j][e] = s[j][e] * (ds[j][e] - numbers.delta[r]);
            }
        }
        add_product<D>(dv, s, dy_tile);
        add_product<D>(dk, ds, q_tile);
    }
    store_rows<D>(p.dk, dk, p.scale * of_dy.back, p.head_dim, n_keys, key);
    store_rows<D>(p.dv, dv, of_dy.back, p.head_dim, n_keys, key);
}

template <int D> __device__ __forceinline__ void backward_queries(const attention_backward_params& p) {
    constexpr int STRIDE = D + PAD;
    auto& numbers = shared_object<RowNumbers>();
    uint16_t* const q_tile = static_cast<uint16_t*>(dynamic_shared());
    uint16_t* const dy_tile = q_tile + OWN * STRIDE;
    uint16_t* const k_tile = dy_tile + OWN * STRIDE;
    uint16_t* const v_tile = k_tile + STEP * STRIDE;
    const Head h = head_of_block(p);
    const uint32_t tokens = OWN / h.group, first = (gridDim.x - 1 - blockIdx.x) * tokens;
    if (first >= h.len) return;
    const uint32_t n_tokens = min(tokens, h.len - first), n = n_tokens * h.group;
    auto query = [&](uint32_t r) { return query_row(p, h, first, r); };
    const OperandScale of_dy = scale_of_dy(p);
    stage_rows<D, OWN>(q_tile, p.q, p.head_dim, n, query);
    stage_rows<D, OWN>(dy_tile, p.dy, p.head_dim, n, query, of_dy.by);
    load_numbers(numbers, p, h, first, n, OWN, of_dy.by);
    const uint32_t warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4 * 2;
    const float scale = p.scale * LOG2E;
    float dq[D / 8][4] = {};
    const uint32_t end = first + n_tokens;
    for (uint32_t key0 = 0; key0 < end; key0 += STEP) {
        auto key = [&](uint32_t i) { return key_row(p, h, key0 + i); };
        __syncthreads();  // everybody is done with the keys before
        stage_rows<D, STEP>(k_tile, p.k, p.head_dim, min(STEP, end - key0), key);
        stage_rows<D, STEP>(v_tile, p.v, p.head_dim, min(STEP, end - key0), key);
        commit_copies();
        wait_copies<0>();
        __syncthreads();
        float s[STEP / 8][4] = {}, ds[STEP / 8][4] = {};
        two_products<D>(s, ds, q_tile, k_tile, dy_tile, v_tile, 16 * warp);
#pragma unroll
        for (uint32_t j = 0; j < STEP / 8; ++j) {
#pragma unroll
            for (uint32_t e = 0; e < 4; ++e) {
                const uint32_t r = 16 * warp + g + 8 * (e / 2), position = first + r / h.group;
                const bool seen = key0 + 8 * j + t + e % 2 <= position;
                const float weight = seen ? exp2_approx(fmaf(s[j][e], scale, -numbers.lse[r])) : 0.0f;
                ds[j][e] = weight * (ds[j][e] - numbers.delta[r]);
            }
        }
        add_product<D>(dq, ds, k_tile);
    }
    store_rows<D>(p.dq, dq, p.scale * of_dy.back, p.head_dim, n, query);
}

#define BACKWARD(D)                                                                       \
    extern "C" __global__ void __launch_bounds__(128, 2)                                  \
        attention_backward_keys_##D(const attention_backward_params __grid_constant__ p) { \
        backward_keys<D>(p);                                                              \
    }                                                                                     \
    extern "C" __global__ void __launch_bounds__(128, 2)                                  \
        attention_backward_queries_##D(const attention_backward_params __grid_constant__ p) { \
        backward_queries<D>(p);                                                           \
    }
BACKWARD(64)
BACKWARD(80)
BACKWARD(96)
BACKWARD(128)
