// The order of tiles of a matrix product, on all cards.
#pragma once
#include "tile.cuh"

// Tiles down that are worked on together, sharing columns of b.
constexpr uint32_t GROUP = 8;

struct Place {
    uint32_t down, right;
};

// Where tile number `tile` lies among down x right: GROUP tiles down, then one to the right.
__device__ __forceinline__ Place place_of_tile(uint32_t tile, uint32_t down, uint32_t right) {
    const uint32_t group = tile / (GROUP * right), in_group = tile % (GROUP * right);
    const uint32_t height = min(GROUP, down - group * GROUP);
    return {group * GROUP + in_group % height, in_group / height};
}
