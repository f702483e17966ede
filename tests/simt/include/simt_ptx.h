// kernels/ptx.cuh for the host: the same functions, by what their instructions are documented to do.
#pragma once
#include "abi.h"

inline uint16_t simt_bf16(float x) {
    uint32_t bits = __float_as_uint(x);
    return x != x ? 0x7fff : uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

inline uint32_t pack_bf16(float low, float high) { return simt_bf16(low) | uint32_t(simt_bf16(high)) << 16; }

inline float widen_f16(uint16_t bits) {
    _Float16 x;
    memcpy(&x, &bits, sizeof x);
    return float(x);
}

inline uint16_t simt_f16(float value) {
    _Float16 x = _Float16(value);
    uint16_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

// The element type of matrix operands: bf16, or f16 before compute capability 8.0.
constexpr bool F16_OPERANDS = RATOON_SIMT < 80;

inline float simt_operand(uint16_t bits) {
    return F16_OPERANDS ? widen_f16(bits) : __uint_as_float(uint32_t(bits) << 16);
}

inline uint32_t pack_operands(float low, float high) {
    return F16_OPERANDS ? simt_f16(low) | uint32_t(simt_f16(high)) << 16 : pack_bf16(low, high);
}

inline float exp2_approx(float x) { return exp2f(x); }

// See src/dependent.rs.
inline void launch_dependents() {}
inline void wait_for_prerequisites() {
    simt->wait_for_prerequisites();
    simt_current->ahead = 0;
}
inline void prefetch_to_l2(const void*) {}

// The destination is NaN from now on and holds the data after the wait: whoever reads it in between, or had not finished
// reading what was there, gets NaN.
inline void copy_operands_async(void* shared, const bf16* global, bool valid, float scale = 1.0f) {
    if (reinterpret_cast<uintptr_t>(shared) % 16 || (valid && reinterpret_cast<uintptr_t>(global) % 16)) {
        return simt->fail("an asynchronous copy that is not aligned to 16 bytes");
    }
    if (F16_OPERANDS) {
        uint32_t words[4] = {};
        auto scaled = [&](int i) { return __uint_as_float(uint32_t(global[i].bits) << 16) * scale; };
        for (int i = 0; valid && i < 4; ++i) words[i] = pack_operands(scaled(2 * i), scaled(2 * i + 1));
        memcpy(shared, words, sizeof words);
        return;
    }
    simt_lane& lane = *simt_current;
    if (lane.ahead) return simt->fail("an asynchronous copy ahead of the kernels before");
    if (lane.copies == SIMT_COPIES) return simt->fail("too many asynchronous copies in flight");
    lane.copy[lane.copies++] = {shared, global, valid ? 16u : 0u, 16, lane.groups};
    memset(shared, 0xff, 16);
}

inline void commit_copies() { ++simt_current->groups; }

template <int PENDING> inline void wait_copies() {
    simt_lane& lane = *simt_current;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < lane.copies; ++i) {
        simt_copy& copy = lane.copy[i];
        if (copy.group + PENDING < lane.groups) {
            memcpy(copy.to, copy.from, copy.bytes);
            memset(static_cast<char*>(copy.to) + copy.bytes, 0, copy.size - copy.bytes);
        } else {
            lane.copy[kept++] = copy;
        }
    }
    lane.copies = kept;
}

struct simt_ldmatrix_arguments {
    const char* row;
    uint32_t result[4];
};

inline void simt_ldmatrix_x4(uint32_t (&to)[4], const void* row, bool transposed) {
    if (reinterpret_cast<uintptr_t>(row) % 16) return simt->fail("an ldmatrix row that is not aligned to 16 bytes");
    simt_ldmatrix_arguments mine{static_cast<const char*>(row), {}};
    if (void** lanes = simt->gather(SIMT_LDMATRIX, 0xffffffffu, &mine)) {
        for (int m = 0; m < 4; ++m) {
            uint16_t matrix[8][8];
            for (int r = 0; r < 8; ++r) {
                memcpy(matrix[r], static_cast<simt_ldmatrix_arguments*>(lanes[8 * m + r])->row, 16);
            }
            for (int i = 0; i < 32; ++i) {
                int g = i / 4, t = 2 * (i % 4);
                uint32_t low = transposed ? matrix[t][g] : matrix[g][t];
                uint32_t high = transposed ? matrix[t + 1][g] : matrix[g][t + 1];
                static_cast<simt_ldmatrix_arguments*>(lanes[i])->result[m] = low | high << 16;
            }
        }
        simt->release();
    }
    memcpy(to, mine.result, sizeof to);
}

inline void ldmatrix_x4(uint32_t (&to)[4], const void* row) { simt_ldmatrix_x4(to, row, false); }
inline void ldmatrix_x4_trans(uint32_t (&to)[4], const void* row) { simt_ldmatrix_x4(to, row, true); }

struct simt_mma_arguments {
    float* d;
    const uint32_t* a;
    uint32_t b[2];
};

inline void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    simt_mma_arguments mine{d, a, {b0, b1}};
    void** lanes = simt->gather(SIMT_MMA, 0xffffffffu, &mine);
    if (!lanes) return;
    float left[16][16], right[16][8], sum[16][8];
    for (int i = 0; i < 32; ++i) {
        auto& lane = *static_cast<simt_mma_arguments*>(lanes[i]);
        int g = i / 4, t = 2 * (i % 4);
        for (int half = 0; half < 2; ++half) {
            for (int r = 0; r < 4; ++r) {
                left[g + 8 * (r % 2)][t + 8 * (r / 2) + half] = simt_operand(uint16_t(lane.a[r] >> 16 * half));
            }
            for (int r = 0; r < 2; ++r) right[t + 8 * r + half][g] = simt_operand(uint16_t(lane.b[r] >> 16 * half));
            for (int r = 0; r < 2; ++r) sum[g + 8 * r][t + half] = lane.d[2 * r + half];
        }
    }
    for (int i = 0; i < 16; ++i) {
        for (int k = 0; k < 16; ++k) {
            for (int j = 0; j < 8; ++j) sum[i][j] = fmaf(left[i][k], right[k][j], sum[i][j]);
        }
    }
    for (int i = 0; i < 32; ++i) {
        float* to = static_cast<simt_mma_arguments*>(lanes[i])->d;
        int g = i / 4, t = 2 * (i % 4);
        for (int r = 0; r < 4; ++r) to[r] = sum[g + 8 * (r / 2)][t + r % 2];
    }
    simt->release();
}
