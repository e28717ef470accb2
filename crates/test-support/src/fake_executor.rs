//! An executor without a model, for tests of what stands above the seam.
//!
//! It has a real paged store: a row's content depends, as a key or value does, on every token before it, is written to the
//! slot that the block table names, and is read back from there. Logits are a hash of all slots of a sequence, so a wrong
//! block, a wrong position, an overwritten or a wrongly shared slot changes the answer, and a batch that breaks a rule of
//! [`Batch`] is refused as [`ExecutorError::InvalidBatch`] and counted in [`FakeControl::n_violations`].
//!
//! [`FakeControl`] steers it from outside while the engine owns it: scripted answers, a gate that holds it before a step,
//! failures and panics on demand, counters.
//!
//! ```
//! use test_support::fake_executor::{FakeConfig, FakeExecutor};
//! use transformer::{Batch, BlockId, Executor, Role};
//!
//! let (mut executor, control) = FakeExecutor::new(FakeConfig::default());
//! control.script(&[1, 2, 3], &[40, 41]);
//! let mut batch = Batch::default();
//! batch.push(Role::Prompt, &[1, 2, 3], 0, &[BlockId(0)], true);
//! let logits = executor.forward(&batch)?.into_logits();
//! assert_eq!(logits.iter().copied().fold(f32::MIN, f32::max), logits[40]);
//! assert_eq!(control.n_steps(), 1);
//! # Ok::<(), transformer::ExecutorError>(())
//! ```

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use transformer::{Batch, Executor, ExecutorError, ExecutorInfo, MemoryUse, Role, Segment, StepOutput, TokenId};

/// What a [`FakeExecutor`] pretends to be.
#[derive(Debug, Clone)]
pub struct FakeConfig {
    /// Rows of the output matrix.
    pub n_vocab: usize,
    /// The longest sequence.
    pub n_ctx: usize,
    /// Tokens a KV block holds.
    pub block_tokens: usize,
    /// KV blocks.
    pub n_blocks: usize,
    /// Rows a step may have.
    pub max_batch_tokens: usize,
    /// Sequences a step may have.
    pub max_seqs: usize,
    /// If false, a slot's content depends on the role under which it was written.
    pub roles_bit_equal: bool,
}

impl Default for FakeConfig {
    /// 256 tokens, a context of 512, 256 blocks of 16 tokens, 512 rows of 8 sequences a step.
    fn default() -> Self {
        Self {
            n_vocab: 256,
            n_ctx: 512,
            block_tokens: 16,
            n_blocks: 256,
            max_batch_tokens: 512,
            max_seqs: 8,
            roles_bit_equal: true,
        }
    }
}

/// What one step had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FakeStep {
    /// Rows of prompts.
    pub n_prompt_rows: usize,
    /// Rows of generated tokens.
    pub n_generated_rows: usize,
    /// Rows whose logits were wanted.
    pub n_samples: usize,
}

/// One written position.
#[derive(Debug, Clone, Copy)]
struct Slot {
    pos: u32,
    token: TokenId,
    /// A hash of this token, its role if that matters, and the slot before it.
    content: u64,
    /// Generated rows since the last prompt row: which token of its answer the next one is.
    n_generated: u32,
}

/// An executor that needs no model. See the [module](self).
#[derive(Debug)]
pub struct FakeExecutor {
    info: ExecutorInfo,
    /// `[n_blocks * block_tokens]`
    slots: Vec<Option<Slot>>,
    logits: Vec<f32>,
    shared: Arc<Shared>,
}

/// Steers and observes a [`FakeExecutor`] that the engine owns. Clones are the same control.
#[derive(Debug, Clone)]
pub struct FakeControl {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    scripts: HashMap<Vec<TokenId>, Vec<TokenId>>,
    script_for_all: Option<Vec<TokenId>>,
    /// Steps that may still begin; `None` is any number.
    permits: Option<usize>,
    is_held: bool,
    delay: Duration,
    /// Faults by the number of the step that meets them.
    faults: HashMap<usize, Fault>,
    steps: Vec<FakeStep>,
    n_violations: usize,
    is_dropped: bool,
}

#[derive(Debug, Clone)]
enum Fault {
    Error(ExecutorError),
    Panic(String),
    Nan,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FakeControl {
    /// Answers `prompt` with `answer`; put the end token in it. After its last token comes whatever the hash gives.
    ///
    /// Logits are 0 but for the scripted token's, 50: a temperature of 2 chooses it too.
    pub fn script(&self, prompt: &[TokenId], answer: &[TokenId]) {
        self.shared.lock().scripts.insert(prompt.to_vec(), answer.to_vec());
    }

    /// Answers every prompt that has no script of its own with `answer`.
    pub fn script_all(&self, answer: &[TokenId]) {
        self.shared.lock().script_for_all = Some(answer.to_vec());
    }

    /// Lets `n` more steps begin and holds the executor before the one after. `hold_after(0)` holds the next.
    pub fn hold_after(&self, n: usize) {
        self.shared.lock().permits = Some(n);
        self.shared.changed.notify_all();
    }

    /// Lets the executor run freely again.
    pub fn release(&self) {
        self.shared.lock().permits = None;
        self.shared.changed.notify_all();
    }

    /// Waits until the executor stands at the gate with a step in its hands.
    ///
    /// # Panics
    /// If that takes longer than ten seconds.
    pub fn wait_until_held(&self) {
        self.wait("the executor is held", |state| state.is_held);
    }

    /// Waits until `n` steps have ended since the start.
    ///
    /// # Panics
    /// If that takes longer than ten seconds.
    pub fn wait_for_steps(&self, n: usize) {
        self.wait("enough steps have ended", |state| state.steps.len() >= n);
    }

    fn wait(&self, what: &str, is_so: impl Fn(&State) -> bool) {
        let end = Instant::now() + Duration::from_secs(10);
        let mut state = self.shared.lock();
        while !is_so(&state) {
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited ten seconds until {what}");
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Makes every step take at least so long.
    pub fn set_delay(&self, delay: Duration) {
        self.shared.lock().delay = delay;
    }

    /// Fails the step after `n` more with `error`. The step writes what it was to write, with wrong content.
    pub fn fail_after(&self, n: usize, error: ExecutorError) {
        self.fault_after(n, Fault::Error(error));
    }

    /// Panics in the step after `n` more.
    pub fn panic_after(&self, n: usize, message: &str) {
        self.fault_after(n, Fault::Panic(message.to_owned()));
    }

    /// Gives rows of NaN in the step after `n` more.
    pub fn nan_after(&self, n: usize) {
        self.fault_after(n, Fault::Nan);
    }

    fn fault_after(&self, n: usize, fault: Fault) {
        let mut state = self.shared.lock();
        let step = state.steps.len() + n;
        state.faults.insert(step, fault);
    }

    /// Steps that have ended, failed ones too.
    pub fn n_steps(&self) -> usize {
        self.shared.lock().steps.len()
    }

    /// Every step that has ended, failed ones too.
    pub fn steps(&self) -> Vec<FakeStep> {
        self.shared.lock().steps.clone()
    }

    /// Rows computed in all.
    pub fn n_rows(&self) -> usize {
        self.shared.lock().steps.iter().map(|s| s.n_prompt_rows + s.n_generated_rows).sum()
    }

    /// Batches that broke a rule. A test of an engine wants 0.
    pub fn n_violations(&self) -> usize {
        self.shared.lock().n_violations
    }

    /// Whether the engine has dropped the executor: on a device, its memory would be free.
    pub fn is_dropped(&self) -> bool {
        self.shared.lock().is_dropped
    }
}

impl FakeExecutor {
    /// An executor and its control.
    pub fn new(config: FakeConfig) -> (Self, FakeControl) {
        let shared = Arc::<Shared>::default();
        let executor = Self {
            slots: vec![None; config.n_blocks * config.block_tokens],
            logits: Vec::new(),
            info: ExecutorInfo {
                device: "fake".into(),
                n_vocab: config.n_vocab,
                n_ctx: config.n_ctx,
                block_tokens: config.block_tokens,
                n_blocks: config.n_blocks,
                max_batch_tokens: config.max_batch_tokens,
                max_seqs: config.max_seqs,
                roles_bit_equal: config.roles_bit_equal,
                samples: false,
            },
            shared: Arc::clone(&shared),
        };
        (executor, FakeControl { shared })
    }

    /// Waits at the gate and takes the fault that is meant for this step.
    fn enter(&self) -> Option<Fault> {
        let mut state = self.shared.lock();
        while state.permits == Some(0) {
            state.is_held = true;
            self.shared.changed.notify_all();
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.is_held = false;
        if let Some(permits) = &mut state.permits {
            *permits -= 1;
        }
        let delay = state.delay;
        let step = state.steps.len();
        let fault = state.faults.remove(&step);
        drop(state);
        std::thread::sleep(delay);
        fault
    }

    fn leave(&self, batch: &Batch, is_violation: bool) {
        let rows = |role| batch.segments.iter().filter(|s| s.role == role).map(|s| s.rows.len()).sum();
        let step = FakeStep {
            n_prompt_rows: rows(Role::Prompt),
            n_generated_rows: rows(Role::Generated),
            n_samples: batch.sample_rows.len(),
        };
        let mut state = self.shared.lock();
        state.steps.push(step);
        state.n_violations += usize::from(is_violation);
        self.shared.changed.notify_all();
    }

    /// The rules of [`Batch`].
    fn check(&self, batch: &Batch) -> Result<(), String> {
        let info = &self.info;
        let n = batch.n_tokens();
        if n == 0 || n > info.max_batch_tokens || batch.segments.len() > info.max_seqs {
            return Err(format!("{n} rows of {} sequences", batch.segments.len()));
        }
        if batch.positions.len() != n || batch.tokens.iter().any(|&t| t as usize >= info.n_vocab) {
            return Err("positions or tokens are out of range".into());
        }
        let n_samples = batch.sample_rows.len();
        if batch.sample_rows.iter().any(|&r| r >= n) || !batch.sample_rows.is_sorted_by(|a, b| a < b) {
            return Err(format!("sample rows {:?}", batch.sample_rows));
        }
        if n_samples > info.max_seqs || ![0, n_samples].contains(&batch.samples.len()) {
            return Err(format!("{n_samples} sample rows, {} of them described", batch.samples.len()));
        }
        let mut next_row = 0;
        let mut written = HashSet::new();
        for segment in &batch.segments {
            if segment.rows.start != next_row || segment.rows.is_empty() {
                return Err(format!("rows {:?} after row {next_row}", segment.rows));
            }
            next_row = segment.rows.end;
            if segment.role == Role::Generated && segment.rows.len() != 1 {
                return Err(format!("{} generated rows of one sequence", segment.rows.len()));
            }
            let end = segment.start_pos as usize + segment.rows.len();
            if end > info.n_ctx || segment.blocks.len() * info.block_tokens < end {
                return Err(format!("{end} positions in {} blocks", segment.blocks.len()));
            }
            for row in segment.rows.clone() {
                let pos = segment.start_pos as usize + row - segment.rows.start;
                if batch.positions[row] as usize != pos {
                    return Err(format!("row {row} has position {}, not {pos}", batch.positions[row]));
                }
                let slot = self.slot(batch, segment, pos);
                if slot >= self.slots.len() || !written.insert(slot) {
                    return Err(format!("slot {slot} does not exist or is written twice"));
                }
            }
        }
        if next_row == n { Ok(()) } else { Err(format!("row {next_row} belongs to no sequence")) }
    }

    fn slot(&self, batch: &Batch, segment: &Segment, pos: usize) -> usize {
        let block = batch.block_table[segment.blocks.clone()][pos / self.info.block_tokens];
        block.0 as usize * self.info.block_tokens + pos % self.info.block_tokens
    }

    /// What the block table says stands at `pos`.
    fn read(&self, batch: &Batch, segment: &Segment, pos: usize) -> Result<Slot, String> {
        match self.slots[self.slot(batch, segment, pos)] {
            Some(slot) if slot.pos as usize == pos => Ok(slot),
            Some(slot) => Err(format!("position {pos} is read where position {} was written", slot.pos)),
            None => Err(format!("position {pos} is read and was never written")),
        }
    }

    fn write_rows(&mut self, batch: &Batch, segment: &Segment) -> Result<(), String> {
        for row in segment.rows.clone() {
            let pos = segment.start_pos as usize + row - segment.rows.start;
            let before = if pos == 0 { None } else { Some(self.read(batch, segment, pos - 1)?) };
            let token = batch.tokens[row];
            let role = u64::from(!self.info.roles_bit_equal && segment.role == Role::Generated);
            let content = mix(before.map_or(0, |s| s.content) ^ mix(u64::from(token) << 1 | role));
            let n_generated = match segment.role {
                Role::Prompt => 0,
                Role::Generated => before.map_or(0, |s| s.n_generated) + 1,
            };
            let slot = self.slot(batch, segment, pos);
            self.slots[slot] = Some(Slot { pos: pos as u32, token, content, n_generated });
        }
        Ok(())
    }

    /// Logits from every slot of the sequence up to `row`'s.
    fn push_logits(&mut self, batch: &Batch, segment: &Segment, row: usize) -> Result<(), String> {
        let n_positions = segment.start_pos as usize + row - segment.rows.start + 1;
        let slots = (0..n_positions).map(|pos| self.read(batch, segment, pos)).collect::<Result<Vec<_>, _>>()?;
        let last = slots[n_positions - 1];
        let n_prompt = n_positions - last.n_generated as usize;
        let prompt = slots[..n_prompt].iter().map(|s| s.token).collect::<Vec<_>>();
        let state = self.shared.lock();
        let script = state.scripts.get(&prompt).or(state.script_for_all.as_ref());
        let scripted = script.and_then(|answer| answer.get(last.n_generated as usize)).copied();
        drop(state);
        let seed = slots.iter().fold(0, |h, s| mix(h ^ s.content));
        self.logits.extend((0..self.info.n_vocab as u32).map(|id| match scripted {
            Some(token) => {
                if token == id {
                    50.0
                } else {
                    0.0
                }
            }
            // Quarters from -8 to 8: ties are common, as they must be in a test of them.
            None => (mix(seed ^ u64::from(id)) % 65) as f32 * 0.25 - 8.0,
        }));
        Ok(())
    }

    fn run(&mut self, batch: &Batch) -> Result<(), String> {
        self.check(batch)?;
        batch.segments.iter().try_for_each(|segment| self.write_rows(batch, segment))?;
        for &row in &batch.sample_rows {
            let segment = batch.segments.iter().find(|s| s.rows.contains(&row)).ok_or("a sample row of no sequence")?;
            self.push_logits(batch, segment, row)?;
        }
        Ok(())
    }

    /// Leaves wrong content in every slot the batch writes.
    fn spoil(&mut self, batch: &Batch) {
        for segment in &batch.segments {
            for pos in (segment.start_pos as usize..).take(segment.rows.len()) {
                let slot = self.slot(batch, segment, pos);
                self.slots[slot] = Some(Slot { pos: pos as u32, token: 0, content: u64::MAX, n_generated: 0 });
            }
        }
    }
}

impl Executor for FakeExecutor {
    fn info(&self) -> &ExecutorInfo {
        &self.info
    }

    /// 16 bytes a slot, nothing else.
    fn memory(&self) -> MemoryUse {
        MemoryUse { weight_bytes: 0, kv_bytes: self.slots.len() as u64 * 16, scratch_bytes: 0, vram_bytes: 0 }
    }

    fn forward(&mut self, batch: &Batch) -> Result<StepOutput<'_>, ExecutorError> {
        let fault = self.enter();
        self.logits.clear();
        let result = self.run(batch);
        self.leave(batch, result.is_err());
        result.map_err(ExecutorError::InvalidBatch)?;
        match fault {
            None => {}
            Some(Fault::Error(error)) => {
                self.spoil(batch);
                return Err(error);
            }
            Some(Fault::Panic(message)) => panic!("{message}"),
            Some(Fault::Nan) => self.logits.fill(f32::NAN),
        }
        Ok(StepOutput::Logits(&self.logits))
    }
}

impl Drop for FakeExecutor {
    fn drop(&mut self) {
        self.shared.lock().is_dropped = true;
        self.shared.changed.notify_all();
    }
}

/// The finalizer of SplitMix64: every bit of the input moves every bit of the output.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}
