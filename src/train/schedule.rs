//! Learning rate over the steps, with the formulas of `transformers.optimization`.

use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// Shape of the learning rate after warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum SchedulerType {
    /// Straight down to zero.
    Linear,
    /// Half a cosine down to zero.
    Cosine,
    /// No change.
    Constant,
}

/// Learning rate of every step of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Highest learning rate.
    pub learning_rate: f64,
    /// Shape after warm-up.
    pub kind: SchedulerType,
    /// Steps of straight rise from zero.
    pub warmup_steps: u64,
    /// Optimiser steps of the run.
    pub total_steps: u64,
}

impl Schedule {
    /// Learning rate of optimiser step `step`, counted from 0.
    pub fn at(&self, step: u64) -> f64 {
        let (step, warmup, total) = (step as f64, self.warmup_steps as f64, self.total_steps as f64);
        if step < warmup {
            return self.learning_rate * step / warmup.max(1.0);
        }
        let rest = (total - warmup).max(1.0);
        self.learning_rate
            * match self.kind {
                SchedulerType::Linear => ((total - step) / rest).max(0.0),
                SchedulerType::Cosine => (0.5 * (1.0 + (PI * (step - warmup) / rest).cos())).max(0.0),
                SchedulerType::Constant => 1.0,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(kind: SchedulerType) -> Vec<f64> {
        let schedule = Schedule { learning_rate: 1.0, kind, warmup_steps: 2, total_steps: 6 };
        (0..7).map(|step| schedule.at(step)).collect()
    }

    /// Values worked out by hand from the formulas in the documentation of `get_*_schedule_with_warmup`.
    #[test]
    fn schedules_follow_transformers() {
        assert_eq!(rates(SchedulerType::Linear), [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]);
        assert_eq!(rates(SchedulerType::Constant), [0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0]);
        let root = 0.5f64.sqrt();
        let cosine = [0.0, 0.5, 1.0, 0.5 + 0.5 * root, 0.5, 0.5 - 0.5 * root, 0.0];
        for (got, want) in rates(SchedulerType::Cosine).into_iter().zip(cosine) {
            assert!((got - want).abs() < 1e-15, "{got} against {want}");
        }
    }
}
