//! What every route that answers prompts reads alike: how tokens are chosen, and where an answer stops.

use engine::Sampling;

use crate::fields::{Fields, NumberRule, TextRule, Unit};

/// The most stop strings, as OpenAI has it.
pub(super) const MAX_STOPS: usize = 4;
/// The longest stop string, in bytes: what is held back of an answer is at most this.
const MAX_STOP_BYTES: usize = 100;
/// The most alternatives reported for each token.
pub(super) const MAX_LOGPROBS: u64 = engine::MAX_LOGPROBS as u64;

pub(super) const STOP: TextRule = TextRule { len: 1..=MAX_STOP_BYTES, unit: Unit::Bytes, echo: true };

/// Reads how tokens are chosen, but for the penalties that OpenAI's routes alone have. `min_top_k` is 0, or -1 where that
/// stands for 0.
pub(super) fn read(fields: &mut Fields<'_>, min_top_k: i128) -> Sampling {
    let from_0_to = |max| NumberRule { min: 0.0, above_min: false, max };
    let default = Sampling::default();
    Sampling {
        temperature: fields.number("temperature", &from_0_to(2.0)).unwrap_or(default.temperature),
        top_p: fields.number("top_p", &from_0_to(1.0)).unwrap_or(default.top_p),
        min_p: fields.number("min_p", &from_0_to(1.0)).unwrap_or(default.min_p),
        top_k: fields
            .signed("top_k", min_top_k..=i128::from(u32::MAX))
            .map_or(default.top_k, |k| u32::try_from(k).unwrap_or(0)),
        repetition_penalty: fields
            .number("repetition_penalty", &NumberRule { min: 0.0, above_min: true, max: 2.0 })
            .unwrap_or(default.repetition_penalty),
        ..default
    }
}
