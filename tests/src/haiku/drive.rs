//! The run itself, from starting the worker to its exit, and then the damaged copies.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};
use gguf_parser::Gguf;
use serde_json::{Value, json};
use tokenizer::{ChatInput, ChatTemplate, Tokenizer};

use super::checks::{self, Check};
use super::controls::{Damage, write_damaged_copy};
use super::golden::{self, Gates, GoldenPrompt, GreedyAnswer};
use super::record::{GoldenRecord, Record};
use super::report::{figure, margin};
use super::screen::Screen;
use super::{Options, alphanumeric, built_in, display_path, syllables, words};
use crate::harness::{Answer, Client, Launch, Metrics, TimedEvent, Worker};

/// Tries at a haiku with the word in it: a sampled model may miss once.
const N_TRIES: u64 = 2;

/// Other seeds that are asked for the same haiku.
const N_OTHER_SEEDS: u64 = 3;

/// How many of [`N_OTHER_SEEDS`] must answer otherwise: two seeds may meet in a model of so few haiku.
const N_OTHER_HAIKU: usize = 2;

/// How long the counters may lag behind the terminal event.
const COUNTERS_LIMIT: Duration = Duration::from_secs(2);

/// How long an idle worker may take to exit.
const EXIT_LIMIT: Duration = Duration::from_secs(10);

/// What the run knows of the model apart from what the worker says.
struct Model {
    path: PathBuf,
    is_built_in: bool,
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    golden: Vec<GoldenPrompt>,
}

/// Runs everything, and notes it in `record` as it goes.
pub(super) async fn drive(options: &Options, record: &mut Record, screen: &Screen) -> Result<()> {
    let model = Model::open(options)?;
    record.worker = display_path(options.worker.path());
    record.model = if model.is_built_in { "built-in".to_owned() } else { model.path.display().to_string() };
    let log = record.folder().join("worker.log");
    let mut worker = start(options, options.model.as_deref(), &log).await?;
    let outcome = with_worker(&worker, &model, record, screen).await;
    if let Err(error) = outcome {
        // A request that failed because the worker is gone is explained by the worker's end.
        tokio::time::sleep(Duration::from_millis(100)).await;
        return Err(match worker.obituary() {
            Some(obituary) => anyhow!("{error:#}\n{obituary}"),
            None => error,
        });
    }
    let exit = worker.shut_down(EXIT_LIMIT).await;
    let found = exit.as_ref().map_or_else(|error| format!("{error:#}"), ToString::to_string);
    let exited = exit.is_ok_and(|status| status.success());
    record.checks.push(Check::new("POST /shutdown ends the worker with exit 0", exited, found));
    if !model.golden.is_empty() {
        damaged_copies(options, &model, record, screen).await?;
    }
    Ok(())
}

async fn start(options: &Options, model: Option<&Path>, log: &Path) -> Result<Worker> {
    let launch = Launch { worker_id: "haiku-run", model, device: options.device.as_deref(), flags: &[], log };
    Worker::start(&options.worker, launch).await
}

/// Everything that is asked of the one running worker.
async fn with_worker(worker: &Worker, model: &Model, record: &mut Record, screen: &Screen) -> Result<()> {
    record.ready_ms = Some(worker.ready_after().as_secs_f64() * 1e3);
    record.callback = worker.callback().clone();
    record.health = worker.client().health().await?;
    let process = worker.process_id().map_or_else(String::new, |id| format!(", process {id}"));
    let ready_s = worker.ready_after().as_secs_f64();
    screen.fact("worker", &format!("{}{process}, ready after {ready_s:.2} s", record.worker));
    let health = |field: &str| record.health[field].as_str().unwrap_or("?").to_owned();
    let facts = ["model", "architecture", "quant_kind", "device"].map(health).join(", ");
    screen.fact("model", &format!("{} ({facts})", record.model));
    record.checks.push(Check::from_outcome("the ready callback and /health agree", callback_is_right(record)));

    let question = question(record);
    record.prompt = model.prompt(&question)?;
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
    screen.fact("prompt", &question);
    screen.fact("seed", &seed.to_string());
    haiku(worker.client(), model, seed, record, screen).await?;
    other_seeds(worker.client(), seed, record).await?;
    if !model.golden.is_empty() {
        screen.step("comparing greedy ids and log-probabilities with the golden file");
        let gates = model.gates(&record.callback);
        let compared = compare(worker.client(), model, &gates, "the model as it is", true, record).await?;
        let found = summary(&compared);
        record.checks.push(Check::new("ids and log-probabilities lie within the gates", compared.passes(), found));
        record.comparisons.push(compared);
    }
    Ok(())
}

fn callback_is_right(record: &Record) -> Result<String, String> {
    let callback = &record.callback;
    let text = |field: &str| callback[field].as_str().unwrap_or_default();
    let on_cpu = text("worker_type") == "cpu";
    let wrong = |what: &str| Err(format!("{what}: {callback}"));
    if text("worker_id") != "haiku-run" || record.health["worker_id"] != "haiku-run" {
        return wrong("worker_id is not the one given");
    }
    if text("model_ref").is_empty() || callback["memory_bytes"].as_u64().unwrap_or(0) == 0 {
        return wrong("model_ref or memory_bytes is missing");
    }
    let expected = if on_cpu { ("cpu", "system") } else { ("bespoke-cuda", "vram-only") };
    if (text("worker_type"), text("memory_architecture")) != expected {
        return wrong("worker_type and memory_architecture do not fit");
    }
    if callback["vram_bytes"].as_u64().is_none_or(|bytes| (bytes == 0) != on_cpu) {
        return wrong("vram_bytes does not fit the device");
    }
    if record.health["status"] != "ready" {
        return Err(format!("/health says {} after the callback", record.health["status"]));
    }
    Ok(format!("{}, {} bytes", text("uri"), callback["memory_bytes"]))
}

/// The words of the question, with this minute's word and a nonce of its own.
fn question(record: &mut Record) -> String {
    let minute = chrono::Timelike::minute(&chrono::Utc::now());
    record.minute_word = words::minute_word(minute);
    let (word, nonce) = (&record.minute_word, alphanumeric(8));
    format!("Write a haiku about GPU computing that includes the word \"{word}\" (nonce: {nonce})")
}

/// Asks for the haiku, once more if the word is not in it. Only the word may be missed: every answer is judged in full.
async fn haiku(client: &Client, model: &Model, seed: u64, record: &mut Record, screen: &Screen) -> Result<()> {
    for attempt in 1..=N_TRIES {
        let before = client.metrics().await?;
        let job = format!("haiku-{attempt}");
        let request = haiku_request(&job, &record.prompt, seed + attempt - 1);
        let show = |event: &TimedEvent| {
            if event.event == "token" {
                screen.haiku_text(event.data["t"].as_str().unwrap_or_default());
            }
        };
        let answer = client.execute(request, show).await?;
        let text = answer.text();
        record.is_5_7_5 = Some(syllables::is_5_7_5(&text));
        record.syllables = syllables::count(&text).into_iter().map(|line| line.into_iter().collect()).collect();
        screen.haiku_end(&haiku_facts(record, &answer));
        record.exchanges.push((job, answer.clone()));
        let after = settled_metrics(client, &before, &answer).await?;
        judge(model, &answer, (&before, &after), &mut record.checks);
        record.metrics = Some((before, after));
        let word = checks::word_once(&text, &record.minute_word);
        record.haiku = Some(text);
        if word.is_ok() || attempt == N_TRIES {
            record.checks.push(Check::from_outcome("the minute word exactly once, as a whole word", word));
            break;
        }
        screen.step("the word is not in it exactly once: one further try");
    }
    Ok(())
}

fn haiku_request(job_id: &str, prompt: &str, seed: u64) -> Value {
    json!({"job_id": job_id, "prompt": prompt, "max_tokens": 100, "temperature": 0.7, "seed": seed})
}

fn haiku_facts(record: &Record, answer: &Answer) -> String {
    let form = match record.is_5_7_5 {
        Some(true) => "5-7-5".to_owned(),
        _ if record.syllables.iter().all(|line| !line.is_empty()) => format!("not 5-7-5: {:?}", record.syllables),
        _ => "syllables not counted: not all words are in the table".to_owned(),
    };
    let n_tokens = answer.tokens().len();
    format!("{form}; {n_tokens} tokens in {:.0} ms", answer.total_ms)
}

/// Adds what must hold of every answer; of a claim that is there already, only a failure is worth another line.
fn judge(model: &Model, answer: &Answer, (before, after): (&Metrics, &Metrics), verdicts: &mut Vec<Check>) {
    let moved = |name| after.moved(before, name);
    let counters = checks::counters_moved(answer, moved(PROMPT_TOKENS), moved(GENERATED_TOKENS));
    let decoded = checks::ids_decode_to_text(answer, |ids| model.tokenizer.decode(ids));
    for (claim, outcome) in [
        ("events in order, one terminal end", checks::events_in_order(answer)),
        ("at most 30 s from request to terminal event", checks::in_time(answer)),
        ("token counters moved by what was streamed", counters),
        ("streamed ids decode to exactly the streamed text", decoded),
    ] {
        if outcome.is_err() || verdicts.iter().all(|check| check.claim != claim) {
            verdicts.push(Check::from_outcome(claim, outcome));
        }
    }
}

const PROMPT_TOKENS: &str = "vllm:prompt_tokens_total";
const GENERATED_TOKENS: &str = "vllm:generation_tokens_total";

/// The metrics as soon as they count what was streamed, or as they are after [`COUNTERS_LIMIT`].
async fn settled_metrics(client: &Client, before: &Metrics, answer: &Answer) -> Result<Metrics> {
    let give_up = tokio::time::Instant::now() + COUNTERS_LIMIT;
    loop {
        let now = client.metrics().await?;
        let moved = |name| now.moved(before, name);
        let settled = checks::counters_moved(answer, moved(PROMPT_TOKENS), moved(GENERATED_TOKENS)).is_ok();
        if settled || tokio::time::Instant::now() >= give_up {
            return Ok(now);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The same question with other seeds, and with the first seed again.
async fn other_seeds(client: &Client, seed: u64, record: &mut Record) -> Result<()> {
    let first = |record: &Record| record.exchanges.first().map(|(_, answer)| answer.ids()).unwrap_or_default();
    let mut n_other = 0;
    // Far from the first, and from its further try.
    for other in (1..=N_OTHER_SEEDS).map(|n| seed + 1000 * n) {
        let job = format!("seed-{other}");
        let answer = client.execute(haiku_request(&job, &record.prompt, other), |_| {}).await?;
        n_other += usize::from(!answer.ids().is_empty() && answer.ids() != first(record));
        record.exchanges.push((job, answer));
    }
    let found = format!("{n_other} of {N_OTHER_SEEDS}");
    record.checks.push(Check::new("other seeds give other haiku", n_other >= N_OTHER_HAIKU, found));

    let answer = client.execute(haiku_request("same-seed", &record.prompt, seed), |_| {}).await?;
    let same = answer.ids() == first(record) && !answer.ids().is_empty();
    let found = answer.broken.as_deref().unwrap_or(if same { "the same ids" } else { "other ids" }).to_owned();
    record.exchanges.push(("same-seed".to_owned(), answer));
    record.checks.push(Check::new("the same seed gives the same haiku", same, found));
    Ok(())
}

/// Asks for the greedy answer to every prompt of the golden file and compares.
async fn compare(
    client: &Client,
    model: &Model,
    gates: &Gates,
    of: &str,
    must_pass: bool,
    record: &mut Record,
) -> Result<GoldenRecord> {
    let mut answers = Vec::new();
    for (idx, golden) in model.golden.iter().enumerate() {
        let job = format!("golden-{idx} ({of})");
        let request = json!({
            "job_id": job, "prompt": golden.prompt, "max_tokens": golden.steps.len().max(1), "temperature": 0,
            "logprobs": golden::N_TOP, "seed": 0,
        });
        let answer = client.execute(request, |_| {}).await?;
        let ordered = checks::events_in_order(&answer);
        answers.push(GreedyAnswer {
            n_prompt_tokens: answer.first("started").and_then(|started| started["prompt_tokens"].as_u64()),
            tokens: answer.tokens().into_iter().flatten().collect(),
            ended: answer.first("end").is_some_and(|end| end["stop_reason"] == "EOS"),
        });
        record.exchanges.push((job.clone(), answer));
        // A stream that breaks must not count as a difference that a damaged copy is to show.
        if let Err(wrong) = ordered {
            bail!("{job}: {wrong}");
        }
    }
    let is_end = |id| model.tokenizer.end_tokens().contains(&id);
    let comparison = golden::compare(&model.golden, &answers, is_end);
    Ok(GoldenRecord { of: of.to_owned(), must_pass, gates: comparison.gates(gates), comparison })
}

/// The figures that matter most, against their limits.
fn summary(golden: &GoldenRecord) -> String {
    let c = &golden.comparison;
    let mut summary = format!("{} of {} steps", c.n_compared, c.n_steps);
    for gate in golden.gates.iter().filter(|gate| gate.what.starts_with("log-probabilities")) {
        let what = gate.what.trim_start_matches("log-probabilities, ");
        summary += &format!("; {what} {}, {}", figure(gate.measured), margin(gate.measured, gate.limit));
    }
    // What fails says more than what differs.
    let failed = golden.gates.iter().filter(|gate| golden.must_pass && !gate.holds()).map(|gate| gate.what);
    let failed: Vec<_> = failed.collect();
    if !failed.is_empty() {
        let difference = c.first_difference.as_deref().map_or_else(String::new, |place| format!(" ({place})"));
        summary += &format!("; failed: {}{difference}", failed.join(", "));
    }
    summary
}

/// The same worker on damaged copies of the model must fail the comparison.
async fn damaged_copies(options: &Options, model: &Model, record: &mut Record, screen: &Screen) -> Result<()> {
    let folder = tempfile::tempdir().context("making a folder for damaged copies of the model")?;
    for damage in Damage::ALL {
        let copy = folder.path().join(format!("{}.gguf", damage.slug()));
        if !write_damaged_copy(&model.path, &copy, damage)? {
            screen.step(&format!("not applicable to this model: {}", damage.what()));
            continue;
        }
        screen.step(&format!("the same worker on a damaged copy: {}", damage.what()));
        let log = record.folder().join(format!("worker-{}.log", damage.slug()));
        let worker = start(options, Some(&copy), &log).await?;
        let gates = model.gates(worker.callback());
        let compared = compare(worker.client(), model, &gates, damage.what(), false, record).await?;
        // Its exit is not what is tested here.
        drop(worker);
        std::fs::remove_file(&copy).with_context(|| format!("removing {}", copy.display()))?;
        let claim = format!("refused: {}", damage.what());
        record.checks.push(Check::new(claim, !compared.passes(), summary(&compared)));
        record.comparisons.push(compared);
    }
    Ok(())
}

impl GoldenRecord {
    fn passes(&self) -> bool {
        self.gates.iter().all(golden::Gate::holds)
    }
}

impl Model {
    fn open(options: &Options) -> Result<Self> {
        let is_built_in = options.model.is_none();
        let path = options.model.clone().unwrap_or_else(|| built_in("haiku-qwen2-5.8m-f16.gguf"));
        let golden = options.golden.clone().or_else(|| is_built_in.then(|| built_in("golden_logprobs.json")));
        let bytes = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let gguf = Gguf::parse(&bytes).with_context(|| format!("reading {}", path.display()))?;
        let tokenizer = Tokenizer::from_gguf(&gguf).with_context(|| format!("tokenizer of {}", path.display()))?;
        let template = if is_built_in { None } else { ChatTemplate::from_gguf(&gguf, &tokenizer)? };
        let golden = golden.map(|path| golden::read(&path)).transpose()?.unwrap_or_default();
        Ok(Self { path, is_built_in, tokenizer, template, golden })
    }

    /// The question as the model wants it: through its chat template where it has one. The built-in model is asked raw.
    fn prompt(&self, question: &str) -> Result<String> {
        let Some(template) = &self.template else { return Ok(question.to_owned()) };
        let messages = [json!({"role": "user", "content": question})];
        let input =
            ChatInput { messages: &messages, tools: None, add_generation_prompt: true, extra: Default::default() };
        template.render(&input).context("rendering the chat template")
    }

    fn gates(&self, callback: &Value) -> Gates {
        match (callback["worker_type"] == "cpu", self.is_built_in) {
            (true, _) => Gates::CPU,
            (false, true) => Gates::GPU,
            (false, false) => Gates::GPU_FULL_SIZE,
        }
    }
}
