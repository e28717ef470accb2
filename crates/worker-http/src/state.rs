//! What every handler shares: the phase the worker is in, the model once it is loaded, the live jobs, the counters.

use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use engine::{EngineHandle, Snapshot};
use tokenizer::{ChatTemplate, Tokenizer};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::access::Access;
use crate::error::{ApiError, ErrorCode};
use crate::grammars::SharedGrammars;
use crate::live::LiveJobs;
use crate::metrics::Metrics;

/// What the command line decides.
#[derive(Debug, Clone)]
pub struct Settings {
    /// This worker's name, as the orchestrator knows it.
    pub worker_id: String,
    /// The model's name in answers and metrics.
    pub model: String,
    /// The name of the model's file, without its folders.
    pub model_file: String,
    /// The longest that a job may take, from the moment its request begins to be read to its terminal event.
    pub inference_timeout: Option<Duration>,
    /// Silence after which a stream carries a comment.
    pub keep_alive: Duration,
    /// Whether prompts and answers are logged, at `debug` under [`PROMPTS`](crate::PROMPTS).
    pub log_prompts: bool,
    /// The time that a request's body may take to arrive.
    pub body_read_timeout: Duration,
    /// Who may ask.
    pub access: Access,
}

/// The default of [`Settings::keep_alive`]: half of the 30 seconds that common proxies wait at least.
pub const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What `/health` tells of a loaded model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFacts {
    /// `general.architecture`.
    pub architecture: String,
    /// The type that most of the weights are stored in, such as `F16`.
    pub quant_kind: String,
    /// Where it runs, for people: `cpu (2 threads, avx512)`.
    pub device: String,
    /// Whether all weights are in the memory that the device computes from.
    pub resident: bool,
    /// `tokenizer.ggml.model`.
    pub tokenizer_kind: String,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// The longest sequence, in tokens.
    pub context_length: usize,
}

/// A model that can answer.
pub struct Served {
    /// Runs requests.
    pub engine: EngineHandle,
    /// Text to ids and back.
    pub tokenizer: Arc<Tokenizer>,
    /// How the model wants a conversation written; where there is none, why.
    pub chat_template: Result<Arc<ChatTemplate>, String>,
    /// For `/health`.
    pub facts: ModelFacts,
}

/// Where the worker is in its life. It only ever moves downwards in this list.
#[derive(Debug, Clone, PartialEq)]
pub enum Phase {
    /// Reading the model; the part that is done, from 0 to 1.
    Loading(f32),
    /// Taking work.
    Ready,
    /// Finishing what it has; new work is refused.
    Draining,
    /// Of no further use, for this reason.
    Failed(String),
}

/// How the worker is at one moment. Device figures are the engine's last sample.
#[derive(Debug, Clone, PartialEq)]
pub struct Vitals {
    /// Where it is in its life.
    pub phase: Phase,
    /// Answers being made. A job has one, or as many as its client asked for.
    pub active_jobs: usize,
    /// Answers that wait for a place.
    pub queued_jobs: usize,
    /// Bytes held for weights, KV pool and scratch, wherever they are.
    pub memory_bytes: u64,
    /// Of these, bytes in GPU memory.
    pub vram_bytes: u64,
    /// Since the start.
    pub uptime: Duration,
}

/// What every handler shares. Cloning it is cheap.
#[derive(Clone)]
pub struct AppState(Arc<Inner>);

struct Inner {
    settings: Settings,
    started: Instant,
    /// The same by the calendar, in Unix seconds.
    started_at: i64,
    phase: RwLock<Phase>,
    served: OnceLock<Served>,
    jobs: LiveJobs,
    metrics: Metrics,
    shutdown: CancellationToken,
    cut_off: CancellationToken,
    encoders: Arc<Semaphore>,
    grammars: Arc<SharedGrammars>,
}

/// What refused and cut-off jobs are told.
pub(crate) const SHUTTING_DOWN: &str = "the worker is shutting down";

/// Long prompts encoded at a time. A burst of them must not take the processors from the jobs that are running.
const MAX_ENCODERS: usize = 2;

/// The longest that work waits which is done off the threads that serve connections and few at a time: encoding, and
/// understanding grammars. A request whose turn has not come by then is told that the queue is full.
pub(crate) const TURN_TIMEOUT: Duration = Duration::from_secs(10);

impl AppState {
    /// The state of a worker that has just started: [`Phase::Loading`].
    pub fn new(settings: Settings) -> Self {
        let metrics = Metrics::new(&settings.model);
        Self(Arc::new(Inner {
            settings,
            started: Instant::now(),
            started_at: chrono::Utc::now().timestamp(),
            phase: RwLock::new(Phase::Loading(0.0)),
            served: OnceLock::new(),
            jobs: LiveJobs::new(),
            metrics,
            shutdown: CancellationToken::new(),
            cut_off: CancellationToken::new(),
            encoders: Arc::new(Semaphore::new(MAX_ENCODERS)),
            grammars: Arc::new(SharedGrammars::new()),
        }))
    }

    /// Says how far loading is, from 0 to 1. Without effect once it is over.
    pub fn set_progress(&self, done: f32) {
        self.change_phase(|phase| matches!(phase, Phase::Loading(_)).then_some(Phase::Loading(done)));
    }

    /// The model is loaded and warm: work is welcome, unless a shutdown was asked for meanwhile. Only the first call counts.
    pub fn set_ready(&self, served: Served) {
        self.0.metrics.model_loaded(&served.facts, &served.engine.snapshot());
        // A second model has nowhere to go; the first stays.
        let _ = self.0.served.set(served);
        self.change_phase(|phase| matches!(phase, Phase::Loading(_)).then_some(Phase::Ready));
    }

    /// The worker is of no further use.
    pub fn set_failed(&self, reason: impl Into<String>) {
        self.change_phase(|_| Some(Phase::Failed(reason.into())));
    }

    /// Refuses new work from here on. Live jobs go on.
    pub fn begin_drain(&self) {
        self.change_phase(|phase| (!matches!(phase, Phase::Failed(_))).then_some(Phase::Draining));
        if let Some(served) = self.served() {
            served.engine.drain();
        }
    }

    /// Refuses new work and waits for the live jobs; false when some are still live after `limit`.
    pub async fn drain(&self, limit: Duration) -> bool {
        self.begin_drain();
        tokio::time::timeout(limit, self.0.jobs.wait_until_idle()).await.is_ok()
    }

    /// Ends the jobs that are still live with an error that says why: for a drain that has taken long enough. They end at
    /// once, however long the engine's step takes in which they are.
    pub fn cut_off(&self) {
        self.begin_drain();
        self.0.cut_off.cancel();
    }

    /// Where the worker is in its life. An engine that has failed makes the worker a failed one.
    pub fn phase(&self) -> Phase {
        let phase = self.0.phase.read().unwrap_or_else(PoisonError::into_inner).clone();
        if !matches!(phase, Phase::Failed(_))
            && let Some(failure) = self.snapshot().and_then(|snapshot| snapshot.failure)
        {
            return Phase::Failed(failure);
        }
        phase
    }

    /// How the worker is doing.
    pub fn vitals(&self) -> Vitals {
        let snapshot = self.snapshot();
        let memory = snapshot.as_ref().map(|snapshot| snapshot.memory).unwrap_or_default();
        Vitals {
            phase: self.phase(),
            active_jobs: snapshot.as_ref().map_or(0, |snapshot| snapshot.running),
            queued_jobs: snapshot.as_ref().map_or(0, |snapshot| snapshot.waiting),
            memory_bytes: memory.total_bytes(),
            vram_bytes: memory.vram_bytes,
            uptime: self.uptime(),
        }
    }

    /// Returns once `POST /shutdown` was called. The caller drains and ends the process.
    pub async fn shutdown_requested(&self) {
        self.0.shutdown.cancelled().await;
    }

    /// Jobs that have a name and have not ended.
    pub fn n_live_jobs(&self) -> usize {
        self.0.jobs.n_live()
    }

    pub(crate) fn request_shutdown(&self) {
        self.begin_drain();
        self.0.shutdown.cancel();
    }

    /// Returns once live jobs are to end.
    pub(crate) async fn cut_off_requested(&self) {
        self.0.cut_off.cancelled().await;
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.0.settings
    }

    pub(crate) fn jobs(&self) -> &LiveJobs {
        &self.0.jobs
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Leave to encode a long prompt.
    pub(crate) fn encoders(&self) -> Arc<Semaphore> {
        Arc::clone(&self.0.encoders)
    }

    /// What makes constraints.
    pub(crate) fn grammars(&self) -> &Arc<SharedGrammars> {
        &self.0.grammars
    }

    /// When the worker started, in Unix seconds.
    pub(crate) fn started_at(&self) -> i64 {
        self.0.started_at
    }

    pub(crate) fn uptime(&self) -> Duration {
        self.0.started.elapsed()
    }

    /// The model, once it is loaded.
    pub(crate) fn served(&self) -> Option<&Served> {
        self.0.served.get()
    }

    /// The model, also while the worker drains.
    ///
    /// # Errors
    /// [`ErrorCode::NotReady`], saying why.
    pub(crate) fn loaded(&self) -> Result<&Served, ApiError> {
        let loading = || ApiError::new(ErrorCode::NotReady, "the model is still loading");
        self.served().ok_or_else(|| self.ready().err().unwrap_or_else(loading))
    }

    /// The engine's last figures, once there is an engine.
    pub(crate) fn snapshot(&self) -> Option<Snapshot> {
        self.served().map(|served| served.engine.snapshot())
    }

    /// The model, if new work is welcome.
    ///
    /// # Errors
    /// [`ErrorCode::NotReady`], saying why.
    pub(crate) fn ready(&self) -> Result<&Served, ApiError> {
        let why = match (self.phase(), self.served()) {
            (Phase::Ready, Some(served)) => return Ok(served),
            (Phase::Ready | Phase::Loading(_), _) => "the model is still loading".to_string(),
            (Phase::Draining, _) => SHUTTING_DOWN.to_string(),
            (Phase::Failed(reason), _) => format!("the worker has failed: {reason}"),
        };
        Err(ApiError::new(ErrorCode::NotReady, why))
    }

    fn change_phase(&self, next: impl FnOnce(&Phase) -> Option<Phase>) {
        let mut phase = self.0.phase.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(next) = next(&phase) {
            *phase = next;
        }
    }
}
