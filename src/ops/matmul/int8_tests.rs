//! Products of 8-bit integers: equal bits on every instruction set, and the stated error against the weights as they were.

use super::blocked::{Operand, Product};
use super::int8::GROUP;
use super::pack::{Left, Source};
use super::tests::numbers;
use super::tile::Inputs;
use super::*;
use half::f16;

/// Scale and integers of each group of a row; `round` is what the scale is stored as.
fn quantised(row: &[f32], round: impl Fn(f32) -> f32) -> Vec<(f32, Vec<i32>)> {
    let one = |x: &[f32]| {
        let scale = round(x.iter().fold(0.0f32, |max, v| max.max(v.abs())) / 127.0);
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        (scale, x.iter().map(|v| (v * inverse).round_ties_even().clamp(-127.0, 127.0) as i32).collect())
    };
    row.chunks(GROUP).map(one).collect()
}

#[test]
fn integers_give_the_promised_chain_and_error_on_every_instruction_set() {
    for (case, (m, n, k)) in [(1, 32, 32), (1, 70, 576), (7, 33, 100), (130, 64, 65), (6, 5, 7)].into_iter().enumerate()
    {
        let x = numbers(case as u64, m * k);
        let mut w = numbers(77, n * k);
        w[..GROUP.min(k)].fill(0.0);
        let weight = PackedWeight::int8(&Tensor::from_f32(&w, &[n, k])).unwrap();
        let old = numbers(5, m * n);
        let rows: Vec<_> = x.chunks(k).map(|row| quantised(row, |scale| scale)).collect();
        let columns: Vec<_> = w.chunks(k).map(|row| quantised(row, |scale| f16::from_f32(scale).to_f32())).collect();
        for isa in Isa::available() {
            let mut c = old.clone();
            let (left, right) = (Left::Rows(Source::F32(&x)), Operand::Packed(&weight, 0));
            let product =
                Product { isa, inputs: Inputs::Int8, size: (m, n, k), left, right, bias: None, store: Store::Add };
            product.run(&mut c, n);
            for (at, (c, old)) in c.iter().zip(&old).enumerate() {
                let (i, j) = (at / n, at % n);
                let groups = || rows[i].iter().zip(&columns[j]);
                let chain = groups().fold(0.0f32, |sum, ((e, p), (d, q))| {
                    let dot: i32 = p.iter().zip(q).map(|(p, q)| p * q).sum();
                    (dot as f32).mul_add(d * e, sum)
                });
                assert_eq!(c.to_bits(), (old + chain).to_bits(), "{} {m}x{n}x{k} [{i}, {j}]", isa.name());
                let exact: f64 = (0..k).map(|p| f64::from(x[i * k + p]) * f64::from(w[j * k + p])).sum();
                // A weight is off by half a scale, and up to 127 / 2^11 of one more where its scale was rounded down; an
                // activation by half a scale. Sums add a few units of 2^-24 each.
                let bound: f64 = groups()
                    .enumerate()
                    .map(|(g, ((e, _), (d, _)))| {
                        let range = g * GROUP..k.min((g + 1) * GROUP);
                        let (e, d) = (f64::from(*e) * 0.5001, f64::from(*d) * 0.5625);
                        range
                            .map(|p| f64::from(x[i * k + p].abs()) * d + f64::from(w[j * k + p].abs()) * e + d * e)
                            .sum::<f64>()
                    })
                    .sum();
                let error = (f64::from(chain) - exact).abs();
                assert!(error <= bound + 1e-5, "{m}x{n}x{k} [{i}, {j}]: {chain} for {exact}, bound {bound}");
            }
        }
    }
}

#[test]
fn rows_of_integers_do_not_depend_on_their_neighbours_and_what_is_not_finite_shows() {
    let (m, n, k) = (125, 40, 64);
    let mut x = numbers(1, m * k);
    x[3 * k + 7] = f32::NAN;
    x[4 * k + 7] = f32::INFINITY;
    let weight = PackedWeight::int8(&Tensor::from_f32(&numbers(2, n * k), &[n, k])).unwrap();
    let dev = Device::cpu();
    let run = |rows: std::ops::Range<usize>| {
        let part = Tensor::from_f32(&x[rows.start * k..rows.end * k], &[rows.len(), k]);
        let mut y = Tensor::zeros(&[rows.len(), n], DType::F32);
        matmul_packed(&dev, &mut y, &part, &weight, None, Store::Replace).unwrap();
        y.f32().to_vec()
    };
    let all = run(0..m);
    for i in [0, 1, 5, 119, 124] {
        let alone = run(i..i + 1);
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
        assert_eq!(bits(&alone), bits(&all[i * n..(i + 1) * n]), "row {i}");
    }
    assert!(all[3 * n..5 * n].iter().all(|y| y.is_nan()));
    // 34 bytes for 32 weights, over whole panels.
    assert_eq!(weight.size_bytes(), 64 * k / 32 * 34);
}
