// Every instruction that C++ cannot say. The only file with inline PTX; tests/simt/include/simt_ptx.h has the same functions
// for the host. What differs between cards is settled here: before sm_80 there is no asynchronous copy and no bf16 matrix
// product, so operands are f16 there, converted on their way into shared memory.
#pragma once
#include "abi.h"

#ifdef RATOON_SIMT
#include "simt_ptx.h"
#else

// Two floats rounded to bf16, the first in the lower half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
#if __CUDA_ARCH__ >= 800
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
#else
    // To nearest, ties to even; a NaN stays one.
    auto half = [](float x) {
        uint32_t bits = __float_as_uint(x);
        return x != x ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    };
    return half(low) | half(high) << 16;
#endif
}

// The number that f16 bits stand for.
__device__ __forceinline__ float widen_f16(uint16_t bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}

// Whether matrix operands are f16 and not bf16.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr bool F16_OPERANDS = true;
#else
constexpr bool F16_OPERANDS = false;
#endif

// Two floats rounded to the element type of matrix operands, the first in the lower half.
__device__ __forceinline__ uint32_t pack_operands(float low, float high) {
#if __CUDA_ARCH__ >= 800
    return pack_bf16(low, high);
#else
    uint16_t l, h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(l) : "f"(low));
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(high));
    return l | static_cast<uint32_t>(h) << 16;
#endif
}

// 2^x, relative error below 2^-22; 2^0 is 1, 2^-infinity is 0.
__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Dependent launches (PTX ISA, griddepcontrol): a kernel may start while those before it still run. What it may do until it has
// waited is written in src/device/cuda/launch.rs, which asks for such launches of code for compute capability 9.0 and later alone.

// Lets the next kernel start, once every block has come here or ended.
__device__ __forceinline__ void launch_dependents() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Waits until the kernels before have ended and what they wrote can be read.
__device__ __forceinline__ void wait_for_prerequisites() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Starts to bring 128 bytes into the L2 cache, which all kernels share.
__device__ __forceinline__ void prefetch_to_l2(const void* global) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(global));
}

__device__ __forceinline__ uint32_t shared_address(const void* shared) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// Starts a copy of eight bf16 into shared memory, as operands; zeros when not `valid`, and then nothing is read. Both
// addresses are multiples of 16. F16 operands are multiplied with `scale` on their way, which is 1 for others.
__device__ __forceinline__ void copy_operands_async(void* shared, const bf16* global, bool valid, float scale = 1.0f) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(valid ? 16 : 0)
                 : "memory");
#else
    uint4 words = valid ? *reinterpret_cast<const uint4*>(global) : make_uint4(0, 0, 0, 0);
    auto convert = [scale](uint32_t w) {
        return pack_operands(__uint_as_float(w << 16) * scale, __uint_as_float(w & 0xffff0000u) * scale);
    };
    *reinterpret_cast<uint4*>(shared) = make_uint4(convert(words.x), convert(words.y), convert(words.z), convert(words.w));
#endif
}

// Closes a group of copies of this thread.
__device__ __forceinline__ void commit_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most PENDING groups of this thread's copies are on their way. What other threads copied needs a barrier too.
template <int PENDING> __device__ __forceinline__ void wait_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

// Four 8 x 8 matrices of operands: lane i names row i % 8 of matrix i / 8, 16 bytes; it gets elements 2 (i % 4) and the next of
// row i / 4 of each.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&to)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The same of the transposed matrices: elements 2 (i % 4) and the next of column i / 4.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&to)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// d[16, 8] += a[16, 16] b[16, 8] over a warp. With g = lane / 4, t = lane % 4: a holds (row g, columns 2t and 2t + 1), (g + 8,
// the same), (g, 2t + 8 ..), (g + 8, 2t + 8 ..); b (rows 2t and 2t + 1, column g), (2t + 8 .., g); d (g, 2t), (g, 2t + 1),
// (g + 8, 2t), (g + 8, 2t + 1).
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b0));
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}

#endif
