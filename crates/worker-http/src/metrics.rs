//! `GET /metrics`: what vLLM's dashboards look for, under vLLM's names, and what is the worker's own.
//!
//! Token counters are counted here, where tokens are handed to clients, and not in the engine, which may be a step ahead
//! of a stop string: they move by exactly what was streamed, and before the terminal event is sent.

use std::fmt;
use std::sync::atomic::AtomicU64;

use engine::Snapshot;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The format that [`Metrics::encode`] writes: OpenMetrics, which every Prometheus since 2.5 reads.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Fraction = Gauge<f64, AtomicU64>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MemoryKind {
    kind: &'static str,
}

/// Every metric of the worker.
pub(crate) struct Metrics {
    registry: Registry,
    running: Gauge,
    waiting: Gauge,
    kv_cache_usage: Fraction,
    memory: Family<MemoryKind, Gauge>,
    vram: Gauge,
    uptime: Fraction,
    pub(crate) prompt_tokens: Counter,
    pub(crate) generation_tokens: Counter,
}

impl Metrics {
    pub(crate) fn new(model: &str) -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            running: Gauge::default(),
            waiting: Gauge::default(),
            kv_cache_usage: Fraction::default(),
            memory: Family::default(),
            vram: Gauge::default(),
            uptime: Fraction::default(),
            prompt_tokens: Counter::default(),
            generation_tokens: Counter::default(),
        };
        metrics.register(model);
        metrics
    }

    fn register(&mut self, model: &str) {
        let labels = [("model_name".into(), model.to_string().into())];
        let registry = self.registry.sub_registry_with_labels(labels.into_iter());
        registry.register("vllm:num_requests_running", "Requests in the running batch", self.running.clone());
        registry.register("vllm:num_requests_waiting", "Requests waiting to be admitted", self.waiting.clone());
        registry.register(
            "vllm:kv_cache_usage_perc",
            "KV blocks in use, as a fraction: 1 is all of them",
            self.kv_cache_usage.clone(),
        );
        registry.register("vllm:prompt_tokens", "Prompt tokens read", self.prompt_tokens.clone());
        registry.register("vllm:generation_tokens", "Tokens generated", self.generation_tokens.clone());
        registry.register("worker_memory_bytes", "Memory held for the model", self.memory.clone());
        registry.register("worker_vram_bytes", "Of worker_memory_bytes, what is in GPU memory", self.vram.clone());
        registry.register("worker_uptime_seconds", "Since the worker started", self.uptime.clone());
    }

    /// All metrics as text, gauges taken from the engine's last figures.
    pub(crate) fn encode(&self, uptime_secs: f64, snapshot: Option<&Snapshot>) -> Result<String, fmt::Error> {
        self.uptime.set(uptime_secs);
        if let Some(snapshot) = snapshot {
            self.running.set(snapshot.running as i64);
            self.waiting.set(snapshot.waiting as i64);
            self.kv_cache_usage.set(snapshot.kv_blocks_used as f64 / snapshot.kv_blocks_total.max(1) as f64);
            let memory = snapshot.memory;
            let kinds = [("weights", memory.weight_bytes), ("kv", memory.kv_bytes), ("scratch", memory.scratch_bytes)];
            for (kind, bytes) in kinds {
                self.memory.get_or_create(&MemoryKind { kind }).set(bytes as i64);
            }
            self.vram.set(memory.vram_bytes as i64);
        }
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
