//! `serve`: the start-up order, and the way down.
//!
//! Bind the port, answer `/health`, open and check the model, load and warm it up, become ready, call back; then serve
//! and beat until a signal or `POST /shutdown`, let live jobs finish, and leave.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use engine::{Engine, EngineConfig, EngineHandle};
use reqwest::Url;
use tokenizer::{ChatTemplate, Tokenizer};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use weight_loader::ModelFile;
use worker_http::{AppState, ModelFacts, Served, ServerLimits, Settings};

use crate::callback::{self, Ready};
use crate::cli::{MAX_SEQS, ServeArgs};
use crate::heartbeat::Heartbeat;
use crate::kv_plan::Pool;
use crate::logging::{self, Quiet};
use crate::progress::Loading;
use crate::start::{self, Loaded};
use crate::{access, fault, memory, output, signals, source};

/// Threads that answer HTTP. Computing is done elsewhere; these only wait.
const HTTP_THREADS: usize = 2;

/// Runs the command until it is told to stop.
pub(crate) fn run(args: &ServeArgs) -> anyhow::Result<ExitCode> {
    logging::init_with(&args.log, Quiet::No, args.worker.log_prompts.then_some(worker_http::PROMPTS))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(HTTP_THREADS)
        .thread_name("http")
        .enable_all()
        .build()
        .context("cannot start the HTTP threads")?;
    let outcome = runtime.block_on(serve(args));
    // Connections that outlived the drain end with the process.
    runtime.shutdown_background();
    outcome
}

/// After the drain limit: the time for the jobs that are cut off to end, and for the engine to end its step.
const CUT_OFF_GRACE: Duration = Duration::from_secs(2);

async fn serve(args: &ServeArgs) -> anyhow::Result<ExitCode> {
    if let (Some(seconds @ 1..), None) = (args.worker.heartbeat_sec, &args.worker.callback_url) {
        anyhow::bail!("--heartbeat-sec {seconds}: needs --callback-url, which says where to");
    }
    let access = access::from_args(&args.access, args.worker.host)?;
    let stop = signals::watch().context("cannot watch for signals")?;
    let (listener, bound) = bind(args).await?;
    // Whoever started the worker may read this line, whatever is logged; that nobody does is no reason to stop.
    let _ = output::write(&format!("listening on http://{bound}\n"));
    let worker_id = args.worker.worker_id.clone().unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    let model = args.worker.alias.clone().unwrap_or_else(|| source::name(&args.model));
    if let Some(path) = &args.config {
        tracing::info!("configuration from {}", path.display());
    }
    tracing::info!("worker {worker_id} listens on http://{bound}");
    access::warn_of_open_doors(&access, bound);
    let state = AppState::new(Settings {
        worker_id: worker_id.clone(),
        model: model.clone(),
        model_file: source::file_name(&args.model),
        inference_timeout: args.worker.inference_timeout_sec.map(Duration::from_secs),
        keep_alive: worker_http::KEEP_ALIVE,
        log_prompts: args.worker.log_prompts,
        body_read_timeout: worker_http::BODY_READ_TIMEOUT,
        access,
    });
    // How many run at a time follows from the device where nobody says it.
    let max_seqs = args.limits.max_seqs.map_or(MAX_SEQS as usize, |n| n as usize);
    let end_of_service = CancellationToken::new();
    let server = tokio::spawn(worker_http::serve(
        listener,
        state.clone(),
        ServerLimits::for_jobs(max_seqs + args.worker.queue_limit as usize),
        end_of_service.clone().cancelled_owned(),
    ));

    let end = work(args, &worker_id, &model, bound, &state, &stop).await;
    // Answers on their way, that of POST /shutdown for one, are still sent, wherever in its life the worker is.
    end_of_service.cancel();
    // A handler that panicked has been logged; there is nothing left to do about it.
    let _ = server.await;
    end.map(|()| ExitCode::SUCCESS)
}

/// Loads, becomes ready, calls back, serves until told to stop, and drains.
async fn work(
    args: &ServeArgs,
    worker_id: &str,
    model: &str,
    bound: SocketAddr,
    state: &AppState,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let loading = load(args, state.clone());
    let prepared = async {
        tokio::try_join!(async { Ok(orchestrator(args, bound).await) }, async {
            loading.await.context("the loading thread ended without a result")?
        })
    };
    let (orchestrator, (loaded, template)) = tokio::select! {
        biased;
        // Nothing is live yet, so there is nothing to finish.
        () = stop.cancelled() => return Ok(()),
        () = state.shutdown_requested() => return Ok(()),
        prepared = prepared => prepared?,
    };
    let ready = Ready {
        worker_id: worker_id.to_owned(),
        model_ref: source::model_ref(&args.model),
        uri: String::new(),
        memory_bytes: loaded.executor.memory().total_bytes(),
        vram_bytes: loaded.executor.memory().vram_bytes,
        memory_architecture: loaded.device.memory_architecture(),
        worker_type: loaded.device.worker_type(),
        capabilities: vec!["text-gen"],
    };
    let engine = become_ready(args, (loaded, template), model, state);
    let mut heartbeat = None;
    let outcome = tokio::select! {
        biased;
        () = stop.cancelled() => Ok(()),
        () = state.shutdown_requested() => Ok(()),
        failure = failure_of(&engine) => {
            tracing::error!("the worker has failed and ends: {failure}");
            heartbeat.iter().for_each(Heartbeat::look);
            tokio::time::sleep(failed_notice()).await;
            Err(anyhow::anyhow!("the engine has failed: {failure}"))
        }
        Err(e) = call_back(args, orchestrator, ready, bound, state, &mut heartbeat) => Err(e),
    };
    let limit = if outcome.is_ok() { Duration::from_secs(args.worker.drain_timeout_sec) } else { Duration::ZERO };
    // A failed worker stays one.
    state.begin_drain();
    heartbeat.iter().for_each(Heartbeat::look);
    leave(state, engine, limit).await;
    if let Some(heartbeat) = heartbeat {
        heartbeat.end().await;
    }
    outcome
}

/// How soon a failure of the engine is noticed.
const FAILURE_POLL: Duration = Duration::from_millis(50);
/// How long a worker whose engine has failed still answers: `/health` says `failed` to whoever asks, and clients read why
/// their jobs ended.
const FAILED_NOTICE: Duration = Duration::from_secs(1);
/// The same where a test has asked for the failure: it may hang for a moment before it looks.
const FAILED_NOTICE_OF_TESTS: Duration = Duration::from_secs(5);

fn failed_notice() -> Duration {
    if fault::is_asked_for() { FAILED_NOTICE_OF_TESTS } else { FAILED_NOTICE }
}

/// Returns once the engine has failed, with the reason. A device that is lost is lost for the whole process, so the
/// process ends, and whoever started it can start another.
async fn failure_of(engine: &EngineHandle) -> String {
    loop {
        if let Some(failure) = engine.snapshot().failure {
            return failure;
        }
        tokio::time::sleep(FAILURE_POLL).await;
    }
}

async fn bind(args: &ServeArgs) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let wanted = SocketAddr::new(args.worker.host, args.worker.port);
    let bound = async {
        let listener = TcpListener::bind(wanted).await?;
        let bound = listener.local_addr()?;
        Ok((listener, bound))
    };
    bound.await.map_err(|e: std::io::Error| match e.kind() {
        std::io::ErrorKind::AddrInUse => anyhow::anyhow!(
            "cannot listen on {wanted}: the port is in use; choose another with --port, or 0 for a free one"
        ),
        _ => anyhow::anyhow!("cannot listen on {wanted}: {e}"),
    })
}

/// Loads on a thread of its own, so that `/health` answers meanwhile.
fn load(args: &ServeArgs, state: AppState) -> oneshot::Receiver<anyhow::Result<(Loaded, Template)>> {
    let (done, result) = oneshot::channel();
    let model = args.model.clone();
    let log_format = args.log.log_format;
    let options = start::Options {
        device: args.device.clone(),
        max_seqs: args.limits.max_seqs.map(|n| n as usize),
        ctx_size: args.limits.ctx_size.map(|n| n as usize),
        pool: args.limits.kv_cache_mb.map_or(Pool::Default, |mb| Pool::Bytes(mb << 20)),
        kv_type: args.limits.kv_type.into(),
    };
    std::thread::spawn(move || {
        let loaded = source::open(&model).and_then(|file| {
            let mut loading = Loading::start(log_format);
            let loaded = start::load(&file, &options, &mut |done, total| {
                state.set_progress(done as f32 / total.max(1) as f32);
                loading.set(done, total);
            })?;
            let template = chat_template(&file, &loaded.tokenizer)?;
            Ok((loaded, template))
        });
        // The receiver is gone when a signal came first.
        let _ = done.send(loaded);
    });
    result
}

/// The model's chat template, or why there is none that can be used: everything but chat works without.
type Template = Result<Arc<ChatTemplate>, String>;

fn chat_template(file: &ModelFile, tokenizer: &Tokenizer) -> anyhow::Result<Template> {
    let template = match ChatTemplate::from_gguf(&file.gguf()?, tokenizer) {
        Ok(Some(template)) => Ok(Arc::new(template)),
        Ok(None) => Err("the model has no chat template".to_owned()),
        Err(error) => {
            tracing::warn!("chat is not served: {error}");
            Err(format!("the model's chat template cannot be used: {error}"))
        }
    };
    Ok(template)
}

/// Starts the engine and takes work.
fn become_ready(
    args: &ServeArgs,
    (loaded, chat_template): (Loaded, Template),
    model: &str,
    state: &AppState,
) -> EngineHandle {
    let info = loaded.executor.info().clone();
    let facts = ModelFacts {
        architecture: loaded.spec.architecture.to_owned(),
        quant_kind: loaded.quant_kind.to_owned(),
        device: info.device.clone(),
        resident: loaded.is_resident(),
        tokenizer_kind: loaded.tokenizer.kind().to_owned(),
        vocab_size: loaded.tokenizer.n_vocab(),
        context_length: info.n_ctx,
    };
    let config = EngineConfig {
        max_seqs: info.max_seqs,
        queue_limit: args.worker.queue_limit as usize,
        max_batch_tokens: info.max_batch_tokens,
        prefix_reuse: !args.limits.no_prefix_reuse,
        ..EngineConfig::default()
    };
    let held = loaded.executor.memory();
    let engine = Engine::start(fault::injected(loaded.executor, &loaded.device), config, std::time::Instant::now);
    state.set_ready(Served { engine: engine.clone(), tokenizer: loaded.tokenizer, chat_template, facts });
    tracing::info!(
        "ready in {:.2} s: {model} ({} {}, {} of weights) on {}, context {} tokens, {} requests at a time share {} of \
         keys and values",
        loaded.took.as_secs_f64(),
        loaded.spec.architecture,
        loaded.quant_kind,
        memory::shown(held.weight_bytes),
        info.device,
        info.n_ctx,
        info.max_seqs,
        memory::shown(held.kv_bytes),
    );
    engine
}

/// The URL to call once ready, unless it is this worker's own.
async fn orchestrator(args: &ServeArgs, bound: SocketAddr) -> Option<&Url> {
    let url = args.worker.callback_url.as_ref()?;
    if callback::names_this_worker(url, bound).await {
        tracing::warn!(
            "--callback-url {} is this worker's own address: standalone, nobody is called",
            callback::shown(url)
        );
        return None;
    }
    Some(url)
}

/// Tells the orchestrator, where there is one, and starts to tell it again and again, where that was asked for; then never
/// returns.
async fn call_back(
    args: &ServeArgs,
    orchestrator: Option<&Url>,
    mut ready: Ready,
    bound: SocketAddr,
    state: &AppState,
    heartbeat: &mut Option<Heartbeat>,
) -> anyhow::Result<std::convert::Infallible> {
    if let Some(url) = orchestrator {
        ready.uri = callback::uri(bound, url).await;
        callback::call(url, &ready, &callback::PATIENCE).await?;
        tracing::info!("called back {}", callback::shown(url));
        if let Some(seconds @ 1..) = args.worker.heartbeat_sec {
            let interval = Duration::from_secs(seconds);
            *heartbeat = Some(Heartbeat::start(url, interval, ready, state.clone()).context("--heartbeat-sec")?);
        }
    }
    std::future::pending().await
}

/// Refuses new work, lets live jobs finish for `limit`, and frees the model's memory.
async fn leave(state: &AppState, engine: EngineHandle, limit: Duration) {
    tracing::info!("draining: live jobs have {} s to finish", limit.as_secs());
    if !state.drain(limit).await {
        tracing::warn!("the time is up: {} live jobs are cut off", state.n_live_jobs());
        state.cut_off();
        state.drain(CUT_OFF_GRACE).await;
    }
    let freed = tokio::task::spawn_blocking(move || engine.join());
    if tokio::time::timeout(CUT_OFF_GRACE, freed).await.is_err() {
        tracing::warn!("the engine is still in a step; leaving without it");
    }
    tracing::info!("stopped");
}
