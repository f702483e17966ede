// wgmma of one warpgroup, carried out at the wait: bf16 operands, f32 sums, k in increasing order.
#include "simt.h"
#if RATOON_SIMT >= 90
#include "simt_ptx.h"
#include "simt_sm90.h"

namespace {

constexpr uint32_t M = 64, K = 16, MOST = 256;

// 16 steps of an operand: rows of `outer` elements, from the shared memory that a descriptor names (PTX ISA, "matrix
// descriptor", and the canonical layouts of the 128-byte swizzle).
void read_operand(float (*to)[MOST], uint64_t descriptor, uint32_t outer, bool transposed) {
    const uint32_t start = (descriptor & 0x3fff) << 4, leading = (descriptor >> 16 & 0x3fff) << 4,
                   stride = (descriptor >> 32 & 0x3fff) << 4;
    if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0) return simt->fail("a descriptor without the 128-byte swizzle");
    // Words of 16 bytes: of a row's eight steps, or of eight rows at one step.
    for (uint32_t word = 0; word < outer * K / 8; ++word) {
        const uint32_t i = transposed ? word % (outer / 8) * 8 : word / 2, k = transposed ? word / (outer / 8) : word % 2 * 8;
        uint32_t at = start;
        at += transposed ? i % 64 * 2 + i / 64 * leading + k % 8 * 128 + k / 8 * stride : i % 8 * 128 + i / 8 * stride + k * 2;
        at ^= (at >> 7 & 7) << 4;
        const auto* bits = static_cast<const uint16_t*>(simt->shared_at(at));
        for (uint32_t e = 0; e < 8; ++e) to[transposed ? k : k + e][transposed ? i + e : i] = simt_operand(bits[e]);
    }
}

struct Tile {
    float left[K][MOST], right[K][MOST], sum[M][MOST];
};

// Calls use(row, column, sum) for every sum of the tile.
template <class Use> void each_sum(void** lanes, uint32_t product, uint32_t n, Use use) {
    for (uint32_t thread = 0; thread < 128; ++thread) {
        float* d = static_cast<simt_lane*>(lanes[thread])->product[product].d;
        const uint32_t row = thread / 32 * 16 + thread % 32 / 4, column = thread % 4 * 2;
        for (uint32_t j = 0; j < n / 2; ++j) use(row + j / 2 % 2 * 8, column + j / 4 * 8 + j % 2, d[j]);
    }
}

bool same(const simt_product& a, const simt_product& b) {
    return a.a == b.a && a.b == b.b && a.n == b.n && a.add == b.add && a.in_registers == b.in_registers &&
           a.a_transposed == b.a_transposed && a.b_transposed == b.b_transposed && a.group == b.group;
}

void read_registers(Tile& tile, void** lanes, uint32_t product) {
    for (uint32_t thread = 0; thread < 128; ++thread) {
        const uint32_t* left = static_cast<simt_lane*>(lanes[thread])->product[product].left;
        const uint32_t row = thread / 32 * 16 + thread % 32 / 4, k = thread % 4 * 2;
        for (uint32_t r = 0; r < 4; ++r) {
            for (uint32_t half = 0; half < 2; ++half) {
                tile.left[k + r / 2 * 8 + half][row + r % 2 * 8] = simt_operand(uint16_t(left[r] >> 16 * half));
            }
        }
    }
}

}  // namespace

void simt_multiply(void** lanes, uint32_t pending) {
    Tile tile;
    simt_lane& first = *static_cast<simt_lane*>(lanes[0]);
    uint32_t due = 0;
    while (due < first.products && first.product[due].group + pending < first.product_groups) ++due;
    for (uint32_t thread = 1; thread < 128; ++thread) {
        const simt_lane& lane = *static_cast<simt_lane*>(lanes[thread]);
        bool equal = lane.products == first.products && lane.product_groups == first.product_groups;
        for (uint32_t i = 0; equal && i < due; ++i) equal = same(lane.product[i], first.product[i]);
        if (!equal) return simt->fail("threads of a warpgroup that issued different wgmma");
    }
    for (uint32_t i = 0; i < due; ++i) {
        const simt_product& product = first.product[i];
        const uint32_t n = product.n;
        if (product.in_registers) {
            read_registers(tile, lanes, i);
        } else {
            read_operand(tile.left, product.a, M, product.a_transposed);
        }
        read_operand(tile.right, product.b, n, product.b_transposed);
        // Products with the same sums, one behind the other, leave them in the tile.
        if (!product.add) {
            memset(tile.sum, 0, sizeof tile.sum);
        } else if (i == 0 || first.product[i - 1].d != product.d) {
            each_sum(lanes, i, n, [&](uint32_t row, uint32_t column, float d) { tile.sum[row][column] = d; });
        }
        for (uint32_t row = 0; row < M; ++row) {
            for (uint32_t k = 0; k < K; ++k) {
                const float left = tile.left[k][row];
                for (uint32_t column = 0; column < n; column += 8) {
                    float *sum = tile.sum[row] + column, *right = tile.right[k] + column;
                    for (uint32_t e = 0; e < 8; ++e) sum[e] = fmaf(left, right[e], sum[e]);
                }
            }
        }
        if (i + 1 == due || first.product[i + 1].d != product.d) {
            each_sum(lanes, i, n, [&](uint32_t row, uint32_t column, float& d) { d = tile.sum[row][column]; });
        }
    }
    for (uint32_t thread = 0; thread < 128; ++thread) {
        simt_lane& lane = *static_cast<simt_lane*>(lanes[thread]);
        lane.products -= due;
        memmove(lane.product, lane.product + due, lane.products * sizeof *lane.product);
    }
}
#endif
