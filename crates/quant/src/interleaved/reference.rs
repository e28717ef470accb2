//! The product in plain Rust: what every kernel has to equal, bit for bit.

use super::layout::{Layout, Scales};
use super::{Activations16, BLOCK};
use crate::formats::Format;
use crate::parts::{self, Parts};

/// The dot product of one weight row, as it lies in the file, with row `token` of the activations.
///
/// # Panics
/// When `row` is not a row of the activations' length, or the format cannot be interleaved.
pub fn dot16(format: Format, row: &[u8], x: &Activations16, token: usize) -> f32 {
    assert_eq!(row.len(), format.row_bytes(x.row_len()), "a row of {} elements", x.row_len());
    let Some(layout) = Layout::of(format) else { panic!("{format:?} cannot be interleaved") };
    let n_blocks = x.row_len() / BLOCK;
    let mut acc = 0.0f32;
    let (mut head, mut parts) = (vec![0; layout.head_bytes()], Parts::default());
    for (i, block) in row.chunks_exact(format.block_bytes()).enumerate() {
        parts::take_apart(format, block, &mut parts);
        layout.put_head(&mut head, 0, &parts);
        for (sub, numbers) in parts.numbers.as_chunks::<BLOCK>().0[..layout.blocks_per_head].iter().enumerate() {
            let at = token * n_blocks + i * layout.blocks_per_head + sub;
            let (high, low) = x.quants()[at * 2 * BLOCK..][..2 * BLOCK].split_at(BLOCK);
            let quant = |i: usize| 256 * i32::from(high[i]) + i32::from(low[i]);
            let len = BLOCK / layout.n_scales;
            for (part, Scales { scale, min }) in layout.scales(&head, 0, sub).iter().take(layout.n_scales).enumerate() {
                let elements = part * len..(part + 1) * len;
                let dot: i32 = elements.clone().map(|i| layout.value(numbers[i]) * quant(i)).sum();
                acc = (dot as f32).mul_add(scale * x.scales[at], acc);
                if layout.has_min {
                    let sum: i32 = elements.map(quant).sum();
                    acc = min.mul_add(x.scales[at] * sum as f32, acc);
                }
            }
        }
    }
    acc
}
