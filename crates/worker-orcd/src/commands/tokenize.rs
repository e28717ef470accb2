//! `tokenize` and `detokenize`: text to ids and back, with nothing of the model but its vocabulary.

use anyhow::Context as _;
use tokenizer::{EncodeOptions, TokenId};

use crate::cli::{DetokenizeArgs, TokenizeArgs};
use crate::{output, source};

/// The most that is read from standard input, in bytes: a long book many times over.
const MAX_INPUT_BYTES: u64 = 1 << 30;

/// Standard input, whole, to one JSON array of ids.
pub(crate) fn tokenize(args: &TokenizeArgs) -> anyhow::Result<()> {
    let tokenizer = source::vocabulary(&source::open(&args.model)?)?;
    let text = output::read_standard_input(MAX_INPUT_BYTES)?;
    let options = EncodeOptions { parse_special: !args.no_parse_special, add_special: args.add_special };
    let ids = tokenizer.encode(&text, options);
    output::write(&(serde_json::to_string(&ids)? + "\n"))
}

/// One JSON array of ids from standard input to their text, special tokens included: what `tokenize` read comes back.
pub(crate) fn detokenize(args: &DetokenizeArgs) -> anyhow::Result<()> {
    let tokenizer = source::vocabulary(&source::open(&args.model)?)?;
    let input = output::read_standard_input(MAX_INPUT_BYTES)?;
    let ids: Vec<TokenId> =
        serde_json::from_str(&input).context("standard input: needs one JSON array of token ids, such as [1,2,3]")?;
    if let Some((i, id)) = ids.iter().enumerate().find(|(_, id)| **id as usize >= tokenizer.n_vocab()) {
        anyhow::bail!("standard input: element {i} is {id}, the vocabulary has ids 0 to {}", tokenizer.n_vocab() - 1);
    }
    output::write(&tokenizer.decode_with(&ids, true))
}
