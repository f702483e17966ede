//! Measuring: perplexity, divergence from the base model, tasks, FLOPs, speed.

pub mod flops;
