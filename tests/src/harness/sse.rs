//! Server-sent events, from bytes as they arrive to whole events.
//!
//! Source: WHATWG HTML, "Server-sent events", section "Interpreting an event stream". The fields `id` and `retry` are
//! ignored: the worker sends neither.

/// One event: its name and its data, lines joined by `\n`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SseEvent {
    /// The value of the `event` field; empty when the frame had none.
    pub name: String,
    /// The values of the `data` fields.
    pub data: String,
}

/// Collects bytes and gives the events that they complete.
#[derive(Debug, Default)]
pub struct SseParser {
    pending: Vec<u8>,
    name: String,
    data: Option<String>,
    n_comments: usize,
}

impl SseParser {
    /// Takes the next bytes of the stream, cut anywhere, and returns the events that end in them.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<SseEvent> {
        self.pending.extend_from_slice(bytes);
        let mut events = Vec::new();
        while let Some(end) = self.pending.iter().position(|&b| b == b'\n') {
            let line: Vec<u8> = self.pending.drain(..=end).collect();
            let line = line[..end].strip_suffix(b"\r").unwrap_or(&line[..end]);
            let line = String::from_utf8_lossy(line);
            events.extend(self.line(&line));
        }
        events
    }

    /// Keep-alive comments seen so far.
    pub fn n_comments(&self) -> usize {
        self.n_comments
    }

    /// Whether the stream could end here: no event is half read.
    pub fn is_between_events(&self) -> bool {
        self.pending.is_empty() && self.data.is_none() && self.name.is_empty()
    }

    fn line(&mut self, line: &str) -> Option<SseEvent> {
        if line.is_empty() {
            let name = std::mem::take(&mut self.name);
            return self.data.take().map(|data| SseEvent { name, data });
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "" => self.n_comments += 1,
            "event" => self.name = value.to_owned(),
            "data" => match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            },
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str, data: &str) -> SseEvent {
        SseEvent { name: name.into(), data: data.into() }
    }

    #[test]
    fn gives_the_same_events_wherever_the_bytes_are_cut() {
        let stream =
            "event: started\ndata: {\"a\":1}\n\n: keep-alive\n\nevent: token\r\ndata: \u{96ea}\r\n\r\n".as_bytes();
        for cut in 0..=stream.len() {
            let mut parser = SseParser::default();
            let mut events = parser.push(&stream[..cut]);
            events.extend(parser.push(&stream[cut..]));
            assert_eq!(events, [event("started", "{\"a\":1}"), event("token", "\u{96ea}")]);
            assert_eq!(parser.n_comments(), 1);
            assert!(parser.is_between_events());
        }
    }

    #[test]
    fn joins_data_lines_and_knows_an_unfinished_event() {
        let mut parser = SseParser::default();
        assert_eq!(parser.push(b"data:one\ndata: two\n\n"), [event("", "one\ntwo")]);
        assert_eq!(parser.push(b"event: end\ndata: {}\n"), []);
        assert!(!parser.is_between_events());
    }
}
