//! The loops around the tiles: packing, cache blocks, threads.
//!
//! ```text
//! for rows of the left side that fit A_BYTES packed:              pack them            (all threads)
//!     for columns of the right side that fit B_BYTES packed:      pack them            (all threads)
//!         for blocks of ROWS x some panels:                                            (spread over the threads)
//!             for blocks of STEPS of the reduction:               the left block stays in L2
//!                 for panels, for tiles:                          the right panel stays in L2, the tile in registers
//! ```
//! Between blocks of the reduction the chain of an element rests in memory as the f32 that it is, so blocks change no bit.

use super::pack::{Left, Right};
use super::packed::PackedWeight;
use super::tile::{Isa, Kind, PANEL, Tile};
use super::{Store, scratch};
use rayon::prelude::*;

/// Rows of a block: with [`STEPS`] it takes 360 KB of a 1 MB L2 cache. A multiple of every tile height.
const ROWS: usize = 120;
/// Most steps of the reduction in a block: a right-hand panel of them takes 96 KB.
const STEPS: usize = 768;
/// Bytes of packed left-hand rows at a time.
const A_BYTES: usize = 16 << 20;
/// Bytes of packed right-hand columns at a time: a quarter of a 32 MB L3 cache.
const B_BYTES: usize = 8 << 20;
/// Blocks for each thread, so that an interrupted one does not hold up the others.
const TASKS_PER_THREAD: usize = 8;
/// Multiply-adds below which a block is not split further: about 10 microseconds of one core.
const TASK_WORK: usize = 1 << 19;

/// Fewer rows than this take the time of reading the weight: 262 KB of bf16 in 10 microseconds.
const ROWS_OF_A_READ: usize = 4;

/// The right-hand side of a product.
#[derive(Clone, Copy)]
pub enum Operand<'a> {
    /// As stored; packed on the way.
    Plain(Right<'a>),
    /// Rows `.1 ..` (a multiple of [`PANEL`]) of a packed weight.
    Packed(&'a PackedWeight, usize),
}

/// `c[m, n] = left[m, k] · right[k, n] (+ bias) (+ c)`, rows of `c` at a stride of `ldc`.
pub struct Product<'a> {
    pub isa: Isa,
    pub size: (usize, usize, usize),
    pub left: Left<'a>,
    pub right: Operand<'a>,
    pub bias: Option<&'a [f32]>,
    pub store: Store,
}

/// Where right-hand panels come from during a block.
#[derive(Clone, Copy)]
enum Panels<'a> {
    /// Packed panels of full height, starting at the block's first column.
    Ready(Kind, &'a [u8]),
    /// To be packed by the block itself.
    Unpacked(Right<'a>),
}

/// A pointer that the blocks of one product share; each writes rows and columns of its own.
#[derive(Clone, Copy)]
struct Destination(*mut f32);
// SAFETY: blocks write disjoint elements, and the product outlives them.
unsafe impl Send for Destination {}
// SAFETY: as above.
unsafe impl Sync for Destination {}

impl Destination {
    fn at(self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
    }
}

impl Product<'_> {
    /// Computes the product into `c`, `[m][ldc]`.
    pub fn run(&self, c: &mut [f32], ldc: usize) {
        let (m, n, k) = self.size;
        if m == 0 || n == 0 {
            return;
        }
        assert!(
            ldc >= n && c.len() >= (m - 1) * ldc + n && self.bias.is_none_or(|b| b.len() >= n),
            "matmul: destination"
        );
        let c = Destination(c.as_mut_ptr());
        let chunk = (A_BYTES / (4 * k.max(1)) / ROWS * ROWS).max(ROWS);
        for first in (0..m).step_by(chunk) {
            let rows = chunk.min(m - first);
            match self.left {
                // A single row is its own panel.
                Left::Rows(x) if rows == 1 => self.rows(&x[first * k..(first + 1) * k], c, ldc, first, rows),
                _ => scratch::with(rows * k, |a| {
                    self.pack_left(a, first, rows);
                    self.rows(a, c, ldc, first, rows);
                }),
            }
        }
    }

    /// Packs rows `first .. first + rows` as panels of the tile height, the last one as high as it is.
    fn pack_left(&self, a: &mut [f32], first: usize, rows: usize) {
        let ((m, _, k), height) = (self.size, self.isa.max_rows());
        if k == 0 {
            return;
        }
        let panel =
            |(i, a): (usize, &mut [f32])| self.left.pack(a, m, k, first + i * height, height.min(rows - i * height));
        if rows * k < TASK_WORK / 8 {
            a.chunks_mut(height * k).enumerate().for_each(panel);
        } else {
            a.par_chunks_mut(height * k).enumerate().for_each(panel);
        }
    }

    /// All columns of the packed rows `first .. first + rows`.
    fn rows(&self, a: &[f32], c: Destination, ldc: usize, first: usize, rows: usize) {
        let (_, n, k) = self.size;
        let c = Destination(c.at(first * ldc));
        match self.right {
            Operand::Packed(weight, from) => {
                let panels = Panels::Ready(weight.kind(), weight.panels(from));
                self.blocks(a, panels, c, ldc, (rows, 0, n));
            }
            Operand::Plain(right) if rows <= ROWS => self.blocks(a, Panels::Unpacked(right), c, ldc, (rows, 0, n)),
            Operand::Plain(right) => {
                let chunk = (B_BYTES / (4 * k.max(1)) / PANEL * PANEL).max(PANEL);
                for column in (0..n).step_by(chunk) {
                    let columns = chunk.min(n - column);
                    scratch::with(columns.div_ceil(PANEL) * PANEL * k, |b| {
                        if k > 0 {
                            b.par_chunks_exact_mut(PANEL * k).enumerate().for_each(|(i, b)| {
                                let width = PANEL.min(columns - i * PANEL);
                                right.pack(b, (n, k), column + i * PANEL, width, 0, k);
                            });
                        }
                        let panels = Panels::Ready(Kind::F32, bytemuck::cast_slice(b));
                        self.blocks(a, panels, c, ldc, (rows, column, columns));
                    });
                }
            }
        }
    }

    /// Splits `rows` x `columns` from `column` on into blocks and spreads them over the threads.
    fn blocks(&self, a: &[f32], panels: Panels, c: Destination, ldc: usize, part: (usize, usize, usize)) {
        let ((rows, column, columns), k, height) = (part, self.size.2, self.isa.max_rows());
        let row_blocks = rows.div_ceil(ROWS);
        let block_rows = rows.div_ceil(row_blocks).next_multiple_of(height);
        let row_blocks = rows.div_ceil(block_rows);
        let (all, threads) = (columns.div_ceil(PANEL), rayon::current_num_threads());
        let at_once = self.isa.panels(rows.min(height));
        let wanted = all.div_ceil((TASKS_PER_THREAD * threads).div_ceil(row_blocks));
        let least = TASK_WORK.div_ceil((block_rows.min(rows).max(ROWS_OF_A_READ) * PANEL * k).max(1));
        let group = wanted.max(least).next_multiple_of(at_once);
        let groups = all.div_ceil(group);
        let block = |i: usize| {
            let (row, panel) = (i / groups * block_rows, i % groups * group);
            let block =
                Block { row, rows: block_rows.min(rows - row), panel, panels: group.min(all - panel), column, columns };
            self.block(a, panels, c, ldc, block);
        };
        if row_blocks * groups == 1 || threads == 1 {
            (0..row_blocks * groups).for_each(block);
        } else {
            (0..row_blocks * groups).into_par_iter().with_max_len(1).for_each(block);
        }
    }

    /// One block: every step of the reduction for its rows and panels.
    fn block(&self, a: &[f32], panels: Panels, c: Destination, ldc: usize, block: Block) {
        let k = self.size.2;
        let splits = k.div_ceil(STEPS).max(1);
        let steps = k.div_ceil(splits);
        // With Store::Add the old values stay in `c` to the end, so that unfinished chains need a place of their own.
        let width = block.panels * PANEL;
        let aside = if self.store == Store::Add && splits > 1 { block.rows * width } else { 0 };
        let local = if let Panels::Unpacked(_) = panels { steps * PANEL } else { 0 };
        scratch::with(aside + local, |buffer| {
            let (partial, local) = buffer.split_at_mut(aside);
            for from in (0..k.max(1)).step_by(steps.max(1)) {
                let to = (from + steps).min(k);
                let partial = (aside > 0).then_some(partial.as_mut_ptr());
                self.steps(a, panels, c, ldc, &block, (from, to), partial, local);
            }
        });
    }

    /// Steps `from .. to` of a block.
    #[allow(clippy::too_many_arguments)]
    fn steps(
        &self,
        a: &[f32],
        panels: Panels,
        c: Destination,
        ldc: usize,
        block: &Block,
        (from, to): (usize, usize),
        partial: Option<*mut f32>,
        local: &mut [f32],
    ) {
        let ((_, n, k), height) = (self.size, self.isa.max_rows());
        let last = to == k;
        let at_once = if let Panels::Ready(..) = panels { self.isa.panels(block.rows.min(height)) } else { 1 };
        for first in (0..block.panels).step_by(at_once) {
            let local_column = (block.panel + first) * PANEL;
            let width = (at_once.min(block.panels - first) * PANEL).min(block.columns - local_column);
            let column = block.column + local_column;
            let (kind, b) = match panels {
                Panels::Ready(kind, data) => {
                    let element = if kind == Kind::F32 { 4 } else { 2 };
                    (kind, data[(local_column * k + from * PANEL) * element..].as_ptr())
                }
                Panels::Unpacked(right) => {
                    right.pack(local, (n, k), column, width, from, to);
                    (Kind::F32, local.as_ptr().cast())
                }
            };
            for row in (block.row..block.row + block.rows).step_by(height) {
                let rows = height.min(block.row + block.rows - row);
                let target = c.at(row * ldc + column);
                let (aside, lda) = match partial {
                    Some(p) => {
                        (p.wrapping_add((row - block.row) * block.panels * PANEL + first * PANEL), block.panels * PANEL)
                    }
                    None => (target, ldc),
                };
                let (c, ldc) = if last { (target, ldc) } else { (aside, lda) };
                let tile = Tile {
                    k: to - from,
                    a: a[row * k + from * rows..].as_ptr(),
                    b,
                    panel_stride: PANEL * k,
                    partial: if from == 0 { std::ptr::null() } else { aside },
                    ldp: lda,
                    c,
                    ldc,
                    n: width,
                    bias: match self.bias {
                        Some(bias) if last => bias[column..].as_ptr(),
                        _ => std::ptr::null(),
                    },
                    add: last && self.store == Store::Add,
                };
                // SAFETY: `a` and `b` hold `to - from` steps of this tile's rows and panels, `c` and `partial` its rows and
                // columns, which no other block writes; `isa` was detected.
                unsafe { self.isa.kernel(kind, rows, width)(&tile) };
            }
        }
    }
}

/// A block of rows and panels within the packed rows and columns.
struct Block {
    /// First row among the packed ones.
    row: usize,
    rows: usize,
    /// First panel among the packed ones.
    panel: usize,
    panels: usize,
    /// First column of the packed panels in the destination.
    column: usize,
    /// Columns of the packed panels.
    columns: usize,
}
