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

// matmul_nt: y[m, n] (+)= a[m, k] b[n, k]^T (+ bias). matmul_nn: a[m, k] b[k, n]. matmul_tn: a[k, m]^T b[k, n].
// Kernels LAYOUT_large, LAYOUT_medium and, for nt, LAYOUT_small: tiles of y of 128 x 128, 64 x 64, 16 x 32; all give the same
// bits. Grid: the number of tiles that cover y, in x. Block: 256, 128, 64. Dynamic shared memory: MATMUL_*_SHARED bytes.
typedef struct matmul_params {
    void* y;           // bf16 or, with MATMUL_F32, float: [m, n]
    const bf16* a;     // aligned to 16 bytes, as is b
    const bf16* b;
    const bf16* bias;  // [n], or null
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
