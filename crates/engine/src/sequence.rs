//! One admitted request: its tokens, its KV blocks and how far it has come.

use std::time::Instant;

use transformer::{BlockId, Role, SampleRequest, Sampling, TokenCount, TokenId, TokenLogprobs};

use crate::blocks::BlockPool;
use crate::constraint::{Constrained, ConstraintError};
use crate::limits::Limits;
use crate::prefix::NodeId;
use crate::request::{EndReason, Finished, JobId, Request, Timings};

/// A request that waits for a place.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) id: JobId,
    pub(crate) request: Request,
    pub(crate) submitted: Instant,
}

#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) id: JobId,
    pub(crate) request: Request,
    /// Prompt, then what was generated.
    pub(crate) tokens: Vec<TokenId>,
    /// Tokens generated so far, each once, ascending; empty where nothing is penalized.
    history: Vec<TokenCount>,
    /// Taken out of `request` by [`Sequence::constrain`].
    constrained: Option<Constrained>,
    pub(crate) max_generated: usize,
    /// Blocks that hold positions `0..`, in order.
    pub(crate) blocks: Vec<BlockId>,
    /// Blocks promised by the pool and not taken yet.
    pub(crate) n_promised: usize,
    /// Positions whose keys and values are in `blocks`.
    pub(crate) n_computed: usize,
    /// Prompt tokens found in the cache.
    pub(crate) n_cached: usize,
    /// The first `n_registered` blocks are in the content index; this is the node of the last of them.
    node: NodeId,
    n_registered: usize,
    submitted: Instant,
    admitted: Instant,
    first_token: Option<Instant>,
    /// Its last event is out and its blocks are given back.
    pub(crate) ended: bool,
}

impl Sequence {
    /// Admits a request: reuses what the cache holds of its prompt and has the rest of its blocks promised.
    ///
    /// # Errors
    /// Gives the request back if the pool cannot promise enough; the pool is then as it was.
    pub(crate) fn admit(
        waiting: Waiting,
        pool: &mut BlockPool,
        limits: &Limits,
        now: Instant,
    ) -> Result<Self, Box<Waiting>> {
        let Waiting { id, mut request, submitted } = waiting;
        request.logit_bias.sort_unstable_by_key(|(id, _)| *id);
        let max_generated = limits.max_generated(&request);
        let n_blocks = limits.blocks_needed(&request);
        let mut tokens = Vec::with_capacity(request.prompt.len() + max_generated);
        tokens.extend_from_slice(&request.prompt);
        let penalized = request.sampling.penalizes();
        let mut sequence = Self {
            id,
            request,
            tokens,
            history: Vec::with_capacity(if penalized { max_generated } else { 0 }),
            constrained: None,
            max_generated,
            blocks: Vec::with_capacity(n_blocks),
            n_promised: 0,
            n_computed: 0,
            n_cached: 0,
            node: NodeId::ROOT,
            n_registered: 0,
            submitted,
            admitted: now,
            first_token: None,
            ended: false,
        };
        sequence.reuse(pool, limits);
        let n_missing = n_blocks - sequence.blocks.len();
        if !pool.promise(n_missing) {
            sequence.give_back(pool);
            return Err(Box::new(Waiting { id, request: sequence.request, submitted }));
        }
        sequence.n_promised = n_missing;
        Ok(sequence)
    }

    /// Takes over blocks that hold the prompt's next tokens, as far as the cache goes. At least the last prompt token is
    /// left to compute: its logits choose the first token of the answer.
    ///
    /// Called at admission, when nothing is promised yet, and again while the prompt is being read, when a neighbour with
    /// the same beginning may have got further; a block found then replaces a promised one.
    pub(crate) fn reuse(&mut self, pool: &mut BlockPool, limits: &Limits) {
        while let Some(next) = self.next_shareable(limits) {
            let Some((block, node)) = pool.find(self.node, next) else { return };
            pool.share(block);
            if self.n_promised > 0 {
                self.n_promised -= 1;
                pool.withdraw(1);
            }
            self.blocks.push(block);
            self.node = node;
            self.n_registered += 1;
            self.n_computed += limits.block_tokens;
            self.n_cached += limits.block_tokens;
        }
    }

    /// The tokens of the next block, if the sequence stands at its beginning and another's block could serve. It never does for
    /// a prompt that is scored: the outputs of every row are wanted, and a cache has none.
    pub(crate) fn next_shareable(&self, limits: &Limits) -> Option<&[TokenId]> {
        let start = self.n_registered * limits.block_tokens;
        let end = start + limits.block_tokens;
        (limits.prefix_reuse
            && !self.is_scored()
            && self.n_computed == start
            && self.n_computed == self.blocks.len() * limits.block_tokens
            && end < self.n_prompt())
        .then(|| &self.tokens[start..end])
    }

    /// Whether this sequence is computing the very block that `next` holds after `node`, and is worth waiting for: a prompt that
    /// is scored is read in small pieces.
    pub(crate) fn is_computing(&self, node: NodeId, next: &[TokenId], limits: &Limits) -> bool {
        let start = self.n_registered * limits.block_tokens;
        let end = start + limits.block_tokens;
        !self.is_scored() && self.node == node && end <= self.n_shareable(limits) && self.tokens[start..end] == *next
    }

    /// The node of the blocks registered so far.
    pub(crate) fn node(&self) -> NodeId {
        self.node
    }

    /// Makes blocks that have become full known to other requests.
    pub(crate) fn register_full_blocks(&mut self, pool: &mut BlockPool, limits: &Limits) {
        if !limits.prefix_reuse {
            return;
        }
        let n_full = self.n_computed.min(self.n_shareable(limits)) / limits.block_tokens;
        while self.n_registered < n_full {
            let tokens = &self.tokens[self.n_registered * limits.block_tokens..][..limits.block_tokens];
            let block = &mut self.blocks[self.n_registered];
            (*block, self.node) = pool.register(self.node, tokens, *block);
            self.n_registered += 1;
        }
    }

    /// Takes the blocks that hold positions up to `end` out of the promise.
    pub(crate) fn take_blocks_to(&mut self, end: usize, pool: &mut BlockPool, limits: &Limits) {
        while self.blocks.len() * limits.block_tokens < end {
            self.blocks.push(pool.take_promised());
            self.n_promised -= 1;
        }
    }

    /// Gives everything back to the pool, last block first (see [`crate::blocks`]).
    pub(crate) fn give_back(&mut self, pool: &mut BlockPool) {
        while let Some(block) = self.blocks.pop() {
            pool.release(block);
        }
        pool.withdraw(self.n_promised);
        self.n_promised = 0;
    }

    pub(crate) fn n_prompt(&self) -> usize {
        self.request.prompt.len()
    }

    pub(crate) fn n_generated(&self) -> usize {
        self.tokens.len() - self.n_prompt()
    }

    /// Rows that are still to be computed before the next token can be chosen.
    pub(crate) fn n_pending(&self) -> usize {
        self.tokens.len() - self.n_computed
    }

    /// Whether the log-probabilities of the prompt's tokens are wanted.
    pub(crate) fn is_scored(&self) -> bool {
        self.request.n_prompt_logprobs.is_some()
    }

    /// The prompt's token at `position`, if the request wants its log-probabilities: how to ask for them after the one before.
    pub(crate) fn score_request(&self, position: usize) -> Option<SampleRequest<'static>> {
        let n_logprobs = self.request.n_prompt_logprobs?;
        let &given = self.request.prompt.get(position)?;
        Some(SampleRequest {
            n_logprobs: Some(n_logprobs),
            given: Some(given),
            ..SampleRequest::new(&Sampling::GREEDY, 0)
        })
    }

    pub(crate) fn role(&self) -> Role {
        if self.n_computed < self.n_prompt() { Role::Prompt } else { Role::Generated }
    }

    /// Begins to heed the request's constraint, if it has one.
    pub(crate) fn constrain(&mut self, limits: &Limits) -> Result<(), ConstraintError> {
        let constraint = self.request.constraint.take();
        let begin = |constraint| Constrained::new(constraint, &self.request.end_tokens, limits.n_vocab);
        self.constrained = constraint.map(begin).transpose()?;
        Ok(())
    }

    /// Tells the constraint, if there is one, of a token that another is to follow.
    pub(crate) fn advance_constraint(&mut self, id: TokenId) -> Result<(), ConstraintError> {
        match &mut self.constrained {
            Some(constrained) => constrained.advance(id, &self.request.end_tokens),
            None => Ok(()),
        }
    }

    /// What the next token is to be chosen by.
    pub(crate) fn sample_request(&self) -> SampleRequest<'_> {
        SampleRequest {
            sampling: &self.request.sampling,
            seed: self.request.seed,
            history: &self.history,
            logit_bias: &self.request.logit_bias,
            mask: self.constrained.as_ref().map_or(&[], |constrained| constrained.mask().words()),
            n_logprobs: self.request.n_logprobs,
            given: None,
        }
    }

    /// Appends a token and says whether it was the last that may be generated.
    pub(crate) fn push_token(&mut self, id: TokenId, now: Instant) -> bool {
        self.tokens.push(id);
        if self.request.sampling.penalizes() {
            match self.history.binary_search_by_key(&id, |counted| counted.id) {
                Ok(at) => self.history[at].count += 1,
                Err(at) => self.history.insert(at, TokenCount { id, count: 1 }),
            }
        }
        self.first_token.get_or_insert(now);
        self.n_generated() == self.max_generated
    }

    pub(crate) fn finished(&self, reason: EndReason, end_logprobs: Option<TokenLogprobs>, now: Instant) -> Finished {
        let first_token = self.first_token.unwrap_or(now);
        Finished {
            reason,
            end_logprobs,
            n_generated: self.n_generated(),
            n_cached: self.n_cached,
            timings: Timings {
                queued: self.admitted.saturating_duration_since(self.submitted),
                prefill: first_token.saturating_duration_since(self.admitted),
                decode: now.saturating_duration_since(first_token),
            },
        }
    }

    /// Positions whose blocks others may read: those written by prompt rows, and generated ones too where the executor
    /// leaves the same bits for both.
    fn n_shareable(&self, limits: &Limits) -> usize {
        if limits.roles_bit_equal { self.tokens.len() } else { self.n_prompt() }
    }
}
