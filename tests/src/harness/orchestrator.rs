//! The smallest orchestrator there is: it receives a worker's ready callback.

use anyhow::{Context, Result};
use axum::Json;
use axum::http::StatusCode;
use axum::routing::post;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Listens on a free port of this machine until it is dropped.
#[derive(Debug)]
pub struct Orchestrator {
    url: String,
    callbacks: mpsc::UnboundedReceiver<Value>,
    server: JoinHandle<()>,
}

impl Orchestrator {
    /// Binds and begins to answer.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("binding the orchestrator's port")?;
        let url = format!("http://{}/callback", listener.local_addr()?);
        let (sender, callbacks) = mpsc::unbounded_channel();
        let receive = move |Json(body): Json<Value>| async move {
            // The receiver is gone only when the test is over; the worker is still owed an answer.
            let _ = sender.send(body);
            StatusCode::OK
        };
        let app = axum::Router::new().route("/callback", post(receive));
        let server = tokio::spawn(async move {
            // Ends with the task: a test that lost its orchestrator fails by waiting in vain for the callback.
            let _ = axum::serve(listener, app).await;
        });
        Ok(Self { url, callbacks, server })
    }

    /// Where a worker is to call: the value of `--callback-url`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The next callback's body.
    pub async fn callback(&mut self) -> Option<Value> {
        self.callbacks.recv().await
    }
}

impl Drop for Orchestrator {
    fn drop(&mut self) {
        self.server.abort();
    }
}
