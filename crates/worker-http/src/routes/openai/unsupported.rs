//! Fields that OpenAI, vLLM or llama-server know and this worker does not do: refused by name, never silently dropped.
//!
//! A value that asks for what is done anyway is let pass, since some clients send every field they know.

use serde_json::Value;

use crate::fields::Fields;

/// A field, and the JSON of values that ask for nothing special. (`null` never does.)
type Row = (&'static str, &'static [&'static str]);

const NEVER: &[&str] = &[];
const OFF: &[&str] = &["false"];
const ON: &[&str] = &["true"];
const ZERO: &[&str] = &["0", "0.0"];
const ONE: &[&str] = &["1", "1.0"];
const EMPTY: &[&str] = &["[]"];

/// What does not change an answer (`user`, `metadata`, `safety_identifier`, `prompt_cache_key`, `request_id`,
/// `timings_per_token` and the like) is not here: it is ignored like any unknown field.
const TABLE: &[Row] = &[
    // OpenAI's.
    ("audio", NEVER),
    ("best_of", ONE),
    ("modalities", &["[\"text\"]"]),
    ("prediction", NEVER),
    ("reasoning_effort", &["\"none\""]),
    ("store", OFF),
    ("suffix", &["\"\""]),
    ("verbosity", &["\"medium\""]),
    ("web_search_options", NEVER),
    // vLLM's.
    ("add_generation_prompt", ON),
    ("allowed_token_ids", NEVER),
    ("bad_words", EMPTY),
    ("chat_template", NEVER),
    ("continue_final_message", OFF),
    ("documents", EMPTY),
    ("include_stop_str_in_output", OFF),
    ("length_penalty", ONE),
    ("logits_processors", EMPTY),
    ("min_tokens", ZERO),
    ("priority", ZERO),
    ("prompt_embeds", NEVER),
    ("prompt_logprobs", NEVER),
    ("return_token_ids", OFF),
    ("return_tokens_as_token_ids", OFF),
    ("skip_special_tokens", ON),
    ("spaces_between_special_tokens", &["true", "false"]),
    ("stop_token_ids", EMPTY),
    ("truncate_prompt_tokens", NEVER),
    ("use_beam_search", OFF),
    // llama-server's.
    ("dry_multiplier", ZERO),
    ("dynatemp_range", ZERO),
    ("mirostat", ZERO),
    ("lora", EMPTY),
    ("n_discard", ZERO),
    ("n_keep", ZERO),
    ("n_predict", &["-1"]),
    ("n_probs", ZERO),
    ("repeat_penalty", ONE),
    ("samplers", NEVER),
    ("top_n_sigma", &["-1", "-1.0", "0", "0.0"]),
    ("typical_p", ONE),
    ("xtc_probability", ZERO),
];

/// The longest value that is compared with those that ask for nothing.
const MAX_COMPARED_BYTES: usize = 32;

/// The names of all of them.
pub(super) fn fields() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|(field, _)| *field)
}

/// Refuses each by name that asks for something.
pub(super) fn refuse(fields: &mut Fields<'_>) {
    for &(field, harmless) in TABLE {
        let Some(raw) = fields.raw(field) else { continue };
        let parse = |json: &str| serde_json::from_str::<Value>(json).ok();
        let value = Some(raw.get()).filter(|json| json.len() <= MAX_COMPARED_BYTES).and_then(parse);
        if value.is_none() || !harmless.iter().any(|json| parse(json) == value) {
            fields.fault(field, "unsupported", "not supported", None);
        }
    }
}
