//! Launches of `kernels/matmul_sm90.cu`, on compute capability 9.0.

use super::cuda::Layout;
use crate::device::cuda::{Cuda, Grid, TENSOR_ALIGNMENT, abi};
use crate::error::Result;

/// Rows of a tile of y, and elements of a row of a box.
const ROWS: usize = 128;
const BOX: usize = 64;
/// Most rows of weights in a tile of the kernels for few rows.
const WEIGHTS: usize = 128;

/// Most rows that count as few: up to here tiles of 128 x 128 would leave multiprocessors without work where n is 4,096.
const FEW: usize = 512;

/// Kernels for few rows, by how many of them are in a tile.
const FEW_ROWS: [(usize, &str); 5] = [
    (8, "matmul_sm90_rows_8"),
    (16, "matmul_sm90_rows_16"),
    (32, "matmul_sm90_rows_32"),
    (64, "matmul_sm90_rows_64"),
    (128, "matmul_sm90_rows_128"),
];

/// Whether the card and the shape are the kernels': the copy engine wants operands with rows of whole 16 bytes, stores want rows
/// of whole fours. Does not depend on the number of rows in a batch, so neither do results.
pub(super) fn takes(cuda: &Cuda, layout: Layout, params: &abi::matmul_params) -> bool {
    let widths = match layout {
        Layout::Nt => [params.k, params.k],
        Layout::Nn => [params.k, params.n],
        Layout::Tn => [params.m, params.n],
    };
    let aligned = |width: u32| (width as usize * size_of::<abi::bf16>()).is_multiple_of(TENSOR_ALIGNMENT);
    cuda.card.compute_capability == (9, 0)
        && params.m.min(params.n).min(params.k) > 0
        && params.n.is_multiple_of(4)
        && widths.into_iter().all(aligned)
}

/// The product that `params` describe, for shapes that [`takes`] accepts.
pub(super) fn launch(cuda: &Cuda, layout: Layout, params: abi::matmul_params) -> Result<()> {
    let (m, n, k) = (params.m as usize, params.n as usize, params.k as usize);
    let multiprocessors = cuda.card.multiprocessors as usize;
    // The smallest that holds all rows, or the largest.
    let (of_a, few) = *FEW_ROWS.iter().find(|(of_a, _)| m <= *of_a).unwrap_or(&FEW_ROWS[FEW_ROWS.len() - 1]);
    // Columns of the tile, rows of weights in a tile of y^T.
    let (kernel, columns, rows) = if layout == Layout::Nt && m <= FEW {
        // As many tiles for every multiprocessor, as large as they may be.
        let all = n * m.div_ceil(of_a);
        let tiles = all.div_ceil(multiprocessors * WEIGHTS);
        (few, of_a, all.div_ceil(multiprocessors * tiles).next_multiple_of(8).min(WEIGHTS))
    } else if n > 128 && m.div_ceil(ROWS) * n.div_ceil(256) >= multiprocessors {
        let kernel = match layout {
            Layout::Nt => "matmul_sm90_nt_256",
            Layout::Nn => "matmul_sm90_nn_256",
            Layout::Tn => "matmul_sm90_tn_256",
        };
        (kernel, 256, 0)
    } else {
        let kernel = match layout {
            Layout::Nt => "matmul_sm90_nt_128",
            Layout::Nn => "matmul_sm90_nn_128",
            Layout::Tn => "matmul_sm90_tn_128",
        };
        (kernel, 128, 0)
    };
    let tiles = if rows > 0 { n.div_ceil(rows) * m.div_ceil(columns) } else { m.div_ceil(ROWS) * n.div_ceil(columns) };
    // A matrix whose rows are the operand's, with k along them, or the steps of k.
    let along = |outer: usize, tile: usize| ([k, outer], [BOX, tile]);
    let down = |outer: usize| ([outer, k], [BOX, BOX]);
    let (a_tile, b_tile) = if rows > 0 { (columns, rows) } else { (ROWS, columns) };
    let (a, b) = match layout {
        Layout::Nt => (along(m, a_tile), along(n, b_tile)),
        Layout::Nn => (along(m, a_tile), down(n)),
        Layout::Tn => (down(m), down(n)),
    };
    let params = abi::matmul_sm90_params {
        a: cuda.tensor_map(params.a, a.0, a.1)?,
        b: cuda.tensor_map(params.b, b.0, b.1)?,
        product: params,
        rows: rows as u32,
    };
    let blocks = [tiles.min(multiprocessors), 1, 1];
    cuda.launch(kernel, Grid { blocks, threads: 384, shared: abi::MATMUL_SM90_SHARED }, &params)
}
