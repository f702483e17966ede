//! Matrix products of blocks that lie in cache: the inner loops of attention.

use super::{LANES, Simd};

/// A matrix operand: element `(i, j)` lies at `data + i * row + j * column`.
#[derive(Clone, Copy)]
pub(crate) struct View {
    /// First element.
    pub data: *const f32,
    /// Floats from one row to the next.
    pub row: usize,
    /// Floats from one column to the next.
    pub column: usize,
}

/// The right-hand operand of a product: `at(piece, j)` is where its vector `j` of columns starts in piece `piece` of `steps` rows, which lie
/// at a stride of `row` floats.
#[derive(Clone, Copy)]
pub(crate) struct Right<At> {
    /// First float of a piece and vector.
    pub at: At,
    /// Rows of a piece; the last one may be shorter.
    pub steps: usize,
    /// Floats from one row to the next.
    pub row: usize,
}

impl Right<()> {
    /// `k` rows of whole vectors at `data`, at a stride of `row` floats.
    #[inline(always)]
    pub(crate) fn rows(data: *const f32, row: usize, k: usize) -> Right<impl Fn(usize, usize) -> *const f32 + Copy> {
        Right { at: move |_, j| data.wrapping_add(j * LANES), steps: k.max(1), row }
    }
}

/// What becomes of the old values of a product's destination.
#[derive(Clone, Copy)]
pub(crate) enum Old {
    /// They are replaced.
    Replace,
    /// Chains start from them.
    Add,
    /// Chains start from them times one factor a row.
    Scale(*const f32),
}

/// Sizes of a product: `c[m, n] = a[m, k] b[k, n]`.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    /// Rows of `a` and `c`.
    pub m: usize,
    /// Columns of `b` and `c`, whole vectors.
    pub n: usize,
    /// Columns of `a`, rows of `b`.
    pub k: usize,
}

/// `c (+)= a b`; each element is one chain of fused multiply-adds in the order of `k`, whatever the sizes and tiles. With
/// `DOT` the elements of `a` and `b` are pairs of bf16, `k` counts pairs, and a step is [`Simd::dot`].
///
/// SAFETY: `a` holds `m x k`, `b` holds `k` rows of `n` floats, `c` holds `m` rows of `n` floats at stride `c_row`, the factors of
/// `old` are `m`; `n` is a multiple of 16; runs inside `dispatch`.
#[inline(always)]
pub(crate) unsafe fn product<S: Simd, const DOT: bool>(
    c: *mut f32,
    c_row: usize,
    a: View,
    b: Right<impl Fn(usize, usize) -> *const f32 + Copy>,
    size: Size,
    old: Old,
) {
    let Size { m, n, k } = size;
    let mut j = 0;
    while j < n {
        let vectors = if S::WIDE { (n - j) / LANES } else { 1 };
        let mut i = 0;
        let mut width = LANES;
        while i < m {
            // SAFETY: rows i .. i + r and columns j .. j + 16, 32 or 64 are inside, by the caller's promise.
            unsafe {
                let c = c.add(i * c_row + j);
                let a = View { data: a.data.add(i * a.row), ..a };
                let at = move |piece, v| (b.at)(piece, j / LANES + v);
                let b = Right { at, steps: b.steps, row: b.row };
                let old = if let Old::Scale(by) = old { Old::Scale(by.add(i)) } else { old };
                let rows = m - i;
                // Few rows in all need more columns for enough chains.
                if vectors >= 4 && m <= 4 {
                    width = 4 * LANES;
                    i += strip::<S, 4, DOT>(c, c_row, a, b, rows, k, old);
                } else if vectors >= 2 {
                    width = 2 * LANES;
                    i += strip::<S, 2, DOT>(c, c_row, a, b, rows, k, old);
                } else {
                    i += strip::<S, 1, DOT>(c, c_row, a, b, rows, k, old);
                }
            }
        }
        j += width;
    }
}

/// One strip of up to 8 rows (4 where registers are few); gives back how many.
#[inline(always)]
unsafe fn strip<S: Simd, const C: usize, const DOT: bool>(
    c: *mut f32,
    c_row: usize,
    a: View,
    b: Right<impl Fn(usize, usize) -> *const f32 + Copy>,
    rows: usize,
    k: usize,
    old: Old,
) -> usize {
    // SAFETY: as in `product`.
    unsafe {
        if S::WIDE && C <= 2 && rows >= 8 {
            tile::<S, 8, C, DOT>(c, c_row, a, b, k, old);
            return 8;
        }
        match rows {
            1 => tile::<S, 1, C, DOT>(c, c_row, a, b, k, old),
            2 => tile::<S, 2, C, DOT>(c, c_row, a, b, k, old),
            3 => tile::<S, 3, C, DOT>(c, c_row, a, b, k, old),
            _ => tile::<S, 4, C, DOT>(c, c_row, a, b, k, old),
        }
        rows.min(4)
    }
}

/// `R` rows by `C` vectors, kept in registers over all of `k`.
#[inline(always)]
unsafe fn tile<S: Simd, const R: usize, const C: usize, const DOT: bool>(
    c: *mut f32,
    c_row: usize,
    a: View,
    b: Right<impl Fn(usize, usize) -> *const f32 + Copy>,
    k: usize,
    old: Old,
) {
    // SAFETY: as in `product`.
    unsafe {
        let mut sums = [[S::splat(0.0); C]; R];
        if !matches!(old, Old::Replace) {
            for (i, row) in sums.iter_mut().enumerate() {
                for (j, sum) in row.iter_mut().enumerate() {
                    *sum = S::load(c.add(i * c_row + j * LANES));
                }
            }
        }
        if let Old::Scale(by) = old {
            for (i, row) in sums.iter_mut().enumerate() {
                let by = S::splat(*by.add(i));
                for sum in row.iter_mut() {
                    *sum = S::mul(*sum, by);
                }
            }
        }
        let mut a_piece = a.data;
        for piece in 0..k.div_ceil(b.steps) {
            let mut starts = [std::ptr::null(); C];
            for (j, start) in starts.iter_mut().enumerate() {
                *start = (b.at)(piece, j);
            }
            let steps = b.steps.min(k - piece * b.steps);
            for p in 0..steps {
                let mut columns = [S::splat(0.0); C];
                for (column, start) in columns.iter_mut().zip(starts) {
                    *column = S::load(start.add(p * b.row));
                }
                for (i, row) in sums.iter_mut().enumerate() {
                    let x = S::splat(*a_piece.add(i * a.row + p * a.column));
                    for (sum, column) in row.iter_mut().zip(columns) {
                        *sum = if DOT { S::dot(*sum, x, column) } else { S::fma(x, column, *sum) };
                    }
                }
            }
            a_piece = a_piece.wrapping_add(steps * a.column);
        }
        for (i, row) in sums.iter().enumerate() {
            for (j, &sum) in row.iter().enumerate() {
                S::store(c.add(i * c_row + j * LANES), sum);
            }
        }
    }
}
