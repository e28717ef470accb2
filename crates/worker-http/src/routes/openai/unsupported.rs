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

/// What does not change an answer (`user`, `metadata`, `safety_identifier`, `prompt_cache_key`, `prompt_cache_retention`,
/// `request_id`, `timings_per_token`, `cache_prompt`, `id_slot`, `guided_decoding_backend`, `backend_sampling` and the like) is
/// not here: it is ignored like any unknown field.
const TABLE: &[Row] = &[
    // OpenAI's.
    ("audio", NEVER),
    ("best_of", ONE),
    ("modalities", &["[\"text\"]"]),
    ("prediction", NEVER),
    ("reasoning_effort", &["\"none\""]),
    ("service_tier", &["\"auto\"", "\"default\""]),
    ("store", OFF),
    ("suffix", &["\"\""]),
    ("verbosity", &["\"medium\""]),
    ("web_search_options", NEVER),
    // vLLM's.
    ("add_generation_prompt", ON),
    ("allowed_token_ids", NEVER),
    ("bad_words", EMPTY),
    ("cache_salt", NEVER),
    ("chat_template", NEVER),
    ("continue_final_message", OFF),
    ("documents", EMPTY),
    ("guided_whitespace_pattern", NEVER),
    ("include_reasoning", ON),
    ("include_stop_str_in_output", OFF),
    ("kv_transfer_params", NEVER),
    ("length_penalty", ONE),
    ("logprob_token_ids", EMPTY),
    ("logits_processors", EMPTY),
    ("min_tokens", ZERO),
    ("mm_processor_kwargs", NEVER),
    ("priority", ZERO),
    ("prompt_embeds", NEVER),
    ("prompt_logprobs", NEVER),
    ("repetition_detection", NEVER),
    ("return_token_ids", OFF),
    ("return_tokens_as_token_ids", OFF),
    ("skip_special_tokens", ON),
    ("spaces_between_special_tokens", &["true", "false"]),
    ("stop_token_ids", EMPTY),
    ("thinking_token_budget", NEVER),
    ("truncate_prompt_tokens", NEVER),
    ("use_beam_search", OFF),
    ("vllm_xargs", NEVER),
    // llama-server's.
    ("adaptive_target", &["-1", "-1.0"]),
    ("dry_multiplier", ZERO),
    ("dynatemp_range", ZERO),
    ("grammar_lazy", OFF),
    ("grammar_triggers", EMPTY),
    ("image_data", EMPTY),
    ("mirostat", ZERO),
    ("lora", EMPTY),
    ("min_keep", &["0", "1"]),
    ("n_cmpl", ONE),
    ("n_discard", ZERO),
    ("n_indent", ZERO),
    ("n_keep", ZERO),
    ("n_predict", &["-1"]),
    ("n_probs", ZERO),
    ("parse_tool_calls", ON),
    ("post_sampling_probs", OFF),
    ("reasoning_format", &["\"none\"", "\"auto\""]),
    // All of the context is what the penalties count.
    ("repeat_last_n", &["-1"]),
    ("repeat_penalty", ONE),
    ("response_fields", EMPTY),
    ("return_progress", OFF),
    ("return_tokens", OFF),
    ("samplers", NEVER),
    ("t_max_predict_ms", &["-1", "0"]),
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

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use serde_json::json;

    use super::*;

    static KNOWN: LazyLock<Vec<&str>> = LazyLock::new(|| super::fields().collect());

    fn faults(body: &Value) -> Vec<String> {
        let body = body.to_string();
        let mut fields = Fields::parse(&body, &KNOWN).unwrap();
        refuse(&mut fields);
        let faults = fields.finish().err().map(|error| error.errors).unwrap_or_default();
        faults.into_iter().map(|fault| fault.field.into_owned()).collect()
    }

    #[test]
    fn each_is_refused_by_its_name_unless_it_asks_for_nothing() {
        for &(field, harmless) in TABLE {
            let of = |value: Value| faults(&json!({ field: value }));
            assert_eq!(of(json!({ "something": [1] })), [field]);
            assert!(of(Value::Null).is_empty(), "{field}");
            for json in harmless {
                assert!(of(serde_json::from_str(json).unwrap()).is_empty(), "{field}: {json}");
            }
        }
        let mut names: Vec<&str> = super::fields().collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), TABLE.len(), "a field stands twice");
    }
}
