//! Constraints for jobs: made off the threads that serve connections, few at a time, in limited time.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use structured::{Compiled, Grammars, Shape, ShapeError};
use tokenizer::Tokenizer;
use tokio::sync::Semaphore;

use crate::state::TURN_TIMEOUT;

/// Shapes compiled at a time: they must not take the processors from the jobs that are running.
const MAX_COMPILERS: usize = 2;

/// The longest that a shape may take. One of a few thousand lines takes milliseconds.
const COMPILE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no constraint.
#[derive(Debug)]
pub(crate) enum NoConstraint {
    /// The shape is at fault.
    Shape(ShapeError),
    /// Others' shapes took all the time.
    Busy,
}

/// The vocabulary as grammars need it, made when it is first needed: most workers' clients never ask.
#[derive(Debug)]
pub(crate) struct SharedGrammars {
    made: OnceLock<Result<Grammars, String>>,
    leave: Arc<Semaphore>,
}

impl SharedGrammars {
    pub(crate) fn new() -> Self {
        Self { made: OnceLock::new(), leave: Arc::new(Semaphore::new(MAX_COMPILERS)) }
    }

    /// Understands a shape.
    ///
    /// # Errors
    /// What is wrong with it, which may be that it takes too long or that the vocabulary allows no grammars; or that its
    /// turn did not come.
    pub(crate) async fn compile(
        self: &Arc<Self>,
        tokenizer: &Arc<Tokenizer>,
        shape: Shape,
    ) -> Result<Compiled, NoConstraint> {
        let turn = tokio::time::timeout(TURN_TIMEOUT, Arc::clone(&self.leave).acquire_owned()).await;
        let Ok(Ok(permit)) = turn else { return Err(NoConstraint::Busy) };
        let (shared, tokenizer) = (Arc::clone(self), Arc::clone(tokenizer));
        let span = tracing::Span::current();
        let done = tokio::task::spawn_blocking(move || {
            let _of_the_request = span.enter();
            // Held until the work is done, also where nobody waits for it any more.
            let _permit = permit;
            let grammars = shared.made.get_or_init(|| make(&tokenizer));
            match grammars {
                Ok(grammars) => grammars.compile(&shape),
                Err(why) => Err(fault(why.clone())),
            }
        });
        let compiled = match tokio::time::timeout(COMPILE_TIMEOUT, done).await {
            Ok(done) => done.unwrap_or_else(|_| Err(fault("cannot be understood".into()))),
            Err(_) => {
                let limit = COMPILE_TIMEOUT.as_secs();
                Err(fault(format!("expected to be understood within {limit} s, took longer")))
            }
        };
        compiled.map_err(NoConstraint::Shape)
    }
}

fn fault(message: String) -> ShapeError {
    ShapeError { place: String::new(), tool: None, message }
}

fn make(tokenizer: &Tokenizer) -> Result<Grammars, String> {
    let begin = Instant::now();
    let grammars = Grammars::new(tokenizer);
    tracing::info!(
        vocab_size = tokenizer.n_vocab(),
        took_ms = begin.elapsed().as_millis() as u64,
        failure = grammars.as_ref().err(),
        "vocabulary prepared for grammars"
    );
    grammars
}

#[cfg(test)]
mod tests {
    use gguf_parser::Gguf;
    use test_support::tiny_model::TinyModel;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_shape_that_only_waits_for_others_is_not_at_fault() {
        let file = TinyModel::default().build();
        let tokenizer = Arc::new(Tokenizer::from_gguf(&Gguf::parse(&file).unwrap()).unwrap());
        let shared = Arc::new(SharedGrammars::new());
        let others = Arc::clone(&shared.leave).acquire_many_owned(MAX_COMPILERS as u32).await.unwrap();
        let began = tokio::time::Instant::now();
        let refused = shared.compile(&tokenizer, Shape::JsonObject).await;
        assert!(matches!(refused, Err(NoConstraint::Busy)) && began.elapsed() == TURN_TIMEOUT, "{refused:?}");
        drop(others);
        assert!(shared.compile(&tokenizer, Shape::JsonObject).await.is_ok());
    }
}
