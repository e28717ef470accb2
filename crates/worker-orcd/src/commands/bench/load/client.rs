//! One request after the other, or many at a time, over HTTP: `POST /execute`, and when each token came.

use std::time::Duration;

use anyhow::Context as _;
use reqwest::{Client, Url};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::stats::Sample;
use crate::callback;

/// The longest that a server may be silent within an answer; it sends comments while it has nothing to say.
const LONGEST_SILENCE: Duration = Duration::from_secs(60);
/// The longest line of a stream, in bytes: an event is one line.
const MAX_LINE_BYTES: usize = 1 << 20;
/// The code of a request that no server answered.
const CONNECTION: &str = "CONNECTION";

/// A server to be measured.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    client: Client,
    execute: Url,
    health: Url,
    api_key: Option<String>,
    /// Names the jobs of this run.
    run: String,
}

impl Server {
    /// The server at `url`.
    ///
    /// # Errors
    /// A URL with nothing to add a path to; when no HTTP client can be made on this machine.
    pub(crate) fn new(url: &Url, api_key: Option<&str>) -> anyhow::Result<Self> {
        let route = |name| {
            let mut route = url.clone();
            let mut path = route.path_segments_mut().map_err(|()| anyhow::anyhow!("--url {url}: needs a host"))?;
            path.pop_if_empty().push(name);
            drop(path);
            anyhow::Ok(route)
        };
        let (execute, health) = (route("execute")?, route("health")?);
        let client =
            callback::builder(url).read_timeout(LONGEST_SILENCE).build().context("cannot set up an HTTP client")?;
        let run = uuid::Uuid::new_v4().simple().to_string();
        Ok(Self { client, execute, health, api_key: api_key.map(str::to_owned), run })
    }

    /// The longest prompt and answer together, if the server says so.
    pub(crate) async fn context_length(&self) -> Option<usize> {
        let health: Value = self.client.get(self.health.clone()).send().await.ok()?.json().await.ok()?;
        usize::try_from(health["context_length"].as_u64()?).ok()
    }

    /// Asks, and listens to the end. Times count from `due`, when the request was to be sent: one that is sent late because
    /// this program was busy has waited all the same.
    pub(crate) async fn ask(&self, i: usize, prompt: &str, max_tokens: u32, due: Instant) -> Sample {
        let mut sample = Sample::default();
        let body = json!({
            "job_id": format!("bench-{}-{i}", self.run),
            "prompt": prompt,
            "max_tokens": max_tokens,
            "seed": i,
        });
        sample.error = self.listen(&body, due, &mut sample).await.err();
        sample.total = due.elapsed();
        sample
    }

    /// # Errors
    /// An error code.
    async fn listen(&self, body: &Value, due: Instant, sample: &mut Sample) -> Result<(), String> {
        let mut request = self.client.post(self.execute.clone()).json(body);
        if let Some(key) = &self.api_key {
            request = request.bearer_auth(key);
        }
        let mut response = request.send().await.map_err(lost)?;
        let status = response.status();
        if !status.is_success() {
            let code = response.json::<Value>().await.ok().and_then(|body| code(&body));
            return Err(code.unwrap_or_else(|| format!("HTTP_{}", status.as_u16())));
        }
        let mut line = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(lost)? {
            let now = due.elapsed();
            for byte in chunk {
                if byte != b'\n' {
                    line.push(byte);
                    continue;
                }
                if let Some(outcome) = event(&line, now, sample) {
                    return outcome;
                }
                line.clear();
            }
            if line.len() > MAX_LINE_BYTES {
                return Err("BROKEN_STREAM".to_owned());
            }
        }
        Err("BROKEN_STREAM".to_owned())
    }
}

/// Takes in a line of the stream; how the answer ended, if this was its end.
fn event(line: &[u8], now: Duration, sample: &mut Sample) -> Option<Result<(), String>> {
    let data: Value = serde_json::from_slice(line.strip_prefix(b"data:")?).unwrap_or_default();
    match data["type"].as_str() {
        Some("started") => sample.n_prompt = data["prompt_tokens"].as_u64().unwrap_or(0),
        Some("token") => sample.tokens.push(now),
        Some("end") => return Some(Ok(())),
        Some("error") => return Some(Err(code(&data).unwrap_or_else(|| "ERROR".to_owned()))),
        _ => {}
    }
    None
}

fn code(body: &Value) -> Option<String> {
    body["code"].as_str().map(str::to_owned)
}

fn lost(error: reqwest::Error) -> String {
    tracing::warn!("{}", callback::innermost(&error));
    CONNECTION.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_events_that_count() {
        let mut sample = Sample::default();
        let mut take = |line: &str, ms| event(line.as_bytes(), Duration::from_millis(ms), &mut sample);
        assert_eq!(take(r#"data: {"type":"started","prompt_tokens":7}"#, 1), None);
        assert_eq!(take(": keep-alive", 2), None);
        assert_eq!(take("event: token", 3), None);
        assert_eq!(take(r#"data: {"type":"token","t":"a","i":0,"id":1}"#, 3), None);
        assert_eq!(take(r#"data: {"type":"metrics"}"#, 4), None);
        assert_eq!(take("data: not JSON", 4), None);
        assert_eq!(take(r#"data: {"type":"token","t":"","i":1,"id":2}"#, 5), None);
        assert_eq!(take(r#"data: {"type":"error","code":"CANCELLED"}"#, 6), Some(Err("CANCELLED".into())));
        assert_eq!(take(r#"data: {"type":"end","tokens_out":2}"#, 6), Some(Ok(())));
        assert_eq!((sample.n_prompt, sample.tokens), (7, [3, 5].map(Duration::from_millis).to_vec()));
    }

    #[test]
    fn adds_the_route_to_the_url() {
        let execute = |url: &str| Server::new(&url.parse().unwrap(), None).map(|server| server.execute.to_string());
        assert_eq!(execute("http://h:1").unwrap(), "http://h:1/execute");
        assert_eq!(execute("http://h:1/worker/").unwrap(), "http://h:1/worker/execute");
    }
}
