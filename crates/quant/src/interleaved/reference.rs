//! The product in plain Rust: what every kernel has to equal, bit for bit.

use half::f16;

use super::{Activations16, BLOCK};
use crate::formats::Format;

/// The dot product of one weight row, as it lies in the file, with row `token` of the activations.
///
/// # Panics
/// When `row` is not a row of the activations' length, or the format has no blocks of small integers.
pub fn dot16(format: Format, row: &[u8], x: &Activations16, token: usize) -> f32 {
    assert_eq!(row.len(), format.row_bytes(x.row_len()), "a row of {} elements", x.row_len());
    let n_blocks = x.row_len() / BLOCK;
    let mut acc = 0.0f32;
    for (b, block) in row.chunks_exact(format.block_bytes()).enumerate() {
        let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
        let weights: [i32; BLOCK] = match format {
            Format::Q8_0 => std::array::from_fn(|k| i32::from(block[2 + k] as i8)),
            Format::Q4_0 => std::array::from_fn(|k| {
                let byte = block[2 + k % 16];
                i32::from(if k < 16 { byte & 15 } else { byte >> 4 }) - 8
            }),
            _ => panic!("{format:?} has no blocks of small integers"),
        };
        let at = token * n_blocks + b;
        let (high, low) = x.quants[at * 2 * BLOCK..][..2 * BLOCK].split_at(BLOCK);
        let quants = high.iter().zip(low).map(|(high, low)| 256 * i32::from(*high) + i32::from(*low));
        let product: i32 = weights.iter().zip(quants).map(|(w, a)| w * a).sum();
        acc = (product as f32).mul_add(scale * x.scales[at], acc);
    }
    acc
}
