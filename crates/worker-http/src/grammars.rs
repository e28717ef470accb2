//! Constraints for jobs: made off the threads that serve connections, few at a time, in limited time.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use structured::{Compiled, Grammars, Shape, ShapeError};
use tokenizer::Tokenizer;
use tokio::sync::Semaphore;

/// Shapes compiled at a time: they must not take the processors from the jobs that are running.
const MAX_COMPILERS: usize = 2;

/// The longest that a client waits for its shape. One of a few thousand lines takes milliseconds.
const COMPILE_TIMEOUT: Duration = Duration::from_secs(10);

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
    /// What is wrong with it; also where the vocabulary allows no grammars, or it takes too long.
    pub(crate) async fn compile(
        self: &Arc<Self>,
        tokenizer: &Arc<Tokenizer>,
        shape: Shape,
    ) -> Result<Compiled, ShapeError> {
        let failed = |message: &str| ShapeError { place: String::new(), tool: None, message: message.to_owned() };
        let work = async {
            let permit = Arc::clone(&self.leave).acquire_owned().await.map_err(|_| failed("the worker is stopping"))?;
            let (shared, tokenizer) = (Arc::clone(self), Arc::clone(tokenizer));
            let done = tokio::task::spawn_blocking(move || {
                // Held until the work is done, also where nobody waits for it any more.
                let _permit = permit;
                let grammars = shared.made.get_or_init(|| make(&tokenizer));
                match grammars {
                    Ok(grammars) => grammars.compile(&shape),
                    Err(why) => Err(ShapeError { place: String::new(), tool: None, message: why.clone() }),
                }
            });
            done.await.unwrap_or_else(|_| Err(failed("cannot be understood")))
        };
        let too_long = format!("expected to be understood within {} s, took longer", COMPILE_TIMEOUT.as_secs());
        tokio::time::timeout(COMPILE_TIMEOUT, work).await.unwrap_or_else(|_| Err(failed(&too_long)))
    }
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
