//! A grammar's matcher as the engine knows constraints.

use engine::{Constraint, ConstraintError, Progress, TokenMask};
use llguidance::Matcher;
use tokenizer::TokenId;

/// One answer's way through its grammar.
pub(crate) struct GrammarConstraint {
    matcher: Matcher,
}

impl GrammarConstraint {
    pub(crate) fn new(matcher: Matcher) -> Self {
        Self { matcher }
    }
}

fn failed(error: impl ToString) -> ConstraintError {
    let text = error.to_string();
    ConstraintError(text.lines().next().unwrap_or("no message").to_owned())
}

impl Constraint for GrammarConstraint {
    fn allowed(&mut self, mask: &mut TokenMask) -> Result<Progress, ConstraintError> {
        if self.matcher.is_stopped() {
            let reason = self.matcher.stop_reason();
            return if reason.is_ok() { Ok(Progress::Finished) } else { Err(failed(reason)) };
        }
        let words = self.matcher.compute_mask().map_err(failed)?;
        mask.set_words(words.as_slice());
        let may_end = self.matcher.is_accepting().map_err(failed)?;
        Ok(if may_end { Progress::MayEnd } else { Progress::Unfinished })
    }

    fn accept(&mut self, token: TokenId) -> Result<(), ConstraintError> {
        self.matcher.consume_token(token).map_err(failed)
    }
}
