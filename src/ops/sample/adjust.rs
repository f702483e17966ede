//! Changes of logits before anything is drawn from them: repetition penalty and logit bias.

use super::Draw;
use crate::error::{Error, Result};
use std::borrow::Cow;

/// The logits that a draw is made from: those of the model where the draw changes nothing.
///
/// The repetition penalty (Keskar et al. 2019, arXiv 1909.05858) divides the positive logits of ids in `draw.seen` by the penalty
/// and multiplies the others with it, once however often an id was seen; the bias is added then.
pub(super) fn adjusted<'a>(row: &'a [f32], draw: &Draw) -> Result<Cow<'a, [f32]>> {
    let penalty = draw.sampling.repetition_penalty;
    let seen = if penalty == 1.0 { &[] } else { draw.seen };
    if seen.is_empty() && draw.logit_bias.is_empty() {
        return Ok(Cow::Borrowed(row));
    }
    let unknown = |id: u32| Error::shape("sample", "ids", format!("ids below {}", row.len()), id.to_string());
    let mut out = row.to_vec();
    for &id in seen {
        let logit = *row.get(id as usize).ok_or_else(|| unknown(id))?;
        out[id as usize] = if logit > 0.0 { logit / penalty } else { logit * penalty };
    }
    for &(id, bias) in draw.logit_bias {
        *out.get_mut(id as usize).ok_or_else(|| unknown(id))? += bias;
    }
    Ok(Cow::Owned(out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::sample::Sampling;

    #[test]
    fn seen_ids_are_penalised_once_and_biases_are_added() {
        let row = [2.0, -2.0, 1.0, 0.5];
        let sampling = Sampling { repetition_penalty: 2.0, ..Sampling::GREEDY };
        let draw = Draw { seen: &[1, 0, 0, 1], logit_bias: &[(0, 0.25), (3, -100.0)], ..Draw::new(sampling, 0, 0) };
        assert_eq!(adjusted(&row, &draw).unwrap().as_ref(), [1.25, -4.0, 1.0, -99.5]);
        let nothing = Draw { seen: &[1, 0], ..Draw::new(Sampling::GREEDY, 0, 0) };
        assert!(matches!(adjusted(&row, &nothing).unwrap(), Cow::Borrowed(_)));
        let unknown = Draw { logit_bias: &[(4, 1.0)], ..Draw::new(sampling, 0, 0) };
        assert!(adjusted(&row, &unknown).unwrap_err().to_string().contains("ids below 4"));
    }
}
