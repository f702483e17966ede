//! Fine-tuning: packing, step, optimiser, schedule, checkpoints, merging.

pub mod slerp;
