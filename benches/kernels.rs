//! Time of each operation against its floor: `cargo bench --bench kernels [-- FILTER]`.
//!
//! The floors are measured first: `floor/fma` is the processor's f32 multiply-add rate and `floor/read` its memory bandwidth,
//! on one thread and on all of them. `RAYON_NUM_THREADS=1` measures the operations on one core; with `BENCH_CPU_TIME=1` as well
//! times are CPU time, which other programs on the machine hardly change.

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{Criterion, Throughput};
use ratoon::device::{Compute, DType, Device, Op, Tensor};
use ratoon::ops::adamw::{AdamW, Parameter, adamw};
use ratoon::ops::attention::{Heads, attention, attention_backward};
use ratoon::ops::cross_entropy::linear_cross_entropy;
use ratoon::ops::log_probs::log_probs;
use ratoon::ops::matmul::{PackedWeight, Store, matmul_nn, matmul_nt, matmul_packed, matmul_tn};
use ratoon::ops::rmsnorm::{rmsnorm, rmsnorm_backward};
use ratoon::ops::rope::rope;
use ratoon::ops::swiglu::{swiglu, swiglu_backward};
use rayon::prelude::*;
use std::hint::black_box;
use std::time::Duration;

/// Shapes (out_features, in_features) of SmolLM2-135M's projections and head.
const SHAPES: [(usize, usize); 5] = [(576, 576), (192, 576), (1536, 576), (576, 1536), (49152, 576)];

fn tensor(shape: &[usize], dtype: DType) -> Tensor {
    let mut t = Tensor::zeros(shape, dtype);
    let value = |i: usize| ((i * 2_654_435_761 % 65_536) as f32 / 32_768.0 - 1.0) * 0.1;
    match dtype {
        DType::BF16 => t.bf16_mut().iter_mut().enumerate().for_each(|(i, v)| *v = half::bf16::from_f32(value(i))),
        _ => t.f32_mut().iter_mut().enumerate().for_each(|(i, v)| *v = value(i)),
    }
    t
}

#[cfg(target_arch = "x86_64")]
mod peak {
    use std::arch::x86_64::*;

    /// Multiply-adds of one call on AVX-512 and AVX2.
    pub const WIDE: u64 = 16 * 16 * 4096;
    pub const NARROW: u64 = 12 * 8 * 4096;

    #[target_feature(enable = "avx512f")]
    pub fn avx512(x: f32) -> f32 {
        let (x, y) = (_mm512_set1_ps(x), _mm512_set1_ps(0.5));
        let mut acc = [_mm512_setzero_ps(); 16];
        for _ in 0..4096 {
            for a in &mut acc {
                *a = _mm512_fmadd_ps(*a, y, x);
            }
        }
        _mm512_reduce_add_ps(acc.into_iter().reduce(|a, b| _mm512_add_ps(a, b)).unwrap())
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn avx2(x: f32) -> f32 {
        let (x, y) = (_mm256_set1_ps(x), _mm256_set1_ps(0.5));
        let mut acc = [_mm256_setzero_ps(); 12];
        for _ in 0..4096 {
            for a in &mut acc {
                *a = _mm256_fmadd_ps(*a, y, x);
            }
        }
        _mm256_cvtss_f32(acc.into_iter().reduce(|a, b| _mm256_add_ps(a, b)).unwrap())
    }
}

/// The multiply-adds of one unit of work, and the work.
#[cfg(target_arch = "x86_64")]
fn multiply_adds() -> (u64, fn()) {
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has AVX-512F.
        (peak::WIDE, || {
            black_box(unsafe { peak::avx512(black_box(0.1)) });
        })
    } else {
        // SAFETY: every x86-64 processor that this bench is for has AVX2 and FMA.
        (peak::NARROW, || {
            black_box(unsafe { peak::avx2(black_box(0.1)) });
        })
    }
}

#[cfg(target_arch = "x86_64")]
fn floor_fma<M: Measurement>(c: &mut Criterion<M>) {
    let (fmas, unit) = multiply_adds();
    let mut group = c.benchmark_group("floor/fma");
    let calls = 64 * rayon::current_num_threads() as u64;
    group.throughput(Throughput::Elements(2 * fmas * calls));
    group.bench_function("all threads", |b| {
        b.iter(|| (0..calls as usize).into_par_iter().with_max_len(8).for_each(|_| unit()))
    });
    group.throughput(Throughput::Elements(2 * fmas * 64));
    group.bench_function("one thread", |b| b.iter(|| (0..64).for_each(|_| unit())));
}

#[cfg(not(target_arch = "x86_64"))]
fn floor_fma<M: Measurement>(_: &mut Criterion<M>) {}

fn floor_read<M: Measurement>(c: &mut Criterion<M>) {
    let data = tensor(&[1 << 26], DType::F32);
    let words: &[u64] = bytemuck::cast_slice(data.f32());
    let sum = |words: &[u64]| words.iter().fold(0u64, |a, b| a ^ b);
    let mut group = c.benchmark_group("floor/read");
    group.throughput(Throughput::Bytes(4 << 26));
    group.bench_function("all threads", |b| {
        b.iter(|| words.par_chunks(1 << 17).map(sum).reduce(|| 0, |a, b| a ^ b));
    });
    group.bench_function("one thread", |b| b.iter(|| sum(words)));
}

fn matmuls<M: Measurement>(c: &mut Criterion<M>) {
    let dev = Device::cpu();
    for (n, k) in SHAPES {
        let w = tensor(&[n, k], DType::BF16);
        let packed = PackedWeight::new(&w, Compute::F32).unwrap();
        for m in [1, 8, 32, 512, 2048] {
            if n > 40_000 && m > 512 {
                continue;
            }
            let (x, mut y) = (tensor(&[m, k], DType::F32), Tensor::zeros(&[m, n], DType::F32));
            let mut dx = Tensor::zeros(&[m, k], DType::F32);
            let name = format!("{m}x{n}x{k}");
            let mut group = c.benchmark_group("matmul");
            group.throughput(Throughput::Elements((2 * m * n * k) as u64));
            group.bench_function(format!("nt/{name}"), |b| {
                b.iter(|| matmul_nt(&dev, &mut y, &x, &w, None, Store::Replace).unwrap());
            });
            group.bench_function(format!("packed/{name}"), |b| {
                b.iter(|| matmul_packed(&dev, &mut y, &x, &packed, None, Store::Replace).unwrap());
            });
            if m < 512 {
                continue;
            }
            group.bench_function(format!("nn/{name}"), |b| {
                b.iter(|| matmul_nn(&dev, &mut dx, &y, &w, Store::Replace).unwrap());
            });
            let mut dw = Tensor::zeros(&[n, k], DType::F32);
            group.bench_function(format!("tn/{name}"), |b| {
                b.iter(|| matmul_tn(&dev, &mut dw, &y, &x, Store::Add).unwrap());
            });
        }
    }
}

fn heads<M: Measurement>(c: &mut Criterion<M>) {
    let (dev, tokens, vocab, width) = (Device::cpu(), 512, 49152, 576);
    let (hidden, head) = (tensor(&[tokens, width], DType::F32), tensor(&[vocab, width], DType::BF16));
    let targets = Tensor::from_u32(&(0..tokens as u32).collect::<Vec<_>>());
    let mut out = Tensor::zeros(&[tokens], DType::F32);
    let mut group = c.benchmark_group("head");
    group.throughput(Throughput::Elements((2 * tokens * vocab * width) as u64));
    group.bench_function("log_probs/512", |b| {
        b.iter(|| log_probs(&dev, &mut out, &hidden, &head, &targets).unwrap());
    });
    let mut dx = Tensor::zeros(&[tokens, width], DType::F32);
    let mut dw = Tensor::zeros(&[vocab, width], DType::F32);
    group.throughput(Throughput::Elements((4 * tokens * vocab * width) as u64));
    group.bench_function("linear_cross_entropy/frozen/512", |b| {
        b.iter(|| linear_cross_entropy(&dev, &mut out, &mut dx, None, &hidden, &head, &targets, 1e-3).unwrap());
    });
    group.throughput(Throughput::Elements((6 * tokens * vocab * width) as u64));
    group.bench_function("linear_cross_entropy/512", |b| {
        b.iter(|| {
            linear_cross_entropy(&dev, &mut out, &mut dx, Some(&mut dw), &hidden, &head, &targets, 1e-3).unwrap()
        });
    });
}

/// Attention of SmolLM2-135M, in FLOP/s by the ledger's count (causal pairs only).
fn attentions<M: Measurement>(c: &mut Criterion<M>) {
    let heads = Heads { n_heads: 9, n_kv_heads: 3, head_dim: 64 };
    let mut group = c.benchmark_group("attention");
    for (sequences, length) in [(1, 512), (4, 512), (1, 2048)] {
        let tokens = sequences * length;
        let offsets: Vec<u32> = (0..=sequences).map(|s| (s * length) as u32).collect();
        let cu_seqlens = Tensor::from_u32(&offsets);
        let [q, dy] = [(); 2].map(|()| tensor(&[tokens, 576], DType::F32));
        let [k, v] = [(); 2].map(|()| tensor(&[tokens, 192], DType::F32));
        let [mut y, mut dq] = [(); 2].map(|()| Tensor::zeros(&[tokens, 576], DType::F32));
        let [mut dk, mut dv] = [(); 2].map(|()| Tensor::zeros(&[tokens, 192], DType::F32));
        let mut lse = Tensor::zeros(&[tokens, 9], DType::F32);
        let dev = Device::cpu();
        let name = format!("{sequences}x{length}");
        let flops = ratoon::ops::attention::cost(&offsets, heads).flops;
        group.throughput(Throughput::Elements(flops));
        group.bench_function(format!("forward/{name}"), |b| {
            b.iter(|| attention(&dev, &mut y, &mut lse, &q, &k, &v, &cu_seqlens, heads).unwrap());
        });
        group.throughput(Throughput::Elements(flops / 2 * 5));
        group.bench_function(format!("backward/{name}"), |b| {
            b.iter(|| {
                let (grads, saved) = ((&mut dq, &mut dk, &mut dv), (&q, &k, &v));
                attention_backward(
                    &dev,
                    grads.0,
                    grads.1,
                    grads.2,
                    &dy,
                    &y,
                    saved.0,
                    saved.1,
                    saved.2,
                    &lse,
                    &cu_seqlens,
                    heads,
                )
                .unwrap()
            });
        });
    }
}

/// Operations bound by memory, in bytes/s by the ledger's count (each operand once).
fn rows<M: Measurement>(c: &mut Criterion<M>) {
    let dev = Device::cpu();
    let mut group = c.benchmark_group("rows");
    let mut measure = |name: &str, op: Op, call: &mut dyn FnMut()| {
        let before = dev.ledger().entry(op);
        call();
        group.throughput(Throughput::Bytes((dev.ledger().entry(op) - before).bytes));
        group.bench_function(name, |b| b.iter(&mut *call));
    };
    let tokens = 2048;
    let wide = || tensor(&[tokens, 1536], DType::F32);
    let (gate, up, mut activated, mut d_gate, mut d_up) = (wide(), wide(), wide(), wide(), wide());
    measure("swiglu/2048", Op::SwiGlu, &mut || swiglu(&dev, &mut activated, &gate, &up).unwrap());
    measure("swiglu_backward/2048", Op::SwiGluBackward, &mut || {
        swiglu_backward(&dev, &mut d_gate, &mut d_up, &activated, &gate, &up).unwrap()
    });
    let narrow = || tensor(&[tokens, 576], DType::F32);
    let (x, mut y, mut dx, w) = (narrow(), narrow(), narrow(), tensor(&[576], DType::BF16));
    let mut dw = Tensor::zeros(&[576], DType::F32);
    measure("rmsnorm/2048", Op::RmsNorm, &mut || rmsnorm(&dev, &mut y, &x, &w, 1e-5).unwrap());
    measure("rmsnorm_backward/2048", Op::RmsNormBackward, &mut || {
        rmsnorm_backward(&dev, &mut dx, Some(&mut dw), &y, &x, &w, 1e-5, Store::Replace).unwrap()
    });
    let positions = Tensor::from_u32(&(0..tokens as u32).collect::<Vec<_>>());
    let inv_freq: Vec<f32> = (0..32).map(|i| 1e5f32.powf(-(i as f32) / 32.0)).collect();
    let inv_freq = Tensor::from_f32(&inv_freq, &[32]);
    measure("rope/2048", Op::Rope, &mut || rope(&dev, &mut dx, &positions, &inv_freq).unwrap());
    let n = 1 << 24;
    let [mut p, g] = [(); 2].map(|()| tensor(&[n], DType::F32));
    let [mut m, mut v] = [(); 2].map(|()| Tensor::zeros(&[n], DType::F32));
    let settings =
        AdamW { lr: 1e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, step: 3, grad_scale: 1.0 };
    measure("adamw/16M", Op::AdamW, &mut || {
        let parameter = Parameter { p: &mut p, master: None, m: &mut m, v: &mut v, g: &g, decayed: true };
        adamw(&dev, &mut [parameter], settings).unwrap()
    });
}

/// CPU time of the process: what the work costs on a machine that others use too.
struct CpuTime;

impl Measurement for CpuTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        // SAFETY: `timespec` is plain numbers, and the clock exists on every Unix.
        let time = unsafe {
            let mut time: libc::timespec = std::mem::zeroed();
            libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time);
            time
        };
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }

    fn end(&self, start: Duration) -> Duration {
        self.start() - start
    }

    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        *a + *b
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        value.as_nanos() as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

fn run<M: Measurement>(clock: M) {
    let mut c = Criterion::default()
        .with_measurement(clock)
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600))
        .without_plots()
        .configure_from_args();
    floor_fma(&mut c);
    floor_read(&mut c);
    matmuls(&mut c);
    heads(&mut c);
    attentions(&mut c);
    rows(&mut c);
    c.final_summary();
}

fn main() {
    if std::env::var_os("BENCH_CPU_TIME").is_some() { run(CpuTime) } else { run(WallTime) }
}
