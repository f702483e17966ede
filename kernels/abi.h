// What the launch code hands to the kernels: one plain-C struct a kernel, passed by value. bindgen makes
// src/device/cuda/abi.rs of it (tests/simt/tests/bindings.rs says how, and fails when that file is stale).
//
// Beside each struct: the kernel, its grid and its block. "Row block" is row_threads(width) threads: a multiple of 32, at
// least width / 8, at most ROW_THREADS. Matrices are row-major; `[a, b]` is a shape.
#pragma once
#include <stdint.h>

// The upper half of an f32.
typedef struct bf16 {
    uint16_t bits;
} bf16;

// A tensor of bf16 as the copy engine of compute capability 9.0 sees it: what cuTensorMapEncodeTiled writes.
typedef struct tensor_map {
    uint64_t words[16];
} __attribute__((aligned(128))) tensor_map;

// Most threads of a row block.
#define ROW_THREADS 256

// embedding: y[t] = table[ids[t]]. Grid: tokens. Block: row.
typedef struct embedding_params {
    bf16* y;             // [tokens, hidden]
    const bf16* table;   // [vocab, hidden]
    const uint32_t* ids;  // [tokens], each below vocab
    uint32_t hidden;
} embedding_params;

// rmsnorm: y[t] = x[t] / sqrt(mean(x[t]^2) + eps) * w. Grid: tokens. Block: row.
typedef struct rmsnorm_params {
    bf16* y;        // [tokens, hidden]
    const bf16* x;  // [tokens, hidden]
    const bf16* w;  // [hidden]
    uint32_t hidden;
    float eps;
} rmsnorm_params;

// largest: bits of the largest magnitude of each sequence's rows as f32, of a NaN where there is one. Grid: (ceil(longest width /
// LARGEST_CHUNK), sequences). Block: ROW_THREADS.
typedef struct largest_params {
    uint32_t* largest;  // [sequences], 0 before
    const bf16* x;      // [tokens, width]
    const uint32_t* cu_seqlens;  // [sequences + 1], or null: one sequence
    uint32_t tokens, width;
} largest_params;

// Numbers that a block goes through.
#define LARGEST_CHUNK 2048

// matmul_nt: y[m, n] (+)= a[m, k] b[n, k]^T (+ bias). matmul_nn: a[m, k] b[k, n]. matmul_tn: a[k, m]^T b[k, n].
// Kernels LAYOUT_large, LAYOUT_medium and, for nt, LAYOUT_small: tiles of y of 128 x 128, 64 x 64, 16 x 32; all give the same
// bits. Grid: the number of tiles that cover y, in x. Block: 256, 128, 64. Dynamic shared memory: MATMUL_*_SHARED bytes.
typedef struct matmul_params {
    void* y;           // bf16 or, with MATMUL_F32, float: [m, n]
    const bf16* a;     // aligned to 16 bytes, as is b
    const bf16* b;
    const bf16* bias;  // [n], or null
    const uint32_t* largest_a;  // [1] of kernel largest, or null: what cards before sm_80 scale a by
    uint32_t m, n, k;
    uint32_t flags;
} matmul_params;

// y is f32.
#define MATMUL_F32 1
// y is added to.
#define MATMUL_ADD 2

#define MATMUL_LARGE_STAGES 3
#define MATMUL_MEDIUM_STAGES 4
#define MATMUL_SMALL_STAGES 6
// Stages x rows x padded columns (or the other way round: whichever layout needs more) x 2 bytes, of both operands.
#define MATMUL_LARGE_SHARED (MATMUL_LARGE_STAGES * 2 * 128 * 40 * 2)
#define MATMUL_MEDIUM_SHARED (MATMUL_MEDIUM_STAGES * 2 * 64 * 40 * 2)
#define MATMUL_SMALL_SHARED (MATMUL_SMALL_STAGES * (16 + 32) * 72 * 2)

// The same products on compute capability 9.0, for n that is a multiple of 4; all kernels give the same bits. Block: 384. Dynamic
// shared memory: MATMUL_SM90_SHARED. Grid: any number of clusters, at most those that cover y. Boxes of tensor maps are of 64
// elements by 128 rows where k runs along the rows, by 64 where it runs down the columns.
// matmul_sm90_LAYOUT_COLUMNS: tiles of y of 128 x COLUMNS, 256 or 128; for 256 clusters of MATMUL_SM90_CLUSTER tiles below each other.
typedef struct matmul_sm90_params {
    tensor_map a, b;
    matmul_params product;
} matmul_sm90_params;

#define MATMUL_SM90_PRODUCTS 3

// matmul_sm90_rows_M, for nt, M of 8, 16, 32, 64 or 128: some products with the same a, m and k, in tiles of `rows` x M of y^T; from
// M = 32 on clusters of MATMUL_SM90_ROWS_CLUSTER tiles of other weights. Boxes: 64 by M / cluster rows of a, by `rows` of b.
typedef struct matmul_sm90_rows_params {
    tensor_map a, b[MATMUL_SM90_PRODUCTS];
    matmul_params product[MATMUL_SM90_PRODUCTS];
    uint32_t products;
    uint32_t rows;  // of b in a tile: a multiple of 8, at most 128
} matmul_sm90_rows_params;

#define MATMUL_SM90_CLUSTER 2
#define MATMUL_SM90_ROWS_CLUSTER 4

// Bytes of the ring of tiles, and with what its alignment takes and what is read behind tiles of fewer than 64 rows.
#define MATMUL_SM90_RING (192 * 1024)
#define MATMUL_SM90_SHARED (MATMUL_SM90_RING + 9 * 1024)

// rope: rotates each head of x in place, "rotate halves"; direction -1 is the backward pass. Grid: tokens. Block: row of
// width / 2.
typedef struct rope_params {
    bf16* x;                   // [tokens, width], heads of 2 half
    const uint32_t* positions;  // [tokens], below 2^20
    const float* inv_freq;      // [half], radians a position
    uint32_t width, half;       // half <= ROPE_MAX_HALF
    float direction;
} rope_params;

#define ROPE_MAX_HALF 256

// kv_store: k_pages[slots[t]] = k[t], and v. Grid: tokens. Block: row.
typedef struct kv_store_params {
    bf16* k_pages;  // [slots, width]
    bf16* v_pages;
    const bf16* k;  // [tokens, width]
    const bf16* v;
    const uint32_t* slots;  // [tokens]
    uint32_t width;
} kv_store_params;

// swiglu: y = silu(gate) up. Grid: ceil(n / (8 ROW_THREADS)). Block: ROW_THREADS. All [n], aligned to 16 bytes.
typedef struct swiglu_params {
    bf16* y;
    const bf16* gate;
    const bf16* up;
    uint64_t n;
} swiglu_params;

// swiglu_backward: gradients of swiglu. As there.
typedef struct swiglu_backward_params {
    bf16* d_gate;
    bf16* d_up;
    const bf16* dy;
    const bf16* gate;
    const bf16* up;
    uint64_t n;
} swiglu_backward_params;

// cast_f32_bf16, cast_bf16_f32, cast_f16_bf16: y[i] = x[i]. Grid: any. Block: ROW_THREADS.
typedef struct cast_params {
    void* y;
    const void* x;
    uint64_t n;
} cast_params;

// cosine: out[t] = a[t] b[t] / (|a[t]| |b[t]|). Grid: tokens. Block: row.
typedef struct cosine_params {
    float* out;  // [tokens]
    const bf16* a;  // [tokens, hidden]
    const bf16* b;
    uint32_t hidden;
} cosine_params;

// attention_D: y = softmax(q k^T * scale) v, causal, for head_dim <= D of 64, 80, 96, 128. Grid: (ceil(longest run of new
// tokens / (64 / group)), n_kv_heads, sequences), with group = n_heads / n_kv_heads <= 64. Block: 128. Dynamic shared memory:
// (64 + 64 ATTENTION_STAGES) (D + 8) 2 bytes.
//
// attention_split_D and attention_deep_split_D: the same for sequences of at most 16 / group new tokens, the keys of a sequence
// side by side in splits, into p.partial. Grid: (max_splits, n_kv_heads, sequences). Block: 32. Shared: (16 + 64 STAGES) (D + 8) 2
// bytes. Then, where max_splits > 1, attention_combine.
// Grid: (most new tokens, n_heads, sequences). Block: 128. All ways give the same bits.
typedef struct attention_params {
    bf16* y;         // [tokens, n_heads * head_dim]
    float* lse;      // [tokens, n_heads], log of the sum of exponentials, or null
    float* partial;  // [tokens, n_heads, max_splits, head_dim + 2], of the split kernels with max_splits > 1
    const bf16* q;   // as y; aligned to 16 bytes, as are k and v
    const bf16* k;   // [tokens or slots, n_kv_heads * head_dim]
    const bf16* v;
    const uint32_t* cu_seqlens;    // [sequences + 1], offsets of the new tokens of each sequence
    const uint32_t* context_lens;  // [sequences], cached tokens with the new ones, or null: the new ones alone
    const uint32_t* page_table;    // [sequences, max_pages], or null: keys lie in the rows of the tokens
    uint32_t max_pages, page_size;
    uint32_t n_heads, n_kv_heads, head_dim;
    uint32_t max_splits;  // at least ceil(longest context / ATTENTION_SPLIT)
    float scale;
} attention_params;

// Keys whose softmax is computed apart. Part of the result's definition.
#define ATTENTION_SPLIT 256
// Tiles of 64 keys or values in a block's shared memory.
#define ATTENTION_STAGES 2
#define ATTENTION_SPLIT_STAGES 3
#define ATTENTION_DEEP_SPLIT_STAGES 8

// attention_sm90_D: the same on compute capability 9.0 for packed sequences and head_dim D of 64 or 128; other bits than
// attention_D. Grid: (ceil(longest / (2 (64 / group))), n_kv_heads, sequences), group <= 64. Block: 384. Dynamic shared memory:
// (128 + 4 ATTENTION_SM90_KEYS) D 2 + 1024 bytes: queries, two stages of keys and of values, alignment.
typedef struct attention_sm90_params {
    tensor_map q;  // [tokens, n_kv_heads, group, head_dim] in boxes of 64 / group tokens by one by group by 64
    tensor_map k;  // [tokens, n_kv_heads, 1, head_dim] in boxes of ATTENTION_SM90_KEYS tokens by one by one by 64
    tensor_map v;  // as k
    attention_params attention;  // of which y, lse, cu_seqlens, n_heads, n_kv_heads and scale are read
} attention_sm90_params;

#define ATTENTION_SM90_KEYS 128
// A target that is not scored.
#define IGNORED_TARGET 0xffffffffu

// log_probs: out[t] = log softmax(logits[t])[targets[t]], 0 for IGNORED_TARGET. Grid: rows. Block: ROW_THREADS.
typedef struct log_probs_params {
    float* out;           // [rows]
    const float* logits;  // [rows, vocab]
    const uint32_t* targets;  // [rows]
    uint32_t vocab;
} log_probs_params;

// cross_entropy: losses[t] = -log softmax(logits[t])[targets[t]], d_logits[t] = scale (softmax(logits[t]) - onehot(targets[t]));
// zeros for IGNORED_TARGET. Grid: rows. Block: ROW_THREADS.
typedef struct cross_entropy_params {
    float* losses;   // [rows]
    bf16* d_logits;  // [rows, vocab]
    const float* logits;  // [rows, vocab]
    const uint32_t* targets;  // [rows]
    uint32_t vocab;
    float scale;  // before sm_80 operands are f16: a power of two that keeps gradients above 6e-8 belongs in here
} cross_entropy_params;

// How one row is drawn, see src/ops/sample.rs.
typedef struct sample_draw {
    uint64_t seed, request;
    float temperature;  // 0: the largest logit
    float top_p;        // 1: all
    uint32_t top_k;     // 0: all
    uint32_t position;
} sample_draw;

// sample: one id a row and its log-probability. Grid: rows. Block: SAMPLE_THREADS.
typedef struct sample_params {
    uint32_t* ids;     // [rows], SAMPLE_NOT_FINITE where a row holds NaN or infinity or nothing above -infinity
    float* log_probs;  // [rows], under softmax(logits)
    const float* logits;  // [rows, vocab]
    const sample_draw* draws;  // [rows]
    uint32_t vocab;
} sample_params;

#define SAMPLE_THREADS 512
#define SAMPLE_NOT_FINITE 0xffffffffu

// rmsnorm_backward: dx (+)= r (g - x r^2 mean(g x)) with g = dy w, and partial sums of dw, a row for each RMSNORM_CHUNK tokens, for
// add_rows. Grid: ceil(tokens / RMSNORM_CHUNK). Block: ROW_THREADS.
typedef struct rmsnorm_backward_params {
    bf16* dx;        // [tokens, hidden]
    float* partial;  // [ceil(tokens / RMSNORM_CHUNK), hidden], or null
    const bf16* dy;  // [tokens, hidden]
    const bf16* x;   // [tokens, hidden]
    const bf16* w;   // [hidden]
    uint32_t tokens, hidden;
    uint32_t add;  // whether dx is added to
    float eps;
} rmsnorm_backward_params;

#define RMSNORM_CHUNK 16

// column_sums: partial[c] = sum over chunk c of COLUMN_SUMS_CHUNK tokens of x[t]. Grid: (ceil(width / ROW_THREADS), chunks).
// Block: ROW_THREADS.
typedef struct column_sums_params {
    float* partial;  // [ceil(tokens / COLUMN_SUMS_CHUNK), width]
    const bf16* x;   // [tokens, width]
    uint32_t tokens, width;
} column_sums_params;

#define COLUMN_SUMS_CHUNK 64

// add_rows: y += sum of the rows of partial, in order. Grid: ceil(width / ROW_THREADS). Block: ROW_THREADS.
typedef struct add_rows_params {
    float* y;              // [width]
    const float* partial;  // [rows, width]
    uint32_t rows, width;
} add_rows_params;

// embedding_backward: d_table[ids[t]] += dy[t], in the order of tokens. Grid: tokens. Block: ROW_THREADS.
typedef struct embedding_backward_params {
    float* d_table;  // [vocab, hidden]
    const bf16* dy;  // [tokens, hidden]
    const uint32_t* ids;  // [tokens]
    uint32_t tokens, hidden;
} embedding_backward_params;

// dropout: y[i] = x[i] / (1 - probability) or 0, by word i of the stream. Grid: ceil(n / (8 ROW_THREADS)). Block: ROW_THREADS.
typedef struct dropout_params {
    bf16* y;
    const bf16* x;
    uint64_t n, seed, stream;
    float probability;
} dropout_params;

// A parameter with its gradient and optimiser state, all [n].
typedef struct optimizer_tensor {
    float* master;  // or null
    bf16* p;
    float* m;
    float* v;
    const float* g;
    uint64_t n;
    uint32_t first_block;  // sum of ceil(n / OPTIMIZER_CHUNK) of the tensors before
    uint32_t decayed;      // whether weight decay applies
} optimizer_tensor;

#define OPTIMIZER_CHUNK 16384

// grad_norm_partials: sums of squares of g. Grid: blocks of all tensors. Block: ROW_THREADS. Then grad_norm: norm = sqrt of their
// sum. Grid: 1. Block: ROW_THREADS.
typedef struct grad_norm_params {
    double* norm;     // [1]
    double* partial;  // [n_partials]
    const optimizer_tensor* tensors;  // [n_tensors], of which n, g and first_block are read
    uint32_t n_tensors, n_partials;
} grad_norm_params;

// adamw: one step of all parameters. Grid: blocks of all tensors. Block: ROW_THREADS. Factors as in src/ops/adamw.rs.
typedef struct adamw_params {
    const optimizer_tensor* tensors;  // [n_tensors]
    uint64_t seed;                    // of the random rounding of parameters without a master
    uint32_t n_tensors, step;
    float grad_scale, keep, gain1, beta2, gain2, step_size, root, eps;
} adamw_params;

// attention_delta: delta = rowsum(dy y). Grid: ceil(tokens n_heads / 4). Block: 128. Then, for head_dim <= D as in attention_D:
// attention_backward_keys_D: dk and dv. Grid: (ceil(longest / 64), n_kv_heads, sequences).
// attention_backward_queries_D: dq. Grid: (ceil(longest / (64 / group)), n_kv_heads, sequences).
// Both: group <= 32. Block: 128. Dynamic shared memory: (64 + 32) 2 (D + 8) 2 bytes.
typedef struct attention_backward_params {
    bf16* dq;  // as q
    bf16* dk;  // as k
    bf16* dv;  // as v
    float* delta;    // [tokens, n_heads]
    const bf16* dy;  // [tokens, n_heads * head_dim]
    const bf16* y;   // as dy
    const bf16* q;   // as dy
    const bf16* k;   // [tokens, n_kv_heads * head_dim]
    const bf16* v;
    const float* lse;  // [tokens, n_heads]
    const uint32_t* cu_seqlens;  // [sequences + 1]
    const uint32_t* largest_dy;  // [sequences] of kernel largest, or null: what cards before sm_80 scale dy by
    uint32_t tokens, n_heads, n_kv_heads, head_dim;
    float scale;
} attention_backward_params;

// The same on compute capability 9.0, for head_dim D of 64 or 128; after attention_delta.
// attention_backward_sm90_keys_D: grid (ceil(longest / 128), n_kv_heads, sequences).
// attention_backward_sm90_queries_D: grid (ceil(longest / (2 (64 / group))), n_kv_heads, sequences).
// Both: group <= 64. Block: 384. Dynamic shared memory: (256 + 3 128) D 2 + 1024 bytes.
typedef struct attention_backward_sm90_params {
    tensor_map q, dy;  // [tokens, n_kv_heads, group, head_dim] in boxes of 64 / group tokens by one by group by 64
    tensor_map k, v;   // [tokens, n_kv_heads, 1, head_dim] in boxes of 64 tokens by one by one by 64
    attention_backward_params attention;
} attention_backward_sm90_params;

// divergence: kl[t] = KL(softmax(logits_p[t]) || softmax(logits_q[t])), agree[t] = 1 where the largest logits have the same id.
// Grid: rows. Block: ROW_THREADS.
typedef struct divergence_params {
    float* kl;     // [rows]
    float* agree;  // [rows]
    const float* logits_p;  // [rows, vocab]
    const float* logits_q;
    uint32_t vocab;
} divergence_params;

// scale: y[i] = factor x[i] (+ y[i]); y may be x. Grid: ceil(n / (8 ROW_THREADS)). Block: ROW_THREADS. Both [n], aligned to 16
// bytes.
typedef struct scale_params {
    bf16* y;
    const bf16* x;
    uint64_t n;
    float factor;
    uint32_t add;
} scale_params;
