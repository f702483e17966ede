use crate::abi::rmsnorm_params;
use crate::gpu::{Gpu, in_every_schedule, row_threads};
use crate::numbers::{BF16, F32, assert_within, random_bf16, wide};

const EPS: f32 = 1e-5;

fn rmsnorm(x: &[u16], w: &[u16]) -> Vec<u16> {
    let (gpu, hidden) = (Gpu::get(), w.len());
    let (x_d, w_d) = (gpu.upload(x), gpu.upload(w));
    in_every_schedule(|| {
        let y = gpu.fresh::<u16>(x.len());
        let params = rmsnorm_params { y: y.ptr(), x: x_d.ptr(), w: w_d.ptr(), hidden: hidden as u32, eps: EPS };
        gpu.launch("rmsnorm", ((x.len() / hidden) as u32, 1, 1), row_threads(hidden), 0, &params);
        gpu.download(&y)
    })
}

#[test]
fn rows_are_normalised_as_in_f64() {
    // One element, odd rows, one warp, many warps, a row that fills the registers, one that does not fit.
    for (tokens, hidden) in [(1, 1), (7, 37), (3, 72), (5, 576), (1, 2048), (2, 8192), (2, 8200)] {
        let (x, w) = (random_bf16(tokens * hidden, 1), random_bf16(hidden, 2));
        let got = rmsnorm(&x, &w);
        let (x, w) = (wide(&x), wide(&w));
        let want: Vec<f64> = x
            .chunks(hidden)
            .flat_map(|row| {
                let mean = row.iter().map(|x| x * x).sum::<f64>() / hidden as f64;
                row.iter().zip(&w).map(move |(x, w)| x * w / (mean + f64::from(EPS)).sqrt())
            })
            .collect();
        // The result is rounded to bf16; a thread adds up hidden / threads squares, and 13 more sums and products follow.
        let steps = (hidden.div_ceil(row_threads(hidden) as usize) + 13) as f64;
        assert_within("y", &wide(&got), &want, |i| want[i].abs() * (BF16 + steps * F32) * 1.01);
    }
}

#[test]
fn a_row_does_not_depend_on_its_neighbours() {
    let (x, w) = (random_bf16(9 * 576, 3), random_bf16(576, 4));
    assert!(rmsnorm(&x, &w)[4 * 576..5 * 576] == rmsnorm(&x[4 * 576..5 * 576], &w));
}
