// Causal attention with grouped queries (Ainslie et al. 2023), online softmax (Milakov & Gimelshein 2018) in the way of
// FlashAttention-2 (Dao 2023): y = softmax(q k^T / sqrt(head_dim)) v over packed sequences, keys and values in rows or in pages.
//
// Floor, n tokens of one sequence: 4 n (n + 1) / 2 * n_heads * head_dim FLOPs / peak; decoding: 4 * context * n_kv_heads *
// head_dim bytes / bandwidth. The query heads of a group are rows of one tile, so that keys and values are read once for all of
// them and the matrix product of a decoded token is not empty. Keys and values come through one ring of tiles of 64 rows.
//
// Decoding at 4.3 TB/s on 132 multiprocessors takes 33 KB in flight on each at 1 us of latency, and no more than 220 instructions of
// warps for a KB that comes: 18.6 bytes a cycle, four schedulers, fewer while a warp waits. On paper, measured: not yet, head_dim 128:
//   - the page of a row is looked up once for a block of keys and its values, a block ahead, by the lane of that row, and passed on
//     by shuffles: some 12 instructions a KB to copy, where a lookup and a division for each 16 bytes took 120;
//   - splits: three tiles of a ring, 57 KB: four blocks a multiprocessor, 128 KB in flight. One warp each multiplies: about 2,100
//     cycles for 32 KB, 62 bytes a cycle by four;
//   - deep splits: eight tiles, so all of a split is on its way at once, for steps with no more blocks than multiprocessors: a
//     context of 1,024 of one sequence in about 2.5 us for 32 blocks of 128 KB, where a ring of three takes 4;
//   - lengths and pages are looked up while the kernels before still run, two latencies of memory, some 1 us for one sequence;
//   - a context of one split is written by its block: no second kernel up to 256 tokens; beyond, eight splits load while they merge.
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
__device__ __forceinline__ uint32_t slot_of(const attention_params& p, const Rows& r, uint32_t position) {
    if (!p.page_table) return r.start + position;
    const uint32_t page = p.page_table[static_cast<uint64_t>(r.sequence) * p.max_pages + position / p.page_size];
    return page * p.page_size + position % p.page_size;
}

// Of a block of keys, where those of this lane and of this lane + 32 lie.
struct Slots {
    uint32_t of[KEYS / 32];
};

// 16 rows of each warp against the keys from `from` (a multiple of ATTENTION_SPLIT) to `to`; D >= head_dim. With SPLIT the result
// goes to p.partial, unnormalised, unless there is one split, else to p.y. STAGES: tiles of the ring.
template <int D, int WARPS, bool SPLIT, int STAGES> __device__ __forceinline__ void attention(const attention_params& p) {
    constexpr int STRIDE = D + PAD, ROWS = 16 * WARPS, THREADS = 32 * WARPS;
    launch_dependents();
    uint16_t* const q_tile = static_cast<uint16_t*>(dynamic_shared());
    uint16_t* const ring = q_tile + ROWS * STRIDE;
    // The last tokens of a sequence have the most to do and start first.
    const Rows rows = rows_of_block(p, ROWS, SPLIT ? 0 : gridDim.x - 1 - blockIdx.x);
    if (!rows.any) return wait_for_prerequisites();
    const uint32_t end = rows.first_position + rows.tokens;
    const uint32_t from = SPLIT ? blockIdx.x * ATTENTION_SPLIT : 0;
    const uint32_t to = SPLIT ? min(end, from + ATTENTION_SPLIT) : end;
    if (from >= to) return wait_for_prerequisites();
    auto head_row = [&](uint32_t r) {
        return static_cast<uint64_t>(rows.first_token + r / rows.group) * p.n_heads + rows.kv_head * rows.group +
               r % rows.group;
    };
    const uint32_t n_rows = rows.tokens * rows.group;
    const uint64_t row_elements = static_cast<uint64_t>(p.n_kv_heads) * p.head_dim, head = rows.kv_head * p.head_dim;
    auto slots_of = [&](uint32_t first) {
        Slots slots;
#pragma unroll
        for (int i = 0; i < KEYS / 32; ++i) {
            const uint32_t position = first + 32 * i + threadIdx.x % 32;
            slots.of[i] = position < to ? slot_of(p, rows, position) : 0;
        }
        return slots;
    };
    // Lengths and pages are known ahead of the kernels before, queries, keys and values are not.
    Slots slots = slots_of(from), next = slots_of(from + KEYS);
    wait_for_prerequisites();
    for (uint32_t c = threadIdx.x; c < ROWS * (D / 8); c += THREADS) {
        const uint32_t r = c / (D / 8), column = c % (D / 8) * 8;
        stage8(q_tile + r * STRIDE + column, p.q + head_row(r < n_rows ? r : 0) * p.head_dim, column, p.head_dim, r < n_rows);
    }
    // Copy number 2 i is of the keys of block i, 2 i + 1 of its values.
    auto stage = [&](uint32_t number) {
        const uint32_t first = from + number / 2 * KEYS;
        if (first < to) {
            constexpr int CHUNKS = 32 * D / 8;
            uint16_t* const tile = ring + number % STAGES * KEYS * STRIDE;
            const bf16* const x = (number % 2 ? p.v : p.k) + head;
#pragma unroll
            for (int i = 0; i < KEYS / 32; ++i) {
#pragma unroll
                for (int part = 0; part < (CHUNKS + THREADS - 1) / THREADS; ++part) {
                    const uint32_t c = part * THREADS + threadIdx.x, j = c / (D / 8), column = c % (D / 8) * 8;
                    if (CHUNKS % THREADS && c >= CHUNKS) break;  // whole warps
                    const uint64_t slot = __shfl_sync(FULL_WARP, slots.of[i], j);
                    stage8(tile + (32 * i + j) * STRIDE + column, x + slot * row_elements, column, p.head_dim,
                           first + 32 * i + j < to);
                }
            }
        }
        commit_copies();
        if (number % 2) {
            slots = next;
            next = slots_of(first + 2 * KEYS);
        }
    };
    // Waits for copy `number`, and starts the one that fits where the one before was.
    auto arrived = [&](uint32_t number) {
        wait_copies<STAGES - 2>();
        __syncthreads();  // the tile is whole, and everybody is done with the one before
        stage(number + STAGES - 1);
        return ring + number % STAGES * KEYS * STRIDE;
    };
#pragma unroll 1  // unrolled, eight tiles spill
    for (uint32_t i = 0; i < STAGES - 1; ++i) stage(i);

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
    auto join_part = [&](int h) {
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
    };
    auto end_split = [&] {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            part[h].sum = quad_sum(part[h].sum);
            if (!SPLIT) join_part(h);
        }
    };
    for (uint32_t first = from, copy = 0; first < to; first += KEYS, copy += 2) {
        const uint16_t* const k_tile = arrived(copy);
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
        const uint16_t* const v_tile = arrived(copy + 1);
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
        if (SPLIT && p.max_splits > 1) {
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
        if (SPLIT) join_part(h);
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

#define KERNEL(NAME, THREADS, BLOCKS, ...)                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) NAME(const attention_params __grid_constant__ p) {        \
        attention<__VA_ARGS__>(p);                                                                                          \
    }
#define ATTENTION(D)                                                                                  \
    KERNEL(attention_##D, 128, 2, D, 4, false, ATTENTION_STAGES)                                      \
    KERNEL(attention_split_##D, 32, 1, D, 1, true, ATTENTION_SPLIT_STAGES)                            \
    KERNEL(attention_deep_split_##D, 32, 1, D, 1, true, ATTENTION_DEEP_SPLIT_STAGES)
ATTENTION(64)
ATTENTION(80)
ATTENTION(96)
ATTENTION(128)

// Splits whose results are on their way at the same time.
constexpr uint32_t AT_ONCE = 8;

// Merges the splits of one token's head, in order.
extern "C" __global__ void __launch_bounds__(128) attention_combine(const attention_params __grid_constant__ p) {
    launch_dependents();
    const uint32_t sequence = blockIdx.z, head = blockIdx.y, token = p.cu_seqlens[sequence] + blockIdx.x;
    const uint32_t end = p.cu_seqlens[sequence + 1];
    const uint32_t context = p.context_lens ? p.context_lens[sequence] : end - p.cu_seqlens[sequence];
    wait_for_prerequisites();
    if (token >= end) return;
    // Splits that some row of this token's block sees; those that this one does not see hold nothing.
    const uint32_t splits = (context + ATTENTION_SPLIT - 1) / ATTENTION_SPLIT;
    const uint64_t at = static_cast<uint64_t>(token) * p.n_heads + head;
    const float* parts = p.partial + at * p.max_splits * (p.head_dim + 2);
    Softmax total = {NOTHING, 0.0f};
    float o = 0.0f;
    const uint32_t feature = min(threadIdx.x, p.head_dim - 1);
    for (uint32_t first = 0; first < splits; first += AT_ONCE) {
        Softmax part[AT_ONCE];
        float value[AT_ONCE];
#pragma unroll
        for (uint32_t i = 0; i < AT_ONCE; ++i) {
            const float* const from = parts + min(first + i, splits - 1) * (p.head_dim + 2);
            part[i] = {from[p.head_dim], from[p.head_dim + 1]};
            value[i] = from[feature];
        }
#pragma unroll
        for (uint32_t i = 0; i < AT_ONCE; ++i) {
            if (first + i >= splits) break;
            const Merge m = merge(total, part[i]);
            o = join(m, o, value[i]);
            total = m.joined;
        }
    }
    if (threadIdx.x < p.head_dim) p.y[at * p.head_dim + threadIdx.x] = narrow(o * (1.0f / total.sum));
}
