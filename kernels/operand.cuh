// Tiles of matrix operands in shared memory, between global memory and mma: what matmul and attention share.
#pragma once
#include "tile.cuh"

// Extra operands in a row of shared memory: rows of an odd number of 16-byte words, so that the eight rows of a matrix lie in
// eight different bank groups.
constexpr int PAD = 8;

// Copies eight neighbours of a row that holds `width` elements, zeros past its end.
__device__ __forceinline__ void stage8(uint16_t* to, const bf16* row, uint32_t column, uint32_t width, bool in_rows) {
    if (width % 8 == 0) {
        const bool valid = in_rows && column < width;
        copy_operands_async(to, valid ? row + column : row, valid);
        return;
    }
    float x[8];
#pragma unroll
    for (uint32_t i = 0; i < 8; ++i) x[i] = in_rows && column + i < width ? widen(row[column + i]) : 0.0f;
    *reinterpret_cast<uint4*>(to) = make_uint4(pack_operands(x[0], x[1]), pack_operands(x[2], x[3]),
                                               pack_operands(x[4], x[5]), pack_operands(x[6], x[7]));
}

// 16 x 16 elements at (outer, k) of a tile as the left operand of mma. K_ROWS: k runs along the tile's rows, else down its
// columns.
template <int STRIDE, bool K_ROWS>
__device__ __forceinline__ void load_left(uint32_t (&a)[4], const uint16_t* tile, int outer, int k) {
    const int lane = threadIdx.x % 32, r = lane % 8, q = lane / 8;
    if (K_ROWS) {
        ldmatrix_x4(a, tile + (outer + r + q % 2 * 8) * STRIDE + k + q / 2 * 8);
    } else {
        ldmatrix_x4_trans(a, tile + (k + r + q / 2 * 8) * STRIDE + outer + q % 2 * 8);
    }
}

// The same as two right operands: b[0], b[1] for the first eight columns, b[2], b[3] for the others.
template <int STRIDE, bool K_ROWS>
__device__ __forceinline__ void load_right(uint32_t (&b)[4], const uint16_t* tile, int outer, int k) {
    const int lane = threadIdx.x % 32, r = lane % 8, q = lane / 8;
    if (K_ROWS) {
        ldmatrix_x4(b, tile + (outer + r + q / 2 * 8) * STRIDE + k + q % 2 * 8);
    } else {
        ldmatrix_x4_trans(b, tile + (k + r + q % 2 * 8) * STRIDE + outer + q / 2 * 8);
    }
}
