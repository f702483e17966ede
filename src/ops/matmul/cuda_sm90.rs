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

/// Bytes of shared memory.
const SHARED: u32 = abi::MATMUL_SM90_SHARED;

/// Kernels for few rows: how many of them are in a tile, and blocks of a cluster.
const FEW_ROWS: [(usize, usize, &str); 5] = [
    (8, 1, "matmul_sm90_rows_8"),
    (16, 1, "matmul_sm90_rows_16"),
    (32, abi::MATMUL_SM90_ROWS_CLUSTER as usize, "matmul_sm90_rows_32"),
    (64, abi::MATMUL_SM90_ROWS_CLUSTER as usize, "matmul_sm90_rows_64"),
    (128, abi::MATMUL_SM90_ROWS_CLUSTER as usize, "matmul_sm90_rows_128"),
];

/// Whether the card is one that the kernels are for.
pub(super) fn has_kernels(cuda: &Cuda) -> bool {
    cuda.card.compute_capability == (9, 0)
}

/// Whether the card and the shape are the kernels': the copy engine wants operands with rows of whole 16 bytes, stores want rows
/// of whole fours. Does not depend on the number of rows in a batch, so neither do results.
pub(super) fn takes(cuda: &Cuda, layout: Layout, params: &abi::matmul_params) -> bool {
    let widths = match layout {
        Layout::Nt => [params.k, params.k],
        Layout::Nn => [params.k, params.n],
        Layout::Tn => [params.m, params.n],
    };
    let aligned = |width: u32| (width as usize * size_of::<abi::bf16>()).is_multiple_of(TENSOR_ALIGNMENT);
    has_kernels(cuda)
        && params.m.min(params.n).min(params.k) > 0
        && params.n.is_multiple_of(4)
        && widths.into_iter().all(aligned)
}

/// The product that `params` describe, for shapes that [`takes`] accepts.
pub(super) fn launch(cuda: &Cuda, layout: Layout, params: abi::matmul_params) -> Result<()> {
    if layout == Layout::Nt && params.m as usize <= FEW {
        few_rows(cuda, &[params])
    } else {
        tiles(cuda, layout, params)
    }
}

/// Whether [`few_rows`] computes these products with one left operand.
pub(super) fn takes_together(cuda: &Cuda, products: &[abi::matmul_params]) -> bool {
    (1..=abi::MATMUL_SM90_PRODUCTS as usize).contains(&products.len())
        && products.iter().all(|product| takes(cuda, Layout::Nt, product) && product.m as usize <= FEW)
}

/// Products of the same few rows: every multiprocessor streams as many weights.
pub(super) fn few_rows(cuda: &Cuda, products: &[abi::matmul_params]) -> Result<()> {
    let first = products[0];
    let (m, k) = (first.m as usize, first.k as usize);
    // The smallest that holds all rows, or the largest.
    let fits = FEW_ROWS.iter().find(|(of_a, ..)| m <= *of_a);
    let &(of_a, cluster, kernel) = fits.unwrap_or(&FEW_ROWS[FEW_ROWS.len() - 1]);
    let grid = |clusters: usize| Grid { blocks: [clusters * cluster, 1, 1], threads: 384, shared: SHARED };
    let at_once = cuda.clusters_at_once(kernel, cluster, grid(1))?;
    // As few tiles for every block as there can be, then as small.
    let clusters = |rows: usize| {
        let of_product = |product: &abi::matmul_params| (product.n as usize).div_ceil(rows * cluster);
        products.iter().map(of_product).sum::<usize>() * m.div_ceil(of_a)
    };
    let rounds = clusters(WEIGHTS).div_ceil(at_once);
    let fitting = (8..WEIGHTS).step_by(8).find(|&rows| clusters(rows) <= rounds * at_once);
    let rows = fitting.unwrap_or(WEIGHTS);
    let mut params = abi::matmul_sm90_rows_params {
        a: cuda.tensor_map(first.a, [k, m], [BOX, of_a / cluster])?,
        b: [abi::tensor_map { words: [0; 16] }; abi::MATMUL_SM90_PRODUCTS as usize],
        product: [first; abi::MATMUL_SM90_PRODUCTS as usize],
        products: products.len() as u32,
        rows: rows as u32,
    };
    for (i, &product) in products.iter().enumerate() {
        params.b[i] = cuda.tensor_map(product.b, [k, product.n as usize], [BOX, rows])?;
        params.product[i] = product;
    }
    let weights: Vec<u64> = products.iter().map(|product| product.b as u64).collect();
    cuda.launch_dependent(kernel, grid(clusters(rows).min(at_once)), &params, &weights)
}

/// Tiles of y, as large as leaves no multiprocessor without one.
fn tiles(cuda: &Cuda, layout: Layout, params: abi::matmul_params) -> Result<()> {
    let (m, n, k) = (params.m as usize, params.n as usize, params.k as usize);
    let multiprocessors = cuda.card.multiprocessors as usize;
    let pairs = m.div_ceil(2 * ROWS) * n.div_ceil(256);
    // Of the rows of pairs of tiles at most a quarter may be empty.
    let (kernel, columns, cluster) =
        if n > 128 && 2 * pairs >= multiprocessors && 4 * m >= 3 * m.next_multiple_of(2 * ROWS) {
            let kernel = match layout {
                Layout::Nt => "matmul_sm90_nt_256",
                Layout::Nn => "matmul_sm90_nn_256",
                Layout::Tn => "matmul_sm90_tn_256",
            };
            (kernel, 256, abi::MATMUL_SM90_CLUSTER as usize)
        } else {
            let kernel = match layout {
                Layout::Nt => "matmul_sm90_nt_128",
                Layout::Nn => "matmul_sm90_nn_128",
                Layout::Tn => "matmul_sm90_tn_128",
            };
            (kernel, 128, 1)
        };
    // A matrix whose rows are the operand's, with k along them, or the steps of k.
    let along = |outer: usize| ([k, outer], [BOX, ROWS]);
    let down = |outer: usize| ([outer, k], [BOX, BOX]);
    let (a, b) = match layout {
        Layout::Nt => (along(m), along(n)),
        Layout::Nn => (along(m), down(n)),
        Layout::Tn => (down(m), down(n)),
    };
    let params = abi::matmul_sm90_params {
        a: cuda.tensor_map(params.a, a.0, a.1)?,
        b: cuda.tensor_map(params.b, b.0, b.1)?,
        product: params,
    };
    let grid = |clusters: usize| Grid { blocks: [clusters * cluster, 1, 1], threads: 384, shared: SHARED };
    let clusters = m.div_ceil(ROWS * cluster) * n.div_ceil(columns);
    let at_once = cuda.clusters_at_once(kernel, cluster, grid(1))?;
    cuda.launch(kernel, grid(clusters.min(at_once)), &params)
}
