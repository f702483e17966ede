//! FLOPs of a training step from the model's shape alone, and a check of them against what the ledger counted for a real one.
//!
//! With T tokens, S of them with a loss, W = in x out of a projection and r the rank of its adapter:
//!
//! | | FLOPs |
//! |-|-|
//! | forward pass | `2 T W` a projection, `2 T r (in + out)` its adapter |
//! | the same again, where blocks are recomputed | all but the down projection, from the lowest trained block on |
//! | gradient of a weight | `2 T W`, full training only |
//! | gradient of an input | `2 T W`; not for q, k, v of the lowest trained block when the embedding is frozen |
//! | adapter, backward | `2 T r (2 in + 2 out)`, and `2 T r in` where the input needs a gradient |
//! | output head | `2 S V H` for the logits, for the gradient of its input, and in full training for that of its weight |
//! | attention | `4 q` for each pair of tokens that see each other (q = heads x head size), `10 q` backward |

use super::bench::weights;
use super::flops::LedgerCheck;
use super::training_step::TrainingStep;
use crate::device::{Device, Op};
use crate::error::Result;
use crate::model::{Config, Llama, Projection, Recompute};
use crate::train::{Method, Sequence, Trainer};
use serde::Serialize;

/// FLOPs of one optimiser step, by operation. Norms, activations, softmax and the optimiser are in none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct StepFlops {
    /// Matrix products.
    pub matmul: u64,
    /// Attention, forward and recomputed.
    pub attention: u64,
    /// Gradients of attention.
    pub attention_backward: u64,
}

impl StepFlops {
    /// Counts for packed sequences of `lengths` tokens, over all micro-batches, `targets` of those tokens with a loss.
    pub fn new(config: &Config, method: &Method, recompute: Recompute, lengths: &[usize], targets: u64) -> StepFlops {
        use Projection::{DownProj, KProj, QProj, VProj};
        let blocks = config.num_hidden_layers;
        let (full, rank, adapted) = match method {
            Method::Full => (true, 0, Vec::new()),
            Method::Lora(lora) => (false, lora.r, lora.places(blocks).collect()),
        };
        let lowest = if full { 0 } else { adapted.first().map_or(blocks, |&(l, _)| l) };
        let again = |l: usize| recompute == Recompute::Block && l >= lowest;

        let head = 2 * targets * (config.vocab_size * config.hidden_size) as u64;
        let mut matmul = head * if full { 3 } else { 2 };
        let tokens: u64 = lengths.iter().map(|&n| n as u64).sum();
        for (l, p) in (0..blocks).flat_map(|l| Projection::ALL.map(|p| (l, p))) {
            let [out, inputs] = config.projection_shape(p).map(|n| n as u64);
            let r = if adapted.contains(&(l, p)) { rank as u64 } else { 0 };
            let weight = 2 * tokens * out * inputs;
            let forward = weight + 2 * tokens * r * (inputs + out);
            matmul += if again(l) && p != DownProj { 2 * forward } else { forward };
            if l < lowest {
                continue;
            }
            matmul += 2 * tokens * r * (2 * inputs + 2 * out);
            if full {
                matmul += weight;
            }
            if full || l > lowest || !matches!(p, QProj | KProj | VProj) {
                matmul += weight + 2 * tokens * r * inputs;
            }
        }

        let pairs: u64 = lengths.iter().map(|&n| n as u64).map(|n| n * (n + 1) / 2).sum();
        let pairs = pairs * (config.heads.n_heads * config.heads.head_dim) as u64;
        let forward_passes: u64 = (0..blocks).map(|l| 1 + u64::from(again(l))).sum();
        StepFlops {
            matmul,
            attention: 4 * pairs * forward_passes,
            attention_backward: 10 * pairs * (blocks - lowest) as u64,
        }
    }

    /// Counts for a step of equal sequences.
    pub fn of(config: &Config, step: &TrainingStep, recompute: Recompute) -> StepFlops {
        let lengths = vec![step.shape.tokens; step.shape.sequences];
        let targets = (step.tokens() - step.shape.sequences) as u64;
        StepFlops::new(config, &step.method(), recompute, &lengths, targets)
    }

    fn by_operation(&self) -> [(Op, u64); 3] {
        [(Op::Matmul, self.matmul), (Op::Attention, self.attention), (Op::AttentionBackward, self.attention_backward)]
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.matmul + self.attention + self.attention_backward
    }
}

/// Runs one training step on a copy of `model` and compares the ledger with [`StepFlops`]. Errors: [`Error::Budget`] where it
/// does not fit into memory, [`Error::Usage`] for sequences beyond the model's context.
///
/// [`Error::Budget`]: crate::Error::Budget
/// [`Error::Usage`]: crate::Error::Usage
pub fn check_training_step(
    dev: &Device,
    model: &Llama,
    step: &TrainingStep,
    recompute: Recompute,
) -> Result<LedgerCheck> {
    step.check(&model.config)?;
    let weight_bytes = weights(model).iter().map(|t| t.size_bytes() as u64).sum();
    let options = step.trainer(dev, &model.config, weight_bytes, Some(recompute))?;
    let mut trainer = Trainer::new(dev, model.clone(), options)?;
    let sequences: Vec<Sequence> = step.sequences(&model.config).into_iter().map(Sequence::text).collect();
    let pass = format!("{}, {}", step.name(), describe(recompute));
    let expected = StepFlops::of(&model.config, step, recompute);
    LedgerCheck::count(dev, pass, &expected.by_operation(), || trainer.step_on(&[sequences.iter().collect()]).map(drop))
}

/// For people: what is computed again.
pub fn describe(recompute: Recompute) -> &'static str {
    match recompute {
        Recompute::None => "all kept",
        Recompute::Block => "blocks recomputed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DType;
    use crate::model::adapter::LoraConfig;
    use crate::model::presets::Preset;
    use crate::train::{OptimizerOptions, Schedule, SchedulerType, TrainerOptions};
    use std::path::Path;

    const SHAPES: [&str; 7] = ["biases", "gqa", "linear_rope", "llama3_rope", "mha_tied", "mqa_head_dim", "odd_sizes"];

    fn tiny(name: &str) -> Llama {
        Llama::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny").join(name)).unwrap()
    }

    fn lora(target_modules: &[Projection], layers: Option<Vec<usize>>, lora_dropout: f64) -> Method {
        let target_modules = target_modules.to_vec();
        let (r, lora_alpha, use_rslora, layers_to_transform) = (3, 6.0, false, layers);
        Method::Lora(LoraConfig { r, lora_alpha, lora_dropout, target_modules, layers_to_transform, use_rslora })
    }

    /// Two micro-batches of packed sequences of several lengths, with and without masked prompts.
    fn micro_batches() -> Vec<Vec<Sequence>> {
        let sequence = |n: u32, prompt| Sequence::masked((0..n).map(|i| i * 7 % 101).collect(), prompt);
        vec![vec![sequence(9, 0), sequence(14, 5), sequence(1, 0)], vec![sequence(23, 22)]]
    }

    #[test]
    fn the_ledger_counts_the_formula_for_every_shape_method_and_recomputation() {
        let batches = micro_batches();
        let lengths: Vec<usize> = batches.iter().flatten().map(|s| s.ids.len()).collect();
        let targets = batches.iter().flatten().map(Sequence::target_tokens).sum();
        assert_eq!((lengths.as_slice(), targets), ([9, 14, 1, 23].as_slice(), 8 + 9 + 1));
        let methods = [
            Method::Full,
            lora(&Projection::ALL, None, 0.0),
            lora(&Projection::ALL, Some(vec![1]), 0.25),
            lora(&[Projection::QProj, Projection::VProj], None, 0.0),
            lora(&[Projection::DownProj], Some(vec![1]), 0.0),
        ];
        let dev = Device::cpu();
        for name in SHAPES {
            for method in &methods {
                for recompute in [Recompute::Block, Recompute::None] {
                    let model = tiny(name);
                    let expected = StepFlops::new(&model.config, method, recompute, &lengths, targets);
                    let options = TrainerOptions {
                        method: method.clone(),
                        optimizer: OptimizerOptions::default(),
                        schedule: Schedule {
                            learning_rate: 1e-3,
                            kind: SchedulerType::Constant,
                            warmup_steps: 0,
                            total_steps: 1,
                        },
                        recompute,
                        max_tokens: 24,
                        seed: 0,
                    };
                    let mut trainer = Trainer::new(&dev, model, options).unwrap();
                    let batches: Vec<Vec<&Sequence>> = batches.iter().map(|b| b.iter().collect()).collect();
                    let step = || trainer.step_on(&batches).map(drop);
                    let check = LedgerCheck::count(&dev, name.into(), &expected.by_operation(), step).unwrap();
                    assert!(check.exact(), "{method:?}, {recompute:?}: {check:?}");
                }
            }
        }
    }

    #[test]
    fn a_step_of_llama_3_1_8b_by_hand() {
        let json = Preset::named("llama-3.1-8b").unwrap().config_json(32, DType::BF16);
        let config = Config::from_json(json, Path::new("config.json")).unwrap();
        // q and o 4096 x 4096, k and v 4096 x 1024, gate, up and down 4096 x 14336; the head 4096 x 128256.
        let (qkv, down, block): (u64, u64, u64) = (25_165_824, 58_720_256, 218_103_808);
        let head: u64 = 525_336_576;
        // 2 sequences of 1,024 tokens, all but the last of each with a loss: 1,024 * 1,025 / 2 pairs each, 4,096 features.
        let (tokens, targets, attended): (u64, u64, u64) = (2048, 2046, 2 * 524_800 * 4096);
        let step = |method: &Method, recompute| StepFlops::new(&config, method, recompute, &[1024; 2], targets);

        let kept = step(&Method::Full, Recompute::None);
        assert_eq!(kept.matmul, 3 * 2 * (tokens * 32 * block + targets * head));
        assert_eq!((kept.attention, kept.attention_backward), (4 * 32 * attended, 10 * 32 * attended));
        let again = step(&Method::Full, Recompute::Block);
        assert_eq!(again.matmul - kept.matmul, 2 * tokens * 32 * (block - down));
        assert_eq!((again.attention, again.attention_backward), (8 * 32 * attended, 10 * 32 * attended));

        // Rank 3 on q and v of the last 2 blocks: forward everywhere, input gradients down to block 30 but for its q, k, v.
        let lora = step(&lora(&[Projection::QProj, Projection::VProj], Some(vec![30, 31]), 0.0), Recompute::None);
        let base = 2 * tokens * (32 * block + 2 * block - qkv) + 2 * 2 * targets * head;
        let (q, v) = (4096 + 4096, 4096 + 1024);
        // Forward in + out, backward 2 in + 2 out, and in once more for block 31.
        let adapters = 2 * tokens * 3 * (2 * 3 * (q + v) + 2 * 4096);
        assert_eq!(lora.matmul, base + adapters);
        assert_eq!((lora.attention, lora.attention_backward), (4 * 32 * attended, 10 * 2 * attended));
    }
}
