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
/// SAFETY: `a` holds `m x k`, `b` holds `k` rows of `n` floats at stride `b_row`, `c` holds `m` rows of `n` floats at
/// stride `c_row`; `n` is a multiple of 16; runs inside `dispatch`.
#[inline(always)]
pub(crate) unsafe fn product<S: Simd, const DOT: bool>(
    c: *mut f32,
    c_row: usize,
    a: View,
    b: *const f32,
    b_row: usize,
    size: Size,
    add: bool,
) {
    let Size { m, n, k } = size;
    let mut j = 0;
    while j < n {
        let two = S::WIDE && j + 2 * LANES <= n;
        let mut i = 0;
        while i < m {
            // SAFETY: rows i .. i + r and columns j .. j + 16 or 32 are inside, by the caller's promise.
            unsafe {
                let (c, b) = (c.add(i * c_row + j), b.add(j));
                let a = View { data: a.data.add(i * a.row), ..a };
                let rows = m - i;
                if two {
                    i += strip::<S, 2, DOT>(c, c_row, a, b, b_row, rows, k, add);
                } else {
                    i += strip::<S, 1, DOT>(c, c_row, a, b, b_row, rows, k, add);
                }
            }
        }
        j += if two { 2 * LANES } else { LANES };
    }
}

/// One strip of up to 8 rows (4 where registers are few); gives back how many.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn strip<S: Simd, const C: usize, const DOT: bool>(
    c: *mut f32,
    c_row: usize,
    a: View,
    b: *const f32,
    b_row: usize,
    rows: usize,
    k: usize,
    add: bool,
) -> usize {
    // SAFETY: as in `product`.
    unsafe {
        if S::WIDE && rows >= 8 {
            tile::<S, 8, C, DOT>(c, c_row, a, b, b_row, k, add);
            return 8;
        }
        match rows {
            1 => tile::<S, 1, C, DOT>(c, c_row, a, b, b_row, k, add),
            2 => tile::<S, 2, C, DOT>(c, c_row, a, b, b_row, k, add),
            3 => tile::<S, 3, C, DOT>(c, c_row, a, b, b_row, k, add),
            _ => tile::<S, 4, C, DOT>(c, c_row, a, b, b_row, k, add),
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
    b: *const f32,
    b_row: usize,
    k: usize,
    add: bool,
) {
    // SAFETY: as in `product`.
    unsafe {
        let mut sums = [[S::splat(0.0); C]; R];
        if add {
            for (i, row) in sums.iter_mut().enumerate() {
                for (j, sum) in row.iter_mut().enumerate() {
                    *sum = S::load(c.add(i * c_row + j * LANES));
                }
            }
        }
        for p in 0..k {
            let mut columns = [S::splat(0.0); C];
            for (j, column) in columns.iter_mut().enumerate() {
                *column = S::load(b.add(p * b_row + j * LANES));
            }
            for (i, row) in sums.iter_mut().enumerate() {
                let x = S::splat(*a.data.add(i * a.row + p * a.column));
                for (sum, column) in row.iter_mut().zip(columns) {
                    *sum = if DOT { S::dot(*sum, x, column) } else { S::fma(x, column, *sum) };
                }
            }
        }
        for (i, row) in sums.iter().enumerate() {
            for (j, &sum) in row.iter().enumerate() {
                S::store(c.add(i * c_row + j * LANES), sum);
            }
        }
    }
}
