//! Parameter structs of the kernels: made by bindgen from `kernels/abi.h`, which documents them (see
//! `tests/simt/tests/bindings.rs`). Do not edit.
#![allow(missing_docs, non_camel_case_types)]

pub const ROW_THREADS: u32 = 256;
pub const LARGEST_CHUNK: u32 = 2048;
pub const MATMUL_F32: u32 = 1;
pub const MATMUL_ADD: u32 = 2;
pub const MATMUL_LARGE_STAGES: u32 = 3;
pub const MATMUL_MEDIUM_STAGES: u32 = 4;
pub const MATMUL_SMALL_STAGES: u32 = 6;
pub const MATMUL_LARGE_SHARED: u32 = 61440;
pub const MATMUL_MEDIUM_SHARED: u32 = 40960;
pub const MATMUL_SMALL_SHARED: u32 = 41472;
pub const MATMUL_SM90_PRODUCTS: u32 = 3;
pub const MATMUL_SM90_CLUSTER: u32 = 2;
pub const MATMUL_SM90_ROWS_CLUSTER: u32 = 4;
pub const MATMUL_SM90_RING: u32 = 196608;
pub const MATMUL_SM90_SHARED: u32 = 205824;
pub const ROPE_MAX_HALF: u32 = 256;
pub const ATTENTION_SPLIT: u32 = 256;
pub const ATTENTION_STAGES: u32 = 2;
pub const ATTENTION_SPLIT_STAGES: u32 = 3;
pub const ATTENTION_DEEP_SPLIT_STAGES: u32 = 8;
pub const ATTENTION_SM90_KEYS: u32 = 128;
pub const IGNORED_TARGET: u32 = 4294967295;
pub const SAMPLE_THREADS: u32 = 512;
pub const SAMPLE_NOT_FINITE: u32 = 4294967295;
pub const RMSNORM_CHUNK: u32 = 16;
pub const COLUMN_SUMS_CHUNK: u32 = 64;
pub const OPTIMIZER_CHUNK: u32 = 16384;
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
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
#[repr(align(128))]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct tensor_map {
    pub words: [u64; 16usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of tensor_map"][::core::mem::size_of::<tensor_map>() - 128usize];
    ["Alignment of tensor_map"][::core::mem::align_of::<tensor_map>() - 128usize];
    ["Offset of field: tensor_map::words"][::core::mem::offset_of!(tensor_map, words) - 0usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
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
#[derive(Debug, Copy, Clone, PartialEq)]
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
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct largest_params {
    pub largest: *mut u32,
    pub x: *const bf16,
    pub cu_seqlens: *const u32,
    pub tokens: u32,
    pub width: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of largest_params"][::core::mem::size_of::<largest_params>() - 32usize];
    ["Alignment of largest_params"][::core::mem::align_of::<largest_params>() - 8usize];
    ["Offset of field: largest_params::largest"][::core::mem::offset_of!(largest_params, largest) - 0usize];
    ["Offset of field: largest_params::x"][::core::mem::offset_of!(largest_params, x) - 8usize];
    ["Offset of field: largest_params::cu_seqlens"][::core::mem::offset_of!(largest_params, cu_seqlens) - 16usize];
    ["Offset of field: largest_params::tokens"][::core::mem::offset_of!(largest_params, tokens) - 24usize];
    ["Offset of field: largest_params::width"][::core::mem::offset_of!(largest_params, width) - 28usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct matmul_params {
    pub y: *mut ::core::ffi::c_void,
    pub a: *const bf16,
    pub b: *const bf16,
    pub bias: *const bf16,
    pub largest_a: *const u32,
    pub m: u32,
    pub n: u32,
    pub k: u32,
    pub flags: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of matmul_params"][::core::mem::size_of::<matmul_params>() - 56usize];
    ["Alignment of matmul_params"][::core::mem::align_of::<matmul_params>() - 8usize];
    ["Offset of field: matmul_params::y"][::core::mem::offset_of!(matmul_params, y) - 0usize];
    ["Offset of field: matmul_params::a"][::core::mem::offset_of!(matmul_params, a) - 8usize];
    ["Offset of field: matmul_params::b"][::core::mem::offset_of!(matmul_params, b) - 16usize];
    ["Offset of field: matmul_params::bias"][::core::mem::offset_of!(matmul_params, bias) - 24usize];
    ["Offset of field: matmul_params::largest_a"][::core::mem::offset_of!(matmul_params, largest_a) - 32usize];
    ["Offset of field: matmul_params::m"][::core::mem::offset_of!(matmul_params, m) - 40usize];
    ["Offset of field: matmul_params::n"][::core::mem::offset_of!(matmul_params, n) - 44usize];
    ["Offset of field: matmul_params::k"][::core::mem::offset_of!(matmul_params, k) - 48usize];
    ["Offset of field: matmul_params::flags"][::core::mem::offset_of!(matmul_params, flags) - 52usize];
};
#[repr(C)]
#[repr(align(128))]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct matmul_sm90_params {
    pub a: tensor_map,
    pub b: tensor_map,
    pub product: matmul_params,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of matmul_sm90_params"][::core::mem::size_of::<matmul_sm90_params>() - 384usize];
    ["Alignment of matmul_sm90_params"][::core::mem::align_of::<matmul_sm90_params>() - 128usize];
    ["Offset of field: matmul_sm90_params::a"][::core::mem::offset_of!(matmul_sm90_params, a) - 0usize];
    ["Offset of field: matmul_sm90_params::b"][::core::mem::offset_of!(matmul_sm90_params, b) - 128usize];
    ["Offset of field: matmul_sm90_params::product"][::core::mem::offset_of!(matmul_sm90_params, product) - 256usize];
};
#[repr(C)]
#[repr(align(128))]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct matmul_sm90_rows_params {
    pub a: tensor_map,
    pub b: [tensor_map; 3usize],
    pub product: [matmul_params; 3usize],
    pub products: u32,
    pub rows: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of matmul_sm90_rows_params"][::core::mem::size_of::<matmul_sm90_rows_params>() - 768usize];
    ["Alignment of matmul_sm90_rows_params"][::core::mem::align_of::<matmul_sm90_rows_params>() - 128usize];
    ["Offset of field: matmul_sm90_rows_params::a"][::core::mem::offset_of!(matmul_sm90_rows_params, a) - 0usize];
    ["Offset of field: matmul_sm90_rows_params::b"][::core::mem::offset_of!(matmul_sm90_rows_params, b) - 128usize];
    ["Offset of field: matmul_sm90_rows_params::product"]
        [::core::mem::offset_of!(matmul_sm90_rows_params, product) - 512usize];
    ["Offset of field: matmul_sm90_rows_params::products"]
        [::core::mem::offset_of!(matmul_sm90_rows_params, products) - 680usize];
    ["Offset of field: matmul_sm90_rows_params::rows"]
        [::core::mem::offset_of!(matmul_sm90_rows_params, rows) - 684usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
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
#[derive(Debug, Copy, Clone, PartialEq)]
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
#[derive(Debug, Copy, Clone, PartialEq)]
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
#[derive(Debug, Copy, Clone, PartialEq)]
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
#[derive(Debug, Copy, Clone, PartialEq)]
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
#[derive(Debug, Copy, Clone, PartialEq)]
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
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct attention_params {
    pub y: *mut bf16,
    pub lse: *mut f32,
    pub partial: *mut f32,
    pub q: *const bf16,
    pub k: *const bf16,
    pub v: *const bf16,
    pub cu_seqlens: *const u32,
    pub context_lens: *const u32,
    pub page_table: *const u32,
    pub max_pages: u32,
    pub page_size: u32,
    pub n_heads: u32,
    pub n_kv_heads: u32,
    pub head_dim: u32,
    pub max_splits: u32,
    pub scale: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of attention_params"][::core::mem::size_of::<attention_params>() - 104usize];
    ["Alignment of attention_params"][::core::mem::align_of::<attention_params>() - 8usize];
    ["Offset of field: attention_params::y"][::core::mem::offset_of!(attention_params, y) - 0usize];
    ["Offset of field: attention_params::lse"][::core::mem::offset_of!(attention_params, lse) - 8usize];
    ["Offset of field: attention_params::partial"][::core::mem::offset_of!(attention_params, partial) - 16usize];
    ["Offset of field: attention_params::q"][::core::mem::offset_of!(attention_params, q) - 24usize];
    ["Offset of field: attention_params::k"][::core::mem::offset_of!(attention_params, k) - 32usize];
    ["Offset of field: attention_params::v"][::core::mem::offset_of!(attention_params, v) - 40usize];
    ["Offset of field: attention_params::cu_seqlens"][::core::mem::offset_of!(attention_params, cu_seqlens) - 48usize];
    ["Offset of field: attention_params::context_lens"]
        [::core::mem::offset_of!(attention_params, context_lens) - 56usize];
    ["Offset of field: attention_params::page_table"][::core::mem::offset_of!(attention_params, page_table) - 64usize];
    ["Offset of field: attention_params::max_pages"][::core::mem::offset_of!(attention_params, max_pages) - 72usize];
    ["Offset of field: attention_params::page_size"][::core::mem::offset_of!(attention_params, page_size) - 76usize];
    ["Offset of field: attention_params::n_heads"][::core::mem::offset_of!(attention_params, n_heads) - 80usize];
    ["Offset of field: attention_params::n_kv_heads"][::core::mem::offset_of!(attention_params, n_kv_heads) - 84usize];
    ["Offset of field: attention_params::head_dim"][::core::mem::offset_of!(attention_params, head_dim) - 88usize];
    ["Offset of field: attention_params::max_splits"][::core::mem::offset_of!(attention_params, max_splits) - 92usize];
    ["Offset of field: attention_params::scale"][::core::mem::offset_of!(attention_params, scale) - 96usize];
};
#[repr(C)]
#[repr(align(128))]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct attention_sm90_params {
    pub q: tensor_map,
    pub k: tensor_map,
    pub v: tensor_map,
    pub attention: attention_params,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of attention_sm90_params"][::core::mem::size_of::<attention_sm90_params>() - 512usize];
    ["Alignment of attention_sm90_params"][::core::mem::align_of::<attention_sm90_params>() - 128usize];
    ["Offset of field: attention_sm90_params::q"][::core::mem::offset_of!(attention_sm90_params, q) - 0usize];
    ["Offset of field: attention_sm90_params::k"][::core::mem::offset_of!(attention_sm90_params, k) - 128usize];
    ["Offset of field: attention_sm90_params::v"][::core::mem::offset_of!(attention_sm90_params, v) - 256usize];
    ["Offset of field: attention_sm90_params::attention"]
        [::core::mem::offset_of!(attention_sm90_params, attention) - 384usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct log_probs_params {
    pub out: *mut f32,
    pub logits: *const f32,
    pub targets: *const u32,
    pub vocab: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of log_probs_params"][::core::mem::size_of::<log_probs_params>() - 32usize];
    ["Alignment of log_probs_params"][::core::mem::align_of::<log_probs_params>() - 8usize];
    ["Offset of field: log_probs_params::out"][::core::mem::offset_of!(log_probs_params, out) - 0usize];
    ["Offset of field: log_probs_params::logits"][::core::mem::offset_of!(log_probs_params, logits) - 8usize];
    ["Offset of field: log_probs_params::targets"][::core::mem::offset_of!(log_probs_params, targets) - 16usize];
    ["Offset of field: log_probs_params::vocab"][::core::mem::offset_of!(log_probs_params, vocab) - 24usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct cross_entropy_params {
    pub losses: *mut f32,
    pub d_logits: *mut bf16,
    pub logits: *const f32,
    pub targets: *const u32,
    pub vocab: u32,
    pub scale: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of cross_entropy_params"][::core::mem::size_of::<cross_entropy_params>() - 40usize];
    ["Alignment of cross_entropy_params"][::core::mem::align_of::<cross_entropy_params>() - 8usize];
    ["Offset of field: cross_entropy_params::losses"][::core::mem::offset_of!(cross_entropy_params, losses) - 0usize];
    ["Offset of field: cross_entropy_params::d_logits"]
        [::core::mem::offset_of!(cross_entropy_params, d_logits) - 8usize];
    ["Offset of field: cross_entropy_params::logits"][::core::mem::offset_of!(cross_entropy_params, logits) - 16usize];
    ["Offset of field: cross_entropy_params::targets"]
        [::core::mem::offset_of!(cross_entropy_params, targets) - 24usize];
    ["Offset of field: cross_entropy_params::vocab"][::core::mem::offset_of!(cross_entropy_params, vocab) - 32usize];
    ["Offset of field: cross_entropy_params::scale"][::core::mem::offset_of!(cross_entropy_params, scale) - 36usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct sample_draw {
    pub seed: u64,
    pub request: u64,
    pub temperature: f32,
    pub top_p: f32,
    pub top_k: u32,
    pub position: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of sample_draw"][::core::mem::size_of::<sample_draw>() - 32usize];
    ["Alignment of sample_draw"][::core::mem::align_of::<sample_draw>() - 8usize];
    ["Offset of field: sample_draw::seed"][::core::mem::offset_of!(sample_draw, seed) - 0usize];
    ["Offset of field: sample_draw::request"][::core::mem::offset_of!(sample_draw, request) - 8usize];
    ["Offset of field: sample_draw::temperature"][::core::mem::offset_of!(sample_draw, temperature) - 16usize];
    ["Offset of field: sample_draw::top_p"][::core::mem::offset_of!(sample_draw, top_p) - 20usize];
    ["Offset of field: sample_draw::top_k"][::core::mem::offset_of!(sample_draw, top_k) - 24usize];
    ["Offset of field: sample_draw::position"][::core::mem::offset_of!(sample_draw, position) - 28usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct sample_params {
    pub ids: *mut u32,
    pub log_probs: *mut f32,
    pub logits: *const f32,
    pub draws: *const sample_draw,
    pub vocab: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of sample_params"][::core::mem::size_of::<sample_params>() - 40usize];
    ["Alignment of sample_params"][::core::mem::align_of::<sample_params>() - 8usize];
    ["Offset of field: sample_params::ids"][::core::mem::offset_of!(sample_params, ids) - 0usize];
    ["Offset of field: sample_params::log_probs"][::core::mem::offset_of!(sample_params, log_probs) - 8usize];
    ["Offset of field: sample_params::logits"][::core::mem::offset_of!(sample_params, logits) - 16usize];
    ["Offset of field: sample_params::draws"][::core::mem::offset_of!(sample_params, draws) - 24usize];
    ["Offset of field: sample_params::vocab"][::core::mem::offset_of!(sample_params, vocab) - 32usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct rmsnorm_backward_params {
    pub dx: *mut bf16,
    pub partial: *mut f32,
    pub dy: *const bf16,
    pub x: *const bf16,
    pub w: *const bf16,
    pub tokens: u32,
    pub hidden: u32,
    pub add: u32,
    pub eps: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of rmsnorm_backward_params"][::core::mem::size_of::<rmsnorm_backward_params>() - 56usize];
    ["Alignment of rmsnorm_backward_params"][::core::mem::align_of::<rmsnorm_backward_params>() - 8usize];
    ["Offset of field: rmsnorm_backward_params::dx"][::core::mem::offset_of!(rmsnorm_backward_params, dx) - 0usize];
    ["Offset of field: rmsnorm_backward_params::partial"]
        [::core::mem::offset_of!(rmsnorm_backward_params, partial) - 8usize];
    ["Offset of field: rmsnorm_backward_params::dy"][::core::mem::offset_of!(rmsnorm_backward_params, dy) - 16usize];
    ["Offset of field: rmsnorm_backward_params::x"][::core::mem::offset_of!(rmsnorm_backward_params, x) - 24usize];
    ["Offset of field: rmsnorm_backward_params::w"][::core::mem::offset_of!(rmsnorm_backward_params, w) - 32usize];
    ["Offset of field: rmsnorm_backward_params::tokens"]
        [::core::mem::offset_of!(rmsnorm_backward_params, tokens) - 40usize];
    ["Offset of field: rmsnorm_backward_params::hidden"]
        [::core::mem::offset_of!(rmsnorm_backward_params, hidden) - 44usize];
    ["Offset of field: rmsnorm_backward_params::add"][::core::mem::offset_of!(rmsnorm_backward_params, add) - 48usize];
    ["Offset of field: rmsnorm_backward_params::eps"][::core::mem::offset_of!(rmsnorm_backward_params, eps) - 52usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct column_sums_params {
    pub partial: *mut f32,
    pub x: *const bf16,
    pub tokens: u32,
    pub width: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of column_sums_params"][::core::mem::size_of::<column_sums_params>() - 24usize];
    ["Alignment of column_sums_params"][::core::mem::align_of::<column_sums_params>() - 8usize];
    ["Offset of field: column_sums_params::partial"][::core::mem::offset_of!(column_sums_params, partial) - 0usize];
    ["Offset of field: column_sums_params::x"][::core::mem::offset_of!(column_sums_params, x) - 8usize];
    ["Offset of field: column_sums_params::tokens"][::core::mem::offset_of!(column_sums_params, tokens) - 16usize];
    ["Offset of field: column_sums_params::width"][::core::mem::offset_of!(column_sums_params, width) - 20usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct add_rows_params {
    pub y: *mut f32,
    pub partial: *const f32,
    pub rows: u32,
    pub width: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of add_rows_params"][::core::mem::size_of::<add_rows_params>() - 24usize];
    ["Alignment of add_rows_params"][::core::mem::align_of::<add_rows_params>() - 8usize];
    ["Offset of field: add_rows_params::y"][::core::mem::offset_of!(add_rows_params, y) - 0usize];
    ["Offset of field: add_rows_params::partial"][::core::mem::offset_of!(add_rows_params, partial) - 8usize];
    ["Offset of field: add_rows_params::rows"][::core::mem::offset_of!(add_rows_params, rows) - 16usize];
    ["Offset of field: add_rows_params::width"][::core::mem::offset_of!(add_rows_params, width) - 20usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct embedding_backward_params {
    pub d_table: *mut f32,
    pub dy: *const bf16,
    pub ids: *const u32,
    pub tokens: u32,
    pub hidden: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of embedding_backward_params"][::core::mem::size_of::<embedding_backward_params>() - 32usize];
    ["Alignment of embedding_backward_params"][::core::mem::align_of::<embedding_backward_params>() - 8usize];
    ["Offset of field: embedding_backward_params::d_table"]
        [::core::mem::offset_of!(embedding_backward_params, d_table) - 0usize];
    ["Offset of field: embedding_backward_params::dy"][::core::mem::offset_of!(embedding_backward_params, dy) - 8usize];
    ["Offset of field: embedding_backward_params::ids"]
        [::core::mem::offset_of!(embedding_backward_params, ids) - 16usize];
    ["Offset of field: embedding_backward_params::tokens"]
        [::core::mem::offset_of!(embedding_backward_params, tokens) - 24usize];
    ["Offset of field: embedding_backward_params::hidden"]
        [::core::mem::offset_of!(embedding_backward_params, hidden) - 28usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct dropout_params {
    pub y: *mut bf16,
    pub x: *const bf16,
    pub n: u64,
    pub seed: u64,
    pub stream: u64,
    pub probability: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of dropout_params"][::core::mem::size_of::<dropout_params>() - 48usize];
    ["Alignment of dropout_params"][::core::mem::align_of::<dropout_params>() - 8usize];
    ["Offset of field: dropout_params::y"][::core::mem::offset_of!(dropout_params, y) - 0usize];
    ["Offset of field: dropout_params::x"][::core::mem::offset_of!(dropout_params, x) - 8usize];
    ["Offset of field: dropout_params::n"][::core::mem::offset_of!(dropout_params, n) - 16usize];
    ["Offset of field: dropout_params::seed"][::core::mem::offset_of!(dropout_params, seed) - 24usize];
    ["Offset of field: dropout_params::stream"][::core::mem::offset_of!(dropout_params, stream) - 32usize];
    ["Offset of field: dropout_params::probability"][::core::mem::offset_of!(dropout_params, probability) - 40usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct optimizer_tensor {
    pub master: *mut f32,
    pub p: *mut bf16,
    pub m: *mut f32,
    pub v: *mut f32,
    pub g: *const f32,
    pub n: u64,
    pub first_block: u32,
    pub decayed: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of optimizer_tensor"][::core::mem::size_of::<optimizer_tensor>() - 56usize];
    ["Alignment of optimizer_tensor"][::core::mem::align_of::<optimizer_tensor>() - 8usize];
    ["Offset of field: optimizer_tensor::master"][::core::mem::offset_of!(optimizer_tensor, master) - 0usize];
    ["Offset of field: optimizer_tensor::p"][::core::mem::offset_of!(optimizer_tensor, p) - 8usize];
    ["Offset of field: optimizer_tensor::m"][::core::mem::offset_of!(optimizer_tensor, m) - 16usize];
    ["Offset of field: optimizer_tensor::v"][::core::mem::offset_of!(optimizer_tensor, v) - 24usize];
    ["Offset of field: optimizer_tensor::g"][::core::mem::offset_of!(optimizer_tensor, g) - 32usize];
    ["Offset of field: optimizer_tensor::n"][::core::mem::offset_of!(optimizer_tensor, n) - 40usize];
    ["Offset of field: optimizer_tensor::first_block"]
        [::core::mem::offset_of!(optimizer_tensor, first_block) - 48usize];
    ["Offset of field: optimizer_tensor::decayed"][::core::mem::offset_of!(optimizer_tensor, decayed) - 52usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct grad_norm_params {
    pub norm: *mut f64,
    pub partial: *mut f64,
    pub tensors: *const optimizer_tensor,
    pub n_tensors: u32,
    pub n_partials: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of grad_norm_params"][::core::mem::size_of::<grad_norm_params>() - 32usize];
    ["Alignment of grad_norm_params"][::core::mem::align_of::<grad_norm_params>() - 8usize];
    ["Offset of field: grad_norm_params::norm"][::core::mem::offset_of!(grad_norm_params, norm) - 0usize];
    ["Offset of field: grad_norm_params::partial"][::core::mem::offset_of!(grad_norm_params, partial) - 8usize];
    ["Offset of field: grad_norm_params::tensors"][::core::mem::offset_of!(grad_norm_params, tensors) - 16usize];
    ["Offset of field: grad_norm_params::n_tensors"][::core::mem::offset_of!(grad_norm_params, n_tensors) - 24usize];
    ["Offset of field: grad_norm_params::n_partials"][::core::mem::offset_of!(grad_norm_params, n_partials) - 28usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct adamw_params {
    pub tensors: *const optimizer_tensor,
    pub seed: u64,
    pub n_tensors: u32,
    pub step: u32,
    pub grad_scale: f32,
    pub keep: f32,
    pub gain1: f32,
    pub beta2: f32,
    pub gain2: f32,
    pub step_size: f32,
    pub root: f32,
    pub eps: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of adamw_params"][::core::mem::size_of::<adamw_params>() - 56usize];
    ["Alignment of adamw_params"][::core::mem::align_of::<adamw_params>() - 8usize];
    ["Offset of field: adamw_params::tensors"][::core::mem::offset_of!(adamw_params, tensors) - 0usize];
    ["Offset of field: adamw_params::seed"][::core::mem::offset_of!(adamw_params, seed) - 8usize];
    ["Offset of field: adamw_params::n_tensors"][::core::mem::offset_of!(adamw_params, n_tensors) - 16usize];
    ["Offset of field: adamw_params::step"][::core::mem::offset_of!(adamw_params, step) - 20usize];
    ["Offset of field: adamw_params::grad_scale"][::core::mem::offset_of!(adamw_params, grad_scale) - 24usize];
    ["Offset of field: adamw_params::keep"][::core::mem::offset_of!(adamw_params, keep) - 28usize];
    ["Offset of field: adamw_params::gain1"][::core::mem::offset_of!(adamw_params, gain1) - 32usize];
    ["Offset of field: adamw_params::beta2"][::core::mem::offset_of!(adamw_params, beta2) - 36usize];
    ["Offset of field: adamw_params::gain2"][::core::mem::offset_of!(adamw_params, gain2) - 40usize];
    ["Offset of field: adamw_params::step_size"][::core::mem::offset_of!(adamw_params, step_size) - 44usize];
    ["Offset of field: adamw_params::root"][::core::mem::offset_of!(adamw_params, root) - 48usize];
    ["Offset of field: adamw_params::eps"][::core::mem::offset_of!(adamw_params, eps) - 52usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct attention_backward_params {
    pub dq: *mut bf16,
    pub dk: *mut bf16,
    pub dv: *mut bf16,
    pub delta: *mut f32,
    pub dy: *const bf16,
    pub y: *const bf16,
    pub q: *const bf16,
    pub k: *const bf16,
    pub v: *const bf16,
    pub lse: *const f32,
    pub cu_seqlens: *const u32,
    pub largest_dy: *const u32,
    pub tokens: u32,
    pub n_heads: u32,
    pub n_kv_heads: u32,
    pub head_dim: u32,
    pub scale: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of attention_backward_params"][::core::mem::size_of::<attention_backward_params>() - 120usize];
    ["Alignment of attention_backward_params"][::core::mem::align_of::<attention_backward_params>() - 8usize];
    ["Offset of field: attention_backward_params::dq"][::core::mem::offset_of!(attention_backward_params, dq) - 0usize];
    ["Offset of field: attention_backward_params::dk"][::core::mem::offset_of!(attention_backward_params, dk) - 8usize];
    ["Offset of field: attention_backward_params::dv"]
        [::core::mem::offset_of!(attention_backward_params, dv) - 16usize];
    ["Offset of field: attention_backward_params::delta"]
        [::core::mem::offset_of!(attention_backward_params, delta) - 24usize];
    ["Offset of field: attention_backward_params::dy"]
        [::core::mem::offset_of!(attention_backward_params, dy) - 32usize];
    ["Offset of field: attention_backward_params::y"][::core::mem::offset_of!(attention_backward_params, y) - 40usize];
    ["Offset of field: attention_backward_params::q"][::core::mem::offset_of!(attention_backward_params, q) - 48usize];
    ["Offset of field: attention_backward_params::k"][::core::mem::offset_of!(attention_backward_params, k) - 56usize];
    ["Offset of field: attention_backward_params::v"][::core::mem::offset_of!(attention_backward_params, v) - 64usize];
    ["Offset of field: attention_backward_params::lse"]
        [::core::mem::offset_of!(attention_backward_params, lse) - 72usize];
    ["Offset of field: attention_backward_params::cu_seqlens"]
        [::core::mem::offset_of!(attention_backward_params, cu_seqlens) - 80usize];
    ["Offset of field: attention_backward_params::largest_dy"]
        [::core::mem::offset_of!(attention_backward_params, largest_dy) - 88usize];
    ["Offset of field: attention_backward_params::tokens"]
        [::core::mem::offset_of!(attention_backward_params, tokens) - 96usize];
    ["Offset of field: attention_backward_params::n_heads"]
        [::core::mem::offset_of!(attention_backward_params, n_heads) - 100usize];
    ["Offset of field: attention_backward_params::n_kv_heads"]
        [::core::mem::offset_of!(attention_backward_params, n_kv_heads) - 104usize];
    ["Offset of field: attention_backward_params::head_dim"]
        [::core::mem::offset_of!(attention_backward_params, head_dim) - 108usize];
    ["Offset of field: attention_backward_params::scale"]
        [::core::mem::offset_of!(attention_backward_params, scale) - 112usize];
};
#[repr(C)]
#[repr(align(128))]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct attention_backward_sm90_params {
    pub q: tensor_map,
    pub dy: tensor_map,
    pub k: tensor_map,
    pub v: tensor_map,
    pub attention: attention_backward_params,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of attention_backward_sm90_params"][::core::mem::size_of::<attention_backward_sm90_params>() - 640usize];
    ["Alignment of attention_backward_sm90_params"]
        [::core::mem::align_of::<attention_backward_sm90_params>() - 128usize];
    ["Offset of field: attention_backward_sm90_params::q"]
        [::core::mem::offset_of!(attention_backward_sm90_params, q) - 0usize];
    ["Offset of field: attention_backward_sm90_params::dy"]
        [::core::mem::offset_of!(attention_backward_sm90_params, dy) - 128usize];
    ["Offset of field: attention_backward_sm90_params::k"]
        [::core::mem::offset_of!(attention_backward_sm90_params, k) - 256usize];
    ["Offset of field: attention_backward_sm90_params::v"]
        [::core::mem::offset_of!(attention_backward_sm90_params, v) - 384usize];
    ["Offset of field: attention_backward_sm90_params::attention"]
        [::core::mem::offset_of!(attention_backward_sm90_params, attention) - 512usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct divergence_params {
    pub kl: *mut f32,
    pub agree: *mut f32,
    pub logits_p: *const f32,
    pub logits_q: *const f32,
    pub vocab: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of divergence_params"][::core::mem::size_of::<divergence_params>() - 40usize];
    ["Alignment of divergence_params"][::core::mem::align_of::<divergence_params>() - 8usize];
    ["Offset of field: divergence_params::kl"][::core::mem::offset_of!(divergence_params, kl) - 0usize];
    ["Offset of field: divergence_params::agree"][::core::mem::offset_of!(divergence_params, agree) - 8usize];
    ["Offset of field: divergence_params::logits_p"][::core::mem::offset_of!(divergence_params, logits_p) - 16usize];
    ["Offset of field: divergence_params::logits_q"][::core::mem::offset_of!(divergence_params, logits_q) - 24usize];
    ["Offset of field: divergence_params::vocab"][::core::mem::offset_of!(divergence_params, vocab) - 32usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct scale_params {
    pub y: *mut bf16,
    pub x: *const bf16,
    pub n: u64,
    pub factor: f32,
    pub add: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of scale_params"][::core::mem::size_of::<scale_params>() - 32usize];
    ["Alignment of scale_params"][::core::mem::align_of::<scale_params>() - 8usize];
    ["Offset of field: scale_params::y"][::core::mem::offset_of!(scale_params, y) - 0usize];
    ["Offset of field: scale_params::x"][::core::mem::offset_of!(scale_params, x) - 8usize];
    ["Offset of field: scale_params::n"][::core::mem::offset_of!(scale_params, n) - 16usize];
    ["Offset of field: scale_params::factor"][::core::mem::offset_of!(scale_params, factor) - 24usize];
    ["Offset of field: scale_params::add"][::core::mem::offset_of!(scale_params, add) - 28usize];
};
// SAFETY: a plain C struct, laid out as the kernels see it.
unsafe impl cudarc::driver::DeviceRepr for bf16 {}
// SAFETY: a plain C struct, laid out as the kernels see it.
unsafe impl cudarc::driver::DeviceRepr for tensor_map {}
// SAFETY: a plain C struct, laid out as the kernels see it.
unsafe impl cudarc::driver::DeviceRepr for embedding_params {}
// SAFETY: a plain C struct, laid out as the kernels see it.
unsafe impl cudarc::driver::DeviceRepr for rmsnorm_params {}
// SAFETY: a plain C struct, laid out as the kernels see it.
unsafe impl cudarc::driver::DeviceRepr for largest_params {}
// SAFETY: a plain C struct, laid out as the kernels see it.
unsafe impl cudarc::driver::DeviceRepr for matmul_params {}
// SAFETY: a plain C struct, laid out as the kernels see it.
unsafe impl cudarc::driver::DeviceRepr for matmul_sm90_params {}
// SAFETY: a plain C struct, laid out as the kernels see it.
unsafe impl cudarc::driver::DeviceRepr for matmul_sm90_rows_params {}
// SAFETY: a plain C struct, laid out as the kernels see it.
unsafe impl cudarc::driver::DeviceRepr for rope_params {}
// SAFETY: a plain C struct, laid out as the kernels see it.
unsafe impl cudarc::driver::DeviceRepr for kv_store_params {}
// SAFETY: a plain C struct, laid out as the kernels see it.
unsafe impl cudarc::driver::DeviceRepr for swiglu_params {}
// SAFETY: a plain C struct, laid out as the kernels see it.
unsafe impl cudarc::driver::DeviceRepr for swiglu_backward_params {}
// SAFETY: a plain C struct, laid out as the kernels see it.
unsafe impl cudarc::driver::DeviceRepr for cast_params {}
// SAFETY: a plain C struct, laid out as the kernels see it.
unsafe impl cudarc::driver::DeviceRepr for cosine_params {}
// SAFETY: a plain C struct, laid out as the kernels see it.
unsafe impl cudarc::driver::DeviceRepr for attention_params {}
// SAFETY: a plain C struct, laid out as the kernels see it.
unsafe impl cudarc::driver::DeviceRepr for attention_sm90_params {}
// SAFETY: a plain C struct, laid out as the kernels see it.
unsafe impl cudarc::driver::DeviceRepr for log_probs_params {}
// SAFETY: a plain C struct, laid out as the kernels see it.
unsafe impl cudarc::driver::DeviceRepr for cross_entropy_params {}
// SAFETY: a plain C struct, laid out as the kernels see it.
unsafe impl cudarc::driver::DeviceRepr for sample_draw {}
// SAFETY: a plain C struct, laid out as the kernels see it.
unsafe impl cudarc::driver::DeviceRepr for sample_params {}
// SAFETY: a plain C struct, laid out as the kernels see it.
unsafe impl cudarc::driver::DeviceRepr for rmsnorm_backward_params {}
// SAFETY: a plain C struct, laid out as the kernels see it.
unsafe impl cudarc::driver::DeviceRepr for column_sums_params {}
// SAFETY: a plain C struct, laid out as the kernels see it.
unsafe impl cudarc::driver::DeviceRepr for add_rows_params {}
// SAFETY: a plain C struct, laid out as the kernels see it.
unsafe impl cudarc::driver::DeviceRepr for embedding_backward_params {}
// SAFETY: a plain C struct, laid out as the kernels see it.
unsafe impl cudarc::driver::DeviceRepr for dropout_params {}
// SAFETY: a plain C struct, laid out as the kernels see it.
unsafe impl cudarc::driver::DeviceRepr for optimizer_tensor {}
// SAFETY: a plain C struct, laid out as the kernels see it.
unsafe impl cudarc::driver::DeviceRepr for grad_norm_params {}
// SAFETY: a plain C struct, laid out as the kernels see it.
unsafe impl cudarc::driver::DeviceRepr for adamw_params {}
// SAFETY: a plain C struct, laid out as the kernels see it.
unsafe impl cudarc::driver::DeviceRepr for attention_backward_params {}
// SAFETY: a plain C struct, laid out as the kernels see it.
unsafe impl cudarc::driver::DeviceRepr for attention_backward_sm90_params {}
// SAFETY: a plain C struct, laid out as the kernels see it.
unsafe impl cudarc::driver::DeviceRepr for divergence_params {}
// SAFETY: a plain C struct, laid out as the kernels see it.
unsafe impl cudarc::driver::DeviceRepr for scale_params {}
