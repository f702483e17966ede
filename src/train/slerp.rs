//! Spherical interpolation of two models, tensor by tensor (Shoemake 1985, as mergekit's `slerp` does it).
//!
//! With a and b the two tensors as vectors and cos θ the cosine between them:
//! `sin((1-t)θ)/sin θ · a + sin(tθ)/sin θ · b`. The directions are normalised to find θ, the tensors themselves are
//! interpolated. Where |cos θ| > 0.9995 the formula loses its digits and `(1-t) a + t b` is taken.

use crate::device::{DType, Tensor};
use crate::error::{Error, Result};
use crate::model::Config;
use crate::model::safetensors::WeightFiles;
use crate::model::weight_header::header_bytes;
use crate::output::{StagedDir, refuse_inputs};
use crate::progress::Progress;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;
use serde::Serialize;
use serde_json::json;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Above this |cosine| the interpolation is linear.
pub const DOT_THRESHOLD: f64 = 0.9995;
/// Norms below this do not divide, as in mergekit: a zero tensor keeps its zero direction.
const NORM_FLOOR: f64 = 1e-8;
/// Elements that one task handles; sums do not depend on the number of threads.
const CHUNK: usize = 1 << 16;
/// Name of the record of what was merged.
pub const PROVENANCE: &str = "ratoon_slerp.json";

/// What a merge wrote.
#[derive(Clone, Debug, Serialize)]
pub struct SlerpReport {
    /// The output directory.
    pub output: PathBuf,
    /// Share of the second model, 0 to 1.
    pub t: f64,
    /// Tensors interpolated along the arc.
    pub spherical: usize,
    /// Tensors interpolated along the line, their directions being nearly equal or opposite.
    pub linear: usize,
    /// Seconds from the first read to the directory's final name.
    pub seconds: f64,
}

/// The weights of a and b in `s_a · a + s_b · b` for the cosine between them, and whether the line was taken.
///
/// `t` = 0 gives a and `t` = 1 gives b exactly.
pub fn slerp_weights(cos: f64, t: f64) -> (f64, f64, bool) {
    if cos.abs() > DOT_THRESHOLD || t == 0.0 || t == 1.0 {
        return (1.0 - t, t, cos.abs() > DOT_THRESHOLD);
    }
    let theta = cos.acos();
    ((theta - theta * t).sin() / theta.sin(), (theta * t).sin() / theta.sin(), false)
}

/// Writes the interpolation of model `a` (t = 0) and model `b` (t = 1) to `out`, with everything else from `a`.
///
/// Tensors are streamed in their place in the files; the output has `a`'s shards and element types. Errors: `t` outside 0 to 1;
/// configurations, names or shapes that differ; tensors that are not finite.
pub fn slerp(a: &Path, b: &Path, t: f64, out: &Path, overwrite: bool) -> Result<SlerpReport> {
    let start = std::time::Instant::now();
    if !(0.0..=1.0).contains(&t) {
        return Err(Error::usage("--t", "a share from 0 to 1", t.to_string()));
    }
    refuse_inputs(out, [a, b])?;
    same_shape(&Config::load(a)?, &Config::load(b)?)?;
    let (files_a, files_b) = (WeightFiles::open(a)?, WeightFiles::open(b)?);
    same_tensors(&files_a, &files_b, b)?;
    let staged = StagedDir::create(out, overwrite)?;
    let mut report = SlerpReport { output: out.to_path_buf(), t, spherical: 0, linear: 0, seconds: 0.0 };
    let progress = Progress::start("slerp", files_a.tensors.values().map(|t| t.len as u64).sum(), "bytes");
    for (shard, path) in files_a.shards.iter().enumerate() {
        let target = staged.path().join(path.file_name().unwrap_or_default());
        let file = File::create_new(&target).map_err(Error::io(&target, "create"))?;
        let mut file = BufWriter::with_capacity(1 << 20, file);
        file.write_all(&header_bytes(path)?).map_err(Error::io(&target, "write"))?;
        let mut tensors: Vec<_> = files_a.tensors.iter().filter(|(_, info)| info.shard == shard).collect();
        tensors.sort_by_key(|(_, info)| (info.start, info.len));
        for (name, info) in tensors {
            crate::interrupt::check()?;
            let (a, b) = (files_a.tensor(name)?, files_b.tensor(name)?);
            let linear = write_tensor(&a, &b, t, name, path, &mut file, &target)?;
            *(if linear { &mut report.linear } else { &mut report.spherical }) += 1;
            progress.add(info.len as u64);
        }
        file.into_inner().map_err(|e| Error::io(&target, "write")(e.into_error()))?;
    }
    copy_others(a, staged.path())?;
    let record = json!({
        "ratoon_version": env!("CARGO_PKG_VERSION"), "method": "slerp", "t": t, "dot_threshold": DOT_THRESHOLD,
        "models": [a.to_string_lossy(), b.to_string_lossy()], "spherical": report.spherical, "linear": report.linear,
    });
    let target = staged.path().join(PROVENANCE);
    fs::write(&target, format!("{record:#}\n")).map_err(Error::io(&target, "write"))?;
    staged.commit()?;
    report.seconds = start.elapsed().as_secs_f64();
    Ok(report)
}

/// Configurations must agree in everything that shapes or changes the computation.
fn same_shape(a: &Config, b: &Config) -> Result<()> {
    let fields = |c: &Config| {
        [
            ("hidden_size", format!("{}", c.hidden_size)),
            ("intermediate_size", format!("{}", c.intermediate_size)),
            ("num_hidden_layers", format!("{}", c.num_hidden_layers)),
            ("num_attention_heads, num_key_value_heads, head_dim", format!("{:?}", c.heads)),
            ("vocab_size", format!("{}", c.vocab_size)),
            ("tie_word_embeddings", format!("{}", c.tie_word_embeddings)),
            ("attention_bias", format!("{}", c.attention_bias)),
            ("mlp_bias", format!("{}", c.mlp_bias)),
            ("rms_norm_eps", format!("{}", c.rms_norm_eps)),
            ("rope_theta", format!("{}", c.rope_theta)),
            ("rope_scaling", format!("{:?}", c.rope_scaling)),
        ]
    };
    for ((field, of_a), (_, of_b)) in fields(a).into_iter().zip(fields(b)) {
        if of_a != of_b {
            let expected = format!("{of_a}, as {}", a.path.display());
            return Err(Error::format(&b.path, field, expected, of_b));
        }
    }
    Ok(())
}

/// Both models must have the same tensors with the same shapes.
fn same_tensors(a: &WeightFiles, b: &WeightFiles, dir_b: &Path) -> Result<()> {
    for (name, info) in &a.tensors {
        let other = b.tensors.get(name).map(|other| &other.shape);
        if other != Some(&info.shape) {
            let found = other.map_or("no such tensor".to_string(), |shape| format!("{shape:?}"));
            return Err(Error::format(dir_b, name.as_str(), format!("{:?}, as the first model", info.shape), found));
        }
    }
    match b.tensors.keys().find(|name| !a.tensors.contains_key(*name)) {
        Some(name) => Err(Error::format(dir_b, name.as_str(), "only tensors of the first model", "another one")),
        None => Ok(()),
    }
}

/// Chunks of both tensors as f32, in order, through `f`.
fn by_chunks<T: Send>(a: &Tensor, b: &Tensor, starts: &[usize], f: impl Fn(&[f32], &[f32]) -> T + Sync) -> Vec<T> {
    let n = a.elements();
    let chunk = |&start: &usize| {
        let len = CHUNK.min(n - start);
        let (mut of_a, mut of_b) = (vec![0.0; len], vec![0.0; len]);
        a.read_f32(start, &mut of_a);
        b.read_f32(start, &mut of_b);
        f(&of_a, &of_b)
    };
    starts.par_iter().map(chunk).collect()
}

/// Writes one interpolated tensor in `a`'s element type. Returns whether the line was taken.
fn write_tensor(
    a: &Tensor,
    b: &Tensor,
    t: f64,
    name: &str,
    path: &Path,
    out: &mut impl Write,
    target: &Path,
) -> Result<bool> {
    let starts: Vec<usize> = (0..a.elements()).step_by(CHUNK).collect();
    let sums = by_chunks(a, b, &starts, |a, b| {
        a.iter().zip(b).fold([0.0f64; 3], |[ab, aa, bb], (&a, &b)| {
            let (a, b) = (f64::from(a), f64::from(b));
            [ab + a * b, aa + a * a, bb + b * b]
        })
    });
    let [ab, aa, bb] = sums.iter().fold([0.0f64; 3], |total, part| [0, 1, 2].map(|i| total[i] + part[i]));
    if !(aa + bb).is_finite() {
        return Err(Error::format(path, name, "finite numbers in both models", "NaN or infinity"));
    }
    let direction = |norm: f64| if norm > NORM_FLOOR { norm } else { 1.0 };
    let cos = (ab / (direction(aa.sqrt()) * direction(bb.sqrt()))).clamp(-1.0, 1.0);
    let (of_a, of_b, linear) = slerp_weights(cos, t);
    // Some chunks at a time, so that memory does not grow with the tensor.
    for group in starts.chunks(4 * rayon::current_num_threads()) {
        let parts = by_chunks(a, b, group, |x, y| {
            let mixed = x.iter().zip(y).map(|(&x, &y)| (of_a * f64::from(x) + of_b * f64::from(y)) as f32);
            encode(&mixed.collect::<Vec<f32>>(), a.dtype())
        });
        for part in parts {
            out.write_all(&part).map_err(Error::io(target, "write"))?;
        }
    }
    Ok(linear)
}

/// Little-endian bytes of `values` rounded to `dtype`.
fn encode(values: &[f32], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::BF16 => {
            let mut rounded = vec![bf16::ZERO; values.len()];
            rounded.convert_from_f32_slice(values);
            bytemuck::cast_slice(&rounded).to_vec()
        }
        DType::F16 => {
            let mut rounded = vec![f16::ZERO; values.len()];
            rounded.convert_from_f32_slice(values);
            bytemuck::cast_slice(&rounded).to_vec()
        }
        DType::F32 | DType::U32 => bytemuck::cast_slice(values).to_vec(),
    }
}

/// Configuration, tokenizer, index and other text files of the first model.
fn copy_others(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).map_err(Error::io(from, "list"))? {
        let path = entry.map_err(Error::io(from, "list"))?.path();
        let Some(name) = path.file_name() else { continue };
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        let hidden = name.to_string_lossy().starts_with('.');
        let wanted = ["json", "jinja", "txt", "model", "tiktoken", "md", "yml"].contains(&extension.as_str());
        if path.is_file() && !hidden && (wanted || extension.is_empty()) {
            fs::copy(&path, to.join(name)).map_err(Error::io(&path, "copy"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arc_keeps_the_angle_s_share_and_the_length() {
        // Two unit vectors 90 degrees apart: halfway lies at 45 degrees with length 1.
        let (a, b, linear) = slerp_weights(0.0, 0.5);
        assert!(!linear && (a - 0.5f64.sqrt()).abs() < 1e-15 && (b - 0.5f64.sqrt()).abs() < 1e-15);
        // 60 degrees, a third of the way: sin 40 / sin 60 and sin 20 / sin 60.
        let (a, b, _) = slerp_weights(0.5, 1.0 / 3.0);
        let sin = |degrees: f64| degrees.to_radians().sin();
        assert!((a - sin(40.0) / sin(60.0)).abs() < 1e-14 && (b - sin(20.0) / sin(60.0)).abs() < 1e-14);
    }

    #[test]
    fn nearly_parallel_tensors_go_along_the_line() {
        assert_eq!(slerp_weights(0.9996, 0.25), (0.75, 0.25, true));
        assert_eq!(slerp_weights(-0.9996, 0.25), (0.75, 0.25, true));
        assert!(!slerp_weights(0.9994, 0.25).2);
    }

    #[test]
    fn the_ends_are_the_models_themselves() {
        assert_eq!(slerp_weights(0.3, 0.0), (1.0, 0.0, false));
        assert_eq!(slerp_weights(0.3, 1.0), (0.0, 1.0, false));
    }
}
