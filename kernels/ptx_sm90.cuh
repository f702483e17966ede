// Hopper's instructions: mbarrier, tensor copies (TMA), clusters, wgmma, setmaxnreg, named barriers. Inline PTX lives here and in ptx.cuh
// alone; tests/simt/include/simt_sm90.h has the same functions for the host. Sources: PTX ISA 8.0 and later, sections 9.7.13
// (mbarrier, barrier.cluster), 9.7.9.25 (cp.async.bulk.tensor) and 9.7.15 (wgmma).
//
// They exist in sm_90a code only, which runs on compute capability 9.0 and nowhere else: RATOON_SM90 guards the kernels.
#pragma once
#include "ptx.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || (defined(RATOON_SIMT) && RATOON_SIMT >= 90)
#define RATOON_SM90
#endif

#if defined(RATOON_SM90) && defined(RATOON_SIMT)
#include "simt_sm90.h"
#elif defined(RATOON_SM90)

// mbarrier: a phase ends when `count` arrivals and all announced bytes are there. Phases alternate between parity 0 and 1,
// the first is 0.
__device__ __forceinline__ void mbarrier_init(uint64_t* barrier, uint32_t count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}

// Makes barriers that this thread initialised known to the copy engine; other threads need a block barrier as well.
__device__ __forceinline__ void mbarrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive(uint64_t* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Arrives, and announces bytes that tensor_load will bring in this phase.
__device__ __forceinline__ void mbarrier_arrive_expect(uint64_t* barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}

// Waits for the end of the phase of that parity; returns at once when it has passed.
__device__ __forceinline__ void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
    asm volatile(
        "{\n.reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n}"
        ::"r"(shared_address(barrier)), "r"(parity)
        : "memory");
}

// Starts to bring a map to the copy engine.
__device__ __forceinline__ void prefetch_tensor_map(const tensor_map& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// Starts the copy of a box into shared memory (to a multiple of 1024), from element (x, y) of a matrix: zeros outside it. All
// of the box's bytes count for the barrier.
__device__ __forceinline__ void tensor_load(void* to, const tensor_map& map, uint32_t x, uint32_t y, uint64_t* barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
                     shared_address(to)),
                 "l"(&map), "r"(x), "r"(y), "r"(shared_address(barrier))
                 : "memory");
}

// The same from element (x, y, z, w) of a tensor of four axes.
__device__ __forceinline__ void tensor_load(void* to, const tensor_map& map, uint32_t x, uint32_t y, uint32_t z, uint32_t w,
                                            uint64_t* barrier) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(
            shared_address(to)),
        "l"(&map), "r"(x), "r"(y), "r"(z), "r"(w), "r"(shared_address(barrier))
        : "memory");
}

// Clusters: blocks, neighbours in x, that run at the same time and reach each other's shared memory. Begins the definition of a
// kernel that runs in clusters of so many.
#define CLUSTERS_OF(BLOCKS, KERNEL) extern "C" __global__ void __cluster_dims__(BLOCKS, 1, 1)

// The number of this block among those of its cluster.
__device__ __forceinline__ uint32_t cluster_rank() {
    uint32_t rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// Waits for all threads of the cluster that have not ended.
__device__ __forceinline__ void cluster_wait() {
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

// Arrives at the barrier in the same place of block `rank` of the cluster.
__device__ __forceinline__ void mbarrier_arrive_at(uint64_t* barrier, uint32_t rank) {
    asm volatile(
        "{\n.reg .b32 there;\n"
        "mapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [there];\n}"
        ::"r"(shared_address(barrier)), "r"(rank)
        : "memory");
}

// tensor_load of two axes into the same place of all blocks of the cluster in `ranks`, one bit each; it counts for the barrier in
// the same place of each.
__device__ __forceinline__ void tensor_load_to(uint16_t ranks, void* to, const tensor_map& map, uint32_t x, uint32_t y,
                                               uint64_t* barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, %3}], [%4], "
        "%5;" ::"r"(shared_address(to)),
        "l"(&map), "r"(x), "r"(y), "r"(shared_address(barrier)), "h"(ranks)
        : "memory");
}

// Makes what this thread stored to shared memory known to tensor copies and wgmma; for those of other threads, before a barrier.
__device__ __forceinline__ void async_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Moves registers between the warpgroups of a block; every warp of the warpgroup calls it.
template <int REGISTERS> __device__ __forceinline__ void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

template <int REGISTERS> __device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// Barrier `id` (1 to 15) of `threads` threads: waits for all of them, or counts as there and goes on.
__device__ __forceinline__ void named_barrier_wait(uint32_t id, uint32_t threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ void named_barrier_arrive(uint32_t id, uint32_t threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// wgmma: products of a warpgroup, carried out later. Before the first one, and after registers of an operand changed: fence.
// Operands, sums included, may be touched again when a wait has found the group that they were committed to complete.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most PENDING groups are unfinished.
template <int PENDING> __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Keeps the compiler from moving accesses of sums across a wait.
template <int N> __device__ __forceinline__ void wgmma_hold(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// d[64, N] = a[64, 16] b[16, N] (+ d, with `add`): bf16 operands in shared memory by their descriptors (tile_sm90.cuh), with k
// along their rows or, TRANSPOSED, down their columns. Of d the thread holds, with g = thread % 128 / 32 * 16 + lane / 4 and
// t = 2 (lane % 4): (row g, columns 8j + t and the next) in d[4j], d[4j + 1], (g + 8, the same) in d[4j + 2], d[4j + 3].
template <int N, bool A_TRANSPOSED, bool B_TRANSPOSED> struct Wgmma;

// The same with a in registers, as of mma_16x8x16 in the warp's 16 rows.
template <int N, bool B_TRANSPOSED> struct WgmmaRegisters;

#define REGISTERS_10(t) "%" #t "0, %" #t "1, %" #t "2, %" #t "3, %" #t "4, %" #t "5, %" #t "6, %" #t "7, %" #t "8, %" #t "9, "
#define REGISTERS_4 "%0, %1, %2, %3"
#define REGISTERS_8 REGISTERS_4 ", %4, %5, %6, %7"
#define REGISTERS_16 REGISTERS_8 ", %8, %9, " "%10, %11, %12, %13, %14, %15"
#define REGISTERS_32 REGISTERS_8 ", %8, %9, " REGISTERS_10(1) REGISTERS_10(2) "%30, %31"
#define REGISTERS_64 \
    REGISTERS_8 ", %8, %9, " REGISTERS_10(1) REGISTERS_10(2) REGISTERS_10(3) REGISTERS_10(4) REGISTERS_10(5) \
    "%60, %61, %62, %63"
#define REGISTERS_128 \
    REGISTERS_8 ", %8, %9, " REGISTERS_10(1) REGISTERS_10(2) REGISTERS_10(3) REGISTERS_10(4) REGISTERS_10(5) \
    REGISTERS_10(6) REGISTERS_10(7) REGISTERS_10(8) REGISTERS_10(9) REGISTERS_10(10) REGISTERS_10(11) \
    "%120, %121, %122, %123, %124, %125, %126, %127"
#define SUMS_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SUMS_8(i) SUMS_4(i), SUMS_4(i + 4)
#define SUMS_16(i) SUMS_8(i), SUMS_8(i + 8)
#define SUMS_32(i) SUMS_16(i), SUMS_16(i + 16)
#define SUMS_64(i) SUMS_32(i), SUMS_32(i + 32)
#define SUMS_128(i) SUMS_64(i), SUMS_64(i + 64)

// R = N / 2 sums; the numbers of the operands after them.
#define WGMMA(N, R, A, B, ADD, TA, TB)                                                                                    \
    template <bool A_TRANSPOSED, bool B_TRANSPOSED> struct Wgmma<N, A_TRANSPOSED, B_TRANSPOSED> {                        \
        static __device__ __forceinline__ void issue(float (&d)[R], uint64_t a, uint64_t b, bool add) {                  \
            asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" #ADD ", 0;\n"                                          \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" REGISTERS_##R "}, %" #A ", %" #B   \
                         ", add, 1, 1, %" #TA ", %" #TB ";\n}"                                                            \
                         : SUMS_##R(0)                                                                                    \
                         : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(A_TRANSPOSED), "n"(B_TRANSPOSED));             \
        }                                                                                                                 \
    };
WGMMA(8, 4, 4, 5, 6, 7, 8)
WGMMA(16, 8, 8, 9, 10, 11, 12)
WGMMA(32, 16, 16, 17, 18, 19, 20)
WGMMA(64, 32, 32, 33, 34, 35, 36)
WGMMA(128, 64, 64, 65, 66, 67, 68)
WGMMA(256, 128, 128, 129, 130, 131, 132)
#undef WGMMA

#define WGMMA(N, R, A0, A1, A2, A3, B, ADD, TB)                                                                          \
    template <bool B_TRANSPOSED> struct WgmmaRegisters<N, B_TRANSPOSED> {                                                \
        static __device__ __forceinline__ void issue(float (&d)[R], const uint32_t (&a)[4], uint64_t b, bool add) {      \
            asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" #ADD ", 0;\n"                                          \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" REGISTERS_##R "}, {%" #A0 ", %" #A1 \
                         ", %" #A2 ", %" #A3 "}, %" #B ", add, 1, 1, %" #TB ";\n}"                                        \
                         : SUMS_##R(0)                                                                                    \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)),                \
                           "n"(B_TRANSPOSED));                                                                            \
        }                                                                                                                 \
    };
WGMMA(64, 32, 32, 33, 34, 35, 36, 37, 38)
WGMMA(128, 64, 64, 65, 66, 67, 68, 69, 70)
#undef WGMMA
#undef REGISTERS_10
#undef REGISTERS_4
#undef REGISTERS_8
#undef REGISTERS_16
#undef REGISTERS_32
#undef REGISTERS_64
#undef REGISTERS_128
#undef SUMS_4
#undef SUMS_8
#undef SUMS_16
#undef SUMS_32
#undef SUMS_64
#undef SUMS_128

#endif
