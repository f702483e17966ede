use crate::abi::{OPTIMIZER_CHUNK, ROW_THREADS, adamw_params, grad_norm_params, optimizer_tensor};
use crate::gpu::{Buffer, Gpu, in_every_schedule};
use crate::numbers::{F32, assert_within, random, wide, wide32};
use half::bf16;
use std::ptr;

/// One parameter's buffers and its numbers before the step.
struct Parameter {
    master: Option<Buffer<f32>>,
    p: Buffer<u16>,
    m: Buffer<f32>,
    v: Buffer<f32>,
    g: Buffer<f32>,
    before: [Vec<f32>; 4],
}

impl Parameter {
    fn new(n: usize, seed: u64, with_master: bool) -> Parameter {
        let gpu = Gpu::get();
        let [p, m, g] = [0, 1, 2].map(|i| random(n, 10 * seed + i));
        let p: Vec<f32> = if with_master { p } else { p.iter().map(|&x| bf16::from_f32(x).to_f32()).collect() };
        let v: Vec<f32> = random(n, 10 * seed + 3).iter().map(|x| x.abs()).collect();
        let half: Vec<u16> = p.iter().map(|&x| bf16::from_f32(x).to_bits()).collect();
        Parameter {
            master: with_master.then(|| gpu.upload(&p)),
            p: gpu.upload(&half),
            m: gpu.upload(&m),
            v: gpu.upload(&v),
            g: gpu.upload(&g),
            before: [p, m, v, g],
        }
    }
}

fn table(parameters: &[Parameter]) -> (Vec<optimizer_tensor>, u32) {
    let mut first_block = 0;
    let tensors = parameters.iter().enumerate().map(|(i, p)| {
        let n = p.before[0].len() as u64;
        let tensor = optimizer_tensor {
            master: p.master.as_ref().map_or(ptr::null_mut(), |m| m.ptr()),
            p: p.p.ptr(),
            m: p.m.ptr(),
            v: p.v.ptr(),
            g: p.g.ptr(),
            n,
            first_block,
            decayed: u32::from(i != 1),
        };
        first_block += n.div_ceil(u64::from(OPTIMIZER_CHUNK)) as u32;
        tensor
    });
    (tensors.collect(), first_block)
}

const SIZES: [usize; 4] = [5, 16_384, 3, 40_001];

#[test]
fn the_norm_is_over_all_gradients_together() {
    let gpu = Gpu::get();
    let parameters: Vec<Parameter> = SIZES.iter().zip(1..).map(|(&n, seed)| Parameter::new(n, seed, true)).collect();
    let (tensors, blocks) = table(&parameters);
    let tensors_d = gpu.upload(&tensors);
    let got = in_every_schedule(|| {
        let (norm, partial) = (gpu.fresh::<f64>(1), gpu.fresh::<f64>(blocks as usize));
        let params = grad_norm_params {
            norm: norm.ptr(),
            partial: partial.ptr(),
            tensors: tensors_d.ptr(),
            n_tensors: tensors.len() as u32,
            n_partials: blocks,
        };
        gpu.launch("grad_norm_partials", (blocks, 1, 1), ROW_THREADS, 0, &params);
        gpu.launch("grad_norm", (1, 1, 1), ROW_THREADS, 0, &params);
        gpu.download(&norm)[0]
    });
    let squares = parameters.iter().flat_map(|p| &p.before[3]).map(|&g| f64::from(g) * f64::from(g)).sum::<f64>();
    assert!((got / squares.sqrt() - 1.0).abs() < 1e-12, "{got}");
}

/// Settings of src/ops/adamw.rs.
const LR: f64 = 1e-2;
const DECAY: f64 = 0.1;
const BETAS: [f64; 2] = [0.9, 0.95];
const EPS: f64 = 1e-8;
const STEP: i32 = 3;
const GRAD_SCALE: f32 = 0.5;

fn step(parameters: &[Parameter], seed: u64) {
    let gpu = Gpu::get();
    let (tensors, blocks) = table(parameters);
    let tensors_d = gpu.upload(&tensors);
    let params = adamw_params {
        tensors: tensors_d.ptr(),
        seed,
        n_tensors: tensors.len() as u32,
        step: STEP as u32,
        grad_scale: GRAD_SCALE,
        keep: (1.0 - LR * DECAY) as f32,
        gain1: (1.0 - BETAS[0]) as f32,
        beta2: BETAS[1] as f32,
        gain2: (1.0 - BETAS[1]) as f32,
        step_size: (LR / (1.0 - BETAS[0].powi(STEP))) as f32,
        root: (1.0 - BETAS[1].powi(STEP)).sqrt() as f32,
        eps: EPS as f32,
    };
    gpu.launch("adamw", (blocks, 1, 1), ROW_THREADS, 0, &params);
}

/// The parameter, m and v after the step.
fn exact(before: &[Vec<f32>; 4], decayed: bool) -> [Vec<f64>; 3] {
    let [p, m, v, g] = before.each_ref().map(|x| wide32(x));
    let g: Vec<f64> = g.iter().map(|g| g * f64::from(GRAD_SCALE)).collect();
    let m: Vec<f64> = m.iter().zip(&g).map(|(m, g)| BETAS[0] * m + (1.0 - BETAS[0]) * g).collect();
    let v: Vec<f64> = v.iter().zip(&g).map(|(v, g)| BETAS[1] * v + (1.0 - BETAS[1]) * g * g).collect();
    let keep = if decayed { 1.0 - LR * DECAY } else { 1.0 };
    let change = |i: usize| {
        let (m, v) = (m[i] / (1.0 - BETAS[0].powi(STEP)), v[i] / (1.0 - BETAS[1].powi(STEP)));
        LR * m / (v.sqrt() + EPS)
    };
    let p = (0..p.len()).map(|i| p[i] * keep - change(i)).collect();
    [p, m, v]
}

/// Master, copy, m and v.
type After = (Vec<f32>, Vec<u16>, Vec<f32>, Vec<f32>);

#[test]
fn masters_and_states_equal_f64_and_copies_are_rounded() {
    let gpu = Gpu::get();
    let run = || -> Vec<After> {
        let parameters: Vec<Parameter> =
            SIZES.iter().zip(1..).map(|(&n, seed)| Parameter::new(n, seed, true)).collect();
        step(&parameters, 0);
        let download = |p: &Parameter| {
            let master = gpu.download(p.master.as_ref().expect("made with one"));
            (master, gpu.download(&p.p), gpu.download(&p.m), gpu.download(&p.v))
        };
        parameters.iter().map(download).collect()
    };
    for (i, (master, copy, m, v)) in in_every_schedule(run).iter().enumerate() {
        let before = Parameter::new(SIZES[i], i as u64 + 1, true).before;
        let [want_p, want_m, want_v] = exact(&before, i != 1);
        // Six roundings of numbers below 1; of a change below a step of 0.4.
        assert_within("m", &wide32(m), &want_m, |_| 4.0 * F32);
        assert_within("v", &wide32(v), &want_v, |_| 4.0 * F32);
        let change = |i: usize| (want_p[i] - f64::from(before[0][i])).abs();
        // The share that m's and v's roundings have in m / sqrt(v), of which v may be small.
        let share = |i: usize| 16.0 * F32 * (1.0 + 1.0 / want_v[i].sqrt().max(1e-4));
        assert_within("p", &wide32(master), &want_p, |i| 4.0 * F32 + LR * 4.0 * share(i) + change(i) * 16.0 * F32);
        let rounded: Vec<u16> = master.iter().map(|&x| bf16::from_f32(x).to_bits()).collect();
        assert!(copy == &rounded, "the copy is the master, rounded");
    }
}

#[test]
fn without_a_master_rounding_is_right_on_average_and_by_the_seed() {
    let gpu = Gpu::get();
    let n = 20_000;
    let run = |seed: u64| {
        in_every_schedule(|| {
            let parameter = Parameter::new(n, 7, false);
            step(std::slice::from_ref(&parameter), seed);
            gpu.download(&parameter.p)
        })
    };
    let got = run(1);
    assert!(got != run(2), "another seed rounds otherwise");
    let [want, ..] = exact(&Parameter::new(n, 7, false).before, true);
    let mut bias = 0.0;
    for (got, want) in wide(&got).iter().zip(&want) {
        // A number between two neighbours in bf16, which are 2^-8 of it apart at the most.
        let gap = want.abs() / 128.0 + 1e-6;
        assert!((got - want).abs() <= gap, "{got} for {want}");
        bias += (got - want) / gap;
    }
    // Each term has a deviation below 1/2.
    assert!(bias.abs() / (n as f64).sqrt() < 4.0 * 0.5, "mean off by {}", bias / n as f64);
}
