//! What the device can do at most: products and memory traffic, of the processor or of a card.

use crate::device::peak::Peak;
use crate::device::{DType, Device};
use crate::error::Result;
use crate::model::presets::Normal;
use crate::ops::matmul::{Store, matmul_nt};
use std::time::Instant;

/// Cards by the start of the driver's name: FLOP/s of dense products of bf16 with f32 sums (of f16 on Turing) and bytes/s of their
/// memory, from NVIDIA's data sheets. A longer name stands before one that it starts with.
const CARDS: [(&str, f64, f64); 18] = [
    ("NVIDIA H200 NVL", 835e12, 4.8e12),
    ("NVIDIA H200", 989.4e12, 4.8e12),
    ("NVIDIA H100 PCIe", 756e12, 2.0e12),
    ("NVIDIA H100 NVL", 835e12, 3.9e12),
    ("NVIDIA H100", 989.4e12, 3.35e12),
    ("NVIDIA A100-SXM4-80GB", 312e12, 2.039e12),
    ("NVIDIA A100 80GB PCIe", 312e12, 1.935e12),
    ("NVIDIA A100", 312e12, 1.555e12),
    ("NVIDIA A40", 149.7e12, 0.696e12),
    ("NVIDIA A10G", 70e12, 0.6e12),
    ("NVIDIA A10", 125e12, 0.6e12),
    ("NVIDIA L40S", 362e12, 0.864e12),
    ("NVIDIA L40", 181e12, 0.864e12),
    ("NVIDIA L4", 121e12, 0.3e12),
    ("NVIDIA RTX A6000", 154.8e12, 0.768e12),
    ("NVIDIA GeForce RTX 4090", 165.2e12, 1.008e12),
    ("NVIDIA GeForce RTX 3090", 71e12, 0.936e12),
    ("Tesla T4", 65e12, 0.32e12),
];

/// Largest product that a card is measured with.
const LARGEST: usize = 8192;
/// A product that takes this long is large enough.
const LONG: f64 = 2e-3;
/// Bytes of the copy that a card is measured with.
const COPY: usize = 256 << 20;
/// Rounds of a measurement; the best counts.
const ROUNDS: usize = 5;

/// The device's ceilings. Of the processor measured, see [`Peak::measure`]; of a known card its data sheet's; of another card what our
/// own product and a copy reach, which is less.
pub fn ceiling(dev: &Device) -> Result<Peak> {
    if dev.is_cpu() {
        return Ok(Peak::measure(dev.compute(), dev.weights()));
    }
    match data_sheet(&dev.description()) {
        Some(peak) => Ok(peak),
        None => measure(dev),
    }
}

/// A known card's.
fn data_sheet(card: &str) -> Option<Peak> {
    let known = CARDS.iter().find(|(name, ..)| card.starts_with(name));
    known.map(|&(_, flops_per_second, bytes_per_second)| Peak { flops_per_second, bytes_per_second })
}

/// A card's by a product of N(0, 1) numbers and a copy: FLOP/s, and bytes/s read and written.
fn measure(dev: &Device) -> Result<Peak> {
    let mut size = 256;
    let flops_per_second = loop {
        let seconds = product_seconds(dev, size)?;
        if seconds > LONG || size == LARGEST {
            break 2.0 * (size as f64).powi(3) / seconds;
        }
        size *= 2;
    };
    let bytes = dev.memory_budget().map_or(COPY, |budget| COPY.min(budget as usize / 8));
    let from = dev.zeros(&[bytes / 2], DType::BF16)?;
    let mut to = dev.zeros(&[bytes / 2], DType::BF16)?;
    let seconds = best_seconds(dev, || to.copy_from(&from))?;
    Ok(Peak { flops_per_second, bytes_per_second: 2.0 * bytes as f64 / seconds })
}

fn product_seconds(dev: &Device, size: usize) -> Result<f64> {
    let normal = Normal::new(1.0, DType::BF16);
    let operand = |stream| dev.upload(&normal.tensor(&[size, size], 0, stream), DType::BF16);
    let (x, w) = (operand(0)?, operand(1)?);
    let mut y = dev.zeros(&[size, size], DType::BF16)?;
    best_seconds(dev, || matmul_nt(dev, &mut y, &x, &w, None, Store::Replace))
}

/// Seconds of the fastest round, after one that does not count.
fn best_seconds(dev: &Device, mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    run()?;
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        dev.synchronize()?;
        let start = Instant::now();
        run()?;
        dev.synchronize()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_has_the_ceilings_of_its_own_name() {
        let of = |name| data_sheet(name).map(|peak| (peak.flops_per_second, peak.bytes_per_second));
        assert_eq!(of("NVIDIA H200"), Some((989.4e12, 4.8e12)));
        assert_eq!(of("NVIDIA H100 80GB HBM3"), Some((989.4e12, 3.35e12)));
        assert_eq!(of("NVIDIA H100 PCIe"), Some((756e12, 2.0e12)));
        assert_eq!(of("NVIDIA L40S"), Some((362e12, 0.864e12)));
        assert_eq!(of("NVIDIA L4"), Some((121e12, 0.3e12)));
        assert_eq!(of("a card of tomorrow"), None);
        for (i, (name, ..)) in CARDS.iter().enumerate() {
            let hidden = CARDS[..i].iter().find(|(earlier, ..)| name.starts_with(earlier));
            assert!(hidden.is_none(), "{name} is never reached");
        }
    }
}
