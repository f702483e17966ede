//! Parameter structs of the kernels: made by bindgen from `kernels/abi.h`, which documents them (see
//! `tests/simt/tests/bindings.rs`). Do not edit.
#![allow(missing_docs, non_camel_case_types)]

pub const ROW_THREADS: u32 = 256;
pub const MATMUL_F32: u32 = 1;
pub const MATMUL_ADD: u32 = 2;
pub const MATMUL_LARGE_STAGES: u32 = 3;
pub const MATMUL_MEDIUM_STAGES: u32 = 4;
pub const MATMUL_SMALL_STAGES: u32 = 6;
pub const MATMUL_LARGE_SHARED: u32 = 61440;
pub const MATMUL_MEDIUM_SHARED: u32 = 40960;
pub const MATMUL_SMALL_SHARED: u32 = 41472;
pub const ROPE_MAX_HALF: u32 = 256;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct bf16 {
    pub bits: u16,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of bf16"][::core::mem::size_of::<bf16>() - 2usize];
    ["Alignment of bf16"][::core::mem::align_of::<bf16>() - 2usize];
    ["Offset of field: bf16::bits"][::core::mem::offset_of!(bf16, bits) - 0usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct embedding_params {
    pub y: *mut bf16,
    pub table: *const bf16,
    pub ids: *const u32,
    pub hidden: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of embedding_params"][::core::mem::size_of::<embedding_params>() - 32usize];
    ["Alignment of embedding_params"][::core::mem::align_of::<embedding_params>() - 8usize];
    ["Offset of field: embedding_params::y"][::core::mem::offset_of!(embedding_params, y) - 0usize];
    ["Offset of field: embedding_params::table"][::core::mem::offset_of!(embedding_params, table) - 8usize];
    ["Offset of field: embedding_params::ids"][::core::mem::offset_of!(embedding_params, ids) - 16usize];
    ["Offset of field: embedding_params::hidden"][::core::mem::offset_of!(embedding_params, hidden) - 24usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct rmsnorm_params {
    pub y: *mut bf16,
    pub x: *const bf16,
    pub w: *const bf16,
    pub hidden: u32,
    pub eps: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of rmsnorm_params"][::core::mem::size_of::<rmsnorm_params>() - 32usize];
    ["Alignment of rmsnorm_params"][::core::mem::align_of::<rmsnorm_params>() - 8usize];
    ["Offset of field: rmsnorm_params::y"][::core::mem::offset_of!(rmsnorm_params, y) - 0usize];
    ["Offset of field: rmsnorm_params::x"][::core::mem::offset_of!(rmsnorm_params, x) - 8usize];
    ["Offset of field: rmsnorm_params::w"][::core::mem::offset_of!(rmsnorm_params, w) - 16usize];
    ["Offset of field: rmsnorm_params::hidden"][::core::mem::offset_of!(rmsnorm_params, hidden) - 24usize];
    ["Offset of field: rmsnorm_params::eps"][::core::mem::offset_of!(rmsnorm_params, eps) - 28usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct matmul_params {
    pub y: *mut ::core::ffi::c_void,
    pub a: *const bf16,
    pub b: *const bf16,
    pub bias: *const bf16,
    pub m: u32,
    pub n: u32,
    pub k: u32,
    pub flags: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of matmul_params"][::core::mem::size_of::<matmul_params>() - 48usize];
    ["Alignment of matmul_params"][::core::mem::align_of::<matmul_params>() - 8usize];
    ["Offset of field: matmul_params::y"][::core::mem::offset_of!(matmul_params, y) - 0usize];
    ["Offset of field: matmul_params::a"][::core::mem::offset_of!(matmul_params, a) - 8usize];
    ["Offset of field: matmul_params::b"][::core::mem::offset_of!(matmul_params, b) - 16usize];
    ["Offset of field: matmul_params::bias"][::core::mem::offset_of!(matmul_params, bias) - 24usize];
    ["Offset of field: matmul_params::m"][::core::mem::offset_of!(matmul_params, m) - 32usize];
    ["Offset of field: matmul_params::n"][::core::mem::offset_of!(matmul_params, n) - 36usize];
    ["Offset of field: matmul_params::k"][::core::mem::offset_of!(matmul_params, k) - 40usize];
    ["Offset of field: matmul_params::flags"][::core::mem::offset_of!(matmul_params, flags) - 44usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct rope_params {
    pub x: *mut bf16,
    pub positions: *const u32,
    pub inv_freq: *const f32,
    pub width: u32,
    pub half: u32,
    pub direction: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of rope_params"][::core::mem::size_of::<rope_params>() - 40usize];
    ["Alignment of rope_params"][::core::mem::align_of::<rope_params>() - 8usize];
    ["Offset of field: rope_params::x"][::core::mem::offset_of!(rope_params, x) - 0usize];
    ["Offset of field: rope_params::positions"][::core::mem::offset_of!(rope_params, positions) - 8usize];
    ["Offset of field: rope_params::inv_freq"][::core::mem::offset_of!(rope_params, inv_freq) - 16usize];
    ["Offset of field: rope_params::width"][::core::mem::offset_of!(rope_params, width) - 24usize];
    ["Offset of field: rope_params::half"][::core::mem::offset_of!(rope_params, half) - 28usize];
    ["Offset of field: rope_params::direction"][::core::mem::offset_of!(rope_params, direction) - 32usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct kv_store_params {
    pub k_pages: *mut bf16,
    pub v_pages: *mut bf16,
    pub k: *const bf16,
    pub v: *const bf16,
    pub slots: *const u32,
    pub width: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of kv_store_params"][::core::mem::size_of::<kv_store_params>() - 48usize];
    ["Alignment of kv_store_params"][::core::mem::align_of::<kv_store_params>() - 8usize];
    ["Offset of field: kv_store_params::k_pages"][::core::mem::offset_of!(kv_store_params, k_pages) - 0usize];
    ["Offset of field: kv_store_params::v_pages"][::core::mem::offset_of!(kv_store_params, v_pages) - 8usize];
    ["Offset of field: kv_store_params::k"][::core::mem::offset_of!(kv_store_params, k) - 16usize];
    ["Offset of field: kv_store_params::v"][::core::mem::offset_of!(kv_store_params, v) - 24usize];
    ["Offset of field: kv_store_params::slots"][::core::mem::offset_of!(kv_store_params, slots) - 32usize];
    ["Offset of field: kv_store_params::width"][::core::mem::offset_of!(kv_store_params, width) - 40usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct swiglu_params {
    pub y: *mut bf16,
    pub gate: *const bf16,
    pub up: *const bf16,
    pub n: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of swiglu_params"][::core::mem::size_of::<swiglu_params>() - 32usize];
    ["Alignment of swiglu_params"][::core::mem::align_of::<swiglu_params>() - 8usize];
    ["Offset of field: swiglu_params::y"][::core::mem::offset_of!(swiglu_params, y) - 0usize];
    ["Offset of field: swiglu_params::gate"][::core::mem::offset_of!(swiglu_params, gate) - 8usize];
    ["Offset of field: swiglu_params::up"][::core::mem::offset_of!(swiglu_params, up) - 16usize];
    ["Offset of field: swiglu_params::n"][::core::mem::offset_of!(swiglu_params, n) - 24usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct swiglu_backward_params {
    pub d_gate: *mut bf16,
    pub d_up: *mut bf16,
    pub dy: *const bf16,
    pub gate: *const bf16,
    pub up: *const bf16,
    pub n: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of swiglu_backward_params"][::core::mem::size_of::<swiglu_backward_params>() - 48usize];
    ["Alignment of swiglu_backward_params"][::core::mem::align_of::<swiglu_backward_params>() - 8usize];
    ["Offset of field: swiglu_backward_params::d_gate"]
        [::core::mem::offset_of!(swiglu_backward_params, d_gate) - 0usize];
    ["Offset of field: swiglu_backward_params::d_up"][::core::mem::offset_of!(swiglu_backward_params, d_up) - 8usize];
    ["Offset of field: swiglu_backward_params::dy"][::core::mem::offset_of!(swiglu_backward_params, dy) - 16usize];
    ["Offset of field: swiglu_backward_params::gate"][::core::mem::offset_of!(swiglu_backward_params, gate) - 24usize];
    ["Offset of field: swiglu_backward_params::up"][::core::mem::offset_of!(swiglu_backward_params, up) - 32usize];
    ["Offset of field: swiglu_backward_params::n"][::core::mem::offset_of!(swiglu_backward_params, n) - 40usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct cast_params {
    pub y: *mut ::core::ffi::c_void,
    pub x: *const ::core::ffi::c_void,
    pub n: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of cast_params"][::core::mem::size_of::<cast_params>() - 24usize];
    ["Alignment of cast_params"][::core::mem::align_of::<cast_params>() - 8usize];
    ["Offset of field: cast_params::y"][::core::mem::offset_of!(cast_params, y) - 0usize];
    ["Offset of field: cast_params::x"][::core::mem::offset_of!(cast_params, x) - 8usize];
    ["Offset of field: cast_params::n"][::core::mem::offset_of!(cast_params, n) - 16usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct cosine_params {
    pub out: *mut f32,
    pub a: *const bf16,
    pub b: *const bf16,
    pub hidden: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of cosine_params"][::core::mem::size_of::<cosine_params>() - 32usize];
    ["Alignment of cosine_params"][::core::mem::align_of::<cosine_params>() - 8usize];
    ["Offset of field: cosine_params::out"][::core::mem::offset_of!(cosine_params, out) - 0usize];
    ["Offset of field: cosine_params::a"][::core::mem::offset_of!(cosine_params, a) - 8usize];
    ["Offset of field: cosine_params::b"][::core::mem::offset_of!(cosine_params, b) - 16usize];
    ["Offset of field: cosine_params::hidden"][::core::mem::offset_of!(cosine_params, hidden) - 24usize];
};
// SAFETY: the C struct that the kernel takes by value.
unsafe impl cudarc::driver::DeviceRepr for embedding_params {}
// SAFETY: the C struct that the kernel takes by value.
unsafe impl cudarc::driver::DeviceRepr for rmsnorm_params {}
// SAFETY: the C struct that the kernel takes by value.
unsafe impl cudarc::driver::DeviceRepr for matmul_params {}
// SAFETY: the C struct that the kernel takes by value.
unsafe impl cudarc::driver::DeviceRepr for rope_params {}
// SAFETY: the C struct that the kernel takes by value.
unsafe impl cudarc::driver::DeviceRepr for kv_store_params {}
// SAFETY: the C struct that the kernel takes by value.
unsafe impl cudarc::driver::DeviceRepr for swiglu_params {}
// SAFETY: the C struct that the kernel takes by value.
unsafe impl cudarc::driver::DeviceRepr for swiglu_backward_params {}
// SAFETY: the C struct that the kernel takes by value.
unsafe impl cudarc::driver::DeviceRepr for cast_params {}
// SAFETY: the C struct that the kernel takes by value.
unsafe impl cudarc::driver::DeviceRepr for cosine_params {}
