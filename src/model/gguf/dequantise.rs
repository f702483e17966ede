//! Block formats of ggml to float32. Each product and sum is rounded on its own, in the order of ggml's reference code, so that
//! the values are bit-equal to those of other converters.

use half::{bf16, f16};
use std::fmt;

/// Element formats that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GgmlType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// Upper half of binary32.
    BF16,
    /// 32 values `d (q - 8)`, 4 bits each; 18 bytes.
    Q4_0,
    /// 32 values `d q + m`, 4 bits each; 20 bytes.
    Q4_1,
    /// 32 values `d q`, 8 bits each; 34 bytes.
    Q8_0,
    /// 256 values in 8 groups with 6-bit scales and minima, 4 bits each; 144 bytes.
    Q4K,
    /// 256 values in 16 groups with 8-bit scales, 6 bits each; 210 bytes.
    Q6K,
}

/// ggml's type ids and names, for messages about those that cannot be read.
const NAMES: [(u32, &str); 37] = [
    (0, "F32"),
    (1, "F16"),
    (2, "Q4_0"),
    (3, "Q4_1"),
    (6, "Q5_0"),
    (7, "Q5_1"),
    (8, "Q8_0"),
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (12, "Q4_K"),
    (13, "Q5_K"),
    (14, "Q6_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (30, "BF16"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (36, "IQ4_NL_4_4"),
    (39, "MXFP4"),
    (40, "NVFP4"),
];

impl GgmlType {
    /// The formats as a list for messages.
    pub const SUPPORTED: &'static str = "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K and Q6_K";

    /// The format with ggml's type id.
    pub fn from_id(id: u32) -> Option<GgmlType> {
        Some(match id {
            0 => GgmlType::F32,
            1 => GgmlType::F16,
            2 => GgmlType::Q4_0,
            3 => GgmlType::Q4_1,
            8 => GgmlType::Q8_0,
            12 => GgmlType::Q4K,
            14 => GgmlType::Q6K,
            30 => GgmlType::BF16,
            _ => return None,
        })
    }

    /// ggml's name of a type id, whether or not it can be read.
    pub fn name_of(id: u32) -> Option<&'static str> {
        NAMES.iter().find(|(known, _)| *known == id).map(|(_, name)| *name)
    }

    /// Values in one block.
    pub const fn block_size(self) -> usize {
        match self {
            GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => 1,
            GgmlType::Q4_0 | GgmlType::Q4_1 | GgmlType::Q8_0 => 32,
            GgmlType::Q4K | GgmlType::Q6K => 256,
        }
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        match self {
            GgmlType::F32 => 4,
            GgmlType::F16 | GgmlType::BF16 => 2,
            GgmlType::Q4_0 => 18,
            GgmlType::Q4_1 => 20,
            GgmlType::Q8_0 => 34,
            GgmlType::Q4K => 144,
            GgmlType::Q6K => 210,
        }
    }
}

impl fmt::Display for GgmlType {
    /// ggml's name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            GgmlType::F32 => "F32",
            GgmlType::F16 => "F16",
            GgmlType::BF16 => "BF16",
            GgmlType::Q4_0 => "Q4_0",
            GgmlType::Q4_1 => "Q4_1",
            GgmlType::Q8_0 => "Q8_0",
            GgmlType::Q4K => "Q4_K",
            GgmlType::Q6K => "Q6_K",
        })
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Writes the values of whole blocks to `out`.
///
/// `bytes` holds `out.len() / block_size` blocks of `block_bytes` each; the caller cuts both accordingly (panics otherwise).
pub fn dequantise(kind: GgmlType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len() * kind.block_size(), out.len() * kind.block_bytes(), "{kind}: bytes and values differ");
    let blocks = bytes.chunks_exact(kind.block_bytes()).zip(out.chunks_exact_mut(kind.block_size()));
    match kind {
        GgmlType::F32 => blocks.for_each(|(b, y)| y[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        GgmlType::F16 => blocks.for_each(|(b, y)| y[0] = half_at(b, 0)),
        GgmlType::BF16 => blocks.for_each(|(b, y)| y[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32()),
        GgmlType::Q4_0 => blocks.for_each(|(b, y)| q4_0(b, y)),
        GgmlType::Q4_1 => blocks.for_each(|(b, y)| q4_1(b, y)),
        GgmlType::Q8_0 => blocks.for_each(|(b, y)| q8_0(b, y)),
        GgmlType::Q4K => blocks.for_each(|(b, y)| q4_k(b, y)),
        GgmlType::Q6K => blocks.for_each(|(b, y)| q6_k(b, y)),
    }
}

/// `f16 d, u8 q[16]`: low nibbles are values 0 to 15, high nibbles 16 to 31.
fn q4_0(block: &[u8], out: &mut [f32]) {
    let d = half_at(block, 0);
    for (i, &q) in block[2..].iter().enumerate() {
        out[i] = f32::from(i16::from(q & 15) - 8) * d;
        out[i + 16] = f32::from(i16::from(q >> 4) - 8) * d;
    }
}

/// `f16 d, f16 m, u8 q[16]`, nibbles as in Q4_0.
fn q4_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for (i, &q) in block[4..].iter().enumerate() {
        out[i] = f32::from(q & 15) * d + m;
        out[i + 16] = f32::from(q >> 4) * d + m;
    }
}

/// `f16 d, i8 q[32]`.
fn q8_0(block: &[u8], out: &mut [f32]) {
    let d = half_at(block, 0);
    for (y, &q) in out.iter_mut().zip(&block[2..]) {
        *y = f32::from(q as i8) * d;
    }
}

/// 6-bit scale and minimum of group `j` from the 12 packed bytes: the first four groups hold theirs in the low six bits of bytes
/// 0 to 3 and 4 to 7, the last four in the nibbles of bytes 8 to 11 with the upper two bits of the first eight bytes on top.
fn scale_and_min(j: usize, packed: &[u8]) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (packed[j + 4] & 15 | (packed[j - 4] >> 6) << 4, packed[j + 4] >> 4 | (packed[j] >> 6) << 4)
    };
    (f32::from(scale), f32::from(min))
}

/// `f16 d, f16 dmin, u8 scales[12], u8 q[128]`: each 32 bytes hold two groups of 32, low nibbles first;
/// value = `d scale q - dmin min`.
fn q4_k(block: &[u8], out: &mut [f32]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let (packed, quants) = block[4..].split_at(12);
    for (pair, (q, y)) in quants.chunks_exact(32).zip(out.chunks_exact_mut(64)).enumerate() {
        let ((scale_low, min_low), (scale_high, min_high)) =
            (scale_and_min(2 * pair, packed), scale_and_min(2 * pair + 1, packed));
        let (d_low, m_low, d_high, m_high) = (d * scale_low, dmin * min_low, d * scale_high, dmin * min_high);
        for (i, &q) in q.iter().enumerate() {
            y[i] = d_low * f32::from(q & 15) - m_low;
            y[i + 32] = d_high * f32::from(q >> 4) - m_high;
        }
    }
}

/// `u8 low[128], u8 high[64], i8 scales[16], f16 d`: 4 low and 2 high bits a value; value = `d scale (q - 32)`.
fn q6_k(block: &[u8], out: &mut [f32]) {
    let (low, rest) = block.split_at(128);
    let (high, rest) = rest.split_at(64);
    let (scales, d) = (&rest[..16], half_at(rest, 16));
    for (half, y) in out.chunks_exact_mut(128).enumerate() {
        let (low, high, scales) = (&low[64 * half..], &high[32 * half..], &scales[8 * half..]);
        for i in 0..32 {
            let quants = [
                low[i] & 15 | (high[i] & 3) << 4,
                low[i + 32] & 15 | (high[i] >> 2 & 3) << 4,
                low[i] >> 4 | (high[i] >> 4 & 3) << 4,
                low[i + 32] >> 4 | (high[i] >> 6) << 4,
            ];
            for (quarter, q) in quants.into_iter().enumerate() {
                let scale = d * f32::from(scales[2 * quarter + i / 16] as i8);
                y[32 * quarter + i] = scale * f32::from(i16::from(q) - 32);
            }
        }
    }
}
