//! What the engine is given for a job: the prompts' tokens, and a constraint of its own for each answer.

use std::sync::Arc;

use engine::Request;
use engine::rng::philox4x32;
use structured::Compiled;
use tokenizer::Tokenizer;

use super::{Generation, Prompt, drawn_seed, on_encoder};
use crate::error::ApiError;
use crate::state::{AppState, Served};

/// A job as the engine takes it.
pub(super) struct Prepared {
    /// The prompts' tokens.
    pub(super) prompts: Vec<Arc<[u32]>>,
    /// Of each prompt's first answer.
    pub(super) seeds: Vec<u64>,
    /// One for each answer: prompt by prompt, `n` for each.
    pub(super) requests: Vec<Request>,
}

/// Makes the requests of `n` answers to each prompt. Long prompts are encoded, and constraints made (each is a copy of
/// automata, which may have taken megabytes), off the threads that serve connections.
///
/// # Errors
/// Those of [`on_encoder`].
pub(super) async fn prepare(
    state: &AppState,
    served: &Served,
    prompts: Vec<Prompt>,
    n: usize,
    generation: &Arc<Generation>,
) -> Result<Prepared, ApiError> {
    let is_quick = Prompt::are_short(&prompts) && generation.constraint.is_none();
    let (tokenizer, generation) = (Arc::clone(&served.tokenizer), Arc::clone(generation));
    let context_length = served.facts.context_length;
    let work = move || {
        let prompts: Vec<Arc<[u32]>> = prompts.into_iter().map(|prompt| prompt.into_ids(&tokenizer)).collect();
        let seeds: Vec<u64> = prompts.iter().map(|_| generation.seed.unwrap_or_else(drawn_seed)).collect();
        let choices = prompts.iter().zip(&seeds).flat_map(|(prompt, &seed)| (0..n).map(move |i| (prompt, seed, i)));
        let request =
            |(prompt, seed, i)| engine_request(&tokenizer, context_length, &generation, prompt, choice_seed(seed, i));
        let requests = choices.map(request).collect();
        Prepared { prompts, seeds, requests }
    };
    if is_quick { Ok(work()) } else { on_encoder(state, work).await }
}

fn engine_request(
    tokenizer: &Tokenizer,
    context_length: usize,
    generation: &Generation,
    prompt: &Arc<[u32]>,
    seed: u64,
) -> Request {
    // A prompt that leaves no room is refused by the engine, whatever is asked for.
    let room = context_length.saturating_sub(prompt.len()).max(1);
    let end_tokens = if generation.ignore_eos { &[] } else { tokenizer.end_tokens() };
    Request {
        prompt: Arc::clone(prompt),
        max_tokens: generation.max_tokens.map_or(room, |n| n.min(room)),
        end_tokens: end_tokens.into(),
        sampling: generation.sampling.clone(),
        logit_bias: generation.logit_bias.clone(),
        constraint: generation.constraint.as_ref().map(Compiled::constraint),
        seed,
        n_logprobs: generation.n_logprobs,
        n_prompt_logprobs: generation.n_prompt_logprobs,
    }
}

/// The seed of a prompt's answer `i`. The first has the request's own: it is the answer that is given where only one is
/// asked for. The others' follow from it, by the generator that draws tokens, at a place where it draws none.
fn choice_seed(seed: u64, i: usize) -> u64 {
    if i == 0 {
        return seed;
    }
    let [high, low, ..] = philox4x32([i as u32, 0, 0, 1], [seed as u32, (seed >> 32) as u32]);
    u64::from(high) << 32 | u64::from(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_choice_has_the_seed_of_the_request_and_each_other_one_of_its_own() {
        assert_eq!(choice_seed(7, 0), 7);
        let mut seeds: Vec<u64> = (0..16).flat_map(|i| [choice_seed(7, i), choice_seed(8, i)]).collect();
        seeds.sort_unstable();
        seeds.dedup();
        assert_eq!(seeds.len(), 32);
    }
}
