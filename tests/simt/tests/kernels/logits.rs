//! Kernels over rows of logits: log-probabilities, cross-entropy, divergence.

use crate::abi::{IGNORED_TARGET, ROW_THREADS, cross_entropy_params, divergence_params, log_probs_params};
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

#[test]
fn divergence_and_agreement_equal_f64() {
    let gpu = Gpu::get();
    for vocab in [1usize, 251, 5000] {
        let rows = 4;
        let scaled = |seed| -> Vec<f32> { random(rows * vocab, seed).iter().map(|x| 6.0 * x).collect() };
        let (p, mut q) = (scaled(1), scaled(2));
        // A model does not diverge from itself.
        q[..vocab].copy_from_slice(&p[..vocab]);
        let (p_d, q_d) = (gpu.upload(&p), gpu.upload(&q));
        let (kl, agree) = in_every_schedule(|| {
            let (kl, agree) = (gpu.fresh::<f32>(rows), gpu.fresh::<f32>(rows));
            let params = divergence_params {
                kl: kl.ptr(),
                agree: agree.ptr(),
                logits_p: p_d.ptr(),
                logits_q: q_d.ptr(),
                vocab: vocab as u32,
            };
            gpu.launch("divergence", (rows as u32, 1, 1), ROW_THREADS, 0, &params);
            (gpu.download(&kl), gpu.download(&agree))
        });
        let log_softmax = |row: &[f64]| -> Vec<f64> {
            let lse = row.iter().map(|x| x.exp()).sum::<f64>().ln();
            row.iter().map(|x| x - lse).collect()
        };
        let top = |row: &[f64]| (0..vocab).rev().max_by(|&a, &b| row[a].total_cmp(&row[b])).expect("an id");
        let (p, q) = (wide32(&p), wide32(&q));
        for (t, (p, q)) in p.chunks(vocab).zip(q.chunks(vocab)).enumerate() {
            let (p, q) = (log_softmax(p), log_softmax(q));
            let want: f64 = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
            // Logarithms below 21 round four times, exponentials by that and four more; the share of a thread and 13 sums.
            let steps = (vocab.div_ceil(ROW_THREADS as usize) + 13) as f64 + 21.0 * 8.0;
            let size: f64 = p.iter().zip(&q).map(|(p, q)| p.exp() * (1.0 + (p - q).abs()) + q.exp()).sum();
            let error = (f64::from(kl[t]) - want).abs();
            assert!(error <= steps * F32 * size, "{vocab}, row {t}: {} for {want}", kl[t]);
            assert_eq!(agree[t], f32::from(top(&p) == top(&q)), "{vocab}, row {t}");
        }
        assert_eq!((kl[0], agree[0]), (0.0, 1.0));
    }
}
