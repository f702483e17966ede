// Parameters of faults.cu. Mirrored in tests/faults.rs.
#pragma once
#include "abi.h"

struct fault_params {
    float* y;            // [64]
    const float* x;      // [64]
    const bf16* halves;  // [64]
};
