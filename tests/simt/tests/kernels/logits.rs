//! Kernels over rows of logits: log-probabilities, cross-entropy.

use crate::abi::{IGNORED_TARGET, ROW_THREADS, cross_entropy_params, log_probs_params};
use crate::gpu::{Gpu, in_every_schedule};
use crate::numbers::{BF16, F32, assert_within, random, wide, wide32};

#[test]
fn log_probs_losses_and_gradients_equal_f64() {
    let gpu = Gpu::get();
    let scale = 0.125;
    for vocab in [1usize, 5, 251, 5000] {
        let rows = 5;
        let logits: Vec<f32> = random(rows * vocab, 1).iter().map(|x| 15.0 * x).collect();
        let targets: Vec<u32> =
            (0..rows).map(|t| if t == 2 { IGNORED_TARGET } else { (t * 97 % vocab) as u32 }).collect();
        let (logits_d, targets_d) = (gpu.upload(&logits), gpu.upload(&targets));
        let (out, losses, d_logits) = in_every_schedule(|| {
            let (out, losses) = (gpu.fresh::<f32>(rows), gpu.fresh::<f32>(rows));
            let d_logits = gpu.fresh::<u16>(rows * vocab);
            let grid = (rows as u32, 1, 1);
            let params = log_probs_params {
                out: out.ptr(),
                logits: logits_d.ptr(),
                targets: targets_d.ptr(),
                vocab: vocab as u32,
            };
            gpu.launch("log_probs", grid, ROW_THREADS, 0, &params);
            let params = cross_entropy_params {
                losses: losses.ptr(),
                d_logits: d_logits.ptr(),
                logits: logits_d.ptr(),
                targets: targets_d.ptr(),
                vocab: vocab as u32,
                scale,
            };
            gpu.launch("cross_entropy", grid, ROW_THREADS, 0, &params);
            (gpu.download(&out), gpu.download(&losses), gpu.download(&d_logits))
        });
        let (mut want, mut want_d) = (vec![], vec![]);
        for (row, &target) in wide32(&logits).chunks(vocab).zip(&targets) {
            let lse = row.iter().map(|x| x.exp()).sum::<f64>().ln();
            let ignored = target == IGNORED_TARGET;
            want.push(if ignored { 0.0 } else { row[target as usize] - lse });
            want_d.extend(row.iter().enumerate().map(|(i, x)| {
                let gradient = (x - lse).exp() - f64::from(i as u32 == target);
                if ignored { 0.0 } else { f64::from(scale) * gradient }
            }));
        }
        // exp(x - max): the argument below 30 rounds twice, the function errs by 4 roundings; a thread adds up its share, then
        // 13 steps; the difference of numbers below 30 rounds.
        let sum = ((vocab.div_ceil(ROW_THREADS as usize) + 13) as f64 + 2.0 * 30.0 + 4.0) * F32;
        assert_within("log_probs", &wide32(&out), &want, |_| sum + 60.0 * F32);
        let negative: Vec<f64> = want.iter().map(|x| -x).collect();
        assert_within("losses", &wide32(&losses), &negative, |_| sum + 60.0 * F32);
        let bound = |i: usize| want_d[i].abs() * BF16 * 1.01 + f64::from(scale) * 2.0 * sum;
        assert_within("d_logits", &wide(&d_logits), &want_d, bound);
    }
}

#[test]
fn impossible_tokens_and_nan_are_kept_apart() {
    let gpu = Gpu::get();
    let inf = f32::INFINITY;
    let logits = [-inf, 1.0, -inf, 1.0, 2.0, f32::NAN, 3.0, 4.0];
    let (logits_d, targets_d, out) = (gpu.upload(&logits), gpu.upload(&[1u32, 0]), gpu.fresh::<f32>(2));
    let params = log_probs_params { out: out.ptr(), logits: logits_d.ptr(), targets: targets_d.ptr(), vocab: 4 };
    gpu.launch("log_probs", (2, 1, 1), ROW_THREADS, 0, &params);
    let out = gpu.download(&out);
    assert!((out[0] + std::f32::consts::LN_2).abs() < 1e-6 && out[1].is_nan(), "{out:?}");
}
