//! A worker with a scripted executor on a free port, and a client that reads what it streams.

use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::{Engine, EngineConfig, EngineHandle};
use gguf_parser::Gguf;
use serde_json::{Value, json};
use test_support::fake_executor::{FakeConfig, FakeControl, FakeExecutor};
use test_support::tiny_model::TinyModel;
use tokenizer::{ChatTemplate, EncodeOptions, Tokenizer};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use worker_http::{Access, AppState, BODY_READ_TIMEOUT, KEEP_ALIVE, ModelFacts, Served, ServerLimits, Settings, serve};

/// Longer than anything here takes, short enough to wait for when something hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// What differs between tests.
pub(crate) struct Config {
    pub(crate) engine: EngineConfig,
    pub(crate) fake: FakeConfig,
    pub(crate) limits: ServerLimits,
    pub(crate) inference_timeout: Option<Duration>,
    pub(crate) keep_alive: Duration,
    pub(crate) has_template: bool,
    pub(crate) model: TinyModel,
    pub(crate) log_prompts: bool,
    pub(crate) body_read_timeout: Duration,
    pub(crate) access: Access,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            engine: EngineConfig { max_seqs: 2, queue_limit: 2, ..EngineConfig::default() },
            fake: FakeConfig { n_ctx: 4096, n_blocks: 1024, ..FakeConfig::default() },
            limits: ServerLimits::default(),
            inference_timeout: None,
            keep_alive: KEEP_ALIVE,
            has_template: true,
            model: TinyModel::default(),
            log_prompts: false,
            body_read_timeout: BODY_READ_TIMEOUT,
            access: Access::default(),
        }
    }
}

/// A worker that runs.
pub(crate) struct Worker {
    pub(crate) url: String,
    pub(crate) address: std::net::SocketAddr,
    pub(crate) state: AppState,
    pub(crate) control: FakeControl,
    pub(crate) engine: EngineHandle,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) client: reqwest::Client,
    stop: Option<oneshot::Sender<()>>,
    server: Option<JoinHandle<()>>,
}

pub(crate) fn settings(config: &Config) -> Settings {
    Settings {
        worker_id: "worker-1".into(),
        model: "tiny".into(),
        model_file: "tiny.gguf".into(),
        inference_timeout: config.inference_timeout,
        keep_alive: config.keep_alive,
        log_prompts: config.log_prompts,
        body_read_timeout: config.body_read_timeout,
        access: config.access.clone(),
    }
}

/// A model that can answer: the tiny model's tokenizer, an executor that follows scripts.
pub(crate) fn served(config: &Config) -> (Served, FakeControl) {
    let file = config.model.build();
    let gguf = Gguf::parse(&file).unwrap();
    let tokenizer = Arc::new(Tokenizer::from_gguf(&gguf).unwrap());
    let chat_template = if config.has_template {
        Ok(Arc::new(ChatTemplate::from_gguf(&gguf, &tokenizer).unwrap().unwrap()))
    } else {
        Err("the model has no chat template".to_owned())
    };
    let fake = FakeConfig { n_vocab: tokenizer.n_vocab(), ..config.fake.clone() };
    let facts = ModelFacts {
        architecture: "qwen2".into(),
        quant_kind: "F16".into(),
        device: "fake".into(),
        resident: true,
        tokenizer_kind: tokenizer.kind().into(),
        vocab_size: tokenizer.n_vocab(),
        context_length: fake.n_ctx,
    };
    let (executor, control) = FakeExecutor::new(fake);
    let engine = Engine::start(Box::new(executor), config.engine.clone(), Instant::now);
    (Served { engine, tokenizer, chat_template, facts }, control)
}

impl Worker {
    pub(crate) async fn start() -> Self {
        Self::start_with(Config::default()).await
    }

    pub(crate) async fn start_with(config: Config) -> Self {
        let state = AppState::new(settings(&config));
        let (served, control) = served(&config);
        let (engine, tokenizer) = (served.engine.clone(), Arc::clone(&served.tokenizer));
        state.set_ready(served);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let server = tokio::spawn(serve(listener, state.clone(), config.limits, async {
            let _ = stopped.await;
        }));
        Self {
            url: format!("http://{address}"),
            address,
            state,
            control,
            engine,
            tokenizer,
            client: client(),
            stop: Some(stop),
            server: Some(server),
        }
    }

    /// The ids of a text: one for each byte, but for the tiny model's few merges.
    pub(crate) fn ids(&self, text: &str) -> Vec<u32> {
        self.tokenizer.encode(text, EncodeOptions { parse_special: true, add_special: false })
    }

    /// Answers every prompt with this text, then ends.
    pub(crate) fn script(&self, text: &str) {
        let mut ids = self.ids(text);
        ids.push(self.tokenizer.end_tokens()[0]);
        self.control.script_all(&ids);
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> reqwest::Response {
        self.client.post(format!("{}{path}", self.url)).json(body).send().await.unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> reqwest::Response {
        self.client.get(format!("{}{path}", self.url)).send().await.unwrap()
    }

    pub(crate) async fn cancel(&self, job_id: &str) {
        assert_eq!(self.post("/cancel", &json!({ "job_id": job_id })).await.status(), 202);
    }

    /// Starts a job whose request adds `extra` to the two required fields.
    pub(crate) async fn execute(&self, job_id: &str, prompt: &str, extra: Value) -> Stream {
        let mut body = json!({ "job_id": job_id, "prompt": prompt });
        for (field, value) in extra.as_object().into_iter().flatten() {
            body[field] = value.clone();
        }
        Stream::new(self.post("/execute", &body).await).await
    }

    /// A metric's value.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").await.text().await.unwrap();
        let line = text.lines().find(|line| line.starts_with(&format!("{name}{{"))).unwrap_or_else(|| panic!("{text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Waits until no KV block is in use: every job is freed.
    pub(crate) async fn wait_until_free(&self) {
        wait_until("all jobs are freed", || {
            let snapshot = self.engine.snapshot();
            snapshot.running == 0 && snapshot.waiting == 0 && snapshot.kv_blocks_used == 0
        })
        .await;
    }

    /// Ends the server the way the binary does and waits for it.
    pub(crate) async fn stop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
        tokio::time::timeout(PATIENCE, self.server.take().unwrap()).await.unwrap().unwrap();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // A held executor would keep its thread for ever.
        self.control.release();
    }
}

pub(crate) fn client() -> reqwest::Client {
    static PROVIDER: Once = Once::new();
    // reqwest wants one installed even where nothing is encrypted.
    PROVIDER.call_once(|| rustls::crypto::ring::default_provider().install_default().unwrap());
    reqwest::Client::builder().timeout(PATIENCE).build().unwrap()
}

pub(crate) async fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "waited {PATIENCE:?} until {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A stream of events as a client sees it.
pub(crate) struct Stream {
    response: reqwest::Response,
    unread: String,
    /// Everything received so far.
    pub(crate) transcript: String,
}

impl Stream {
    pub(crate) async fn new(response: reqwest::Response) -> Self {
        if response.status() != 200 {
            panic!("{}: {}", response.status(), response.text().await.unwrap());
        }
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { response, unread: String::new(), transcript: String::new() }
    }

    /// The next frame as it came, without its blank line; `None` at the end of the stream.
    pub(crate) async fn frame(&mut self) -> Option<String> {
        loop {
            if let Some((frame, rest)) = self.unread.split_once("\n\n") {
                let frame = frame.to_string();
                self.unread = rest.to_string();
                return Some(frame);
            }
            let chunk: Bytes = match tokio::time::timeout(PATIENCE, self.response.chunk()).await.unwrap().unwrap() {
                Some(chunk) => chunk,
                None => {
                    assert_eq!(self.unread, "", "the stream ends within a frame");
                    return None;
                }
            };
            // Each frame is one chunk, so no character is cut.
            let text = std::str::from_utf8(&chunk).unwrap();
            self.transcript.push_str(text);
            self.unread.push_str(text);
        }
    }

    /// The next event, comments skipped.
    pub(crate) async fn event(&mut self) -> Option<Value> {
        loop {
            let frame = self.frame().await?;
            if frame.starts_with(':') {
                continue;
            }
            let (event, data) = frame.split_once('\n').unwrap();
            let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
            assert_eq!(event.strip_prefix("event: ").unwrap(), data["type"].as_str().unwrap());
            return Some(data);
        }
    }

    /// The next event, which must be of this type.
    pub(crate) async fn expect(&mut self, event_type: &str) -> Value {
        let event = self.event().await.unwrap();
        assert_eq!(event["type"], event_type, "{event}");
        event
    }

    /// All the rest.
    pub(crate) async fn rest(&mut self) -> Answer {
        let mut answer = Answer { texts: Vec::new(), ids: Vec::new(), tokens: Vec::new(), last: Value::Null };
        while let Some(event) = self.event().await {
            assert_eq!(answer.last, Value::Null, "an event after the terminal one: {event}");
            match event["type"].as_str().unwrap() {
                "token" => {
                    answer.texts.push(event["t"].as_str().unwrap().to_string());
                    answer.ids.push(event["id"].as_u64().unwrap() as u32);
                    answer.tokens.push(event);
                }
                "end" | "error" => answer.last = event,
                "started" | "metrics" => {}
                other => panic!("{other}"),
            }
        }
        assert_ne!(answer.last, Value::Null, "a stream without a terminal event");
        answer
    }
}

/// A whole answer.
pub(crate) struct Answer {
    pub(crate) texts: Vec<String>,
    pub(crate) ids: Vec<u32>,
    pub(crate) tokens: Vec<Value>,
    /// The terminal event.
    pub(crate) last: Value,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        self.texts.concat()
    }
}
