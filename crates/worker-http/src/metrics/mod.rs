//! `GET /metrics`: what vLLM's dashboards look for, under vLLM's names, and what is the worker's own.
//!
//! Tokens are counted and timed here, where they are handed to clients, and not in the engine, which may be a step ahead
//! of a stop string: counters move by exactly what was streamed, and before the terminal event is sent.
//!
//! What vLLM calls a request is one answer here: a job with `n` answers is `n` of them. [`Metrics::request_done`] counts
//! whole requests, those that were refused too, each in one outcome.
//!
//! vLLM's `iteration_tokens_total` is left out: a histogram with a counter's name is no valid Prometheus text to
//! `promtool`.

mod buckets;
mod form;

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use engine::Snapshot;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

use crate::state::ModelFacts;
pub(crate) use form::TextForm;

type Fraction = Gauge<f64, AtomicU64>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MemoryKind {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FinishedReason {
    finished_reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestOutcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CacheConfig {
    block_size: usize,
    num_gpu_blocks: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeviceInfo {
    device: String,
    architecture: String,
    quant_kind: String,
}

/// How an answer ended, as vLLM divides it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finish {
    /// By itself, or by a stop string.
    Stop,
    /// `max_tokens`, or the context, is used up.
    Length,
    /// It was cancelled, or its client went away.
    Abort,
    /// It failed.
    Error,
}

impl Finish {
    const ALL: [Self; 4] = [Self::Stop, Self::Length, Self::Abort, Self::Error];

    /// The value of `finished_reason`.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
            Self::Error => "error",
        }
    }
}

/// The outcome of a request whose client went away.
pub(crate) const ABORT: &str = "abort";

/// What a complete answer took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct AnswerFigures {
    /// Tokens of its prompt; `None` where another answer to the same prompt counts them.
    pub(crate) n_prompt: Option<usize>,
    /// Prompt tokens that were not found in the cache.
    pub(crate) n_computed: usize,
    /// Tokens generated.
    pub(crate) n_generated: usize,
    /// The most that it was allowed.
    pub(crate) max_tokens: usize,
    /// From the request to the end.
    pub(crate) total: Duration,
    /// Where its time went.
    pub(crate) timings: engine::Timings,
}

/// Every metric of the worker.
pub(crate) struct Metrics {
    model: String,
    registry: Registry,
    running: Gauge,
    waiting: Gauge,
    kv_cache_usage: Fraction,
    prefix_queries: Counter,
    prefix_hits: Counter,
    memory: Family<MemoryKind, Gauge>,
    vram: Gauge,
    steps: Counter,
    uptime: Fraction,
    prompt_tokens: Counter,
    generation_tokens: Counter,
    finished: Family<FinishedReason, Counter>,
    requests: Family<RequestOutcome, Counter>,
    first_token: Histogram,
    between_tokens: Histogram,
    times: Times,
    n_answers: Histogram,
    of_model: OnceLock<OfModel>,
}

/// Where complete answers' time went, in seconds.
struct Times {
    total: Histogram,
    queue: Histogram,
    inference: Histogram,
    prefill: Histogram,
    decode: Histogram,
    per_token: Histogram,
}

/// What is known with the model: how it is held, and counts of tokens, whose buckets end with its context.
struct OfModel {
    registry: Registry,
    prompt: Histogram,
    computed: Histogram,
    generated: Histogram,
    most_generated: Histogram,
    max_tokens: Histogram,
}

impl Metrics {
    pub(crate) fn new(model: &str) -> Self {
        let request = || Histogram::new(buckets::REQUEST);
        let mut metrics = Self {
            model: model.to_string(),
            registry: Registry::default(),
            running: Gauge::default(),
            waiting: Gauge::default(),
            kv_cache_usage: Fraction::default(),
            prefix_queries: Counter::default(),
            prefix_hits: Counter::default(),
            memory: Family::default(),
            vram: Gauge::default(),
            steps: Counter::default(),
            uptime: Fraction::default(),
            prompt_tokens: Counter::default(),
            generation_tokens: Counter::default(),
            finished: Family::default(),
            requests: Family::default(),
            first_token: Histogram::new(buckets::FIRST_TOKEN),
            between_tokens: Histogram::new(buckets::BETWEEN_TOKENS),
            times: Times {
                total: request(),
                queue: request(),
                inference: request(),
                prefill: request(),
                decode: request(),
                per_token: Histogram::new(buckets::BETWEEN_TOKENS),
            },
            n_answers: Histogram::new(buckets::ANSWERS),
            of_model: OnceLock::new(),
        };
        // From zero, so that the first one of its kind shows as a rise.
        for finish in Finish::ALL {
            drop(metrics.finished.get_or_create(&FinishedReason { finished_reason: finish.label() }));
        }
        for outcome in [Finish::Stop.label(), Finish::Length.label(), ABORT] {
            drop(metrics.requests.get_or_create(&RequestOutcome { outcome }));
        }
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let mut registry = std::mem::take(&mut self.registry);
        let mut vllm = Names::new(&mut registry, &self.model, true);
        vllm.add("vllm:num_requests_running", "Answers in the running batch", &self.running);
        vllm.add("vllm:num_requests_waiting", "Answers waiting to be admitted", &self.waiting);
        vllm.add("vllm:kv_cache_usage_perc", "KV blocks in use, as a fraction: 1 is all of them", &self.kv_cache_usage);
        vllm.add("vllm:prefix_cache_queries", "Prompt tokens looked for in the prefix cache", &self.prefix_queries);
        vllm.add("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache", &self.prefix_hits);
        vllm.add("vllm:prompt_tokens", "Prompt tokens read", &self.prompt_tokens);
        vllm.add("vllm:num_preemptions", "Always 0: a request that runs is never put back", &Counter::<u64>::default());
        vllm.add("vllm:generation_tokens", "Tokens generated", &self.generation_tokens);
        vllm.add("vllm:request_success", "Answers ended, by reason", &self.finished);
        vllm.add("vllm:time_to_first_token_seconds", "From a request to an answer's first token", &self.first_token);
        vllm.add("vllm:inter_token_latency_seconds", "From one token of an answer to the next", &self.between_tokens);
        vllm.add(
            "vllm:request_time_per_output_token_seconds",
            "Mean time from token to token of an answer",
            &self.times.per_token,
        );
        vllm.add("vllm:e2e_request_latency_seconds", "From a request to an answer's end", &self.times.total);
        vllm.add("vllm:request_queue_time_seconds", "Time an answer waited to be admitted", &self.times.queue);
        vllm.add(
            "vllm:request_inference_time_seconds",
            "From admission to an answer's last token",
            &self.times.inference,
        );
        vllm.add("vllm:request_prefill_time_seconds", "From admission to an answer's first token", &self.times.prefill);
        vllm.add("vllm:request_decode_time_seconds", "From an answer's first token to its last", &self.times.decode);
        vllm.add("vllm:request_params_n", "Answers asked for by a request, to each prompt", &self.n_answers);
        let mut own = Names::new(&mut registry, &self.model, false);
        own.add("worker_requests", "Requests for answers, refused ones included, by outcome", &self.requests);
        own.add("worker_engine_steps", "Steps of the engine", &self.steps);
        own.add("worker_memory_bytes", "Memory held for the model", &self.memory);
        own.add("worker_vram_bytes", "Of worker_memory_bytes, what is in GPU memory", &self.vram);
        own.add("worker_uptime_seconds", "Since the worker started", &self.uptime);
        self.registry = registry;
    }

    /// The model is there: its metrics appear. Only the first call counts.
    pub(crate) fn model_loaded(&self, facts: &ModelFacts, snapshot: &Snapshot) {
        self.of_model.get_or_init(|| OfModel::new(&self.model, facts, snapshot));
    }

    /// A prompt of this many tokens was read.
    pub(crate) fn prompt_read(&self, n_tokens: usize) {
        self.prompt_tokens.inc_by(n_tokens as u64);
    }

    /// An answer's first token came this long after its request.
    pub(crate) fn first_token(&self, since_request: Duration) {
        self.generation_tokens.inc();
        self.first_token.observe(since_request.as_secs_f64());
    }

    /// An answer's next token came this long after the one before.
    pub(crate) fn next_token(&self, since_last: Duration) {
        self.generation_tokens.inc();
        self.between_tokens.observe(since_last.as_secs_f64());
    }

    /// An answer ended; with figures where it is complete.
    pub(crate) fn answer_done(&self, finish: Finish, figures: Option<&AnswerFigures>) {
        self.finished.get_or_create(&FinishedReason { finished_reason: finish.label() }).inc();
        let Some(figures) = figures else { return };
        let (times, timings) = (&self.times, &figures.timings);
        let observe = |histogram: &Histogram, time: Duration| histogram.observe(time.as_secs_f64());
        observe(&times.total, figures.total);
        observe(&times.queue, timings.queued);
        observe(&times.inference, timings.prefill + timings.decode);
        observe(&times.prefill, timings.prefill);
        observe(&times.decode, timings.decode);
        if let Some(n_gaps @ 1..) = figures.n_generated.checked_sub(1) {
            times.per_token.observe(timings.decode.as_secs_f64() / n_gaps as f64);
        }
        if let Some(of_model) = self.of_model.get() {
            if let Some(n_prompt) = figures.n_prompt {
                of_model.prompt.observe(n_prompt as f64);
            }
            of_model.computed.observe(figures.n_computed as f64);
            of_model.generated.observe(figures.n_generated as f64);
            of_model.max_tokens.observe(figures.max_tokens as f64);
        }
    }

    /// All answers of a request are complete: `n` to each of its prompts, the longest of `most_generated` tokens.
    pub(crate) fn all_answers_done(&self, n: usize, most_generated: usize) {
        self.n_answers.observe(n as f64);
        if let Some(of_model) = self.of_model.get() {
            of_model.most_generated.observe(most_generated as f64);
        }
    }

    /// A request for answers is over: complete, cut off or refused.
    pub(crate) fn request_done(&self, outcome: &'static str) {
        self.requests.get_or_create(&RequestOutcome { outcome }).inc();
    }

    /// All metrics as text, gauges taken from the engine's last figures.
    pub(crate) fn encode(
        &self,
        form: TextForm,
        uptime: Duration,
        snapshot: Option<&Snapshot>,
    ) -> Result<String, fmt::Error> {
        self.uptime.set(uptime.as_secs_f64());
        if let Some(snapshot) = snapshot {
            self.take_over(snapshot);
        }
        let mut text = String::with_capacity(32 * 1024);
        encode_registry(&mut text, &self.registry)?;
        if let Some(of_model) = self.of_model.get() {
            encode_registry(&mut text, &of_model.registry)?;
        }
        match form {
            TextForm::Prometheus => Ok(form::to_prometheus(&text)),
            TextForm::OpenMetrics => {
                encode_eof(&mut text)?;
                Ok(text)
            }
        }
    }

    fn take_over(&self, snapshot: &Snapshot) {
        self.running.set(snapshot.running as i64);
        self.waiting.set(snapshot.waiting as i64);
        self.kv_cache_usage.set(snapshot.kv_blocks_used as f64 / snapshot.kv_blocks_total.max(1) as f64);
        // Two readers at once may bring their snapshots in either order; a counter never falls.
        let rise = |counter: &Counter, to: u64| counter.inner().fetch_max(to, Ordering::Relaxed);
        rise(&self.prefix_queries, snapshot.prompt_tokens_total);
        rise(&self.prefix_hits, snapshot.cached_tokens_total);
        rise(&self.steps, snapshot.steps_total);
        let memory = snapshot.memory;
        let kinds = [("weights", memory.weight_bytes), ("kv", memory.kv_bytes), ("scratch", memory.scratch_bytes)];
        for (kind, bytes) in kinds {
            self.memory.get_or_create(&MemoryKind { kind }).set(bytes as i64);
        }
        self.vram.set(memory.vram_bytes as i64);
    }
}

impl OfModel {
    fn new(model: &str, facts: &ModelFacts, snapshot: &Snapshot) -> Self {
        let tokens = || Histogram::new(buckets::tokens(facts.context_length));
        let mut registry = Registry::default();
        let (prompt, computed, generated) = (tokens(), tokens(), tokens());
        let (most_generated, max_tokens) = (tokens(), tokens());
        let cache_config = Family::<CacheConfig, Gauge>::default();
        let (block_size, num_gpu_blocks) = (snapshot.info.block_tokens, snapshot.kv_blocks_total);
        cache_config.get_or_create(&CacheConfig { block_size, num_gpu_blocks }).set(1);
        let device = Family::<DeviceInfo, Gauge>::default();
        let ModelFacts { device: name, architecture, quant_kind, .. } = facts.clone();
        device.get_or_create(&DeviceInfo { device: name, architecture, quant_kind }).set(1);
        let mut vllm = Names::new(&mut registry, model, true);
        vllm.add("vllm:cache_config_info", "Tokens in a KV block, and blocks in the pool", &cache_config);
        vllm.add("vllm:request_prompt_tokens", "Tokens of a prompt", &prompt);
        vllm.add(
            "vllm:request_prefill_kv_computed_tokens",
            "Tokens of a prompt that were not found in the prefix cache",
            &computed,
        );
        vllm.add("vllm:request_generation_tokens", "Tokens of an answer", &generated);
        vllm.add(
            "vllm:request_max_num_generation_tokens",
            "Tokens of the longest answer to a request",
            &most_generated,
        );
        vllm.add("vllm:request_params_max_tokens", "The most tokens that an answer was allowed", &max_tokens);
        Names::new(&mut registry, model, false).add("worker_device_info", "What runs where", &device);
        Self { registry, prompt, computed, generated, most_generated, max_tokens }
    }
}

/// Part of a registry, whose series all have the same labels.
struct Names<'a>(&'a mut Registry);

impl<'a> Names<'a> {
    /// Labelled with the model; vLLM numbers its engines too, and this worker has one.
    fn new(registry: &'a mut Registry, model: &str, has_engine: bool) -> Self {
        let labels = [("model_name", model), ("engine", "0")].into_iter().take(1 + usize::from(has_engine));
        Self(registry.sub_registry_with_labels(labels.map(|(name, value)| (name.into(), value.to_string().into()))))
    }

    fn add(&mut self, name: &str, help: &str, metric: &(impl Metric + Clone)) {
        self.0.register(name, help, metric.clone());
    }
}
