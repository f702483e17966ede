// Parameters of sm90.cu. Mirrored in tests/sm90/primitives.rs.
#pragma once
#include "abi.h"

struct sm90_params {
    tensor_map a, b;  // boxes of 64 x 64
    float* y;         // [64, 64]
    const bf16* left;  // a, for products from registers
    uint32_t tiles, x, y0;
};
