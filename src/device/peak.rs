//! What this processor can do at most, measured: fused multiply-adds, dot products of bf16 and memory reads over all worker
//! threads; and what the process took at most.

use super::{Compute, Weights};
use rayon::prelude::*;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Measured ceilings of the CPU, over all threads of rayon's pool.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peak {
    /// The operation that products are made of, in registers, in FLOP/s: F32 fused multiply-adds (2 FLOPs each), for
    /// [`Compute::Bf16`] `vdpbf16ps`, or for [`Weights::Int8`] `vpdpbusd`, where the processor has them.
    pub flops_per_second: f64,
    /// Sequential reads from memory, in bytes/s.
    pub bytes_per_second: f64,
}

impl Peak {
    /// Measures both, about 0.2 s.
    pub fn measure(compute: Compute, weights: Weights) -> Peak {
        let flops_per_second = match (weights, compute) {
            (Weights::Int8, _) => int8_peak(),
            (Weights::Stored, Compute::F32) => fma_peak(),
            (Weights::Stored, Compute::Bf16) => dot_peak(),
        };
        Peak { flops_per_second, bytes_per_second: read_bandwidth() }
    }
}

/// Rounds of a measurement; the best one counts, since other programs can only slow a round down.
const ROUNDS: usize = 5;
/// Length of one round.
const ROUND: Duration = Duration::from_millis(15);
/// Accumulators of the loops: latency (4 cycles for a multiply-add, 6 for a dot product) x units (2) of current cores.
const ACCUMULATORS: usize = 12;
/// FMA steps between two looks at the clock.
const STEPS: usize = 4096;
/// Bytes that a thread reads in one round of the bandwidth measurement; several times its share of a last-level cache.
const READ_BYTES: usize = 64 << 20;

/// F32 FMA peak in FLOP/s with the widest vectors that this CPU has, over all threads of rayon's pool. About 75 ms.
pub fn fma_peak() -> f64 {
    burst_peak(fma_burst)
}

/// Peak of dot products of bf16 pairs in FLOP/s, over all threads of rayon's pool; that of F32 multiply-adds, which take their
/// place, on processors without AVX-512 BF16. About 75 ms.
pub fn dot_peak() -> f64 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512f") {
        // SAFETY: the CPU has AVX-512 BF16.
        return burst_peak(|| unsafe { dot_burst_avx512() });
    }
    fma_peak()
}

/// Peak of dot products of four 8-bit integers in operations/s (2 each), over all threads of rayon's pool; that of bf16 on
/// processors without AVX-512 VNNI. About 75 ms.
pub fn int8_peak() -> f64 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512f") {
        // SAFETY: the CPU has AVX-512 VNNI.
        return burst_peak(|| unsafe { int8_burst_avx512() });
    }
    dot_peak()
}

/// FLOP/s of a burst that gives its FLOPs, over all threads.
fn burst_peak(burst: impl Fn() -> u64 + Sync) -> f64 {
    best_round(|_| {
        let start = Instant::now();
        let mut flops = 0;
        while start.elapsed() < ROUND {
            flops += burst();
        }
        flops as f64 / start.elapsed().as_secs_f64()
    })
}

/// Memory read bandwidth in bytes/s, over all threads of rayon's pool.
pub fn read_bandwidth() -> f64 {
    let threads = rayon::current_num_threads();
    let mut buffer = vec![0u64; threads * READ_BYTES / 8];
    buffer.par_chunks_mut(READ_BYTES / 8).for_each(|chunk| chunk.fill(1));
    let read = |thread: usize| {
        let chunk = &buffer[thread * READ_BYTES / 8..][..READ_BYTES / 8];
        let start = Instant::now();
        black_box(sum(black_box(chunk)));
        READ_BYTES as f64 / start.elapsed().as_secs_f64()
    };
    best_round(read)
}

/// Sum over all threads of what `measure(thread)` gives, in the best of [`ROUNDS`] rounds.
fn best_round(measure: impl Fn(usize) -> f64 + Sync) -> f64 {
    let round = || rayon::broadcast(|thread| measure(thread.index())).into_iter().sum();
    (0..ROUNDS).map(|_| round()).fold(0.0, f64::max)
}

/// Eight running sums, so that the loads and not the additions set the pace.
fn sum(values: &[u64]) -> u64 {
    let mut sums = [0u64; 32];
    for chunk in values.chunks_exact(32) {
        sums.iter_mut().zip(chunk).for_each(|(sum, v)| *sum = sum.wrapping_add(*v));
    }
    sums.iter().fold(0, |a, b| a.wrapping_add(*b))
}

/// Runs [`STEPS`] x [`ACCUMULATORS`] vector FMAs; the FLOPs that were.
fn fma_burst() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the CPU has AVX-512F.
            return unsafe { fma_burst_avx512() };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the CPU has AVX2 and FMA.
            return unsafe { fma_burst_avx2() };
        }
    }
    fma_burst_portable()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn fma_burst_avx512() -> u64 {
    use std::arch::x86_64::*;
    let (a, b) = (_mm512_set1_ps(black_box(0.999)), _mm512_set1_ps(black_box(1e-3)));
    let mut sums = [_mm512_set1_ps(1.0); ACCUMULATORS];
    for _ in 0..STEPS {
        sums.iter_mut().for_each(|sum| *sum = _mm512_fmadd_ps(*sum, a, b));
    }
    black_box(sums);
    (STEPS * ACCUMULATORS * 16 * 2) as u64
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn dot_burst_avx512() -> u64 {
    use std::arch::x86_64::*;
    let [a, b] = [0.999, 1e-3].map(|x| _mm512_cvtne2ps_pbh(_mm512_set1_ps(black_box(x)), _mm512_set1_ps(x)));
    let mut sums = [_mm512_set1_ps(1.0); ACCUMULATORS];
    for _ in 0..STEPS {
        sums.iter_mut().for_each(|sum| *sum = _mm512_dpbf16_ps(*sum, a, b));
    }
    black_box(sums);
    (STEPS * ACCUMULATORS * 32 * 2) as u64
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
fn int8_burst_avx512() -> u64 {
    use std::arch::x86_64::*;
    let (a, b) = (_mm512_set1_epi8(black_box(3)), _mm512_set1_epi8(black_box(-5)));
    let mut sums = [_mm512_set1_epi32(1); ACCUMULATORS];
    for _ in 0..STEPS {
        sums.iter_mut().for_each(|sum| *sum = _mm512_dpbusd_epi32(*sum, a, b));
    }
    black_box(sums);
    (STEPS * ACCUMULATORS * 64 * 2) as u64
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn fma_burst_avx2() -> u64 {
    use std::arch::x86_64::*;
    let (a, b) = (_mm256_set1_ps(black_box(0.999)), _mm256_set1_ps(black_box(1e-3)));
    let mut sums = [_mm256_set1_ps(1.0); ACCUMULATORS];
    for _ in 0..STEPS {
        sums.iter_mut().for_each(|sum| *sum = _mm256_fmadd_ps(*sum, a, b));
    }
    black_box(sums);
    (STEPS * ACCUMULATORS * 8 * 2) as u64
}

/// Multiply and add in four lanes, which every 64-bit target vectorises; fused where the target fuses.
fn fma_burst_portable() -> u64 {
    const LANES: usize = 4;
    let (a, b) = (black_box(0.999f32), black_box(1e-3f32));
    let mut sums = [[1f32; LANES]; ACCUMULATORS];
    for _ in 0..STEPS {
        sums.iter_mut().flatten().for_each(|sum| *sum = *sum * a + b);
    }
    black_box(sums);
    (STEPS * ACCUMULATORS * LANES * 2) as u64
}

/// Most memory that this process has held at once, in bytes (`VmHWM`); `None` where the system does not say.
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
}

/// Name of the CPU as the system gives it, or the architecture.
pub fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| std::env::consts::ARCH.to_string(), |(_, name)| name.trim().to_string())
}

/// `MemAvailable` of the system, in bytes.
pub fn available_memory() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measured_peaks_are_those_of_a_computer() {
        let peak = Peak::measure(Compute::F32, Weights::Stored);
        let (bf16, int8) = (dot_peak(), int8_peak());
        assert!(int8 > bf16 / 4.0 && int8 < 8.0 * bf16, "{int8} beside {bf16}");
        assert!(bf16 < 8.0 * peak.flops_per_second && bf16 > peak.flops_per_second / 4.0, "{bf16} beside {peak:?}");
        // From one slow scalar core to a thousand of the widest vector cores.
        assert!((1e8..1e15).contains(&peak.flops_per_second), "{peak:?}");
        assert!((1e7..1e14).contains(&peak.bytes_per_second), "{peak:?}");
    }

    #[test]
    fn every_burst_counts_the_flops_it_does() {
        assert_eq!(fma_burst_portable(), 2 * 4 * (STEPS * ACCUMULATORS) as u64);
        assert!(fma_burst() >= fma_burst_portable());
    }
}
