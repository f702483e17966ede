//! The weights of a GGUF as safetensors: names, shapes and row order of Hugging Face's Llama.

use super::config::{Options, Shape};
use super::dequantise::{GgmlType, dequantise};
use super::reader::{GgufFile, GgufTensor};
use crate::device::DType;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::model::safetensors::{SafetensorsWriter, TensorSpec};
use crate::progress::Progress;
use half::{bf16, f16};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;

/// A tensor of the output and where its values come from.
struct Planned<'a> {
    source: &'a GgufTensor,
    source_name: &'a str,
    /// Heads whose rows are stored for interleaved rotation; `None`: rows as they are.
    interleaved_heads: Option<usize>,
}

/// Which tensor of the GGUF becomes which of the output.
pub(super) struct Plan<'a> {
    tensors: BTreeMap<String, Planned<'a>>,
    /// What the names tell about the model.
    pub options: Options,
}

/// (GGUF part, Hugging Face part) of a block; the shape is in [`part_shape`].
const PARTS: [(&str, &str); 9] = [
    ("attn_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

fn part_shape(part: &str, shape: &Shape) -> Vec<usize> {
    let (hidden, inter) = (shape.hidden_size, shape.intermediate_size);
    let (q, kv) = (shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim);
    match part {
        "attn_q" => vec![q, hidden],
        "attn_k" | "attn_v" => vec![kv, hidden],
        "attn_output" => vec![hidden, q],
        "ffn_gate" | "ffn_up" => vec![inter, hidden],
        "ffn_down" => vec![hidden, inter],
        _ => vec![hidden],
    }
}

impl<'a> Plan<'a> {
    /// Checks that the file has every tensor of a Llama of this shape, each with the right dimensions, and nothing else.
    pub fn new(file: &'a GgufFile, shape: &Shape) -> Result<Plan<'a>> {
        let path = file.path();
        let mut left: BTreeMap<&str, &GgufTensor> = file.tensors.iter().map(|(k, v)| (k.as_str(), v)).collect();
        // Read with the configuration.
        left.remove("rope_freqs.weight");
        let mut plan = Plan { tensors: BTreeMap::new(), options: Options::default() };
        let mut take = |source: String, name: String, want: Vec<usize>, heads: Option<usize>, needed: bool| {
            let Some((source_name, tensor)) = left.remove_entry(source.as_str()) else {
                let missing =
                    || Error::format(path, source.clone(), format!("a tensor of {want:?}"), "none of that name");
                return if needed { Err(missing()) } else { Ok(false) };
            };
            if tensor.shape != want {
                return Err(Error::format(path, source, format!("{want:?}"), format!("{:?}", tensor.shape)));
            }
            plan.tensors.insert(name, Planned { source: tensor, source_name, interleaved_heads: heads });
            Ok(true)
        };
        let table = vec![shape.vocab_size, shape.hidden_size];
        take("token_embd.weight".into(), "model.embed_tokens.weight".into(), table.clone(), None, true)?;
        take("output_norm.weight".into(), "model.norm.weight".into(), vec![shape.hidden_size], None, true)?;
        let tied = !take("output.weight".into(), "lm_head.weight".into(), table, None, false)?;
        let (mut attention_biases, mut mlp_biases) = (0, 0);
        for block in 0..shape.num_hidden_layers {
            for (part, name) in PARTS {
                let want = part_shape(part, shape);
                let heads = match part {
                    "attn_q" => Some(shape.n_heads),
                    "attn_k" => Some(shape.n_kv_heads),
                    _ => None,
                };
                let (from, to) = (format!("blk.{block}.{part}"), format!("model.layers.{block}.{name}"));
                if want.len() == 2 {
                    let bias = take(format!("{from}.bias"), format!("{to}.bias"), vec![want[0]], heads, false)?;
                    let count = if part.starts_with("attn") { &mut attention_biases } else { &mut mlp_biases };
                    *count += usize::from(bias);
                }
                take(format!("{from}.weight"), format!("{to}.weight"), want, heads, true)?;
            }
        }
        if let Some((name, tensor)) = left.first_key_value() {
            let what = format!("tensor {name} {:?} with {} blocks", tensor.shape, shape.num_hidden_layers);
            return Err(Error::unsupported(path, what, "the tensors of a dense Llama are"));
        }
        let all_or_none = |what: &str, count: usize, all: usize| match count {
            0 => Ok(false),
            _ if count == all => Ok(true),
            _ => {
                let what = format!("{what} biases on {count} of {all} projections");
                Err(Error::unsupported(path, what, "biases on all or none are"))
            }
        };
        let attention_bias = all_or_none("attention", attention_biases, 4 * shape.num_hidden_layers)?;
        let mlp_bias = all_or_none("MLP", mlp_biases, 3 * shape.num_hidden_layers)?;
        plan.options = Options { tied, attention_bias, mlp_bias };
        Ok(plan)
    }

    /// The element type that keeps the file's numbers: the matrices' own when all share an unquantised one, else bf16.
    pub fn natural_dtype(&self) -> DType {
        let mut kinds = self.tensors.values().filter(|t| t.source.shape.len() > 1).map(|t| t.source.kind);
        let first = kinds.next();
        match first {
            Some(GgmlType::F32) if kinds.all(|k| k == GgmlType::F32) => DType::F32,
            Some(GgmlType::F16) if kinds.all(|k| k == GgmlType::F16) => DType::F16,
            _ => DType::BF16,
        }
    }

    /// Parameters in all.
    pub fn parameters(&self) -> u64 {
        self.tensors.values().map(|t| t.source.shape.iter().product::<usize>() as u64).sum()
    }

    /// Tensors in all.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Streams every tensor, in order of name, to `dir/model.safetensors` as `dtype`; gives the bytes of the tensors. Memory is a few
    /// megabytes whatever the model's size.
    pub fn write(&self, file: &GgufFile, dir: &Path, dtype: DType) -> Result<u64> {
        let specs: Vec<TensorSpec> =
            self.tensors.iter().map(|(name, tensor)| TensorSpec::new(name, dtype, &tensor.source.shape)).collect();
        let total = specs.iter().map(TensorSpec::size_bytes).sum();
        let mut writer = SafetensorsWriter::create(dir, specs, None)?;
        let progress = Progress::start("convert", self.parameters(), "parameters");
        for tensor in self.tensors.values() {
            let columns = tensor.source.shape.get(1..).map_or(1, |rest| rest.iter().product::<usize>());
            let rows = tensor.source.shape[0];
            let mut first = 0;
            while first < rows {
                interrupt::check()?;
                let count = (CHUNK / columns).clamp(1, rows - first);
                writer.append(&tensor.rows(file, first..first + count, columns, dtype)?)?;
                progress.add((count * columns) as u64);
                first += count;
            }
        }
        writer.finish()?;
        Ok(total)
    }
}

/// Values converted at a time: 4 MB of float32, enough for all cores, little enough for the cache and the memory budget.
const CHUNK: usize = 1 << 20;

impl Planned<'_> {
    /// The row of the file that becomes `row` of the output. GGUF pairs feature `2i` with `2i + 1` of a head, Hugging Face `i` with
    /// `i + head_dim / 2`: `[heads, head_dim / 2, 2]` there is `[heads, 2, head_dim / 2]` here.
    fn source_row(&self, row: usize) -> usize {
        let Some(heads) = self.interleaved_heads else { return row };
        let head_dim = self.source.shape[0] / heads;
        let (head, within) = (row / head_dim, row % head_dim);
        let (half, pair) = (within / (head_dim / 2), within % (head_dim / 2));
        head * head_dim + 2 * pair + half
    }

    fn rows(&self, file: &GgufFile, rows: std::ops::Range<usize>, columns: usize, dtype: DType) -> Result<Vec<u8>> {
        let kind = self.source.kind;
        let data = file.bytes(self.source);
        // A vector has one column; its rows are single values, which only the unquantised formats can have.
        let row_bytes = columns / kind.block_size() * kind.block_bytes();
        if row_bytes == 0 {
            let found = format!("a vector of {kind}");
            return Err(Error::unsupported(file.path(), format!("{}: {found}", self.source_name), "F32 vectors are"));
        }
        let mut out = vec![0u8; rows.len() * columns * dtype.size()];
        let chunks = out.par_chunks_mut(columns * dtype.size()).enumerate();
        let finite = chunks.with_min_len((4096 / columns).max(1)).try_for_each_init(
            || vec![0f32; columns],
            |values, (i, out)| {
                let row = self.source_row(rows.start + i);
                dequantise(kind, &data[row * row_bytes..(row + 1) * row_bytes], values);
                store(values, dtype, out)
            },
        );
        finite.map_err(|value| Error::NotFinite {
            place: format!("{}: {}", file.path().display(), self.source_name),
            value,
            instead: match value.is_finite() {
                true => "it exceeds float16: use --dtype bf16 or f32".to_string(),
                false => "the file is damaged or was made from a broken model".to_string(),
            },
        })?;
        Ok(out)
    }
}

/// Rounds to nearest even. `Err` holds the first value that is not finite, before or after.
fn store(values: &[f32], dtype: DType, out: &mut [u8]) -> std::result::Result<(), f32> {
    if let Some(&bad) = values.iter().find(|v| !v.is_finite()) {
        return Err(bad);
    }
    match dtype {
        DType::F32 => out.as_chunks_mut::<4>().0.iter_mut().zip(values).for_each(|(o, v)| *o = v.to_le_bytes()),
        DType::F16 => {
            for (o, &v) in out.as_chunks_mut::<2>().0.iter_mut().zip(values) {
                let rounded = f16::from_f32(v);
                if !rounded.is_finite() {
                    return Err(v);
                }
                *o = rounded.to_le_bytes();
            }
        }
        DType::BF16 | DType::U32 => {
            for (o, &v) in out.as_chunks_mut::<2>().0.iter_mut().zip(values) {
                let rounded = bf16::from_f32(v);
                if !rounded.is_finite() {
                    return Err(v);
                }
                *o = rounded.to_le_bytes();
            }
        }
    }
    Ok(())
}
