//! Gradients of norms, biases, embeddings; dropout.

use crate::abi::{
    COLUMN_SUMS_CHUNK, RMSNORM_CHUNK, ROW_THREADS, add_rows_params, column_sums_params, dropout_params,
    embedding_backward_params, rmsnorm_backward_params,
};
use crate::gpu::{Buffer, Gpu, in_every_schedule};
use crate::numbers::{BF16, F32, assert_within, random, random_bf16, wide, wide32};
use crate::philox;
use half::bf16;
use std::ptr;

fn add_rows(y: &Buffer<f32>, partial: &Buffer<f32>, rows: usize, width: usize) {
    let params = add_rows_params { y: y.ptr(), partial: partial.ptr(), rows: rows as u32, width: width as u32 };
    Gpu::get().launch("add_rows", (width.div_ceil(ROW_THREADS as usize) as u32, 1, 1), ROW_THREADS, 0, &params);
}

#[test]
fn rmsnorm_gradients_equal_f64() {
    let (gpu, eps) = (Gpu::get(), 1e-5f32);
    for (tokens, hidden) in [(1usize, 1usize), (17, 37), (16, 576), (35, 72), (3, 2056)] {
        let [x, dy, before] = [1, 2, 3].map(|seed| random_bf16(tokens * hidden, seed));
        let (w, dw_before) = (random_bf16(hidden, 4), random(hidden, 5));
        let (x_d, dy_d, w_d) = (gpu.upload(&x), gpu.upload(&dy), gpu.upload(&w));
        for add in [false, true] {
            let chunks = tokens.div_ceil(RMSNORM_CHUNK as usize);
            let (dx, dw) = in_every_schedule(|| {
                let dx = if add { gpu.upload(&before) } else { gpu.fresh::<u16>(tokens * hidden) };
                let (partial, dw) = (gpu.fresh::<f32>(chunks * hidden), gpu.upload(&dw_before));
                let params = rmsnorm_backward_params {
                    dx: dx.ptr(),
                    partial: if add { ptr::null_mut() } else { partial.ptr() },
                    dy: dy_d.ptr(),
                    x: x_d.ptr(),
                    w: w_d.ptr(),
                    tokens: tokens as u32,
                    hidden: hidden as u32,
                    add: u32::from(add),
                    eps,
                };
                gpu.launch("rmsnorm_backward", (chunks as u32, 1, 1), ROW_THREADS, 0, &params);
                if !add {
                    add_rows(&dw, &partial, chunks, hidden);
                }
                (gpu.download(&dx), gpu.download(&dw))
            });
            let (x, dy, w, before) = (wide(&x), wide(&dy), wide(&w), wide(&before));
            let (mut want, mut size) = (vec![], vec![]);
            let (mut want_dw, mut size_dw) = (wide32(&dw_before), vec![1.0; hidden]);
            for (t, (x, dy)) in x.chunks(hidden).zip(dy.chunks(hidden)).enumerate() {
                let r = (x.iter().map(|x| x * x).sum::<f64>() / hidden as f64 + f64::from(eps)).powf(-0.5);
                let products = || (0..hidden).map(|i| dy[i] * w[i] * x[i]);
                let mean = products().sum::<f64>() / hidden as f64;
                let mean_size = products().map(f64::abs).sum::<f64>() / hidden as f64;
                for i in 0..hidden {
                    let old = if add { before[t * hidden + i] } else { 0.0 };
                    want.push(old + r * (dy[i] * w[i] - x[i] * r * r * mean));
                    size.push(old.abs() + r * ((dy[i] * w[i]).abs() + x[i].abs() * r * r * mean_size));
                    want_dw[i] += dy[i] * x[i] * r;
                    size_dw[i] += (dy[i] * x[i] * r).abs();
                }
            }
            // A lane adds hidden / 32 products; then a handful of operations.
            let steps = (hidden.div_ceil(32) + 24) as f64 * F32;
            let bound = |i: usize| size[i] * 2.0 * steps + want[i].abs() * BF16;
            assert_within(&format!("dx {tokens} x {hidden}"), &wide(&dx), &want, bound);
            if !add {
                let bound = |i: usize| size_dw[i] * (steps + (tokens + 2) as f64 * F32);
                assert_within(&format!("dw {tokens} x {hidden}"), &wide32(&dw), &want_dw, bound);
            }
        }
    }
}

#[test]
fn bias_gradients_are_column_sums() {
    let gpu = Gpu::get();
    for (tokens, width) in [(1, 1), (64, 300), (65, 7), (200, 257)] {
        let (x, before) = (random_bf16(tokens * width, 1), random(width, 2));
        let x_d = gpu.upload(&x);
        let chunks = tokens.div_ceil(COLUMN_SUMS_CHUNK as usize);
        let got = in_every_schedule(|| {
            let (partial, y) = (gpu.fresh::<f32>(chunks * width), gpu.upload(&before));
            let params =
                column_sums_params { partial: partial.ptr(), x: x_d.ptr(), tokens: tokens as u32, width: width as u32 };
            let blocks = width.div_ceil(ROW_THREADS as usize) as u32;
            gpu.launch("column_sums", (blocks, chunks as u32, 1), ROW_THREADS, 0, &params);
            add_rows(&y, &partial, chunks, width);
            gpu.download(&y)
        });
        let x = wide(&x);
        let want: Vec<f64> =
            (0..width).map(|j| f64::from(before[j]) + (0..tokens).map(|t| x[t * width + j]).sum::<f64>()).collect();
        // As many roundings of sums below the number of tokens.
        assert_within("bias", &wide32(&got), &want, |_| ((tokens + 1) * (tokens + 1)) as f64 * F32);
    }
}

#[test]
fn embedding_rows_are_added_in_the_order_of_tokens() {
    let gpu = Gpu::get();
    for (tokens, hidden, vocab) in [(1usize, 8usize, 3usize), (600, 13, 40), (300, 264, 7)] {
        let ids: Vec<u32> = (0..tokens).map(|t| (t * t % vocab) as u32).collect();
        let (dy, before) = (random_bf16(tokens * hidden, 1), random(vocab * hidden, 2));
        let (dy_d, ids_d) = (gpu.upload(&dy), gpu.upload(&ids));
        let got = in_every_schedule(|| {
            let d_table = gpu.upload(&before);
            let params = embedding_backward_params {
                d_table: d_table.ptr(),
                dy: dy_d.ptr(),
                ids: ids_d.ptr(),
                tokens: tokens as u32,
                hidden: hidden as u32,
            };
            gpu.launch("embedding_backward", (tokens as u32, 1, 1), ROW_THREADS, 0, &params);
            gpu.download(&d_table)
        });
        let mut want = before.clone();
        for (t, &id) in ids.iter().enumerate() {
            for i in 0..hidden {
                want[id as usize * hidden + i] += bf16::from_bits(dy[t * hidden + i]).to_f32();
            }
        }
        assert!(got == want, "{tokens} x {hidden}");
    }
}

#[test]
fn dropout_takes_the_words_of_its_stream() {
    let gpu = Gpu::get();
    let (seed, stream, probability) = (5u64 << 33 | 3, 9u64 << 32 | 1, 0.25f32);
    for n in [3usize, 8, 2051] {
        let x = random_bf16(n, 1);
        let x_d = gpu.upload(&x);
        let got = in_every_schedule(|| {
            let y = gpu.fresh::<u16>(n);
            let params = dropout_params { y: y.ptr(), x: x_d.ptr(), n: n as u64, seed, stream, probability };
            let blocks = n.div_ceil(8 * ROW_THREADS as usize) as u32;
            gpu.launch("dropout", (blocks, 1, 1), ROW_THREADS, 0, &params);
            gpu.download(&y)
        });
        let keep = 1.0 / (1.0 - probability);
        let want: Vec<u16> = (0..n)
            .map(|i| {
                let kept = philox::unit(philox::block(seed, stream, i as u64 / 4)[i % 4]) >= probability;
                bf16::from_f32(if kept { bf16::from_bits(x[i]).to_f32() * keep } else { 0.0 }).to_bits()
            })
            .collect();
        assert!(got == want, "{n}");
    }
}
