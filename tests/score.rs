//! Scores equal PyTorch's on the real model, and a block that does nothing is found wherever it stands.

mod support;

use ratoon::device::{DType, Device, Tensor};
use ratoon::model::{Activations, Batch, Gradients, Llama, Projection, Recompute, Trainable, Workspace};
use ratoon::ops::matmul::{Store, matmul_nt};
use ratoon::prune::{Calibration, CalibrationOptions, Metric, Plan, ScoreOptions, Scores, Tokens, score};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(data(name)).unwrap()).unwrap()
}

/// Every distance within 1e-4 of the reference (values there have six decimals), and the same best cut for each size.
fn compare(scores: &Scores, reference: &Value) {
    for (size, want) in reference.as_object().unwrap() {
        let n: usize = size.parse().unwrap();
        let want: Vec<f64> = want.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        let got: Vec<f64> = scores.rows.iter().filter(|r| r.end - r.start == n).map(|r| r.value).collect();
        assert_eq!(got.len(), want.len(), "n = {n}");
        for (start, (got, want)) in got.iter().zip(&want).enumerate() {
            assert!((got - want).abs() < 1e-4, "n = {n}, start {start}: {got} against {want}");
        }
        let lowest = (0..want.len()).min_by(|&a, &b| want[a].total_cmp(&want[b])).unwrap();
        let best = scores.best.iter().find(|cut| cut.block_size == n).unwrap();
        assert_eq!(best.blocks, (lowest..lowest + n).collect::<Vec<_>>(), "n = {n}");
    }
}

fn options(metric: Metric, block_sizes: &[usize]) -> ScoreOptions {
    ScoreOptions { metric, block_sizes: block_sizes.to_vec(), ..ScoreOptions::default() }
}

#[test]
fn angular_distances_of_the_real_model_are_pytorch_s() {
    let dir = support::smollm2();
    let (dev, model) = (Device::cpu(), Llama::load(&dir).unwrap());
    let prompts = json("prompts.json");
    let prompts = prompts["prompts"].as_array().or(prompts.as_array()).expect("a list of prompts");
    let ids = prompts.iter().map(|p| serde_json::from_value(p["ids"].clone()).unwrap()).collect();
    let scores = score(&dev, &model, Some(&Calibration::new(ids)), &options(Metric::Angular, &[2, 4, 6, 8])).unwrap();
    compare(&scores, &json("angular.json")["mean"]);

    let reference = json("prune.json");
    let text = data("text/2010_barack_obama_d.txt");
    let calibration = Calibration::read(&dir, &text, CalibrationOptions::default()).unwrap();
    assert_eq!((calibration.samples, calibration.tokens), (16, 4096));
    for (tokens, key) in [(Tokens::Last, "angular_last"), (Tokens::Mean, "angular_all_tokens")] {
        let options = ScoreOptions { tokens, ..options(Metric::Angular, &[1, 2, 4, 6, 8]) };
        compare(&score(&dev, &model, Some(&calibration), &options).unwrap(), &reference[key]);
    }
}

fn tiny(name: &str) -> Llama {
    Llama::load(&data("tiny").join(name)).unwrap()
}

fn zeros_like(tensor: &Tensor) -> Arc<Tensor> {
    Arc::new(Tensor::zeros(tensor.shape(), tensor.dtype()))
}

/// `model` with blocks that add nothing to the residual stream put in front of block `position`.
fn with_identity_blocks(model: &Llama, position: usize, count: usize) -> Llama {
    let mut planted = model.clone();
    for i in 0..count {
        let mut block = model.blocks[(position + i) % model.blocks.len()].clone();
        for linear in [&mut block.o, &mut block.down] {
            linear.weight = zeros_like(&linear.weight);
            linear.bias = linear.bias.as_deref().map(zeros_like);
        }
        planted.blocks.insert(position, block);
    }
    planted.config.num_hidden_layers = planted.blocks.len();
    planted
}

fn logits(model: &Llama, sequences: &[Vec<u32>]) -> Vec<f32> {
    let (dev, batch) = (Device::cpu(), Batch::pack(sequences));
    let mut ws = Workspace::new(&dev, &model.config, batch.tokens()).unwrap();
    model.forward(&dev, &batch, &mut ws, &mut |_, _| Ok(())).unwrap();
    let mut logits = Tensor::zeros(&[batch.tokens(), model.config.vocab_size], DType::F32);
    matmul_nt(&dev, &mut logits, &ws.hidden, model.head(), None, Store::Replace).unwrap();
    logits.f32().to_vec()
}

fn sequences(vocab: usize) -> Vec<Vec<u32>> {
    [9usize, 1, 17].iter().map(|&n| (0..n).map(|i| ((i * 37 + n * 11) % vocab) as u32).collect()).collect()
}

#[test]
fn blocks_that_do_nothing_are_found_at_every_position_and_cutting_them_changes_no_logit() {
    let dev = Device::cpu();
    for name in ["gqa", "biases"] {
        let model = tiny(name);
        let sequences = sequences(model.config.vocab_size);
        let want = logits(&model, &sequences);
        let calibration = Calibration::new(sequences.clone());
        for count in [1, 2] {
            for position in 0..=model.blocks.len() {
                let planted = with_identity_blocks(&model, position, count);
                let there: Vec<usize> = (position..position + count).collect();
                for tokens in [Tokens::Last, Tokens::Mean] {
                    for metric in [Metric::Angular, Metric::Bi] {
                        let options = ScoreOptions { tokens, ..options(metric, &[count]) };
                        let scores = score(&dev, &planted, Some(&calibration), &options).unwrap();
                        assert_eq!(scores.best[0].blocks, there, "{name}: {metric:?} {tokens:?}");
                        assert_eq!(scores.best[0].score, 0.0, "the streams before and after are equal");
                    }
                }
                let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&logits(&planted.without_blocks(&there), &sequences)), bits(&want));
                assert!(logits(&planted, &sequences) == want, "the block adds nothing");
            }
        }
    }
}

#[test]
fn scores_do_not_depend_on_how_sequences_share_a_pass() {
    let (dev, model) = (Device::cpu(), tiny("gqa"));
    let many: Vec<Vec<u32>> = (0..40).flat_map(|_| sequences(model.config.vocab_size)).collect();
    let together = score(&dev, &model, Some(&Calibration::new(many)), &options(Metric::Angular, &[1, 2])).unwrap();
    let once = Calibration::new(sequences(model.config.vocab_size));
    let alone = score(&dev, &model, Some(&once), &options(Metric::Angular, &[1, 2])).unwrap();
    for (a, b) in together.rows.iter().zip(&alone.rows) {
        // The same 3 values summed 40 times: at most 120 roundings in double precision.
        assert!((a.value - b.value).abs() < 120.0 * f64::EPSILON, "{a:?} {b:?}");
    }
}

#[test]
fn perplexity_after_each_cut_is_that_of_the_cut_model() {
    let (dev, model) = (Device::cpu(), tiny("mha_tied"));
    let sequences = sequences(model.config.vocab_size);
    let calibration = Calibration::new(sequences.clone());
    let scores = score(&dev, &model, Some(&calibration), &options(Metric::Perplexity, &[1, 2])).unwrap();
    let vocab = model.config.vocab_size;
    for row in &scores.rows {
        let drop: Vec<usize> = (row.start..row.end).collect();
        let (mut nll, mut scored) = (0.0f64, 0);
        for sequence in &sequences {
            let logits = logits(&model.without_blocks(&drop), std::slice::from_ref(sequence));
            for (logits, &next) in logits.chunks(vocab).zip(&sequence[1..]) {
                let sum: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
                nll += sum.ln() - f64::from(logits[next as usize]);
                scored += 1;
            }
        }
        // Each log-probability carries some f32 roundings of its size (about 6): 1e-5 relative is far above.
        assert!((row.value / (nll / f64::from(scored)).exp() - 1.0).abs() < 1e-5, "{row:?}");
    }
}

#[test]
fn baselines_and_magnitude_need_no_data_and_protection_is_kept() {
    let (dev, model) = (Device::cpu(), tiny("gqa"));
    let layers = model.blocks.len();
    let run = |options: &ScoreOptions| score(&dev, &model, None, options).unwrap();
    assert_eq!(run(&options(Metric::Last, &[2])).best[0].blocks, [layers - 2, layers - 1]);
    assert_eq!(run(&options(Metric::First, &[2])).best[0].blocks, [0, 1]);
    let protected = ScoreOptions { protect_first: 1, protect_last: 1, ..options(Metric::Last, &[1, 2]) };
    assert_eq!(run(&protected).best[1].blocks, [layers - 3, layers - 2]);
    assert!(run(&protected).rows.iter().all(|row| row.start >= 1 && row.end < layers));
    let magnitude = run(&options(Metric::Magnitude, &[1]));
    for row in &magnitude.rows {
        let block = &model.blocks[row.start];
        let linears = [&block.q, &block.k, &block.v, &block.o, &block.gate, &block.up, &block.down];
        let sum: f64 = linears.iter().flat_map(|l| l.weight.to_f32().f32().to_vec()).map(|w| f64::from(w.abs())).sum();
        assert!((row.value / sum - 1.0).abs() < 1e-12);
    }
}

/// Mean negative log-likelihood of every token but the first of each sequence.
fn mean_loss(model: &Llama, sequences: &[Vec<u32>]) -> f64 {
    let batch = Batch::pack(sequences);
    let mut ws = Workspace::new(&Device::cpu(), &model.config, batch.tokens()).unwrap();
    let log_probs = model.next_token_log_probs(&Device::cpu(), &batch, &mut ws).unwrap();
    -log_probs.iter().map(|&p| f64::from(p)).sum::<f64>() / (batch.tokens() - sequences.len()) as f64
}

#[test]
fn taylor_scores_are_the_sums_of_weight_times_gradient_and_central_differences_agree() {
    let (dev, model) = (Device::cpu(), tiny("gqa").into_f32());
    let ids: Vec<Vec<u32>> = [40usize, 1, 25]
        .iter()
        .map(|&n| (0..n).map(|i| ((i * i * 13 + n * 7) % model.config.vocab_size) as u32).collect())
        .collect();
    let calibration = Calibration::new(ids.clone());
    let scores = score(&dev, &model, Some(&calibration), &options(Metric::Taylor, &[1])).unwrap();
    assert_eq!(scores.rows.len(), model.blocks.len());
    let mut grads = Gradients::new(&dev, &model, Trainable::All).unwrap();
    let batch = Batch::pack(&ids);
    let mut ws = Activations::new(&dev, &model, batch.tokens(), Recompute::None, 0).unwrap();
    let scale = 1.0 / (batch.tokens() - ids.len()) as f32;
    model.forward_backward(&dev, &batch, &batch.next_tokens(), scale, None, &mut ws, &mut grads).unwrap();
    for row in &scores.rows {
        let l = row.start;
        let mut sum = 0.0f64;
        // Moving every weight by h |W| along the sign of its W dL/dW changes the loss by h times the score.
        let h = 1e-3f32;
        let [mut up, mut down] = [model.clone(), model.clone()];
        for (p, grad) in Projection::ALL.into_iter().zip(&grads.blocks[l].projections) {
            let weight = &model.blocks[l].projection(p).weight;
            let products: Vec<f64> = (weight.f32().iter().zip(grad.weight.as_ref().unwrap().f32()))
                .map(|(&w, &g)| f64::from(w) * f64::from(g))
                .collect();
            sum += products.iter().map(|p| p.abs()).sum::<f64>();
            for (moved, h) in [(&mut up, h), (&mut down, -h)] {
                let shift = |(&w, p): (&f32, &f64)| w * (1.0 + h * p.signum() as f32);
                let values: Vec<f32> = weight.f32().iter().zip(&products).map(shift).collect();
                moved.blocks[l].projection_mut(p).weight = Arc::new(Tensor::from_f32(&values, weight.shape()));
            }
        }
        assert!((row.value / sum - 1.0).abs() < 1e-5, "block {l}: {} against {sum}", row.value);
        let slope = (mean_loss(&up, &ids) - mean_loss(&down, &ids)) / (2.0 * f64::from(h));
        // The losses are sums of F32 logarithms near 5: 2^-24 * 5 / h = 3e-4 of noise, and h^2 of curvature.
        assert!((slope - row.value).abs() < 1e-3 + 1e-3 * row.value, "block {l}: {} against {slope}", row.value);
    }
    let short = Calibration::new(vec![vec![1]]);
    let message = score(&dev, &model, Some(&short), &options(Metric::Taylor, &[1])).unwrap_err().to_string();
    assert!(message.starts_with("--data"), "{message}");
}

#[test]
fn impossible_sizes_and_missing_data_are_named() {
    let (dev, model) = (Device::cpu(), tiny("gqa"));
    let long = Calibration::new(vec![vec![1; model.config.max_position_embeddings + 1]]);
    let message = score(&dev, &model, Some(&long), &options(Metric::Angular, &[1])).unwrap_err().to_string();
    assert_eq!(message, "--sample-tokens: expected at most 512, the model's max_position_embeddings, found 513");
    let layers = model.blocks.len();
    let protected = ScoreOptions { protect_first: 1, protect_last: usize::MAX, ..options(Metric::Last, &[1]) };
    let wrong = [
        (options(Metric::Last, &[0]), "--block-size"),
        (options(Metric::Last, &[layers]), "--block-size"),
        (options(Metric::Last, &[]), "--block-size"),
        (options(Metric::Last, &[1, 1]), "--block-size"),
        (options(Metric::Angular, &[1]), "--data"),
        (protected, "--block-size"),
    ];
    for (options, word) in wrong {
        let message = score(&dev, &model, None, &options).unwrap_err().to_string();
        assert!(message.starts_with(word), "{message}");
    }
}

#[test]
fn files_of_scores_lead_to_the_same_cut() {
    let (dev, model) = (Device::cpu(), tiny("gqa"));
    let calibration = Calibration::new(sequences(model.config.vocab_size));
    let dir = tempfile::tempdir().unwrap();
    for (metric, name) in [(Metric::Angular, "angular"), (Metric::Bi, "bi"), (Metric::Taylor, "taylor")] {
        let csv = dir.path().join(format!("{name}.csv"));
        let scores = score(&dev, &model, Some(&calibration), &options(metric, &[1, 2])).unwrap();
        ratoon::prune::write_scores(&scores, &csv).unwrap();
        for best in &scores.best {
            let plan = Plan::from_scores(&csv, best.block_size, model.blocks.len()).unwrap();
            assert_eq!(plan.dropped(), best.blocks);
            assert_eq!(plan.metric.as_deref(), Some(name));
        }
        assert!(std::fs::read_to_string(csv.with_extension("svg")).unwrap().starts_with("<svg"));
        let missing = Plan::from_scores(&csv, 9, model.blocks.len()).unwrap_err().to_string();
        assert!(missing.starts_with("--block-size"), "{missing}");
        // An edited CSV is no longer the one that the record beside it tells of.
        let text = std::fs::read_to_string(&csv).unwrap();
        std::fs::write(&csv, text + "\n").unwrap();
        assert_eq!(Plan::from_scores(&csv, 1, model.blocks.len()).unwrap().metric, None);
    }
}
