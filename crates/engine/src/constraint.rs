//! What a request's answer may be made of: structured output, as far as the engine knows it, which is ids.
//!
//! A [`Constraint`] is asked which tokens may come next and is told which one was chosen. The tokens that it does not allow
//! are impossible for the sampler, whatever their logits. What a grammar or a schema is, and how token ids spell it, is the
//! business of whoever implements the trait.
//!
//! The mask of a step's token is made when the token before it is chosen, on the engine's thread: so it travels with the
//! step's inputs, and how long it takes is part of how long a step takes.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use transformer::{TokenId, mask_words};

/// Says which tokens an answer may go on with. One belongs to one request, and every step asks it.
///
/// A constraint decides by the tokens that it has accepted and by nothing else, or the answer would depend on more than the
/// request. It should take less than a millisecond: all requests of a step wait for it.
pub trait Constraint: Send {
    /// Allows in `mask`, which allows nothing yet, what may follow the tokens accepted so far.
    ///
    /// End tokens are the engine's: what the mask says of them is replaced by what [`Progress`] says.
    ///
    /// # Errors
    /// The request then ends as an internal failure, and so it does if neither a token nor the end is allowed. Others go on.
    fn allowed(&mut self, mask: &mut TokenMask) -> Result<Progress, ConstraintError>;

    /// Takes a chosen token, one of those that were last allowed. It is never an end token: the request ends with that.
    ///
    /// # Errors
    /// As for [`Constraint::allowed`].
    fn accept(&mut self, token: TokenId) -> Result<(), ConstraintError>;
}

impl fmt::Debug for dyn Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Constraint")
    }
}

/// How far an answer has come under its constraint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Something is missing: no end token may be chosen.
    Unfinished,
    /// It may end here, or go on with what the mask allows.
    MayEnd,
    /// It is complete: only an end token may be chosen.
    Finished,
}

/// Why a constraint cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the constraint of the answer failed: {0}")]
pub struct ConstraintError(pub String);

/// A set of tokens: a bit for each of the vocabulary, the first in the lowest bit of the first word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenMask {
    words: Vec<u32>,
    n_vocab: usize,
}

impl TokenMask {
    /// A mask over `n_vocab` tokens that allows none of them.
    pub fn new(n_vocab: usize) -> Self {
        Self { words: vec![0; mask_words(n_vocab)], n_vocab }
    }

    /// Tokens of the vocabulary.
    pub fn n_vocab(&self) -> usize {
        self.n_vocab
    }

    /// Allows a token. One that the vocabulary does not have is ignored.
    pub fn allow(&mut self, id: TokenId) {
        if (id as usize) < self.n_vocab {
            self.words[id as usize / 32] |= 1 << (id % 32);
        }
    }

    /// Allows a token no longer.
    pub fn forbid(&mut self, id: TokenId) {
        if (id as usize) < self.n_vocab {
            self.words[id as usize / 32] &= !(1 << (id % 32));
        }
    }

    /// Whether it allows a token.
    pub fn allows(&self, id: TokenId) -> bool {
        (id as usize) < self.n_vocab && self.words[id as usize / 32] >> (id % 32) & 1 == 1
    }

    /// Whether it allows none.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
    }

    /// Allows nothing any more.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// The bits. `[mask_words(n_vocab)]`
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// Allows exactly what `words` say, whose bits lie as this mask's do. A vocabulary of a tokenizer may be shorter than the
    /// model's, or padded: what is missing is not allowed, what is too much is ignored.
    pub fn set_words(&mut self, words: &[u32]) {
        let n = words.len().min(self.words.len());
        self.words[..n].copy_from_slice(&words[..n]);
        self.words[n..].fill(0);
        let n_in_last = self.n_vocab % 32;
        if let Some(last) = self.words.last_mut().filter(|_| n_in_last > 0) {
            *last &= (1 << n_in_last) - 1;
        }
    }
}

/// A running request's constraint, and the mask of the token that is chosen next.
#[derive(Debug)]
pub(crate) struct Constrained {
    constraint: Box<dyn Constraint>,
    mask: TokenMask,
}

impl Constrained {
    /// Asks for the mask of the answer's first token.
    pub(crate) fn new(
        constraint: Box<dyn Constraint>,
        end_tokens: &[TokenId],
        n_vocab: usize,
    ) -> Result<Self, ConstraintError> {
        let mut constrained = Self { constraint, mask: TokenMask::new(n_vocab) };
        constrained.ask(end_tokens)?;
        Ok(constrained)
    }

    /// Takes a chosen token and asks for the mask of the next. After an error it is not to be used again.
    pub(crate) fn advance(&mut self, token: TokenId, end_tokens: &[TokenId]) -> Result<(), ConstraintError> {
        let constraint = &mut self.constraint;
        guarded(|| constraint.accept(token))?;
        self.ask(end_tokens)
    }

    pub(crate) fn mask(&self) -> &TokenMask {
        &self.mask
    }

    fn ask(&mut self, end_tokens: &[TokenId]) -> Result<(), ConstraintError> {
        let Self { constraint, mask } = self;
        mask.clear();
        let progress = guarded(|| constraint.allowed(mask))?;
        if progress == Progress::Finished {
            mask.clear();
        }
        for &id in end_tokens {
            if progress == Progress::Unfinished { mask.forbid(id) } else { mask.allow(id) }
        }
        if mask.is_empty() {
            return Err(ConstraintError("it allows no token, and the answer may not end".into()));
        }
        Ok(())
    }
}

/// A panic is the constraint's error and nobody else's.
fn guarded<T>(call: impl FnOnce() -> Result<T, ConstraintError>) -> Result<T, ConstraintError> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|panic| Err(ConstraintError(format!("it panicked: {}", panic_text(panic.as_ref())))))
}

/// What a panic says.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_knows_its_vocabulary_and_nothing_beyond() {
        let mut mask = TokenMask::new(37);
        assert!(mask.is_empty() && mask.words().len() == 2);
        for id in [0, 31, 32, 36, 37, 63, u32::MAX] {
            mask.allow(id);
            assert_eq!(mask.allows(id), id < 37, "{id}");
        }
        assert_eq!(mask.words(), [0x8000_0001, 0b1_0001]);
        mask.forbid(31);
        mask.forbid(u32::MAX);
        assert_eq!(mask.words(), [1, 0b1_0001]);
        mask.clear();
        assert!(mask.is_empty());
    }

    #[test]
    fn words_of_longer_and_shorter_vocabularies_are_cut_and_filled_up() {
        let mut mask = TokenMask::new(37);
        mask.set_words(&[u32::MAX; 3]);
        assert_eq!(mask.words(), [u32::MAX, 0b1_1111]);
        mask.set_words(&[7]);
        assert_eq!(mask.words(), [7, 0]);
        let mut whole = TokenMask::new(64);
        whole.set_words(&[u32::MAX; 2]);
        assert!(whole.allows(63));
    }
}
