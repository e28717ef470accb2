//! Ids in, token events out: decoding, stop strings, and what is held back.
//!
//! Every id gives exactly one event, and the events' text put together is the answer. Text is held back while it is an
//! unfinished character or may become a stop string; it then goes out with the id that completes it. The last id of an
//! answer carries what is left. Nobody knows that an id is the last before the answer is over, so an id whose text is
//! partly held back waits for the next one (a step later); all others leave at once.

use engine::Token;
use tokenizer::{StreamDecoder, TokenId, Tokenizer};

use crate::event::{TokenEvent, TokenLogprobs, TopLogprob};
use crate::stop::{Scan, StopMatcher};

/// The text of one answer as it is made.
pub(crate) struct AnswerText {
    decoder: StreamDecoder,
    stops: StopMatcher,
    n_tokens: usize,
    /// The latest id's event, when text is held back that it has to carry should nothing follow.
    waiting: Option<TokenEvent>,
}

impl AnswerText {
    /// The answer to a prompt: a space that it begins with is its own, also where the vocabulary puts one in front of
    /// every text. `shown`: control tokens that are written out.
    pub(crate) fn new(tokenizer: &Tokenizer, stops: &[String], shown: &[TokenId]) -> Self {
        let decoder = tokenizer.stream_continuation().showing(shown);
        Self { decoder, stops: StopMatcher::new(stops), n_tokens: 0, waiting: None }
    }

    /// Ids taken so far.
    pub(crate) fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// Takes the next id and appends the events that are due. The index of a stop string that is now complete ends the
    /// answer: nothing may be pushed after it.
    pub(crate) fn push(&mut self, tokenizer: &Tokenizer, token: Token, due: &mut Vec<TokenEvent>) -> Option<usize> {
        due.extend(self.waiting.take());
        let piece = self.decoder.push(token.id);
        let (t, stop) = match self.stops.push(&piece) {
            Scan::Text(text) => (text, None),
            Scan::Stopped { before, stop } => (before, Some(stop)),
        };
        let logprobs = token.logprobs.map(|logprobs| named(tokenizer, logprobs));
        let event = TokenEvent { t, i: self.n_tokens, id: token.id, logprobs };
        self.n_tokens += 1;
        if stop.is_none() && (self.stops.is_holding() || self.decoder.is_holding()) {
            self.waiting = Some(event);
        } else {
            due.push(event);
        }
        stop
    }

    /// Ends the answer and appends the event that was waiting, with all that is left. Where the U+FFFD of an unfinished
    /// character completes a stop string, its index.
    pub(crate) fn finish(&mut self, due: &mut Vec<TokenEvent>) -> Option<usize> {
        let mut event = self.waiting.take()?;
        // What an unfinished character leaves is text like any other.
        let stop = match self.stops.push(&self.decoder.clone().finish()) {
            Scan::Text(text) => {
                event.t.push_str(&text);
                event.t.push_str(&self.stops.finish());
                None
            }
            Scan::Stopped { before, stop } => {
                event.t.push_str(&before);
                Some(stop)
            }
        };
        due.push(event);
        stop
    }
}

fn named(tokenizer: &Tokenizer, logprobs: engine::TokenLogprobs) -> TokenLogprobs {
    let text = |id| tokenizer.token_bytes(id).map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    let top = logprobs.top.iter().map(|top| TopLogprob {
        id: top.id,
        text: text(top.id).unwrap_or_default(),
        logprob: top.logprob,
    });
    TokenLogprobs { logprob: logprobs.logprob, top: top.collect() }
}

#[cfg(test)]
mod tests {
    use gguf_parser::Gguf;
    use test_support::gguf::GgufBuilder;

    use super::*;

    #[test]
    fn a_space_in_front_of_an_answer_stays() {
        let file = GgufBuilder::new()
            .str("tokenizer.ggml.model", "llama")
            .strs("tokenizer.ggml.tokens", &["<unk>", "<s>", "</s>", "\u{2581}world", "\u{2581}"])
            .f32s("tokenizer.ggml.scores", &[0.0; 5])
            .i32s("tokenizer.ggml.token_type", &[2, 3, 3, 1, 1])
            .build();
        let tokenizer = Tokenizer::from_gguf(&Gguf::parse(&file).unwrap()).unwrap();
        assert_eq!(tokenizer.decode(&[3]), "world", "as a text of its own");
        let mut due = Vec::new();
        AnswerText::new(&tokenizer, &[], &[]).push(&tokenizer, Token { id: 3, logprobs: None }, &mut due);
        assert_eq!(due[0].t, " world");
    }
}
