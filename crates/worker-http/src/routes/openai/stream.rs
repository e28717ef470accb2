//! Streamed answers, in the order that clients rely on: for each choice what it begins with, its deltas with
//! `"finish_reason": null`, an empty delta with the reason; then, if asked for, usage with no choices; then `[DONE]`.

use bytes::{Bytes, BytesMut};

use super::errors::ErrorBody;
use super::form::{Envelope, Form, Usage};
use crate::event::Event;
use crate::fields::Fields;
use crate::job::Answers;
use crate::sse::{Frames, frame};

/// What a client wants to know beside the text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct StreamOptions {
    /// A last chunk with the usage.
    include_usage: bool,
    /// The usage so far in every chunk (vLLM's); only together with `include_usage`.
    continuous_usage_stats: bool,
}

impl StreamOptions {
    /// Reads `stream` and `stream_options`; `None` where the answer is wanted whole.
    pub(super) fn read(fields: &mut Fields<'_>) -> Option<Self> {
        let stream = fields.boolean("stream").unwrap_or(false);
        const KNOWN: &[&str] = &["include_usage", "continuous_usage_stats", "include_obfuscation"];
        let options = fields.object("stream_options", KNOWN, |fields| {
            if fields.boolean("include_obfuscation") == Some(true) {
                fields.fault("include_obfuscation", "unsupported", "not supported", None);
            }
            let include_usage = fields.boolean("include_usage").unwrap_or(false);
            let continuous_usage_stats = fields.boolean("continuous_usage_stats").unwrap_or(false);
            Some(Self { include_usage, continuous_usage_stats })
        });
        if options.is_some() && !stream {
            fields.fault("stream_options", "value", "expected only where stream is true", None);
        }
        stream.then(|| options.unwrap_or_default())
    }
}

/// The chunks of one request.
pub(super) struct Chunks<F> {
    envelope: Envelope,
    form: F,
    answers: Answers,
    usage: Usage,
    options: StreamOptions,
    /// Of each choice, whether its beginning is sent. It goes out with the first token and not before, so that a client
    /// that takes the time until then measures something.
    has_begun: Vec<bool>,
    has_ended: bool,
}

impl<F: Form> Chunks<F> {
    pub(super) fn new(envelope: Envelope, form: F, answers: Answers, usage: Usage, options: StreamOptions) -> Self {
        let has_begun = vec![false; answers.n_open()];
        Self { envelope, form, answers, usage, options, has_begun, has_ended: false }
    }

    fn chunk(&self, choice: F::Chunk) -> Bytes {
        let so_far = self.options.continuous_usage_stats.then_some(&self.usage);
        let usage = self.options.include_usage.then_some(so_far);
        frame(None, &self.envelope.fill(F::CHUNK_OBJECT, &[choice], usage))
    }

    /// The chunks of one event; none if its text is held back.
    fn chunks(&mut self, index: usize, event: Event) -> Bytes {
        let mut last = None;
        let next = match event {
            Event::PromptLogprobs(logprobs) => self.form.prompt(index, &logprobs),
            Event::Token(token) => {
                self.usage.count_token();
                self.form.next(index, &token)
            }
            Event::End(end) => {
                self.usage.count_end(index, &end);
                let rest = self.form.rest(index, &end);
                last = Some(self.form.last(index, end.stop_reason.into()));
                rest
            }
            Event::Error(error) => {
                self.has_ended = true;
                // The other choices are of no use to a client that has been told of a failure.
                self.answers.cancel();
                return [frame(None, &ErrorBody::from(error)), done()].concat().into();
            }
            Event::Started(_) | Event::Metrics(_) => None,
        };
        let begins = !std::mem::replace(&mut self.has_begun[index], true);
        let first = begins.then(|| self.form.first(index)).flatten();
        let mut chunks = BytesMut::new();
        for choice in first.into_iter().chain(next).chain(last) {
            chunks.extend_from_slice(&self.chunk(choice));
        }
        chunks.freeze()
    }

    fn end(&mut self) -> Bytes {
        self.has_ended = true;
        let none: &[F::Chunk] = &[];
        let usage = self.options.include_usage.then(|| {
            let filled = self.envelope.fill(F::CHUNK_OBJECT, none, Some(Some(&self.usage)));
            frame(None, &filled)
        });
        [usage.unwrap_or_default(), done()].concat().into()
    }
}

impl<F: Form> Frames for Chunks<F> {
    async fn next(&mut self) -> Option<Bytes> {
        while !self.has_ended {
            let Some((index, event)) = self.answers.next().await else { return Some(self.end()) };
            let chunks = self.chunks(index, event);
            if !chunks.is_empty() {
                return Some(chunks);
            }
        }
        None
    }
}

fn done() -> Bytes {
    Bytes::from_static(b"data: [DONE]\n\n")
}
