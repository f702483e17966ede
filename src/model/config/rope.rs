//! Rotary positions (Su et al. 2021, arXiv 2104.09864) and their stretching for long contexts.

use super::fields::Fields;
use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::f64::consts::PI;
use std::path::Path;

/// How rotary frequencies are stretched for long contexts.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Frequencies as they are.
    None,
    /// All frequencies divided by `factor`.
    Linear {
        /// Context extension factor.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths divided by `factor`, short ones kept, a ramp between.
    Llama3 {
        /// Context extension factor.
        factor: f64,
        /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are stretched.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context the model was first trained with, in tokens.
        original_max_position_embeddings: f64,
    },
}

impl std::fmt::Display for RopeScaling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RopeScaling::None => f.write_str("default"),
            RopeScaling::Linear { factor } => write!(f, "linear, factor {factor}"),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let range = format!("low {low_freq_factor}, high {high_freq_factor}");
                write!(f, "llama3, factor {factor}, {range}, first trained with {original_max_position_embeddings}")
            }
        }
    }
}

/// `rope_theta` and the scaling, from either spelling: `rope_parameters` (transformers 5, with `rope_theta` inside) or
/// `rope_scaling` beside `rope_theta`.
pub(super) fn parse(json: &Map<String, Value>, path: &Path) -> Result<(f64, RopeScaling)> {
    let top = Fields { json, path, prefix: "" };
    let (key, prefix) = match (top.get("rope_parameters"), top.get("rope_scaling")) {
        (Some(_), None) => ("rope_parameters", "rope_parameters."),
        (Some(new), Some(old)) if new == old => ("rope_parameters", "rope_parameters."),
        (Some(_), Some(_)) => return Err(top.wrong("rope_scaling", "nothing, or the same as rope_parameters")),
        (None, _) => ("rope_scaling", "rope_scaling."),
    };
    let theta = top.optional_number("rope_theta")?;
    let Some(value) = top.get(key) else { return Ok((theta.unwrap_or(10_000.0), RopeScaling::None)) };
    let object = value.as_object().ok_or_else(|| top.wrong(key, "an object"))?;
    let rope = Fields { json: object, path, prefix };
    if let Some((name, _)) = object.iter().find(|(_, v)| v.is_object()) {
        return Err(rope.unsupported(name, "one set of rotary parameters for all layers is"));
    }
    rope.only("partial_rotary_factor", &[1.into(), 1.0.into()], "rotation of the whole head (1.0) is")?;
    let inner = rope.optional_number("rope_theta")?;
    if let (Some(outer), Some(inner)) = (theta, inner)
        && outer != inner
    {
        let expected = format!("{outer} as rope_theta says");
        return Err(rope.wrong("rope_theta", expected));
    }
    let scaling = scaling(&rope)?;
    Ok((inner.or(theta).unwrap_or(10_000.0), scaling))
}

fn scaling(rope: &Fields) -> Result<RopeScaling> {
    let kind = match (rope.optional_str("rope_type")?, rope.optional_str("type")?) {
        (None, None) if rope.get("factor").is_some() => {
            return Err(rope.wrong("rope_type", "\"default\", \"linear\" or \"llama3\""));
        }
        (new, old) => new.or(old).unwrap_or("default"),
    };
    match kind {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: rope.number("factor")? }),
        "llama3" => {
            let low_freq_factor = rope.number("low_freq_factor")?;
            let high_freq_factor = rope.number("high_freq_factor")?;
            if high_freq_factor <= low_freq_factor {
                return Err(rope.wrong("high_freq_factor", format!("more than low_freq_factor {low_freq_factor}")));
            }
            Ok(RopeScaling::Llama3 {
                factor: rope.number("factor")?,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings: rope.number("original_max_position_embeddings")?,
            })
        }
        other => {
            let what = format!("{}rope_type = {other:?}", rope.prefix);
            Err(Error::unsupported(rope.path, what, "default, linear and llama3 are"))
        }
    }
}

/// Rotary frequencies in radians per position, `[head_dim / 2]`, scaling applied.
pub(super) fn inv_freq(head_dim: usize, theta: f64, scaling: RopeScaling) -> Vec<f32> {
    let base = (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64));
    let scaled = base.map(|freq| match scaling {
        RopeScaling::None => freq,
        RopeScaling::Linear { factor } => freq / factor,
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings: original,
        } => {
            let wavelength = 2.0 * PI / freq;
            if wavelength < original / high_freq_factor {
                freq
            } else if wavelength > original / low_freq_factor {
                freq / factor
            } else {
                let ramp = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                (1.0 - ramp) * freq / factor + ramp * freq
            }
        }
    });
    scaled.map(|f| f as f32).collect()
}
