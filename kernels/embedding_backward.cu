// Gradient of the row lookup: d_table[ids[t]] += dy[t], tokens with the same id in their order. One block a token; the block of
// the first token with an id adds all of them, the others end.
//
// Floor: tokens * hidden * (2 + 8) bytes. Looking for equal ids reads all ids in every block, from L2: 4 * tokens^2 bytes, a
// tenth of the floor at 8,192 tokens of 4,096 features.
#include "tile.cuh"

struct Matches {
    uint32_t of_warp[ROW_THREADS / 32];
};

extern "C" __global__ void __launch_bounds__(ROW_THREADS)
    embedding_backward(const embedding_backward_params __grid_constant__ p) {
    auto& matches = shared_object<Matches>();
    const uint32_t id = p.ids[blockIdx.x];
    float* to = p.d_table + static_cast<uint64_t>(id) * p.hidden;
    const uint32_t own = blockIdx.x / ROW_THREADS * ROW_THREADS;  // where the tile with this token begins
    for (uint32_t tile = 0; tile < p.tokens; tile += ROW_THREADS) {
        const uint32_t t = tile + threadIdx.x;
        const uint32_t same = __ballot_sync(FULL_WARP, t < p.tokens && p.ids[t] == id);
        __syncthreads();  // whoever still reads the last tile's
        if (threadIdx.x % 32 == 0) matches.of_warp[threadIdx.x / 32] = same;
        __syncthreads();
        for (uint32_t w = 0; w < ROW_THREADS / 32; ++w) {
            for (uint32_t rest = matches.of_warp[w]; rest; rest &= rest - 1) {
                const uint32_t token = tile + 32 * w + __ffs(rest) - 1;
                if (tile <= own && token < blockIdx.x) return;  // an earlier token has this id: every thread sees it
                const bf16* from = p.dy + static_cast<uint64_t>(token) * p.hidden;
                for (uint32_t i = threadIdx.x; i < p.hidden; i += ROW_THREADS) to[i] += widen(from[i]);
            }
        }
    }
}
