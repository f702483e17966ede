//! Log-probabilities, hidden states and metrics.

use crate::rounding::Expected;
use crate::{TINY, card, relative_deviation, rounded, tiny};
use ratoon::device::{DType, Device, Tensor};
use ratoon::eval::{divergence, perplexity};
use ratoon::model::{Batch, Llama, Workspace};
use ratoon::prune::{Calibration, Metric, ScoreOptions, score};

fn sequences(model: &Llama) -> Vec<Vec<u32>> {
    let vocab = model.config.vocab_size as u32;
    [37, 1, 100, 5].map(|n: u32| (0..n).map(|i| (i * i * 31 + i * 7 + n) % vocab).collect()).to_vec()
}

/// Logits of every token, F32 `[tokens, vocab]`, on the host.
fn logits(dev: &Device, model: &Llama, sequences: &[Vec<u32>]) -> Vec<f32> {
    let batch = Batch::pack(sequences);
    let mut ws = Workspace::new(dev, &model.config, batch.tokens()).unwrap();
    model.forward(dev, &batch, &mut ws, &mut |_, _| Ok(())).unwrap();
    let mut logits = dev.zeros(&[batch.tokens(), model.config.vocab_size], DType::F32).unwrap();
    model.logits(dev, &mut logits, &ws.hidden).unwrap();
    logits.host().unwrap().f32().to_vec()
}

fn spread(values: &[f32]) -> f64 {
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / values.len() as f64;
    (values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / values.len() as f64).sqrt()
}

#[test]
fn logits_and_log_probs_of_every_shape_are_within_what_rounding_explains() {
    let (dev, cpu) = (card(), Device::cpu());
    for name in TINY {
        let model = rounded(&tiny(name));
        let placed = Llama::load_packed(&dev, &tiny(name)).unwrap();
        let sequences = sequences(&model);
        let batch = Batch::pack(&sequences);
        let log_probs = |dev: &Device, model: &Llama| {
            let mut ws = Workspace::new(dev, &model.config, batch.tokens()).unwrap();
            model.next_token_log_probs(dev, &batch, &mut ws).unwrap()
        };
        let [expected_logits, expected_log_probs] = Expected::of(&model, &sequences);
        expected_logits.assert_explains(&format!("{name}: logits"), &logits(&dev, &placed, &sequences));
        expected_log_probs.assert_explains(&format!("{name}: log-probabilities"), &log_probs(&dev, &placed));
        // The exact pass and the CPU's are written apart: F32 rounds 2^-16 of what BF16 does, in longer sums.
        let want = logits(&cpu, &model, &sequences);
        let off = want.iter().zip(expected_logits.value.iter().zip(&expected_logits.deviation));
        let most = off.map(|(&w, (v, d))| (f64::from(w) - v).abs() / d).fold(0.0, f64::max);
        assert!(most < 0.02, "{name}: the CPU is off by {most} of BF16's deviation");
    }
}

#[test]
fn a_sequence_has_the_same_bits_whatever_is_packed_beside_it() {
    let dev = card();
    let model = Llama::load_packed(&dev, &tiny("gqa")).unwrap();
    let sequences = sequences(&model);
    let together = logits(&dev, &model, &sequences);
    let mut first = 0;
    for sequence in &sequences {
        let n = sequence.len() * model.config.vocab_size;
        let alone = logits(&dev, &model, std::slice::from_ref(sequence));
        assert!(alone == together[first..first + n], "{} tokens", sequence.len());
        first += n;
    }
}

#[test]
fn perplexity_and_divergence_equal_the_cpus_within_rounding() {
    let (dev, cpu) = (card(), Device::cpu());
    let (base, cut) = (rounded(&tiny("gqa")), rounded(&tiny("gqa")).without_blocks(&[1]));
    let placed = Llama::load_packed(&dev, &tiny("gqa")).unwrap();
    let placed_cut = placed.without_blocks(&[1]);
    let ids: Vec<u32> = sequences(&base).concat();
    let of = |dev: &Device, model: &Llama| perplexity(dev, model, &ids, 48).unwrap();
    let (got, want) = (of(&dev, &placed), of(&cpu, &base));
    // A mean over 140 tokens: the deviation of one, and no more, since what tokens share of the errors does not average out.
    let sigma =
        relative_deviation(base.blocks.len()) * 2f64.sqrt() * spread(&logits(&cpu, &base, &[ids[..48].to_vec()]));
    assert!((got.nll - want.nll).abs() < sigma, "{} against {}, sigma {sigma}", got.nll, want.nll);
    assert_eq!(got.scored, want.scored);

    let (got, want) =
        (divergence(&dev, &placed, &placed_cut, &ids, 48).unwrap(), divergence(&cpu, &base, &cut, &ids, 48).unwrap());
    // KL is quadratic in the distance d of the logits: its error is at most 2 d sigma + sigma^2 in the mean, d^2 about 2 KL.
    let bound = 2.0 * (2.0 * want.kl).sqrt() * sigma + sigma * sigma;
    assert!((got.kl - want.kl).abs() < bound, "{} against {}, bound {bound}", got.kl, want.kl);
    assert!(divergence(&dev, &placed, &placed, &ids, 48).unwrap().kl.abs() < 1e-6);
}

#[test]
fn angular_distances_equal_the_cpus_and_the_same_blocks_are_cut() {
    let (dev, cpu) = (card(), Device::cpu());
    let model = rounded(&tiny("llama3_rope"));
    let calibration = Calibration::new(sequences(&model).into_iter().filter(|s| s.len() > 1).collect());
    let options = ScoreOptions { block_sizes: vec![1, 2], metric: Metric::Angular, ..ScoreOptions::default() };
    let of = |dev: &Device| score(dev, &model, Some(&calibration), &options).unwrap();
    let (got, want) = (of(&dev), of(&cpu));
    for (got, want) in got.rows.iter().zip(&want.rows) {
        // Two vectors, each turned by its relative error.
        let bound = 2.0 * relative_deviation(got.end) / std::f64::consts::PI;
        assert!((got.value - want.value).abs() < bound, "{got:?} against {want:?}, bound {bound}");
    }
    assert_eq!(
        got.best.iter().map(|b| &b.blocks).collect::<Vec<_>>(),
        want.best.iter().map(|b| &b.blocks).collect::<Vec<_>>()
    );
}

#[test]
fn weights_on_a_card_are_the_rounded_ones_and_tensors_there_are_not_read_by_mistake() {
    let dev = card();
    let (placed, model) = (Llama::load_packed(&dev, &tiny("biases")).unwrap(), rounded(&tiny("biases")));
    for (a, b) in placed.blocks.iter().zip(&model.blocks) {
        let back = a.down.weight.host().unwrap().to_f32();
        assert!(back.bytes() == b.down.weight.bytes());
    }
    let read = std::panic::catch_unwind(|| placed.embed_tokens.bytes().len());
    assert!(read.is_err(), "bytes in a card's memory are not the host's");
    let mut onto = dev.zeros(&[3], DType::F32).unwrap();
    onto.copy_from(&Tensor::from_f32(&[1.0, 2.0, 3.0], &[3])).unwrap();
    assert_eq!(onto.host().unwrap().f32(), [1.0, 2.0, 3.0]);
}
