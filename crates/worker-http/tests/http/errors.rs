//! Every code of the contract, brought about by a request: as /execute tells it and as OpenAI's routes do.
//!
//! [`provoke`] matches on the code without a rest, so that a new one does not compile here before it has its case.

use std::time::Duration;

use reqwest::{RequestBuilder, Response};
use serde_json::{Value, json};
use transformer::ExecutorError;
use worker_http::{ApiKeys, ErrorCode, MAX_BODY_BYTES};

use crate::openai::{CHAT, COMPLETIONS, chat, completion};
use crate::worker::{Config, Stream, Worker};

/// All codes; [`provoke`] says how each comes about.
const CODES: [ErrorCode; 16] = [
    ErrorCode::InvalidRequest,
    ErrorCode::ContextLengthExceeded,
    ErrorCode::Unauthorized,
    ErrorCode::Forbidden,
    ErrorCode::NotFound,
    ErrorCode::MethodNotAllowed,
    ErrorCode::DuplicateJob,
    ErrorCode::PayloadTooLarge,
    ErrorCode::UnsupportedMediaType,
    ErrorCode::QueueFull,
    ErrorCode::Cancelled,
    ErrorCode::VramOom,
    ErrorCode::CudaError,
    ErrorCode::Internal,
    ErrorCode::NotReady,
    ErrorCode::InferenceTimeout,
];

/// Which routes are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Routes {
    Execute,
    Chat,
    Completions,
}

impl Routes {
    fn path(self) -> &'static str {
        match self {
            Self::Execute => "/execute",
            Self::Chat => CHAT,
            Self::Completions => COMPLETIONS,
        }
    }

    /// A request with this prompt.
    fn body(self, prompt: &str) -> Value {
        match self {
            Self::Execute => json!({ "job_id": "a job", "prompt": prompt }),
            Self::Chat => chat(&json!({ "messages": [{ "role": "user", "content": prompt }] })),
            Self::Completions => completion(&json!({ "prompt": prompt })),
        }
    }
}

/// What the client was told.
struct Told {
    status: u16,
    retry_after: Option<String>,
    error: Value,
}

/// Brings an error about; `None` where these routes cannot have it.
async fn provoke(code: ErrorCode, routes: Routes) -> Option<Told> {
    let worker = Worker::start_with(config(code)).await;
    worker.script(&"a".repeat(500));
    let ask = |body: &Value| worker.client.post(format!("{}{}", worker.url, routes.path())).json(body);
    let usual = routes.body("hi");
    Some(match code {
        ErrorCode::InvalidRequest => told(ask(&json!({ "temperature": 9 }))).await,
        ErrorCode::ContextLengthExceeded => told(ask(&routes.body(&"x".repeat(200)))).await,
        // `config` asks for a key.
        ErrorCode::Unauthorized => told(ask(&usual)).await,
        ErrorCode::Forbidden => told(ask(&usual).header("origin", "http://evil.example")).await,
        ErrorCode::NotFound => {
            let path = if routes == Routes::Execute { "/nowhere" } else { "/v1/nowhere" };
            told(worker.client.get(format!("{}{path}", worker.url))).await
        }
        ErrorCode::MethodNotAllowed => told(worker.client.get(format!("{}{}", worker.url, routes.path()))).await,
        ErrorCode::DuplicateJob if routes == Routes::Execute => {
            worker.control.hold_after(1);
            let _live = worker.execute("a job", "hi", json!({})).await;
            told(ask(&usual)).await
        }
        // Their jobs are named by the worker.
        ErrorCode::DuplicateJob => return None,
        ErrorCode::PayloadTooLarge => told(ask(&usual).body(" ".repeat(MAX_BODY_BYTES + 1))).await,
        ErrorCode::UnsupportedMediaType => {
            let request = worker.client.post(format!("{}{}", worker.url, routes.path()));
            told(request.header("content-type", "text/plain").body("{}")).await
        }
        ErrorCode::QueueFull => {
            worker.control.hold_after(1);
            let _running = worker.execute("running", "hi", json!({})).await;
            let _waiting = worker.execute("waiting", "hi", json!({})).await;
            told(ask(&usual)).await
        }
        ErrorCode::Cancelled => cancelled(&worker, routes).await,
        ErrorCode::VramOom => {
            worker.control.fail_after(1, ExecutorError::OutOfMemory("no room".into()));
            told(ask(&usual)).await
        }
        ErrorCode::CudaError => {
            worker.control.fail_after(1, ExecutorError::DeviceLost("it fell off the bus".into()));
            told(ask(&usual)).await
        }
        ErrorCode::Internal => {
            worker.control.fail_after(1, ExecutorError::InvalidBatch("a test".into()));
            told(ask(&usual)).await
        }
        ErrorCode::NotReady => {
            worker.state.begin_drain();
            told(ask(&usual)).await
        }
        ErrorCode::InferenceTimeout => {
            worker.control.hold_after(1);
            told(ask(&usual)).await
        }
    })
}

fn config(code: ErrorCode) -> Config {
    let mut config = Config::default();
    config.engine.max_seqs = 1;
    config.engine.queue_limit = 1;
    config.fake.n_ctx = 128;
    if code == ErrorCode::Unauthorized {
        config.access.api_keys = ApiKeys::new(["sk-a"]).unwrap();
    }
    config.inference_timeout = (code == ErrorCode::InferenceTimeout).then_some(Duration::from_millis(50));
    config
}

/// Of OpenAI's routes the stream: the name of a whole answer's job is known only once it has ended, so that it is tested
/// beside what collects it (`routes/openai/whole.rs`).
async fn cancelled(worker: &Worker, routes: Routes) -> Told {
    worker.control.hold_after(3);
    let mut body = routes.body("hi");
    if routes == Routes::Execute {
        let response = worker.post(routes.path(), &body).await;
        worker.cancel("a job").await;
        return answered(response).await;
    }
    body["stream"] = json!(true);
    let mut stream = Stream::new(worker.post(routes.path(), &body).await).await;
    let first = stream.frame().await.unwrap();
    let first: Value = serde_json::from_str(first.strip_prefix("data: ").unwrap()).unwrap();
    worker.cancel(first["id"].as_str().unwrap()).await;
    let mut error = Value::Null;
    while let Some(frame) = stream.frame().await {
        let data = serde_json::from_str::<Value>(frame.strip_prefix("data: ").unwrap()).unwrap_or_default();
        if data["error"].is_object() {
            error = data;
        }
    }
    Told { status: 200, retry_after: None, error }
}

async fn told(request: RequestBuilder) -> Told {
    answered(request.send().await.unwrap()).await
}

/// The error of a response: its body, or the last event of its stream.
async fn answered(response: Response) -> Told {
    let status = response.status().as_u16();
    let retry_after = response.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned());
    let error =
        if status == 200 { Stream::new(response).await.rest().await.last } else { response.json().await.unwrap() };
    Told { status, retry_after, error }
}

#[tokio::test]
async fn every_code_of_execute_has_its_status_and_its_form() {
    for code in CODES {
        let told = provoke(code, Routes::Execute).await.unwrap();
        let Told { status, retry_after, error } = &told;
        assert_eq!((&error["code"], &error["retriable"]), (&json!(code.label()), &json!(code.retriable())), "{error}");
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{error}");
        // A job that has begun ends with an event.
        let is_event = error["type"] == "error";
        assert_eq!(*status, if is_event { 200 } else { code.status().as_u16() }, "{error}");
        let comes_back = matches!(code, ErrorCode::QueueFull | ErrorCode::NotReady);
        assert_eq!(retry_after.is_some(), comes_back, "{error}");
        assert_eq!(error["errors"].is_array(), code == ErrorCode::InvalidRequest, "{error}");
    }
}

#[tokio::test]
async fn every_code_of_openais_routes_has_its_status_and_its_form() {
    for routes in [Routes::Chat, Routes::Completions] {
        for code in CODES {
            let Some(Told { status, retry_after, error }) = provoke(code, routes).await else { continue };
            let error = &error["error"];
            let expected = match code {
                ErrorCode::Unauthorized => "invalid_api_key".to_owned(),
                code => code.label().to_lowercase(),
            };
            // Faults of fields have codes of OpenAI's own.
            let is_field = code == ErrorCode::InvalidRequest;
            assert!(
                is_field && error["param"].is_string() || error["code"] == expected,
                "{routes:?} {code:?}: {error}"
            );
            assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{error}");
            let streamed = code == ErrorCode::Cancelled;
            assert_eq!(status, if streamed { 200 } else { code.status().as_u16() }, "{routes:?} {code:?}: {error}");
            assert_eq!(retry_after.is_some(), matches!(code, ErrorCode::QueueFull | ErrorCode::NotReady), "{error}");
        }
    }
}
