//! Jobs before the engine has them, and their answers' turns.

use std::time::Duration;

use engine::{Engine, EngineConfig};
use gguf_parser::Gguf;
use test_support::fake_executor::{FakeConfig, FakeExecutor};
use test_support::tiny_model::TinyModel;
use tokenizer::Tokenizer;

use super::*;
use crate::state::{KEEP_ALIVE, ModelFacts, Settings, TURN_TIMEOUT};

/// A worker with an executor that does nothing, one place to run and one to wait.
fn worker(inference_timeout: Option<Duration>) -> AppState {
    let state = AppState::new(Settings {
        worker_id: "w".into(),
        model: "m".into(),
        model_file: "m.gguf".into(),
        inference_timeout,
        keep_alive: KEEP_ALIVE,
        log_prompts: false,
        body_read_timeout: crate::BODY_READ_TIMEOUT,
        access: crate::Access::default(),
    });
    let file = TinyModel::default().build();
    let tokenizer = Arc::new(Tokenizer::from_gguf(&Gguf::parse(&file).unwrap()).unwrap());
    let fake = FakeConfig { n_vocab: tokenizer.n_vocab(), n_ctx: 8192, n_blocks: 2048, ..FakeConfig::default() };
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
    control.hold_after(0);
    // The executor's thread ends with the process.
    std::mem::forget(control);
    let config = EngineConfig { max_seqs: 1, queue_limit: 1, ..EngineConfig::default() };
    let engine = Engine::start(Box::new(executor), config, Instant::now);
    state.set_ready(Served { engine, tokenizer, chat_template: Err("none".into()), facts });
    state
}

/// A job whose prompt is too long to be encoded on any thread.
fn job(job_id: &str) -> JobRequest {
    let prompts = vec![Prompt::raw("the ".repeat(1100))];
    JobRequest { job_id: job_id.into(), prompts, n: 1, generation: Generation::default() }
}

/// Takes every turn at the encoder.
async fn occupy_encoders(state: &AppState) -> tokio::sync::OwnedSemaphorePermit {
    let encoders = state.encoders();
    let n = encoders.available_permits() as u32;
    encoders.acquire_many_owned(n).await.unwrap()
}

async fn refusal(state: &AppState, job_id: &str) -> ErrorCode {
    start(state, Received::now(), job(job_id)).await.map(drop).unwrap_err().code
}

#[tokio::test]
async fn a_full_queue_is_told_before_a_prompt_is_encoded() {
    let state = worker(None);
    let _running = start(&state, Received::now(), job("running")).await.unwrap();
    let _waiting = start(&state, Received::now(), job("waiting")).await.unwrap();
    let _occupied = occupy_encoders(&state).await;
    assert_eq!(refusal(&state, "late").await, ErrorCode::QueueFull);
    assert_eq!(state.n_live_jobs(), 2, "its name was never taken");
}

#[tokio::test(start_paused = true)]
async fn a_prompt_does_not_wait_for_ever_to_be_encoded() {
    let state = worker(None);
    let _occupied = occupy_encoders(&state).await;
    let began = tokio::time::Instant::now();
    assert_eq!(refusal(&state, "a").await, ErrorCode::QueueFull);
    assert_eq!(began.elapsed(), TURN_TIMEOUT);
    assert_eq!(state.n_live_jobs(), 0);
}

#[tokio::test]
async fn the_time_limit_of_a_job_holds_before_the_engine_has_it() {
    let state = worker(Some(Duration::from_millis(50)));
    let _occupied = occupy_encoders(&state).await;
    let received = Received::now();
    tokio::time::sleep(Duration::from_millis(30)).await;
    let error = start(&state, received, job("a")).await.map(drop).unwrap_err();
    assert_eq!(error.code, ErrorCode::InferenceTimeout);
    assert_eq!(error.message, "the job took longer than the 0.05 s that this worker allows");
}

#[tokio::test]
async fn a_drain_cuts_off_a_job_that_the_engine_does_not_have() {
    let state = worker(None);
    let _occupied = occupy_encoders(&state).await;
    let (code, ()) = tokio::join!(refusal(&state, "a"), async { state.cut_off() });
    assert_eq!(code, ErrorCode::NotReady);
    assert!(state.drain(Duration::from_secs(20)).await);
}

#[test]
fn a_prompt_is_counted_by_the_first_of_its_answers_that_has_a_token() {
    let state = worker(None);
    let record = Record::new(&state, state.jobs().begin("a").unwrap(), Received::now(), &[3, 5], 2);
    let counted: Vec<bool> = [1, 0, 1, 3, 2].map(|choice| record.is_first_to_read(choice)).into();
    assert_eq!(counted, [true, false, false, true, false]);
}

#[tokio::test]
async fn no_answer_waits_for_another() {
    let (senders, open): (Vec<_>, Vec<_>) = (0..3)
        .map(|choice| {
            let (sender, receiver) = mpsc::channel(16);
            (sender, (choice, receiver))
        })
        .unzip();
    let mut answers = Answers { open, turn: 0 };
    let error = || Event::Error(cancelled().into());
    let token = || Event::Token(crate::event::TokenEvent { t: String::new(), i: 0, id: 1, logprobs: None });
    for sender in &senders {
        sender.try_send(token()).unwrap();
        sender.try_send(token()).unwrap();
    }
    senders[1].try_send(error()).unwrap();
    drop(senders);
    let mut order = Vec::new();
    while let Some((choice, event)) = answers.next().await {
        order.push((choice, event.is_terminal()));
    }
    // The ones whose task is gone end with an error too.
    let expected =
        [(0, false), (1, false), (2, false), (0, false), (1, false), (2, false), (0, true), (1, true), (2, true)];
    assert_eq!(order, expected);
}
