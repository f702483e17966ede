// Causal attention with grouped queries (Ainslie et al. 2023), online softmax (Milakov & Gimelshein 2018) in the way of
// FlashAttention-2 (Dao 2023): y = softmax(q k^T / sqrt(head_dim)) v over packed sequences, keys and values in rows or in pages.
//
// Floor, n tokens of one sequence: 4 n (n + 1) / 2 * n_heads * head_dim FLOPs / peak; decoding: 4 * context * n_kv_heads *
// head_dim bytes / bandwidth. The query heads of a group are rows of one tile, so that keys and values are read once for all of
// them and the matrix product of a decoded token is not empty. Keys load while values multiply and the reverse.
//
// Keys are taken in blocks of 64, and blocks in splits of ATTENTION_SPLIT, both counted from the start of the sequence; every
// split is a softmax of its own and they are merged in order. What a row goes through depends on its own position alone: a
// masked key adds exactly 0. So prefill, decoding by splits side by side and any cut of a prompt into steps give the same bits.
#include "operand.cuh"
#include "softmax.cuh"

constexpr int KEYS = 64;

// Factors by which two parts of a softmax are scaled when they join, and what they join to.
struct Merge {
    float before, part;
    Softmax joined;
};

__device__ __forceinline__ Merge merge(Softmax before, Softmax part) {
    const float largest = fmaxf(before.largest, part.largest);
    if (largest == NOTHING) return {0.0f, 0.0f, before};
    Merge m;
    m.before = exp2_approx(before.largest - largest);
    m.part = exp2_approx(part.largest - largest);
    m.joined = {largest, fmaf(part.sum, m.part, before.sum * m.before)};
    return m;
}

__device__ __forceinline__ float join(const Merge& m, float before, float part) { return fmaf(part, m.part, before * m.before); }

// The rows of one block: some tokens of one sequence times the query heads of one key/value head.
struct Rows {
    uint32_t first_token, tokens;   // among all tokens of the step
    uint32_t first_position;        // of the first token in its sequence
    uint32_t sequence, start, kv_head, group;
    bool any;
};

__device__ __forceinline__ Rows rows_of_block(const attention_params& p, uint32_t most_rows, uint32_t block) {
    Rows r;
    r.sequence = blockIdx.z;
    r.kv_head = blockIdx.y;
    r.group = p.n_heads / p.n_kv_heads;
    r.start = p.cu_seqlens[r.sequence];
    const uint32_t end = p.cu_seqlens[r.sequence + 1], step = most_rows / r.group;
    r.first_token = r.start + block * step;
    r.any = r.first_token < end;
    if (!r.any) return r;
    r.tokens = min(step, end - r.first_token);
    const uint32_t context = p.context_lens ? p.context_lens[r.sequence] : end - r.start;
    r.first_position = context - (end - r.first_token);
    return r;
}

// Where the key and value of a position lie.
__device__ __forceinline__ uint64_t key_row(const attention_params& p, const Rows& r, uint32_t position) {
    if (!p.page_table) return r.start + position;
    const uint32_t page = p.page_table[static_cast<uint64_t>(r.sequence) * p.max_pages + position / p.page_size];
    return static_cast<uint64_t>(page) * p.page_size + position % p.page_size;
}

// One warp's 16 rows against the keys from `from` (a multiple of ATTENTION_SPLIT) to `to`; D >= head_dim. With SPLIT the result
// goes to p.partial, unnormalised, else to p.y.
template <int D, int WARPS, bool SPLIT> __device__ __forceinline__ void attention(const attention_params& p) {
    constexpr int STRIDE = D + PAD, ROWS = 16 * WARPS, THREADS = 32 * WARPS;
    uint16_t* const q_tile = static_cast<uint16_t*>(dynamic_shared());
    uint16_t* const k_tile = q_tile + ROWS * STRIDE;
    uint16_t* const v_tile = k_tile + KEYS * STRIDE;
    // The last tokens of a sequence have the most to do and start first.
    const Rows rows = rows_of_block(p, ROWS, SPLIT ? 0 : gridDim.x - 1 - blockIdx.x);
    if (!rows.any) return;
    const uint32_t end = rows.first_position + rows.tokens;
    const uint32_t from = SPLIT ? blockIdx.x * ATTENTION_SPLIT : 0;
    const uint32_t to = SPLIT ? min(end, from + ATTENTION_SPLIT) : end;
    if (from >= to) return;
    auto head_row = [&](uint32_t r) {
        return static_cast<uint64_t>(rows.first_token + r / rows.group) * p.n_heads + rows.kv_head * rows.group +
               r % rows.group;
    };
    const uint32_t n_rows = rows.tokens * rows.group;
    for (uint32_t c = threadIdx.x; c < ROWS * (D / 8); c += THREADS) {
        const uint32_t r = c / (D / 8), column = c % (D / 8) * 8;
        stage8(q_tile + r * STRIDE + column, p.q + head_row(r < n_rows ? r : 0) * p.head_dim, column, p.head_dim, r < n_rows);
    }
    auto stage_keys = [&](uint16_t* tile, const bf16* x, uint32_t first) {
        for (uint32_t c = threadIdx.x; c < KEYS * (D / 8); c += THREADS) {
            const uint32_t j = c / (D / 8), column = c % (D / 8) * 8;
            const bool in = first + j < to;
            const uint64_t row = in ? key_row(p, rows, first + j) : 0;
            stage8(tile + j * STRIDE + column, x + (row * p.n_kv_heads + rows.kv_head) * p.head_dim, column, p.head_dim, in);
        }
        commit_copies();
    };
    stage_keys(k_tile, p.k, from);

    // This thread's two rows, g and g + 8 of its warp.
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4 * 2;
    const uint32_t row[2] = {16 * warp + g, 16 * warp + g + 8};
    // Rows that do not exist see what the last one sees; nobody reads them.
    uint32_t position[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) position[h] = rows.first_position + min(row[h], n_rows - 1) / rows.group;
    const float scale = p.scale * LOG2E;
    Softmax total[2] = {{NOTHING, 0.0f}, {NOTHING, 0.0f}}, part[2] = {{NOTHING, 0.0f}, {NOTHING, 0.0f}};
    float total_o[D / 8][4] = {}, o[D / 8][4] = {};
    auto end_split = [&] {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            part[h].sum = quad_sum(part[h].sum);
            if (SPLIT) continue;
            const Merge m = merge(total[h], part[h]);
#pragma unroll
            for (int d = 0; d < D / 8; ++d) {
#pragma unroll
                for (int e = 2 * h; e < 2 * h + 2; ++e) {
                    total_o[d][e] = join(m, total_o[d][e], o[d][e]);
                    o[d][e] = 0.0f;
                }
            }
            total[h] = m.joined;
            part[h] = {NOTHING, 0.0f};
        }
    };
    for (uint32_t first = from; first < to; first += KEYS) {
        wait_copies<0>();
        __syncthreads();  // keys are whole, and everybody is done with the values before
        stage_keys(v_tile, p.v, first);
        float s[KEYS / 8][4] = {};
#pragma unroll
        for (int k = 0; k < D; k += 16) {
            uint32_t a[4], b[4];
            load_left<STRIDE, true>(a, q_tile, 16 * warp, k);
#pragma unroll
            for (int j = 0; j < KEYS; j += 16) {
                load_right<STRIDE, true>(b, k_tile, j, k);
                mma_16x8x16(s[j / 8], a, b[0], b[1]);
                mma_16x8x16(s[j / 8 + 1], a, b[2], b[3]);
            }
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float largest = part[h].largest;
#pragma unroll
            for (int j = 0; j < KEYS / 8; ++j) {
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    float& score = s[j][2 * h + e];
                    score = first + 8 * j + t + e <= position[h] ? score * scale : NOTHING;
                    largest = fmaxf(largest, score);
                }
            }
            largest = quad_max(largest);
            // Where no key is seen yet, every exponential is that of minus infinity.
            const float base = largest == NOTHING ? 0.0f : largest;
            const float shrink = exp2_approx(part[h].largest - base);
            float sum = 0.0f;
#pragma unroll
            for (int j = 0; j < KEYS / 8; ++j) {
#pragma unroll
                for (int e = 0; e < 2; ++e) sum += s[j][2 * h + e] = exp2_approx(s[j][2 * h + e] - base);
            }
            part[h] = {largest, fmaf(part[h].sum, shrink, sum)};
#pragma unroll
            for (int d = 0; d < D / 8; ++d) {
                o[d][2 * h] *= shrink;
                o[d][2 * h + 1] *= shrink;
            }
        }
        wait_copies<0>();
        __syncthreads();  // values are whole, and everybody is done with the keys
        if (first + KEYS < to) stage_keys(k_tile, p.k, first + KEYS);
#pragma unroll
        for (int j = 0; j < KEYS; j += 16) {
            const float(&low)[4] = s[j / 8], (&high)[4] = s[j / 8 + 1];
            const uint32_t a[4] = {pack_operands(low[0], low[1]), pack_operands(low[2], low[3]),
                                   pack_operands(high[0], high[1]), pack_operands(high[2], high[3])};
#pragma unroll
            for (int d = 0; d < D; d += 16) {
                uint32_t b[4];
                load_right<STRIDE, false>(b, v_tile, d, j);
                mma_16x8x16(o[d / 8], a, b[0], b[1]);
                mma_16x8x16(o[d / 8 + 1], a, b[2], b[3]);
            }
        }
        if ((first + KEYS) % ATTENTION_SPLIT == 0 || first + KEYS >= to) end_split();
    }

#pragma unroll
    for (int h = 0; h < 2; ++h) {
        if (row[h] >= n_rows) continue;
        const uint64_t at = head_row(row[h]);
        if (SPLIT) {
            float* to_o = p.partial + (at * p.max_splits + blockIdx.x) * (p.head_dim + 2);
            if (t == 0) {
                to_o[p.head_dim] = part[h].largest;
                to_o[p.head_dim + 1] = part[h].sum;
            }
#pragma unroll
            for (int d = 0; d < D / 8; ++d) {
                if (8 * d + t < p.head_dim) to_o[8 * d + t] = o[d][2 * h];
                if (8 * d + t + 1 < p.head_dim) to_o[8 * d + t + 1] = o[d][2 * h + 1];
            }
            continue;
        }
        const float inverse = 1.0f / total[h].sum;
        bf16* y = p.y + at * p.head_dim;
#pragma unroll
        for (int d = 0; d < D / 8; ++d) {
            const float low = total_o[d][2 * h] * inverse, high = total_o[d][2 * h + 1] * inverse;
            if (p.head_dim % 2 == 0) {
                if (8 * d + t < p.head_dim) *reinterpret_cast<uint32_t*>(y + 8 * d + t) = pack_bf16(low, high);
            } else {
                if (8 * d + t < p.head_dim) y[8 * d + t] = narrow(low);
                if (8 * d + t + 1 < p.head_dim) y[8 * d + t + 1] = narrow(high);
            }
        }
        if (p.lse && t == 0) p.lse[at] = (total[h].largest + log2f(total[h].sum)) * LN2;
    }
}

extern "C" __global__ void __launch_bounds__(128, 2) attention_64(const attention_params __grid_constant__ p) {
    attention<64, 4, false>(p);
}

extern "C" __global__ void __launch_bounds__(128, 2) attention_80(const attention_params __grid_constant__ p) {
    attention<80, 4, false>(p);
}

extern "C" __global__ void __launch_bounds__(128, 2) attention_96(const attention_params __grid_constant__ p) {
    attention<96, 4, false>(p);
}

extern "C" __global__ void __launch_bounds__(128, 2) attention_128(const attention_params __grid_constant__ p) {
    attention<128, 4, false>(p);
}

extern "C" __global__ void __launch_bounds__(32) attention_split_64(const attention_params __grid_constant__ p) {
    attention<64, 1, true>(p);
}

extern "C" __global__ void __launch_bounds__(32) attention_split_80(const attention_params __grid_constant__ p) {
    attention<80, 1, true>(p);
}

extern "C" __global__ void __launch_bounds__(32) attention_split_96(const attention_params __grid_constant__ p) {
    attention<96, 1, true>(p);
}

extern "C" __global__ void __launch_bounds__(32) attention_split_128(const attention_params __grid_constant__ p) {
    attention<128, 1, true>(p);
}

// Merges the splits of one token's head, in order.
extern "C" __global__ void __launch_bounds__(128) attention_combine(const attention_params __grid_constant__ p) {
    const uint32_t sequence = blockIdx.z, head = blockIdx.y, token = p.cu_seqlens[sequence] + blockIdx.x;
    const uint32_t end = p.cu_seqlens[sequence + 1];
    if (token >= end) return;
    const uint32_t context = p.context_lens ? p.context_lens[sequence] : end - p.cu_seqlens[sequence];
    // Splits that some row of this token's block sees; those that this one does not see hold nothing.
    const uint32_t splits = (context + ATTENTION_SPLIT - 1) / ATTENTION_SPLIT;
    const uint64_t at = static_cast<uint64_t>(token) * p.n_heads + head;
    const float* parts = p.partial + at * p.max_splits * (p.head_dim + 2);
    Softmax total = {NOTHING, 0.0f};
    float o = 0.0f;
    for (uint32_t i = 0; i < splits; ++i, parts += p.head_dim + 2) {
        const Merge m = merge(total, {parts[p.head_dim], parts[p.head_dim + 1]});
        if (threadIdx.x < p.head_dim) o = join(m, o, parts[threadIdx.x]);
        total = m.joined;
    }
    if (threadIdx.x < p.head_dim) p.y[at * p.head_dim + threadIdx.x] = narrow(o * (1.0f / total.sum));
}
