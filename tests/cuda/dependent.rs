//! Launches of a graph that start before those in front of them have ended, on compute capability 9.0.

use crate::{calls, card};
use ratoon::device::cuda::cards;
use ratoon::device::{DType, Device, Repeated, Tensor};
use ratoon::ops::matmul::{Store, matmul_nt};
use ratoon::ops::philox;
use ratoon::ops::scale::scale;

const K: usize = 392;
const N: usize = 200;

/// BF16 `[rows, K]` on the card, uniform in -1 to 1.
fn random(dev: &Device, rows: usize, seed: u64) -> Tensor {
    let of = |i: u64| philox::block(seed, 0, i)[0] as f32 / 2f32.powi(31) - 1.0;
    let values: Vec<f32> = (0..(rows * K) as u64).map(of).collect();
    dev.upload(&Tensor::from_f32(&values, &[rows, K]), DType::BF16).unwrap()
}

/// Products of four passes through `step`, which changes x or w; with `repeated` as a graph from the second on.
fn products(
    dev: &Device,
    rows: usize,
    mut repeated: Option<Repeated>,
    step: impl Fn(&Device, &mut Tensor, &mut Tensor, &mut Tensor) -> ratoon::Result<()>,
) -> Vec<Vec<f32>> {
    let (mut x, mut w) = (random(dev, rows, 1), random(dev, N, 2));
    let mut y = dev.zeros(&[rows, N], DType::BF16).unwrap();
    let mut pass = || {
        match &mut repeated {
            Some(repeated) => dev.repeat(repeated, &[], || step(dev, &mut x, &mut w, &mut y)).unwrap(),
            None => step(dev, &mut x, &mut w, &mut y).unwrap(),
        }
        y.host().unwrap().to_f32().f32().to_vec()
    };
    (0..4).map(|_| pass()).collect()
}

/// Dependent launches that this thread has captured, where the card has them.
fn dependent() -> Option<u64> {
    let hopper = cards().unwrap()[0].compute_capability == (9, 0);
    calls(c"cuLaunchKernelEx").filter(|_| hopper)
}

/// From one row, blocks of all sizes of clusters and tiles; each pass has other rows.
#[test]
fn products_whose_weights_come_before_their_rows_have_the_bits_of_others() {
    let dev = card();
    for rows in [1, 9, 20, 40, 130] {
        let step = |dev: &Device, x: &mut Tensor, w: &mut Tensor, y: &mut Tensor| {
            scale(dev, x, 0.75)?;
            matmul_nt(dev, y, x, w, None, Store::Replace)?;
            matmul_nt(dev, y, x, w, None, Store::Add)
        };
        let before = dependent();
        let got = products(&dev, rows, Some(Repeated::default()), step);
        assert_eq!(dependent(), before.map(|n| n + 2), "all but the first of a graph");
        assert_eq!(got, products(&dev, rows, None, step), "{rows} rows");
        assert!(got[0] != got[3], "passes differ");
    }
}

/// Checks a step that has one dependent launch alone.
fn one_may_start_early(step: impl Fn(&Device, &mut Tensor, &mut Tensor, &mut Tensor) -> ratoon::Result<()>) {
    let dev = card();
    let before = dependent();
    let got = products(&dev, 3, Some(Repeated::default()), &step);
    assert_eq!(dependent(), before.map(|n| n + 1));
    assert_eq!(got, products(&dev, 3, None, &step));
}

#[test]
fn weights_that_the_step_itself_changes_do_not_come_before_that() {
    one_may_start_early(|dev, x, w, y| {
        scale(dev, x, 1.0)?;
        scale(dev, w, 0.75)?;
        matmul_nt(dev, y, x, w, None, Store::Replace)
    });
    one_may_start_early(|dev, x, w, y| {
        scale(dev, w, 0.75)?;
        scale(dev, x, 1.0)?;
        matmul_nt(dev, y, x, w, None, Store::Replace)
    });
    // The launch behind a fill waits as well.
    one_may_start_early(|dev, x, w, y| {
        matmul_nt(dev, y, x, w, None, Store::Replace)?;
        w.zero()?;
        scale(dev, x, 1.0)?;
        scale(dev, x, 1.0)?;
        matmul_nt(dev, y, x, w, None, Store::Add)
    });
}
