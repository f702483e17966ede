// Parameters of sm90.cu and dependent.cu. Mirrored in tests/sm90/primitives.rs and dependent.rs.
#pragma once
#include "abi.h"

struct sm90_params {
    tensor_map a, b;  // boxes of 64 x 64
    float* y;         // [64, 64]
    const bf16* left;  // a, for products from registers
    uint32_t tiles, x, y0;
};

struct dependent_params {
    tensor_map map;  // x, a box of 64 x 64
    bf16* y;         // [64, 64]
    const bf16* x;   // [64, 64]
};
