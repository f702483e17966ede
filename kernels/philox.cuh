// Philox4x32-10 (Salmon et al. 2011), as src/ops/philox.rs: any number of a stream without the ones before it.
#pragma once
#include "tile.cuh"

// Words 4 block .. 4 block + 4 of the stream (seed, stream).
__device__ __forceinline__ uint4 philox(uint64_t seed, uint64_t stream, uint64_t block) {
    uint32_t c0 = static_cast<uint32_t>(block), c1 = static_cast<uint32_t>(block >> 32);
    uint32_t c2 = static_cast<uint32_t>(stream), c3 = static_cast<uint32_t>(stream >> 32);
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const uint32_t high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
        const uint32_t high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return make_uint4(c0, c1, c2, c3);
}

// A uniform number in [0, 1): the upper 24 bits of the word.
__device__ __forceinline__ float unit(uint32_t word) { return static_cast<float>(word >> 8) * (1.0f / 16777216.0f); }
