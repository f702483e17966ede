use crate::abi::{ROW_THREADS, swiglu_backward_params, swiglu_params};
use crate::gpu::{Gpu, in_every_schedule};
use crate::numbers::{BF16, F32, assert_within, random_bf16, scaled, wide};
use half::bf16;

/// Roundings of f32 between the operands and a result, some of them twice.
const STEPS: f64 = 16.0 * F32;

fn inputs(n: usize) -> [Vec<u16>; 3] {
    [scaled(&random_bf16(n, 1), 12.0), random_bf16(n, 2), random_bf16(n, 3)]
}

#[test]
fn forward_and_gradients_equal_f64() {
    let gpu = Gpu::get();
    for n in [1usize, 7, 8, 100, 2048, 5003] {
        let [gate, up, dy] = inputs(n);
        let (gate_d, up_d, dy_d) = (gpu.upload(&gate), gpu.upload(&up), gpu.upload(&dy));
        let grid = (n.div_ceil(8 * ROW_THREADS as usize) as u32, 1, 1);
        let (y, d_gate, d_up) = in_every_schedule(|| {
            let [y, d_gate, d_up] = [(); 3].map(|()| gpu.fresh::<u16>(n));
            let params = swiglu_params { y: y.ptr(), gate: gate_d.ptr(), up: up_d.ptr(), n: n as u64 };
            gpu.launch("swiglu", grid, ROW_THREADS, 0, &params);
            let params = swiglu_backward_params {
                d_gate: d_gate.ptr(),
                d_up: d_up.ptr(),
                dy: dy_d.ptr(),
                gate: gate_d.ptr(),
                up: up_d.ptr(),
                n: n as u64,
            };
            gpu.launch("swiglu_backward", grid, ROW_THREADS, 0, &params);
            (gpu.download(&y), gpu.download(&d_gate), gpu.download(&d_up))
        });
        let (gate, up, dy) = (wide(&gate), wide(&up), wide(&dy));
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let want: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| g * sigmoid(*g) * u).collect();
        let want_up: Vec<f64> = gate.iter().zip(&dy).map(|(g, d)| d * g * sigmoid(*g)).collect();
        let slope = |g: f64| sigmoid(g) * (1.0 + g * (1.0 - sigmoid(g)));
        let want_gate: Vec<f64> = (0..n).map(|i| dy[i] * up[i] * slope(gate[i])).collect();
        // exp(x) is off by |x| < 12 roundings of its argument.
        let bound = |want: f64| want.abs() * (BF16 + 12.0 * STEPS) * 1.01 + 12.0 * STEPS;
        assert_within("y", &wide(&y), &want, |i| bound(want[i]));
        assert_within("d_up", &wide(&d_up), &want_up, |i| bound(want_up[i]));
        assert_within("d_gate", &wide(&d_gate), &want_gate, |i| bound(want_gate[i]));
    }
}

#[test]
fn far_gates_are_closed_or_open() {
    let gpu = Gpu::get();
    let bits = |x: &[f32]| -> Vec<u16> { x.iter().map(|&x| bf16::from_f32(x).to_bits()).collect() };
    let (gate, up) = (gpu.upload(&bits(&[-200.0, -90.0, 0.0, 88.0, 200.0])), gpu.upload(&bits(&[2.0; 5])));
    let y = gpu.fresh::<u16>(5);
    let params = swiglu_params { y: y.ptr(), gate: gate.ptr(), up: up.ptr(), n: 5 };
    gpu.launch("swiglu", (1, 1, 1), ROW_THREADS, 0, &params);
    let y = wide(&gpu.download(&y));
    assert_eq!(y[2..], [0.0, 176.0, 400.0]);
    assert!(y[..2].iter().all(|y| y.abs() < 1e-35));
}
