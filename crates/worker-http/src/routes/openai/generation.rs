//! The fields that chat and completions share: how many answers, and how each is made.

use engine::{MAX_BIAS, MAX_LOGIT_BIAS, MAX_PENALTY, Sampling};

use super::stream::StreamOptions;
use super::structured::Wanted;
use super::{structured, tools, unsupported};
use crate::body::MAX_BODY_BYTES;
use crate::fields::{Fields, NumberRule, TextRule, Unit};
use crate::job::Generation;
use crate::routes::sampling::{self, MAX_STOPS, STOP};

/// The most answers to one prompt.
const MAX_N: u64 = 16;

/// Any name will do: there is one model.
const MODEL: TextRule = TextRule { len: 0..=MAX_BODY_BYTES, unit: Unit::Bytes, echo: false };

const SHARED: &[&str] = &[
    "model",
    "n",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "stop",
    "seed",
    "ignore_eos",
    "add_special_tokens",
];

/// Every field that a route knows: its own, the shared ones, and those that are refused.
pub(super) fn known(own: &[&'static str]) -> Vec<&'static str> {
    own.iter()
        .chain(SHARED)
        .chain(structured::FIELDS)
        .chain(tools::FIELDS)
        .copied()
        .chain(unsupported::fields())
        .collect()
}

/// What was asked for beside the prompt.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// Answers to each prompt.
    pub(super) n: usize,
    /// `None`: whole.
    pub(super) stream: Option<StreamOptions>,
    pub(super) generation: Generation,
    /// What each answer is to be.
    pub(super) wanted: Option<Wanted>,
    /// Whether BOS and EOS are added where the model wants them.
    pub(super) add_special: bool,
}

/// Reads all shared fields, with their faults held against `fields`. `least_max_tokens` is the least that `max_tokens` may be.
pub(super) fn read(fields: &mut Fields<'_>, n_vocab: usize, least_max_tokens: u64) -> Asked {
    // Checked, and then of no consequence.
    let _ = fields.optional_text("model", &MODEL);
    unsupported::refuse(fields);
    let wanted = structured::read(fields);
    let ignore_eos = fields.boolean("ignore_eos").unwrap_or(false);
    if ignore_eos && let Some(Wanted { field, .. }) = &wanted {
        fields.fault(
            "ignore_eos",
            "value",
            &format!("expected false together with {field}, under which an answer ends"),
            None,
        );
    }
    Asked {
        n: fields.integer("n", 1..=MAX_N).map_or(1, |n| n as usize),
        stream: StreamOptions::read(fields),
        generation: Generation {
            max_tokens: read_max_tokens(fields, least_max_tokens),
            sampling: read_sampling(fields),
            logit_bias: read_logit_bias(fields, n_vocab),
            stop: fields.text_or_texts("stop", MAX_STOPS, &STOP).unwrap_or_default(),
            seed: read_seed(fields),
            n_logprobs: None,
            n_prompt_logprobs: None,
            ignore_eos,
            shown: Vec::new(),
            constraint: None,
            reports_metrics: false,
        },
        wanted,
        add_special: fields.boolean("add_special_tokens").unwrap_or(true),
    }
}

/// The context caps it, so any number will do; -1 is llama-server's word for none.
fn read_max_tokens(fields: &mut Fields<'_>, least: u64) -> Option<usize> {
    let mut read = |field| match fields.raw(field) {
        Some(raw) if raw.get() == "-1" => None,
        _ => fields.integer(field, least..=u64::from(u32::MAX)),
    };
    let (old, new) = (read("max_tokens"), read("max_completion_tokens"));
    if let (Some(old), Some(new)) = (old, new)
        && old != new
    {
        let message = format!("expected the same as max_tokens, which is {old}, or one of them alone; got {new}");
        fields.fault("max_completion_tokens", "value", &message, None);
    }
    new.or(old).map(|n| n as usize)
}

/// OpenAI's seeds are signed, /execute's are not: both ranges will do. -1 draws one, as with vLLM and llama-server.
fn read_seed(fields: &mut Fields<'_>) -> Option<u64> {
    let seed = fields.signed("seed", i128::from(i64::MIN)..=i128::from(u64::MAX));
    seed.filter(|&seed| seed != -1).map(|seed| seed as u64)
}

fn read_sampling(fields: &mut Fields<'_>) -> Sampling {
    // -1 is how vLLM says that top_k is off.
    let sampling = sampling::read(fields, -1);
    let penalty = NumberRule { min: -MAX_PENALTY, above_min: false, max: MAX_PENALTY };
    Sampling {
        presence_penalty: fields.number("presence_penalty", &penalty).unwrap_or(sampling.presence_penalty),
        frequency_penalty: fields.number("frequency_penalty", &penalty).unwrap_or(sampling.frequency_penalty),
        ..sampling
    }
}

/// Ids, as strings, with what is added to their logits. Of an id given twice, the last counts.
fn read_logit_bias(fields: &mut Fields<'_>, n_vocab: usize) -> Vec<(u32, f32)> {
    let mut biases: Vec<(u32, f32)> = Vec::new();
    for (name, raw) in fields.members("logit_bias", MAX_LOGIT_BIAS).unwrap_or_default() {
        let id = name.parse::<u32>().ok().filter(|&id| (id as usize) < n_vocab);
        let bias = raw.get().parse::<f32>().ok().filter(|bias| bias.abs() <= MAX_BIAS);
        match (id, bias) {
            (Some(id), Some(bias)) => match biases.iter_mut().find(|(seen, _)| *seen == id) {
                Some(seen) => seen.1 = bias,
                None => biases.push((id, bias)),
            },
            (None, _) => {
                let message = format!("expected token ids below {n_vocab} as names");
                fields.fault("logit_bias", "value", &message, None);
                break;
            }
            (Some(id), None) => {
                let message = format!("expected a number from -{MAX_BIAS} to {MAX_BIAS} for token {id}");
                fields.fault("logit_bias", "range", &message, None);
                break;
            }
        }
    }
    biases
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;

    #[test]
    fn each_setting_goes_where_its_name_says() {
        static KNOWN: LazyLock<Vec<&str>> = LazyLock::new(|| known(&[]));
        let body = r#"{"temperature": 0.5, "top_p": 0.25, "min_p": 0.125, "top_k": 7, "repetition_penalty": 1.5,
            "presence_penalty": -0.5, "frequency_penalty": 0.75, "n": 3, "stop": ["x"], "seed": 9, "max_tokens": 11,
            "ignore_eos": true, "add_special_tokens": false, "logit_bias": {"4": -2}}"#;
        let mut fields = Fields::parse(body, &KNOWN).unwrap();
        let asked = read(&mut fields, 8, 1);
        fields.finish().unwrap();
        let sampling = Sampling {
            temperature: 0.5,
            top_p: 0.25,
            min_p: 0.125,
            top_k: 7,
            repetition_penalty: 1.5,
            presence_penalty: -0.5,
            frequency_penalty: 0.75,
        };
        let Generation { max_tokens, sampling: got, logit_bias, stop, seed, ignore_eos, .. } = asked.generation;
        assert_eq!(got, sampling);
        assert_eq!((max_tokens, seed, ignore_eos, stop), (Some(11), Some(9), true, vec!["x".to_owned()]));
        assert_eq!(logit_bias.to_vec(), [(4, -2.0)]);
        assert_eq!((asked.n, asked.add_special, asked.stream), (3, false, None));
    }
}
