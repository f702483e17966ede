//! Every bit of a weight comes back, and products of packed weights have the bits of products of the stored ones.

use super::blocked::{Operand, Product};
use super::lossless::{BLOCK, RAW_BLOCK, bytes, pack, unpack};
use super::pack::{Left, Right, Source};
use super::tests::numbers;
use super::tile::{Inputs, Kind, PANEL};
use super::*;
use crate::device::Compute;
use half::bf16;

fn weight(n: usize, k: usize, bits: impl Fn(usize) -> u16) -> Tensor {
    let mut t = Tensor::zeros(&[n, k], DType::BF16);
    t.bf16_mut().iter_mut().enumerate().for_each(|(i, t)| *t = bf16::from_bits(bits(i)));
    t
}

/// Normally distributed with a deviation of 0.03, as trained weights about are.
fn normal(n: usize, k: usize) -> Tensor {
    let uniform = numbers(2, 2 * n * k);
    weight(n, k, |i| {
        let radius = (-2.0 * (0.5 + 0.5 * uniform[2 * i]).max(1e-30).ln()).sqrt();
        bf16::from_f32(0.03 * radius * (std::f32::consts::PI * uniform[2 * i + 1]).cos()).to_bits()
    })
}

/// Bits of the weight as panels of pairs, from the definition of a panel.
fn pairs(weight: &Tensor) -> Vec<Vec<u32>> {
    let (n, k) = (weight.rows(), weight.row_len());
    let at = |i: usize, p: usize| if i < n && p < k { u32::from(weight.bf16()[i * k + p].to_bits()) } else { 0 };
    let pair = |i: usize, p: usize| at(i, 2 * p) | at(i, 2 * p + 1) << 16;
    let panel = |first: usize| {
        let all = (0..k.div_ceil(2)).flat_map(|p| (0..PANEL).map(move |j| (first + j, p)));
        all.map(|(i, p)| pair(i, p)).collect()
    };
    (0..n).step_by(PANEL).map(panel).collect()
}

/// Blocks of the weight that stay as they are, after comparing what comes out of every panel with what went in.
fn raw_blocks(weight: &Tensor) -> Option<usize> {
    let (data, raw) = pack(weight)?;
    for (panel, expected) in data.bytes().chunks_exact(bytes(weight.row_len())).zip(pairs(weight)) {
        let mut found = vec![!0; expected.len()];
        unpack(&mut found, panel, raw.bytes());
        assert_eq!(found, expected);
    }
    Some(raw.bytes().len() / RAW_BLOCK)
}

#[test]
fn every_bit_pattern_comes_back() {
    // 16 upper bytes with every lower one: 4,096 patterns fill 64 steps of 64 columns.
    for first in (0..256).step_by(16) {
        let bits = |i: usize| ((first + i % 16) * 256 + i / 16 % 256) as u16;
        assert_eq!(raw_blocks(&weight(64, 64, bits)), Some(0), "from {first}");
    }
    // All patterns in one weight: no block has few upper bytes, so it is packed as it is.
    let all = weight(256, 256, |i| (i as u16).wrapping_mul(40_503));
    assert_eq!(raw_blocks(&all), None);
    let packed = PackedWeight::of_kind(&all, Kind::Lossless).unwrap();
    assert_eq!((packed.kind(), packed.size_bytes()), (Kind::Bf16, 2 * 65_536));
}

#[test]
fn a_block_with_too_many_upper_bytes_stays_as_it_is() {
    // 17 upper bytes in the last block, a short one, of the second of nine panels.
    let (n, k) = (9 * PANEL, 77);
    let bits = |i: usize| {
        let (row, step) = (i / k, i % k);
        if row / PANEL == 1 && step >= BLOCK { (row % 17 * 256 + step) as u16 } else { 0x3f80 + i as u16 % 128 }
    };
    assert_eq!(raw_blocks(&weight(n, k, bits)), Some(1));
}

#[test]
fn odd_shapes_come_back() {
    for (n, k) in [(1, 1), (5, 3), (31, 64), (33, 63), (32, 65), (70, 129), (96, 576)] {
        let values = numbers(1, n * k);
        assert!(raw_blocks(&weight(n, k, |i| bf16::from_f32(values[i]).to_bits())).is_some(), "{n} x {k}");
    }
    assert_eq!(raw_blocks(&weight(0, 5, |_| 0)), Some(0));
    assert!(pack(&weight(5, 0, |_| 0)).is_some());
}

#[test]
fn normally_distributed_weights_take_three_quarters_of_their_memory() {
    let (n, k) = (512, 1536);
    let weight = normal(n, k);
    let blocks = n / PANEL * (k / BLOCK);
    assert!(raw_blocks(&weight).unwrap() * 100 < blocks);
    let packed = PackedWeight::of_kind(&weight, Kind::Lossless).unwrap();
    assert_eq!(packed.kind(), Kind::Lossless);
    let most = blocks * bytes(BLOCK) + blocks * RAW_BLOCK / 100;
    assert!((blocks * bytes(BLOCK)..most).contains(&packed.size_bytes()) && most < 2 * n * k * 77 / 100);
}

#[test]
fn products_have_the_bits_of_the_stored_weight_whatever_it_holds() {
    let k = 3 * BLOCK + 9;
    let n = 70;
    let specials = [0, 0x8000, 1, 0x807f, 0x7f80, 0xff80, 0x7fc1, 0xffff, 0x7f7f, 0x0080];
    let mut weights = vec![normal(n, k)];
    for every in [1, 97, 1_000_000] {
        // Special values among those of four upper bytes; the second block of the first panel has all of them.
        let plain = |i: usize| [0x3e80, 0xbf10][i % 2] + (i * 29 % 256) as u16;
        weights.push(weight(n, k, |i| {
            let (row, step) = (i / k, i % k);
            if row < PANEL && step / BLOCK == 1 && every > 1 {
                (i * 257) as u16
            } else if i % every == every / 2 {
                specials[i % specials.len()]
            } else {
                plain(i)
            }
        }));
    }
    let x: Vec<f32> = numbers(3, 130 * k);
    for (w, weight) in weights.iter().enumerate() {
        let packed = PackedWeight::of_kind(weight, Kind::Lossless).unwrap();
        assert_eq!(packed.kind(), Kind::Lossless, "weight {w}");
        for (isa, compute) in Isa::available().into_iter().flat_map(|isa| [(isa, Compute::F32), (isa, Compute::Bf16)]) {
            for m in [1, 2, 8, 9, 12, 13, 31, 64, 130] {
                for store in [Store::Replace, Store::Add] {
                    let mut results =
                        [Operand::Plain(Right::Rows(weight, 0)), Operand::Packed(&packed, 0)].map(|right| {
                            let left = Left::Rows(Source::F32(&x[..m * k]));
                            let inputs = Inputs::new(compute, None);
                            let mut y = vec![0.5f32; m * n];
                            Product { isa, inputs, size: (m, n, k), left, right, bias: None, store }.run(&mut y, n);
                            y.into_iter().map(f32::to_bits).collect::<Vec<u32>>()
                        });
                    let [plain, packed] = results.each_mut();
                    // Which of two NaN goes through is up to the compiler where it orders the operands.
                    for y in [&mut *plain, &mut *packed] {
                        y.iter_mut().filter(|y| f32::from_bits(**y).is_nan()).for_each(|y| *y = f32::NAN.to_bits());
                    }
                    assert_eq!(plain, packed, "weight {w}, {m} rows, {} {compute} {store:?}", isa.name());
                }
            }
        }
    }
}
