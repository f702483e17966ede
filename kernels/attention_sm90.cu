// attention.cu's causal attention with grouped queries over packed sequences, on Hopper (compute capability 9.0): y = softmax(q k^T
// / sqrt(head_dim)) v, online (Milakov & Gimelshein 2018), in the way of FlashAttention-3 (Shah et al. 2024).
//
// Floor, n tokens of one sequence: 2 n (n + 1) n_heads head_dim FLOPs / 788 TFLOP/s. On paper, measured: not yet:
//   - one thread copies (tensor copies, two stages of 128 keys and of values); two warpgroups of 64 rows multiply by wgmma;
//   - they take turns: while one computes exponentials, the other multiplies. A block of 64 x 128 x 128 costs 2 x 1,024 cycles of
//     tensor cores a pair of products for both, and 64 x 128 exponentials a warpgroup at 16 a cycle and multiprocessor, 2 x 512:
//     without turns a third of the time is lost;
//   - within a warpgroup the scores of the next block and the values of this one are one stretch of products;
//   - the query heads of a group are rows of one tile, so keys and values are copied once for all of them;
//   - the mask is computed only in blocks that it cuts.
//
// A row's keys are taken in blocks of 128 from the start of its sequence, and a masked key adds exactly 0: the row's bits depend on
// nothing else in the batch. They are not those of attention.cu, whose blocks and instruction differ: pages, which must give one
// result for any cut of a prompt into steps, stay there altogether. The last block of keys reaches into the next sequence, whose
// values are replaced by zeros: a weight of 0 does not hide a NaN.
#include "softmax.cuh"
#include "tile_sm90.cuh"

#ifdef RATOON_SM90

constexpr int ROWS = 64, KEYS = ATTENTION_SM90_KEYS, STAGES = 2;
// Warpgroup 2 copies, 0 and 1 multiply.
constexpr uint32_t COPIER = 2;

struct Barriers {
    uint64_t q_full[2], k_full[STAGES], k_empty[STAGES], v_full[STAGES], v_empty[STAGES];
};

// The rows of one block: tokens of one sequence times the query heads of one key/value head. A warpgroup has `step` tokens.
struct Rows {
    uint32_t start, first, end;  // of the sequence, of the block's tokens: numbers among all tokens
    uint32_t group, step, blocks;  // blocks of keys that the last token sees
    uint32_t in_last;  // keys of the sequence in the last of them
};

__device__ __forceinline__ Rows rows_of_block(const attention_params& p) {
    Rows r;
    r.group = p.n_heads / p.n_kv_heads;
    r.step = ROWS / r.group;
    r.start = p.cu_seqlens[blockIdx.z];
    const uint32_t end = p.cu_seqlens[blockIdx.z + 1];
    // The last tokens of a sequence have the most to do and start first.
    r.first = r.start + (gridDim.x - 1 - blockIdx.x) * 2 * r.step;
    r.end = min(end, r.first + 2 * r.step);
    r.blocks = r.first < end ? (r.end - r.start + KEYS - 1) / KEYS : 0;
    r.in_last = r.blocks > 0 ? min(end - r.start - (r.blocks - 1) * KEYS, static_cast<uint32_t>(KEYS)) : 0;
    return r;
}

// Tiles of D / 64 slabs of 64 features.
template <int D> struct Tiles {
    static constexpr uint32_t Q = ROWS * D * 2, KV = KEYS * D * 2, Q_SLAB = ROWS * SWIZZLED * 2, KV_SLAB = KEYS * SWIZZLED * 2;
    char *q, *k, *v;

    __device__ __forceinline__ Tiles() : q(patterned_shared()), k(q + 2 * Q), v(k + STAGES * KV) {}
};

template <int D>
__device__ __forceinline__ void copy(const attention_sm90_params& p, const Rows& rows, const Tiles<D>& tiles, Barriers& barriers) {
    for (uint32_t w = 0; w < 2; ++w) {
        mbarrier_arrive_expect(&barriers.q_full[w], rows.step * rows.group * D * 2);
        for (uint32_t slab = 0; slab < D / SWIZZLED; ++slab) {
            tensor_load(tiles.q + w * tiles.Q + slab * tiles.Q_SLAB, p.q, slab * SWIZZLED, 0, blockIdx.y,
                        rows.first + w * rows.step, &barriers.q_full[w]);
        }
    }
    for (uint32_t i = 0; i < rows.blocks; ++i) {
        const uint32_t stage = i % STAGES, parity = i / STAGES % 2;
        auto load = [&](char* to, const tensor_map& map, uint64_t* full, uint64_t* empty) {
            mbarrier_wait(empty, parity ^ 1);
            mbarrier_arrive_expect(full, tiles.KV);
            for (uint32_t slab = 0; slab < D / SWIZZLED; ++slab) {
                tensor_load(to + stage * tiles.KV + slab * tiles.KV_SLAB, map, slab * SWIZZLED, 0, blockIdx.y,
                            rows.start + i * KEYS, full);
            }
        };
        load(tiles.k, p.k, &barriers.k_full[stage], &barriers.k_empty[stage]);
        load(tiles.v, p.v, &barriers.v_full[stage], &barriers.v_empty[stage]);
    }
}

// Scores become weights relative to the largest so far; returns by what earlier sums and outputs shrink.
__device__ __forceinline__ void weigh(float (&s)[KEYS / 2], Softmax (&total)[2], float (&shrink)[2], float scale) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        float largest = total[h].largest;
#pragma unroll
        for (int j = 0; j < KEYS / 8; ++j) largest = fmaxf(largest, fmaxf(s[4 * j + 2 * h], s[4 * j + 2 * h + 1]));
        largest = quad_max(largest);
        // Where no key is seen yet, every exponential is that of minus infinity.
        const float base = largest == NOTHING ? 0.0f : largest * scale;
        shrink[h] = exp2_approx(fmaf(total[h].largest, scale, -base));
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < KEYS / 8; ++j) {
#pragma unroll
            for (int e = 4 * j + 2 * h; e < 4 * j + 2 * h + 2; ++e) sum += s[e] = exp2_approx(fmaf(s[e], scale, -base));
        }
        total[h] = {largest, fmaf(total[h].sum, shrink[h], sum)};
    }
}

template <int D>
__device__ __forceinline__ void attend(const attention_sm90_params& params, const Rows& rows, const Tiles<D>& tiles,
                                       Barriers& barriers) {
    const attention_params& p = params.attention;
    const uint32_t w = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, t = lane % 4 * 2;
    const uint32_t first = rows.first + w * rows.step, row[2] = {16 * warp + lane / 4, 16 * warp + lane / 4 + 8};
    // Positions in the sequence. Rows that do not exist see what a row would; nobody reads them.
    const uint32_t position[2] = {first - rows.start + row[0] / rows.group, first - rows.start + row[1] / rows.group};
    const float scale = p.scale * LOG2E;
    Softmax total[2] = {{NOTHING, 0.0f}, {NOTHING, 0.0f}};
    float shrink[2], s[KEYS / 2], o[D / 2];
    uint32_t weights[KEYS / 16][4];
    auto score = [&](uint32_t stage) {
#pragma unroll
        for (int k = 0; k < D; k += 16) {
            const char* q = tiles.q + w * tiles.Q + k / SWIZZLED * tiles.Q_SLAB;
            const char* keys = tiles.k + stage * tiles.KV + k / SWIZZLED * tiles.KV_SLAB;
            Wgmma<KEYS, false, false>::issue(s, along_rows(q, k % SWIZZLED), along_rows(keys, k % SWIZZLED), k > 0);
        }
        wgmma_commit();
    };
    auto add_values = [&](uint32_t stage, bool add) {
#pragma unroll
        for (int j = 0; j < KEYS; j += 16) {
            const uint64_t values = down_columns(tiles.v + stage * tiles.KV, j, tiles.KV_SLAB);
            WgmmaRegisters<D, true>::issue(o, weights[j / 16], values, add || j > 0);
        }
        wgmma_commit();
    };
    auto mask = [&](uint32_t block) {
        if ((block + 1) * KEYS <= first - rows.start + 1) return;
#pragma unroll
        for (int j = 0; j < KEYS / 2; ++j) {
            if (block * KEYS + 8 * (j / 4) + t + j % 2 > position[j / 2 % 2]) s[j] = NOTHING;
        }
    };
    auto pack = [&] {
#pragma unroll
        for (int j = 0; j < KEYS / 4; ++j) weights[j / 4][j % 4] = pack_bf16(s[2 * j], s[2 * j + 1]);
    };
    auto release = [&](uint64_t* empty) {
        if (lane == 0) mbarrier_arrive(empty);
    };
    // Turns: a warpgroup waits for its barrier before it issues products and opens the other's behind them.
    auto wait_turn = [&] { named_barrier_wait(1 + w, 256); };
    auto pass_turn = [&](bool last) {
        if (w == 0 || !last) named_barrier_arrive(2 - w, 256);
    };
    if (w == 1) named_barrier_arrive(1, 256);

    mbarrier_wait(&barriers.q_full[w], 0);
    mbarrier_wait(&barriers.k_full[0], 0);
    wait_turn();
    wgmma_fence();
    score(0);
    pass_turn(rows.blocks == 1);
    wgmma_wait<0>();
    wgmma_hold(s);
    release(&barriers.k_empty[0]);
    mask(0);
    weigh(s, total, shrink, scale);
    pack();
    mbarrier_wait(&barriers.v_full[0], 0);
    for (uint32_t i = 1; i < rows.blocks; ++i) {
        const uint32_t stage = i % STAGES, before = (i - 1) % STAGES;
        mbarrier_wait(&barriers.k_full[stage], i / STAGES % 2);
        wait_turn();
        wgmma_hold(o);
        wgmma_fence();
        score(stage);
        add_values(before, i > 1);
        pass_turn(i + 1 == rows.blocks);
        wgmma_wait<1>();
        wgmma_hold(s);
        release(&barriers.k_empty[stage]);
        mask(i);
        weigh(s, total, shrink, scale);
        // Between the exponentials and the wait for the product that they run under: ptxas moves the wait up to the last branch.
        mbarrier_wait(&barriers.v_full[stage], i / STAGES % 2);
        wgmma_wait<0>();
        wgmma_hold(o);
        release(&barriers.v_empty[before]);
#pragma unroll
        for (int d = 0; d < D / 2; ++d) o[d] *= shrink[d / 2 % 2];
        pack();
    }
    const uint32_t last = (rows.blocks - 1) % STAGES;
    if (rows.in_last < KEYS) clear_rows<KEYS, D / SWIZZLED>(tiles.v + last * tiles.KV, rows.in_last);
    wgmma_hold(o);
    wgmma_fence();
    add_values(last, rows.blocks > 1);
    wgmma_wait<0>();
    wgmma_hold(o);

#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const float sum = quad_sum(total[h].sum);
        if (row[h] >= rows.step * rows.group || first + row[h] / rows.group >= rows.end) continue;
        const uint64_t at = static_cast<uint64_t>(first + row[h] / rows.group) * p.n_heads + blockIdx.y * rows.group +
                            row[h] % rows.group;
        const float inverse = 1.0f / sum;
#pragma unroll
        for (int d = 0; d < D / 8; ++d) {
            *reinterpret_cast<uint32_t*>(p.y + at * D + 8 * d + t) =
                pack_bf16(o[4 * d + 2 * h] * inverse, o[4 * d + 2 * h + 1] * inverse);
        }
        if (p.lse && t == 0) p.lse[at] = fmaf(total[h].largest, p.scale, log2f(sum) * LN2);
    }
}

template <int D> __device__ __forceinline__ void attention(const attention_sm90_params& p) {
    auto& barriers = shared_object<Barriers>();
    const Tiles<D> tiles;
    const Rows rows = rows_of_block(p.attention);
    if (rows.blocks == 0) return;
    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < 2; ++i) mbarrier_init(&barriers.q_full[i], 1);
        for (uint32_t i = 0; i < STAGES; ++i) {
            mbarrier_init(&barriers.k_full[i], 1);
            mbarrier_init(&barriers.v_full[i], 1);
            // A lane of each multiplying warp.
            mbarrier_init(&barriers.k_empty[i], 8);
            mbarrier_init(&barriers.v_empty[i], 8);
        }
        mbarrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x / 128 == COPIER) {
        give_registers<24>();
        if (threadIdx.x % 128 == 0) copy<D>(p, rows, tiles, barriers);
    } else {
        take_registers<240>();
        attend<D>(p, rows, tiles, barriers);
    }
}

extern "C" __global__ void __launch_bounds__(384, 1) attention_sm90_64(const attention_sm90_params __grid_constant__ p) {
    attention<64>(p);
}

extern "C" __global__ void __launch_bounds__(384, 1) attention_sm90_128(const attention_sm90_params __grid_constant__ p) {
    attention<128>(p);
}

#endif
