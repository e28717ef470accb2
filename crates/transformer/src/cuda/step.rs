//! One step's inputs, laid out for one copy to the device.
//!
//! A batch is split by role: generated rows and prompt rows go through different kernels, and each keeps to its own part
//! of a row of numbers that is copied as a whole. The parts lie at fixed places, because graphs point to them.

use std::ops::Range;

use cuda_sys::sys;

use crate::{Batch, MAX_LOGIT_BIAS, Role, SampleRequest, Sampling, TokenCount, TokenId, mask_words};

/// Says that a row only pads the batch to the size that a graph was recorded for.
pub(super) const PADDING: u32 = u32::MAX;

/// Numbers of 32 bits in an `orcd_sample_params`.
pub(super) const SAMPLE_WORDS: usize = size_of::<sys::orcd_sample_params>() / 4;

/// The same in an `orcd_sample_change`.
const CHANGE_WORDS: usize = size_of::<sys::orcd_sample_change>() / 4;

const NO_MASK: u32 = sys::ORCD_SAMPLE_NO_MASK;
const NO_CHANGES: u32 = sys::ORCD_SAMPLE_NO_CHANGES;

/// The most words that the lists of `samples` take, with so many tokens of history in all: an id and a change for each, a
/// change for each bias, and what rounds up to a change.
pub(super) fn max_list_words(samples: usize, history: usize) -> usize {
    (1 + CHANGE_WORDS) * (history + samples * MAX_LOGIT_BIAS) + samples * CHANGE_WORDS
}

/// Where everything lies, in numbers of 32 bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    max_rows: usize,
    max_samples: usize,
    n_slots: usize,
    max_table: usize,
    mask_words: usize,
}

impl Layout {
    /// For steps of up to `max_rows` prompt rows, `max_samples` sampled rows of them, `n_slots` generated rows (padding
    /// included) and `max_table` blocks, with a vocabulary of `n_vocab`.
    pub(super) fn new(max_rows: usize, max_samples: usize, n_slots: usize, max_table: usize, n_vocab: usize) -> Self {
        Self { max_rows, max_samples, n_slots, max_table, mask_words: mask_words(n_vocab) }
    }

    fn part(&self, i: usize) -> Range<usize> {
        let (rows, slots) = (self.max_rows, self.n_slots);
        let samples = self.max_samples;
        let sizes = [
            self.mask_words * samples,
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

    /// Masks of the samples that have one, from the last place downwards: so what is copied is one piece, and begins with
    /// the masks that there are. `[max_samples, mask_words]`
    pub(super) fn masks(&self) -> Range<usize> {
        self.part(0)
    }

    /// How sampled prompt rows are sampled. `[max_samples, SAMPLE_WORDS]`
    pub(super) fn prompt_params(&self) -> Range<usize> {
        self.part(1)
    }

    /// Prompt rows' tokens. `[max_rows]`
    pub(super) fn prompt_tokens(&self) -> Range<usize> {
        self.part(2)
    }

    /// Their absolute positions. `[max_rows]`
    pub(super) fn prompt_positions(&self) -> Range<usize> {
        self.part(3)
    }

    /// Where each one's sequence begins in the block table. `[max_rows]`
    pub(super) fn prompt_tables(&self) -> Range<usize> {
        self.part(4)
    }

    /// Attention's tiles: first row, number of rows. `[max_rows, 2]`
    pub(super) fn prompt_tiles(&self) -> Range<usize> {
        self.part(5)
    }

    /// The prompt rows whose logits are wanted. `[max_samples]`
    pub(super) fn prompt_samples(&self) -> Range<usize> {
        self.part(6)
    }

    /// How generated rows are sampled. `[n_slots, SAMPLE_WORDS]`
    pub(super) fn params(&self) -> Range<usize> {
        self.part(7)
    }

    /// Generated rows' tokens. `[n_slots]`
    pub(super) fn tokens(&self) -> Range<usize> {
        self.part(8)
    }

    /// Their absolute positions. `[n_slots]`
    pub(super) fn positions(&self) -> Range<usize> {
        self.part(9)
    }

    /// Where each one's sequence begins in the block table. `[n_slots]`
    pub(super) fn tables(&self) -> Range<usize> {
        self.part(10)
    }

    /// Blocks of all sequences. `[max_table]`
    pub(super) fn block_table(&self) -> Range<usize> {
        self.part(11)
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
    /// The samples' lists: ids of tokens whose logits change, and, from an even place on, their `orcd_sample_change`s.
    pub(super) lists: Vec<u32>,
    /// Masks laid out.
    n_masks: usize,
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
    step.lists.clear();
    step.n_masks = 0;
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
                let params = layout.params().start + *n * SAMPLE_WORDS;
                lay_out_sample(batch, step.samples.len(), layout, numbers, params, &mut step.lists, &mut step.n_masks);
                step.samples.push(Ok(*n));
            } else if is_sampled {
                let params = layout.prompt_params().start + step.n_prompt_samples * SAMPLE_WORDS;
                lay_out_sample(batch, step.samples.len(), layout, numbers, params, &mut step.lists, &mut step.n_masks);
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
    // Without masks and prompt rows their parts stay behind.
    let start = match (step.n_masks, step.n_prompt) {
        (0, 0) => layout.params().start,
        (0, _) => layout.prompt_params().start,
        (n, _) => layout.masks().end - n * layout.mask_words,
    };
    step.used = start..table.start + batch.block_table.len();
}

/// Lays out sample `i` of a batch that says how its rows are sampled, its settings at `params`. A token that is given is the only
/// one that its row's mask allows.
fn lay_out_sample(
    batch: &Batch,
    i: usize,
    layout: &Layout,
    numbers: &mut [u32],
    params: usize,
    lists: &mut Vec<u32>,
    n_masks: &mut usize,
) {
    if batch.samples.is_empty() {
        return;
    }
    let mut request = batch.sample(i);
    if request.given.is_some() {
        request = SampleRequest {
            n_logprobs: request.n_logprobs,
            given: request.given,
            ..SampleRequest::new(&Sampling::GREEDY, 0)
        };
    }
    let mut place = NO_MASK;
    if request.given.is_some() || !request.mask.is_empty() {
        *n_masks += 1;
        let start = layout.masks().end - *n_masks * layout.mask_words;
        let mask = &mut numbers[start..][..layout.mask_words];
        match request.given {
            Some(id) => {
                mask.fill(0);
                mask[id as usize / 32] = 1 << (id % 32);
            }
            None => mask.copy_from_slice(request.mask),
        }
        place = (start / layout.mask_words.max(1)) as u32;
    }
    let list = write_list(&request, lists);
    write_params(&request, batch.samples[i].position, list, place, &mut numbers[params..][..SAMPLE_WORDS]);
}

/// Where a sample's list is.
struct ListAt {
    ids: Range<usize>,
    /// The first of its changes, counted in changes.
    changes: u32,
}

/// Appends the tokens whose logits change, ascending: those generated, if they are penalized, and those with a bias. What
/// becomes of them goes behind, unless a repetition penalty is all there is.
fn write_list(request: &SampleRequest<'_>, lists: &mut Vec<u32>) -> ListAt {
    let start = lists.len();
    let history = if request.sampling.penalizes() { request.history } else { &[] };
    let merged = || merge(history, request.logit_bias);
    lists.extend(merged().map(|(id, ..)| id));
    let ids = start..lists.len();
    if ids.is_empty() || (request.logit_bias.is_empty() && !request.sampling.penalizes_by_count()) {
        return ListAt { ids, changes: NO_CHANGES };
    }
    lists.resize(lists.len().next_multiple_of(CHANGE_WORDS), 0);
    let changes = (lists.len() / CHANGE_WORDS) as u32;
    lists.extend(merged().flat_map(|(_, count, bias)| [count, bias.to_bits()]));
    ListAt { ids, changes }
}

/// Each token of either list once, ascending: `(id, count, bias)`.
fn merge<'a>(
    history: &'a [TokenCount],
    logit_bias: &'a [(TokenId, f32)],
) -> impl Iterator<Item = (TokenId, u32, f32)> + 'a {
    let mut history = history.iter().peekable();
    let mut logit_bias = logit_bias.iter().peekable();
    std::iter::from_fn(move || {
        let ids = [history.peek().map(|counted| counted.id), logit_bias.peek().map(|(id, _)| *id)];
        let id = ids.into_iter().flatten().min()?;
        let count = history.next_if(|counted| counted.id == id).map_or(0, |counted| counted.count);
        let bias = logit_bias.next_if(|biased| biased.0 == id).map_or(0.0, |biased| biased.1);
        Some((id, count, bias))
    })
}

/// A sample's settings as an `orcd_sample_params`, word by word.
fn write_params(request: &SampleRequest<'_>, position: u64, list: ListAt, mask: u32, words: &mut [u32]) {
    let halves = |x: u64| [x as u32, (x >> 32) as u32];
    let [seed_low, seed_high] = halves(request.seed);
    let [position_low, position_high] = halves(position);
    let sampling = request.sampling;
    let params: [u32; SAMPLE_WORDS] = [
        sampling.temperature.to_bits(),
        sampling.repetition_penalty.to_bits(),
        sampling.top_k,
        sampling.top_p.to_bits(),
        sampling.min_p.to_bits(),
        request.n_logprobs.map_or(sys::ORCD_SAMPLE_NO_LOGPROBS, |n| n as u32),
        seed_low,
        seed_high,
        position_low,
        position_high,
        list.ids.start as u32,
        list.ids.len() as u32,
        list.changes,
        sampling.presence_penalty.to_bits(),
        sampling.frequency_penalty.to_bits(),
        mask,
    ];
    words.copy_from_slice(&params);
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
    assert!(offset_of!(sys::orcd_sample_params, changed_start) == 40);
    assert!(offset_of!(sys::orcd_sample_params, changed_len) == 44);
    assert!(offset_of!(sys::orcd_sample_params, changes_start) == 48);
    assert!(offset_of!(sys::orcd_sample_params, presence_penalty) == 52);
    assert!(offset_of!(sys::orcd_sample_params, frequency_penalty) == 56);
    assert!(offset_of!(sys::orcd_sample_params, mask) == 60);
    assert!(offset_of!(sys::orcd_sample_change, count) == 0);
    assert!(offset_of!(sys::orcd_sample_change, bias) == 4);
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
        let layout = Layout::new(16, 4, 8, 32, 70);
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
        assert_eq!(step.used, layout.prompt_params().start..layout.block_table().start + 5);
    }

    #[test]
    fn a_step_without_prompts_copies_only_its_part() {
        let mut batch = Batch::default();
        batch.push(Role::Generated, &[7], 20, &[BlockId(3), BlockId(1)], false);
        let layout = Layout::new(16, 4, 8, 32, 70);
        let (mut numbers, mut step) = (vec![0; layout.len()], Step::default());
        lay_out(&batch, &layout, |n| n, 2, &mut numbers, &mut step);
        assert!(step.samples.is_empty());
        assert_eq!(step.used, layout.params().start..layout.block_table().start + 2);
    }

    const GREEDY: Sampling = Sampling::GREEDY;

    /// `changed_start, changed_len, changes_start` and `mask`.
    fn list_and_mask(params: &[u32]) -> ([u32; 3], u32) {
        ([params[10], params[11], params[12]], params[15])
    }

    #[test]
    fn masks_go_in_front_and_only_those_that_there_are() {
        let masks = [[1, 2, 3], [4, 5, 6]];
        let mut batch = Batch::default();
        let mut push = |role, mask| {
            batch.push(role, &[7], 20, &[BlockId(3), BlockId(1)], true);
            batch.sample_with(&SampleRequest { mask, ..SampleRequest::new(&GREEDY, 5) });
        };
        push(Role::Generated, &masks[0][..]);
        push(Role::Generated, &[]);
        push(Role::Prompt, &masks[1]);
        let layout = Layout::new(16, 4, 8, 32, 70);
        assert_eq!(layout.masks(), 0..12);
        let (mut numbers, mut step) = (vec![99; layout.len()], Step::default());
        lay_out(&batch, &layout, |n| n, 2, &mut numbers, &mut step);
        assert_eq!(numbers[..12], [99, 99, 99, 99, 99, 99, 4, 5, 6, 1, 2, 3]);
        assert_eq!(step.used, 6..layout.block_table().start + 6);
        let params = |of: Range<usize>, i| list_and_mask(&numbers[of][i * SAMPLE_WORDS..][..SAMPLE_WORDS]).1;
        assert_eq!(params(layout.params(), 0), 3);
        assert_eq!(params(layout.params(), 1), NO_MASK);
        assert_eq!(params(layout.prompt_params(), 0), 2);
    }

    #[test]
    fn a_given_token_is_the_only_one_allowed_whatever_else_is_set() {
        let odd = Sampling { temperature: 1.5, presence_penalty: 1.0, ..GREEDY };
        let history = [TokenCount { id: 3, count: 2 }];
        let mut batch = Batch::default();
        batch.push(Role::Prompt, &[7, 8, 9], 20, &[BlockId(3), BlockId(1)], false);
        for (row, id) in [(0, 33), (1, 69)] {
            let given = SampleRequest { n_logprobs: Some(2), given: Some(id), ..SampleRequest::new(&odd, 5) };
            batch.sample_row(row, &SampleRequest { history: &history, logit_bias: &[(33, -100.0)], ..given });
        }
        batch.sample_row(2, &SampleRequest::new(&odd, 5));
        assert_eq!(batch.samples.iter().map(|sample| sample.position).collect::<Vec<_>>(), [21, 22, 23]);
        let layout = Layout::new(16, 4, 8, 32, 70);
        let (mut numbers, mut step) = (vec![99; layout.len()], Step::default());
        lay_out(&batch, &layout, |n| n, 2, &mut numbers, &mut step);
        assert_eq!(numbers[..12], [99, 99, 99, 99, 99, 99, 0, 0, 1 << 5, 0, 1 << 1, 0]);
        assert_eq!(numbers[layout.prompt_samples()][..3], [0, 1, 2]);
        let params = |i| &numbers[layout.prompt_params()][i * SAMPLE_WORDS..][..SAMPLE_WORDS];
        for i in 0..2 {
            assert_eq!((params(i)[0], params(i)[5]), (0, 2), "greedy, with two log-probabilities");
            assert_eq!(list_and_mask(params(i)), ([0, 0, NO_CHANGES], 3 - i as u32), "no list");
        }
        assert_eq!(list_and_mask(params(2)), ([0, 0, NO_CHANGES], NO_MASK));
        assert_eq!(params(2)[0], 1.5f32.to_bits());
    }

    #[test]
    fn lists_hold_what_changes_and_why() {
        let history: Vec<_> = [(3, 2), (8, 1), (9, 7)].map(|(id, count)| TokenCount { id, count }).into();
        let repetition = Sampling { repetition_penalty: 1.5, ..GREEDY };
        let frequency = Sampling { frequency_penalty: 0.5, ..GREEDY };
        let bias = [(1, -4.0), (8, 2.0)];
        let mut lists = Vec::new();
        let mut write = |sampling, logit_bias| {
            let request = SampleRequest { history: &history, logit_bias, ..SampleRequest::new(sampling, 5) };
            let at = write_list(&request, &mut lists);
            (at.ids, at.changes)
        };
        assert_eq!(write(&GREEDY, &[]), (0..0, NO_CHANGES), "nothing reads a history");
        assert_eq!(write(&repetition, &[]), (0..3, NO_CHANGES));
        assert_eq!(write(&frequency, &[]), (3..6, 3));
        assert_eq!(write(&GREEDY, &bias), (12..14, 7));
        assert_eq!(write(&repetition, &bias), (18..22, 11));
        let [minus_4, two] = [-4.0f32, 2.0].map(f32::to_bits);
        assert_eq!(lists[..6], [3, 8, 9, 3, 8, 9]);
        assert_eq!(lists[6..12], [2, 0, 1, 0, 7, 0]);
        assert_eq!(lists[12..18], [1, 8, 0, minus_4, 0, two]);
        assert_eq!(lists[18..], [1, 3, 8, 9, 0, minus_4, 2, 0, 1, two, 7, 0]);
        assert!(lists.len() <= max_list_words(5, 5 * history.len()));
    }
}
