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
//! Several products of one left side run as one, so that small ones do not end one after the other.

use super::pack::{Left, Right};
use super::packed::PackedWeight;
use super::tile::{Inputs, Isa, Kind, PANEL, Tile};
use super::{Store, lossless, scratch};
use crate::device::Device;
use crate::ops::team;

/// Rows of a block: with [`STEPS`] it takes 360 KB of a 1 MB L2 cache. A multiple of every tile height.
const ROWS: usize = 120;
/// Most steps of the reduction in a block of f32, half of those of bf16: a right-hand panel of them takes 96 KB.
const STEPS: usize = 768;
/// Bytes of packed left-hand rows at a time.
const A_BYTES: usize = 16 << 20;
/// Bytes of packed right-hand columns at a time: a quarter of a 32 MB L3 cache.
const B_BYTES: usize = 8 << 20;
/// Blocks for each thread, so that an interrupted one does not hold up the others.
const TASKS_PER_THREAD: usize = 16;
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

impl Operand<'_> {
    /// What the device's products with this operand multiply.
    pub fn inputs(&self, dev: &Device) -> Inputs {
        let kind = if let Operand::Packed(weight, _) = self { Some(weight.kind()) } else { None };
        Inputs::new(dev.compute(), kind)
    }
}

/// `c[m, n] = left[m, k] · right[k, n] (+ bias) (+ c)`, rows of `c` at a stride of `ldc`.
#[derive(Clone, Copy)]
pub struct Product<'a> {
    pub isa: Isa,
    pub inputs: Inputs,
    pub size: (usize, usize, usize),
    pub left: Left<'a>,
    pub right: Operand<'a>,
    pub bias: Option<&'a [f32]>,
    pub store: Store,
}

/// Where right-hand panels come from during a block.
#[derive(Clone, Copy)]
enum Panels<'a> {
    /// Packed panels of full height, starting at the block's first column, and what [`Kind::Lossless`] keeps elsewhere.
    Ready(Kind, &'a [u8], &'a [u8]),
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

/// How `rows` x `columns` of a product, from `column` on, are cut into blocks.
#[derive(Clone, Copy)]
struct Grid {
    rows: usize,
    column: usize,
    columns: usize,
    block_rows: usize,
    row_blocks: usize,
    /// Panels of a block.
    group: usize,
    groups: usize,
    threads: usize,
}

impl Grid {
    /// The group that the `i`-th task of a row of blocks takes: threads that take tasks in turn walk through neighbouring panels,
    /// so that what one fetches beforehand is its own. Measured on a Zen 5, 2 cores: 32 rows 22 %, 64 rows 15 % faster.
    fn in_turn(&self, i: usize) -> usize {
        let each = self.groups / self.threads;
        if i < each * self.threads { i % self.threads * each + i / self.threads } else { i }
    }
}

/// Rows and panels of a block within the packed rows and columns.
struct Block {
    /// First row among the packed ones.
    row: usize,
    rows: usize,
    /// First panel among the packed ones.
    panel: usize,
    panels: usize,
}

/// Computes several products with one left-hand side `[m, k]`, packed weights and dense destinations `[m][n]`.
pub fn run_all<const N: usize>(products: [(Product, &mut [f32]); N]) {
    let Some(&(Product { isa, inputs, size: (m, _, k), left, .. }, _)) = products.first() else { return };
    if m > ROWS || products.iter().any(|(product, _)| product.inputs != inputs) {
        return products.into_iter().for_each(|(product, c)| product.run(c, product.size.1));
    }
    let products = products.map(|(product, c)| {
        product.check(c, product.size.1);
        (product, Destination(c.as_mut_ptr()))
    });
    pack_left((isa, inputs), left, (m, k), 0, m, |a| {
        let parts = products.map(|(product, c)| {
            let panels = match product.right {
                Operand::Packed(weight, from) => Panels::Ready(weight.kind(), weight.panels(from), weight.raw()),
                Operand::Plain(right) => Panels::Unpacked(right),
            };
            (product, c, panels, product.grid(m, 0, product.size.1))
        });
        let blocks = parts.iter().map(|(.., grid)| grid.row_blocks * grid.groups).sum();
        team::run(blocks, |mut i| {
            for (product, c, panels, grid) in &parts {
                let own = grid.row_blocks * grid.groups;
                if i < own {
                    return product.block(a, *panels, *c, product.size.1, grid, i);
                }
                i -= own;
            }
        });
    });
}

/// Calls `run` with rows `first .. first + rows` of a left-hand side as tiles read them.
///
/// [`Inputs::F32`]: panels `[k][height]` of the tile height, the last one as high as it is. Otherwise: packed rows.
fn pack_left(
    (isa, inputs): (Isa, Inputs),
    left: Left,
    (m, k): (usize, usize),
    first: usize,
    rows: usize,
    run: impl FnOnce(&[u32]),
) {
    let steps = inputs.left_len(k);
    match left {
        // A single row is its own panel.
        Left::Rows(super::pack::Source::F32(x)) if rows == 1 && inputs == Inputs::F32 => {
            return run(bytemuck::cast_slice(&x[first * k..(first + 1) * k]));
        }
        _ if inputs == Inputs::Bf16 => {
            if let Some(pairs) = left.as_pairs(k, first) {
                return run(pairs);
            }
        }
        _ => {}
    }
    scratch::with(rows * steps, |a| {
        let height = if inputs == Inputs::F32 {
            isa.max_rows(inputs)
        } else {
            // Enough rows for whole cache lines of a column-major side.
            64.min(rows.div_ceil(rayon::current_num_threads()).next_multiple_of(16))
        };
        let base = Destination(a.as_mut_ptr());
        let panel = |i: usize| {
            let high = height.min(rows - i * height);
            // SAFETY: panels do not overlap.
            let a = unsafe { std::slice::from_raw_parts_mut(base.at(i * height * steps), high * steps) };
            match inputs {
                Inputs::F32 => left.pack(a, m, k, first + i * height, high),
                Inputs::Bf16 => left.pack_pairs(bytemuck::cast_slice_mut(a), m, k, first + i * height),
                Inputs::Int8 => left.quantise(bytemuck::cast_slice_mut(a), m, k, first + i * height),
            }
        };
        let panels = if k == 0 { 0 } else { rows.div_ceil(height) };
        if rows * k < TASK_WORK / 32 {
            (0..panels).for_each(panel);
        } else {
            team::run(panels, panel);
        }
        run(bytemuck::cast_slice(a));
    });
}

impl Product<'_> {
    /// Computes the product into `c`, `[m][ldc]`.
    pub fn run(&self, c: &mut [f32], ldc: usize) {
        let (m, n, k) = self.size;
        if m == 0 || n == 0 {
            return;
        }
        self.check(c, ldc);
        let c = Destination(c.as_mut_ptr());
        let chunk = (A_BYTES / (4 * k.max(1)) / ROWS * ROWS).max(ROWS);
        for first in (0..m).step_by(chunk) {
            let rows = chunk.min(m - first);
            pack_left((self.isa, self.inputs), self.left, (m, k), first, rows, |a| {
                self.rows(a, Destination(c.at(first * ldc)), ldc, rows);
            });
        }
    }

    /// Panics unless the destination and the bias are large enough: the sizes are the caller's own.
    fn check(&self, c: &[f32], ldc: usize) {
        let (m, n, _) = self.size;
        let fits = ldc >= n && c.len() >= m.saturating_sub(1) * ldc + n.min(m * n);
        assert!(fits && self.bias.is_none_or(|b| b.len() >= n), "matmul: destination");
    }

    /// What a panel that is packed on the way holds.
    fn kind(&self) -> Kind {
        if self.inputs == Inputs::Bf16 { Kind::Bf16 } else { Kind::F32 }
    }

    /// Packs one panel of an unpacked right-hand side.
    fn pack_right(&self, right: Right, b: &mut [u8], column: usize, columns: usize, from: usize, to: usize) {
        let (_, n, k) = self.size;
        let b = bytemuck::cast_slice_mut(b);
        match self.kind() {
            Kind::Bf16 => right.pack_pairs(bytemuck::cast_slice_mut(b), (n, k), column, columns, from, to),
            _ => right.pack(b, (n, k), column, columns, from, to),
        }
    }

    /// All columns of `rows` packed rows.
    fn rows(&self, a: &[u32], c: Destination, ldc: usize, rows: usize) {
        let (_, n, k) = self.size;
        match self.right {
            Operand::Packed(weight, from) => {
                let panels = Panels::Ready(weight.kind(), weight.panels(from), weight.raw());
                self.blocks(a, panels, c, ldc, &self.grid(rows, 0, n));
            }
            Operand::Plain(right) if rows <= ROWS => {
                self.blocks(a, Panels::Unpacked(right), c, ldc, &self.grid(rows, 0, n));
            }
            Operand::Plain(right) => {
                let bytes = self.kind().bytes(k);
                let chunk = (B_BYTES / bytes.max(1) * PANEL).max(PANEL);
                for column in (0..n).step_by(chunk) {
                    let columns = chunk.min(n - column);
                    let panels = columns.div_ceil(PANEL);
                    scratch::with(panels * bytes / 4, |b| {
                        let base = Destination(b.as_mut_ptr());
                        team::run(if k == 0 { 0 } else { panels }, |i| {
                            // SAFETY: panels do not overlap.
                            let b = unsafe { std::slice::from_raw_parts_mut(base.at(i * bytes / 4), bytes / 4) };
                            let width = PANEL.min(columns - i * PANEL);
                            self.pack_right(right, bytemuck::cast_slice_mut(b), column + i * PANEL, width, 0, k);
                        });
                        let panels = Panels::Ready(self.kind(), bytemuck::cast_slice(b), &[]);
                        self.blocks(a, panels, c, ldc, &self.grid(rows, column, columns));
                    });
                }
            }
        }
    }

    /// Cuts `rows` x `columns` from `column` on into blocks.
    fn grid(&self, rows: usize, column: usize, columns: usize) -> Grid {
        let (k, height, threads) = (self.size.2, self.isa.max_rows(self.inputs), rayon::current_num_threads());
        let block_rows = rows.div_ceil(rows.div_ceil(ROWS).max(1)).next_multiple_of(height);
        let row_blocks = rows.div_ceil(block_rows.max(1));
        let all = columns.div_ceil(PANEL);
        // Panels times their work, in units that are worth a task.
        let worth = all * block_rows.min(rows).max(ROWS_OF_A_READ) * PANEL * k / TASK_WORK;
        let mut groups = (TASKS_PER_THREAD * threads).div_ceil(row_blocks.max(1)).min(worth).max(1);
        if groups > threads && row_blocks == 1 {
            groups = groups / threads * threads;
        }
        let at_once = self.isa.panels(self.inputs, rows.min(height));
        let group = all.div_ceil(groups).next_multiple_of(at_once).max(1);
        Grid { rows, column, columns, block_rows, row_blocks, group, groups: all.div_ceil(group), threads }
    }

    /// All blocks, spread over the threads.
    fn blocks(&self, a: &[u32], panels: Panels, c: Destination, ldc: usize, grid: &Grid) {
        team::run(grid.row_blocks * grid.groups, |i| self.block(a, panels, c, ldc, grid, i));
    }

    /// Block `i`: every step of the reduction for its rows and panels.
    fn block(&self, a: &[u32], panels: Panels, c: Destination, ldc: usize, grid: &Grid, i: usize) {
        let (row, panel) = (i / grid.groups * grid.block_rows, grid.in_turn(i % grid.groups) * grid.group);
        let panels_left = grid.columns.div_ceil(PANEL) - panel;
        let rows = grid.block_rows.min(grid.rows - row);
        let block = Block { row, rows, panel, panels: grid.group.min(panels_left) };
        let k = self.size.2;
        let most = match self.inputs {
            Inputs::F32 => STEPS,
            Inputs::Bf16 => 2 * STEPS,
            Inputs::Int8 => usize::MAX,
        };
        let splits = k.div_ceil(most).max(1);
        let steps = k.div_ceil(splits).next_multiple_of(lossless::BLOCK);
        // With Store::Add the old values stay in `c` to the end, so that unfinished chains need a place of their own.
        let aside = if self.store == Store::Add && splits > 1 { rows * block.panels * PANEL } else { 0 };
        let local = match panels {
            Panels::Ready(Kind::Lossless, ..) if !self.isa.restores(self.inputs) => Kind::Bf16.bytes(steps.min(k)) / 4,
            Panels::Ready(..) => 0,
            Panels::Unpacked(_) => self.kind().bytes(steps.min(k)) / 4,
        };
        scratch::with(aside + local, |buffer| {
            let (partial, local) = buffer.split_at_mut(aside);
            for from in (0..k.max(1)).step_by(steps.max(1)) {
                let to = (from + steps).min(k);
                let partial = (aside > 0).then_some(partial.as_mut_ptr());
                self.steps(a, panels, c, ldc, grid, &block, (from, to), partial, bytemuck::cast_slice_mut(local));
            }
        });
    }

    /// Steps `from .. to` of a block.
    #[allow(clippy::too_many_arguments)]
    fn steps(
        &self,
        a: &[u32],
        panels: Panels,
        c: Destination,
        ldc: usize,
        grid: &Grid,
        block: &Block,
        (from, to): (usize, usize),
        partial: Option<*mut f32>,
        local: &mut [u8],
    ) {
        let ((_, _, k), last) = (self.size, to == self.size.2);
        // Panels of f32 rows have a fixed height; packed rows can be taken in equal parts.
        let most = self.isa.max_rows(self.inputs);
        let height = match self.inputs {
            Inputs::F32 => most,
            Inputs::Bf16 | Inputs::Int8 => block.rows.div_ceil(block.rows.div_ceil(most)),
        };
        let at_once = match panels {
            Panels::Ready(Kind::Lossless, ..) | Panels::Unpacked(_) => 1,
            Panels::Ready(..) => self.isa.panels(self.inputs, block.rows.min(height)),
        };
        for first in (0..block.panels).step_by(at_once) {
            let local_column = (block.panel + first) * PANEL;
            let width = (at_once.min(block.panels - first) * PANEL).min(grid.columns - local_column);
            let column = grid.column + local_column;
            let (kind, b, raw, panel_stride) = match panels {
                Panels::Ready(kind, data, raw) => {
                    let stride = kind.bytes(k);
                    let b = &data[(block.panel + first) * stride + kind.bytes(from)..];
                    if kind == Kind::Lossless && !self.isa.restores(self.inputs) {
                        let pairs = Kind::Bf16.bytes(to - from);
                        lossless::unpack(bytemuck::cast_slice_mut(&mut local[..pairs]), b, raw);
                        (Kind::Bf16, local.as_ptr(), raw, 0)
                    } else {
                        (kind, b.as_ptr(), raw, stride)
                    }
                }
                Panels::Unpacked(right) => {
                    self.pack_right(right, local, column, width, from, to);
                    (self.kind(), local.as_ptr(), &[][..], 0)
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
                let stride = self.inputs.left_len(k);
                let left = match self.inputs {
                    Inputs::F32 => row * k + from * rows,
                    Inputs::Bf16 => row * stride + from / 2,
                    Inputs::Int8 => row * stride,
                };
                let tile = Tile {
                    k: to - from,
                    a: a[left..].as_ptr(),
                    lda: stride,
                    b,
                    panel_stride,
                    raw: raw.as_ptr(),
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
                // columns, which no other block writes; `isa` was detected, and a packed weight fits `inputs`.
                unsafe { self.isa.kernel(self.inputs, kind, rows, width)(&tile) };
            }
        }
    }
}
