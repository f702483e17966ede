// Tiles of matrix operands in shared memory, between global memory and mma: what matmul and attention share.
#pragma once
#include "tile.cuh"

// Extra operands in a row of shared memory: rows of an odd number of 16-byte words, so that the eight rows of a matrix lie in
// eight different bank groups.
constexpr int PAD = 8;

// What an operand is multiplied with on its way into shared memory, and the sums of its products with. Both are powers of two, so
// no bit is lost, and 1 where operands have the range of f32.
struct OperandScale {
    float by, back;
};

// F16 has no number between 0 and 6e-8, and gradients are smaller: the largest magnitude of their matrix, which has the bits
// *largest, is brought into [2^EXPONENT, 2^(EXPONENT + 1)). What then vanishes is below 2^-(25 + EXPONENT) of the largest.
template <uint32_t EXPONENT> __device__ __forceinline__ OperandScale operand_scale(const uint32_t* largest) {
    if (!F16_OPERANDS || !largest) return {1.0f, 1.0f};
    // Of the factor, with its bias of 127: both factors stay normal numbers.
    const uint32_t exponent = min(254 + EXPONENT - (*largest >> 23), 253u);
    return {__uint_as_float(exponent << 23), __uint_as_float((254 - exponent) << 23)};
}

// Copies eight neighbours of a row that holds `width` elements, zeros past its end; F16 operands times `scale`.
__device__ __forceinline__ void stage8(uint16_t* to, const bf16* row, uint32_t column, uint32_t width, bool in_rows,
                                       float scale = 1.0f) {
    if (width % 8 == 0) {
        const bool valid = in_rows && column < width;
        copy_operands_async(to, valid ? row + column : row, valid, scale);
        return;
    }
    float x[8];
#pragma unroll
    for (uint32_t i = 0; i < 8; ++i) x[i] = in_rows && column + i < width ? widen(row[column + i]) * scale : 0.0f;
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
