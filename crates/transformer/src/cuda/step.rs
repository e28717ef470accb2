//! One step's inputs, laid out for one copy to the device.
//!
//! A batch is split by role: generated rows and prompt rows go through different kernels, and each keeps to its own part
//! of a row of numbers that is copied as a whole. The parts lie at fixed places, because graphs point to them.

use std::ops::Range;

use cuda_sys::sys;

use crate::{Batch, Role, SampleSpec};

/// Says that a row only pads the batch to the size that a graph was recorded for.
pub(super) const PADDING: u32 = u32::MAX;

/// Numbers of 32 bits in an `orcd_sample_params`.
pub(super) const SAMPLE_WORDS: usize = size_of::<sys::orcd_sample_params>() / 4;

/// Where everything lies, in numbers of 32 bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    max_rows: usize,
    max_samples: usize,
    n_slots: usize,
    max_table: usize,
}

impl Layout {
    /// For steps of up to `max_rows` prompt rows, `max_samples` sampled rows of them, `n_slots` generated rows (padding
    /// included) and `max_table` blocks.
    pub(super) fn new(max_rows: usize, max_samples: usize, n_slots: usize, max_table: usize) -> Self {
        Self { max_rows, max_samples, n_slots, max_table }
    }

    fn part(&self, i: usize) -> Range<usize> {
        let (rows, slots) = (self.max_rows, self.n_slots);
        let samples = self.max_samples;
        let sizes = [
            SAMPLE_WORDS * samples,
            rows,
            rows,
            rows,
            2 * rows,
            samples,
            SAMPLE_WORDS * slots,
            slots,
            slots,
            slots,
            self.max_table,
        ];
        // Every part begins where a number of 64 bits may.
        let start = sizes[..i].iter().map(|size| size.next_multiple_of(2)).sum();
        start..start + sizes[i]
    }

    /// How sampled prompt rows are sampled. `[max_samples, SAMPLE_WORDS]`
    pub(super) fn prompt_params(&self) -> Range<usize> {
        self.part(0)
    }

    /// Prompt rows' tokens. `[max_rows]`
    pub(super) fn prompt_tokens(&self) -> Range<usize> {
        self.part(1)
    }

    /// Their absolute positions. `[max_rows]`
    pub(super) fn prompt_positions(&self) -> Range<usize> {
        self.part(2)
    }

    /// Where each one's sequence begins in the block table. `[max_rows]`
    pub(super) fn prompt_tables(&self) -> Range<usize> {
        self.part(3)
    }

    /// Attention's tiles: first row, number of rows. `[max_rows, 2]`
    pub(super) fn prompt_tiles(&self) -> Range<usize> {
        self.part(4)
    }

    /// The prompt rows whose logits are wanted. `[max_samples]`
    pub(super) fn prompt_samples(&self) -> Range<usize> {
        self.part(5)
    }

    /// How generated rows are sampled. `[n_slots, SAMPLE_WORDS]`
    pub(super) fn params(&self) -> Range<usize> {
        self.part(6)
    }

    /// Generated rows' tokens. `[n_slots]`
    pub(super) fn tokens(&self) -> Range<usize> {
        self.part(7)
    }

    /// Their absolute positions. `[n_slots]`
    pub(super) fn positions(&self) -> Range<usize> {
        self.part(8)
    }

    /// Where each one's sequence begins in the block table. `[n_slots]`
    pub(super) fn tables(&self) -> Range<usize> {
        self.part(9)
    }

    /// Blocks of all sequences. `[max_table]`
    pub(super) fn block_table(&self) -> Range<usize> {
        self.part(10)
    }

    /// Numbers in all.
    pub(super) fn len(&self) -> usize {
        self.block_table().end
    }
}

/// What a step consists of, beside the numbers on the device.
#[derive(Debug, Default, Clone)]
pub(super) struct Step {
    /// Generated rows.
    pub(super) n_generated: usize,
    /// Generated rows, and those that pad them.
    pub(super) n_slots: usize,
    /// Prompt rows.
    pub(super) n_prompt: usize,
    /// Attention's tiles of prompt rows.
    pub(super) n_tiles: usize,
    /// Prompt rows to be sampled.
    pub(super) n_prompt_samples: usize,
    /// Whether tokens are to be chosen, and not logits given.
    pub(super) chooses: bool,
    /// For each of the batch's sampled rows, where it is found: generated row (`Ok`), or sampled prompt row (`Err`).
    pub(super) samples: Vec<Result<usize, usize>>,
    /// What of the numbers has to be copied.
    pub(super) used: Range<usize>,
}

/// Lays a checked batch out in `numbers`. `bucket` gives the number of slots for a number of generated rows.
pub(super) fn lay_out(
    batch: &Batch,
    layout: &Layout,
    bucket: impl Fn(usize) -> usize,
    rows_per_tile: usize,
    numbers: &mut [u32],
    step: &mut Step,
) {
    step.samples.clear();
    step.chooses = !batch.samples.is_empty();
    // Rows that nobody asks about, those that pad the batch among them, are not sampled.
    for params in numbers[layout.params()].chunks_exact_mut(SAMPLE_WORDS) {
        params[0] = (-1f32).to_bits();
    }
    (step.n_generated, step.n_prompt, step.n_tiles, step.n_prompt_samples) = (0, 0, 0, 0);
    let table = layout.block_table();
    for (to, block) in numbers[table.clone()].iter_mut().zip(&batch.block_table) {
        *to = block.0;
    }
    let mut next_sample = batch.sample_rows.iter().copied().peekable();
    for segment in &batch.segments {
        for row in segment.rows.clone() {
            let is_sampled = next_sample.next_if_eq(&row).is_some();
            let values = [batch.tokens[row], batch.positions[row], segment.blocks.start as u32];
            let parts = match segment.role {
                Role::Generated => [layout.tokens(), layout.positions(), layout.tables()],
                Role::Prompt => [layout.prompt_tokens(), layout.prompt_positions(), layout.prompt_tables()],
            };
            let n = if segment.role == Role::Generated { &mut step.n_generated } else { &mut step.n_prompt };
            for (part, value) in parts.into_iter().zip(values) {
                numbers[part][*n] = value;
            }
            if is_sampled && segment.role == Role::Generated {
                if let Some(spec) = batch.samples.get(step.samples.len()) {
                    write_params(spec, &mut numbers[layout.params()][*n * SAMPLE_WORDS..]);
                }
                step.samples.push(Ok(*n));
            } else if is_sampled {
                if let Some(spec) = batch.samples.get(step.samples.len()) {
                    write_params(spec, &mut numbers[layout.prompt_params()][step.n_prompt_samples * SAMPLE_WORDS..]);
                }
                numbers[layout.prompt_samples()][step.n_prompt_samples] = *n as u32;
                step.samples.push(Err(step.n_prompt_samples));
                step.n_prompt_samples += 1;
            }
            *n += 1;
        }
        if segment.role == Role::Prompt {
            let first = step.n_prompt - segment.rows.len();
            step.n_tiles +=
                tiles(first..step.n_prompt, rows_per_tile, step.n_tiles, &mut numbers[layout.prompt_tiles()]);
        }
    }
    step.n_slots = bucket(step.n_generated);
    let [tokens, positions, tables] = [layout.tokens(), layout.positions(), layout.tables()];
    for (part, value) in [(tokens, 0), (positions, PADDING), (tables, 0)] {
        numbers[part][step.n_generated..step.n_slots].fill(value);
    }
    // Without prompt rows their part stays behind.
    let start = if step.n_prompt > 0 { 0 } else { layout.params().start };
    step.used = start..table.start + batch.block_table.len();
}

/// A sample's settings as an `orcd_sample_params`, word by word.
fn write_params(spec: &SampleSpec, words: &mut [u32]) {
    let halves = |x: u64| [x as u32, (x >> 32) as u32];
    let [seed_low, seed_high] = halves(spec.seed);
    let [position_low, position_high] = halves(spec.position);
    let sampling = &spec.sampling;
    let params: [u32; SAMPLE_WORDS] = [
        sampling.temperature.to_bits(),
        sampling.repetition_penalty.to_bits(),
        sampling.top_k,
        sampling.top_p.to_bits(),
        sampling.min_p.to_bits(),
        spec.n_logprobs.map_or(sys::ORCD_SAMPLE_NO_LOGPROBS, |n| n as u32),
        seed_low,
        seed_high,
        position_low,
        position_high,
        spec.history.start as u32,
        spec.history.len() as u32,
    ];
    words[..SAMPLE_WORDS].copy_from_slice(&params);
}

// The order above is that of the structure's fields.
const _: () = {
    use std::mem::offset_of;
    assert!(offset_of!(sys::orcd_sample_params, temperature) == 0);
    assert!(offset_of!(sys::orcd_sample_params, repetition_penalty) == 4);
    assert!(offset_of!(sys::orcd_sample_params, top_k) == 8);
    assert!(offset_of!(sys::orcd_sample_params, top_p) == 12);
    assert!(offset_of!(sys::orcd_sample_params, min_p) == 16);
    assert!(offset_of!(sys::orcd_sample_params, n_logprobs) == 20);
    assert!(offset_of!(sys::orcd_sample_params, seed) == 24);
    assert!(offset_of!(sys::orcd_sample_params, position) == 32);
    assert!(offset_of!(sys::orcd_sample_params, history_start) == 40);
    assert!(offset_of!(sys::orcd_sample_params, history_len) == 44);
};

/// Cuts a segment's rows into tiles, the last rows first: they see the longest context, and a device is busy to the end when
/// the longest work begins first.
fn tiles(rows: Range<usize>, rows_per_tile: usize, n_before: usize, numbers: &mut [u32]) -> usize {
    let n_tiles = rows.len().div_ceil(rows_per_tile);
    for (i, to) in numbers[2 * n_before..].chunks_exact_mut(2).take(n_tiles).enumerate() {
        let start = rows.start + (n_tiles - 1 - i) * rows_per_tile;
        to[0] = start as u32;
        to[1] = (rows.end - start).min(rows_per_tile) as u32;
    }
    n_tiles
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BlockId;

    #[test]
    fn roles_go_to_their_parts_and_samples_are_found_again() {
        let mut batch = Batch::default();
        batch.push(Role::Generated, &[7], 20, &[BlockId(3), BlockId(1)], true);
        batch.push(Role::Prompt, &[1, 2, 3, 4, 5], 16, &[BlockId(8), BlockId(9)], true);
        batch.push(Role::Generated, &[9], 0, &[BlockId(4)], true);
        let layout = Layout::new(16, 4, 8, 32);
        let mut numbers = vec![99; layout.len()];
        let mut step = Step::default();
        lay_out(&batch, &layout, |n| n.next_power_of_two().max(4), 2, &mut numbers, &mut step);
        assert_eq!((step.n_generated, step.n_slots, step.n_prompt, step.n_tiles), (2, 4, 5, 3));
        assert_eq!(step.samples, [Ok(0), Err(0), Ok(1)]);
        let part = |range: Range<usize>, n: usize| numbers[range][..n].to_vec();
        assert_eq!(part(layout.tokens(), 5), [7, 9, 0, 0, 99]);
        assert_eq!(part(layout.positions(), 5), [20, 0, PADDING, PADDING, 99]);
        assert_eq!(part(layout.tables(), 4), [0, 4, 0, 0]);
        assert_eq!(part(layout.prompt_tokens(), 6), [1, 2, 3, 4, 5, 99]);
        assert_eq!(part(layout.prompt_positions(), 5), [16, 17, 18, 19, 20]);
        assert_eq!(part(layout.prompt_tables(), 5), [2; 5]);
        assert_eq!(part(layout.prompt_tiles(), 7), [4, 1, 2, 2, 0, 2, 99]);
        assert_eq!(part(layout.prompt_samples(), 1), [4]);
        assert_eq!(part(layout.block_table(), 5), [3, 1, 8, 9, 4]);
        assert_eq!(step.used, 0..layout.block_table().start + 5);
    }

    #[test]
    fn a_step_without_prompts_copies_only_its_part() {
        let mut batch = Batch::default();
        batch.push(Role::Generated, &[7], 20, &[BlockId(3), BlockId(1)], false);
        let layout = Layout::new(16, 4, 8, 32);
        let (mut numbers, mut step) = (vec![0; layout.len()], Step::default());
        lay_out(&batch, &layout, |n| n, 2, &mut numbers, &mut step);
        assert!(step.samples.is_empty());
        assert_eq!(step.used, layout.params().start..layout.block_table().start + 2);
    }
}
