use crate::abi::{SAMPLE_NOT_FINITE, SAMPLE_THREADS, sample_draw, sample_params};
use crate::gpu::{Gpu, in_every_schedule};
use crate::numbers::{random, wide32};
use crate::philox;

fn sample(logits: &[f32], draws: &[sample_draw]) -> (Vec<u32>, Vec<f32>) {
    let (gpu, vocab) = (Gpu::get(), logits.len() / draws.len());
    let (logits_d, draws_d) = (gpu.upload(logits), gpu.upload(draws));
    in_every_schedule(|| {
        let (ids, log_probs) = (gpu.fresh::<u32>(draws.len()), gpu.upload(&vec![0.0f32; draws.len()]));
        let params = sample_params {
            ids: ids.ptr(),
            log_probs: log_probs.ptr(),
            logits: logits_d.ptr(),
            draws: draws_d.ptr(),
            vocab: vocab as u32,
        };
        gpu.launch("sample", (draws.len() as u32, 1, 1), SAMPLE_THREADS, 0, &params);
        (gpu.download(&ids), gpu.download(&log_probs))
    })
}

/// The definition of src/ops/sample.rs in f64 over a full sort, for the uniform number `u`.
fn exact(row: &[f64], draw: &sample_draw, u: f64) -> u32 {
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weight = |id: &usize| ((row[*id] - max) / f64::from(draw.temperature)).exp();
    let mut ids: Vec<usize> = (0..row.len()).collect();
    let (cut_k, cut_p) = (draw.top_k > 0 && (draw.top_k as usize) < row.len(), draw.top_p < 1.0);
    if cut_k || cut_p {
        ids.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
    }
    if cut_k {
        ids.truncate(draw.top_k as usize);
    }
    let mut kept = ids.iter().map(weight).sum::<f64>();
    if cut_p {
        let (mut n, mut sum) = (0, 0.0);
        while n < ids.len() && sum < f64::from(draw.top_p) * kept {
            sum += weight(&ids[n]);
            n += 1;
        }
        ids.truncate(n);
        kept = sum;
    }
    ids.sort_unstable();
    let mut sum = 0.0;
    let found = ids.iter().find(|id| {
        sum += weight(id);
        sum > u * kept
    });
    *found.unwrap_or(ids.last().expect("not empty")) as u32
}

#[test]
fn draws_equal_the_definition_in_f64() {
    for (vocab, spread) in [(7, 3.0), (1003, 6.0), (4099, 1.0)] {
        let mut draws = vec![];
        for (top_k, top_p) in [(0, 1.0), (5, 1.0), (0, 0.9), (50, 0.5), (2000, 0.99), (1, 1.0), (0, 1e-6)] {
            for position in 0..4 {
                let temperature = [0.7, 1.0, 2.0][position as usize % 3];
                draws.push(sample_draw { seed: 3 << 40 | 7, request: 11, temperature, top_p, top_k, position });
            }
        }
        let mut logits: Vec<f32> = random(draws.len() * vocab, 5).iter().map(|x| spread * x).collect();
        // Equal logits, and an impossible id.
        for row in logits.chunks_mut(vocab) {
            (row[1], row[3], row[5]) = (row[2], row[2], f32::NEG_INFINITY);
        }
        let (ids, log_probs) = sample(&logits, &draws);
        for (i, (row, draw)) in wide32(&logits).chunks(vocab).zip(&draws).enumerate() {
            let words = philox::block(draw.seed, draw.request, u64::from(draw.position));
            let u = ((u64::from(words[0]) << 32 | u64::from(words[1])) >> 11) as f64 / (1u64 << 53) as f64;
            // Weights err by 2^-20 of themselves (an argument below 20 rounds), so does a share of their sum.
            let allowed = [u - 4e-6, u, u + 4e-6].map(|u| exact(row, draw, u.clamp(0.0, 1.0)));
            assert!(allowed.contains(&ids[i]), "{vocab} {draw:?}: {} for {allowed:?}", ids[i]);
            let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let lse = max + row.iter().map(|x| (x - max).exp()).sum::<f64>().ln();
            let error = f64::from(log_probs[i]) - (row[ids[i] as usize] - lse);
            assert!(error.abs() < 4e-6, "{vocab} {draw:?}: log-probability off by {error}");
        }
    }
}

#[test]
fn greedy_takes_the_lowest_of_equal_ids_and_bad_rows_are_told() {
    let draw = sample_draw { seed: 0, request: 0, temperature: 0.0, top_p: 1.0, top_k: 0, position: 0 };
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    let rows = [[1.0, 5.0, -2.0, 5.0], [-0.0, 0.0, -inf, -1.0], [1.0, nan, 2.0, 3.0], [1.0, inf, 2.0, 3.0], [-inf; 4]];
    let (ids, _) = sample(&rows.concat(), &[draw; 5]);
    assert_eq!(ids, [1, 0, SAMPLE_NOT_FINITE, SAMPLE_NOT_FINITE, SAMPLE_NOT_FINITE]);
}
