//! The command line: every flag and subcommand, each with the sentence that `--help` prints.
//!
//! This file is a table: it only says what can be written. A flag's value is checked here as far as it stands alone
//! (ranges, names); what depends on other flags, on the model or on the machine is checked where it is used.
//! Every flag of `serve` has an environment variable, `WORKER_ORCD_` and the flag's name, and is a key of the file that
//! `--config` names (`config`): the flag wins over the variable, the variable over the file, the file over the default.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

/// The most sequences one step may hold: scratch memory and the batch grow with it.
pub(crate) const MAX_SEQS: u64 = 256;
/// More threads than this never help one process.
const MAX_THREADS: u64 = 1024;
/// The longest context that may be asked for, in tokens; far above every known model's.
const MAX_CTX: u64 = 1 << 24;
/// The largest KV pool that may be asked for, in MiB (16 TiB).
const MAX_KV_MB: u64 = 1 << 24;
/// The longest queue that may be asked for: each waiting request holds its prompt.
const MAX_QUEUE: u64 = 1 << 16;
/// The longest time limit that may be asked for, in seconds: one day.
const MAX_TIMEOUT_SEC: u64 = 86_400;
/// The longest pause between heartbeats, in seconds: one hour.
const MAX_HEARTBEAT_SEC: u64 = 3_600;
/// The most clients of `bench --url`: each holds a connection.
const MAX_CONCURRENCY: i64 = 4_096;
/// The most requests of `bench --url`.
const MAX_REQUESTS: i64 = 1_000_000;
/// The most requests a second of `bench --url`.
const MAX_RATE: f64 = 1e5;
/// The most tokens `generate` may be asked for; the context caps it anyway.
const MAX_TOKENS: u64 = MAX_CTX;
/// The shortest window of `perplexity`: two tokens of context, and one to be scored after another.
const MIN_WINDOW: i64 = 4;

/// An inference worker: a GGUF file in, a stream of tokens out.
///
/// Without a subcommand it serves: it loads a model and answers over HTTP. Without --model it uses the small haiku model
/// that is built in.
#[derive(Debug, Parser)]
#[command(name = "worker-orcd", version, args_conflicts_with_subcommands = true, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) serve: ServeArgs,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Load a model and serve it over HTTP until told to stop (the default).
    Serve(Box<ServeArgs>),
    /// Write one answer to standard output, as it is made.
    Generate(Box<GenerateArgs>),
    /// Talk with a model at this terminal.
    Chat(Box<ChatArgs>),
    /// Show what is in a GGUF file, and whether this worker can serve it.
    Inspect(InspectArgs),
    /// Read text from standard input and write its token ids as one JSON array.
    Tokenize(TokenizeArgs),
    /// Read one JSON array of token ids from standard input and write their text.
    Detokenize(DetokenizeArgs),
    /// Measure prompt and decode speed, or with --url how a running server answers many clients.
    Bench(Box<BenchArgs>),
    /// Write a model's weights in another format: fewer bits, or more.
    Quantize(Box<QuantizeArgs>),
    /// Measure how well a model predicts a text.
    Perplexity(Box<PerplexityArgs>),
    /// Measure how far one model's predictions of a text are from another's: what a quantisation costs.
    Compare(Box<CompareArgs>),
    /// Write a script that completes this command line in a shell.
    Completions(CompletionsArgs),
    /// Write a manual page, for man: worker-orcd man | man -l -.
    Man(ManArgs),
}

/// `serve`.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
    #[command(flatten)]
    pub(crate) worker: WorkerArgs,
    #[command(flatten)]
    pub(crate) access: AccessArgs,
    #[command(flatten)]
    pub(crate) log: LogArgs,

    /// A TOML file with values for these flags, each under its long name: port = 9000. A flag wins over its environment
    /// variable, that over the file, and the file over the default.
    #[arg(long, value_name = "FILE", env = "WORKER_ORCD_CONFIG", hide_env_values = true)]
    #[arg(help_heading = "Configuration")]
    pub(crate) config: Option<PathBuf>,
}

/// Where the worker listens, and whom it tells.
#[derive(Debug, Args)]
#[command(next_help_heading = "Worker")]
pub(crate) struct WorkerArgs {
    /// Name of this worker in logs, /health and the ready callback [default: a fresh UUID].
    #[arg(long, value_name = "ID", env = "WORKER_ORCD_WORKER_ID", hide_env_values = true)]
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) worker_id: Option<String>,

    /// Address to listen on; 0.0.0.0 listens on every interface.
    #[arg(long, value_name = "IP", env = "WORKER_ORCD_HOST", hide_env_values = true, default_value = "127.0.0.1")]
    #[arg(value_parser = parse_host)]
    pub(crate) host: IpAddr,

    /// Port to listen on; 0 picks a free one, which is printed and called back.
    #[arg(long, short, value_name = "N", env = "WORKER_ORCD_PORT", hide_env_values = true, default_value_t = 8080)]
    pub(crate) port: u16,

    /// URL to POST to once the worker is ready, used exactly as given, past any proxy [default: none, standalone].
    #[arg(long, value_name = "URL", env = "WORKER_ORCD_CALLBACK_URL", hide_env_values = true)]
    #[arg(value_parser = parse_http_url)]
    pub(crate) callback_url: Option<reqwest::Url>,

    /// Seconds between heartbeats to the callback URL: state, jobs and memory, as JSON with "type": "heartbeat" [default: 0,
    /// none].
    #[arg(long, value_name = "N", env = "WORKER_ORCD_HEARTBEAT_SEC", hide_env_values = true)]
    #[arg(value_parser = clap::value_parser!(u64).range(0..=MAX_HEARTBEAT_SEC))]
    pub(crate) heartbeat_sec: Option<u64>,

    /// Name that the model goes by in answers and /health [default: the file's name].
    #[arg(long, value_name = "NAME", env = "WORKER_ORCD_ALIAS", hide_env_values = true)]
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) alias: Option<String>,

    /// Requests that may wait for their turn; one more is answered 429.
    #[arg(long, value_name = "N", env = "WORKER_ORCD_QUEUE_LIMIT", hide_env_values = true, default_value_t = 64)]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=MAX_QUEUE as i64))]
    pub(crate) queue_limit: u32,

    /// Seconds that a job may take, its time in the queue included [default: no limit].
    #[arg(long, value_name = "N", env = "WORKER_ORCD_INFERENCE_TIMEOUT_SEC", hide_env_values = true)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=MAX_TIMEOUT_SEC))]
    pub(crate) inference_timeout_sec: Option<u64>,

    /// Seconds that live jobs may take to finish after a signal or POST /shutdown.
    #[arg(long, value_name = "N", env = "WORKER_ORCD_DRAIN_TIMEOUT_SEC", hide_env_values = true, default_value_t = 30)]
    #[arg(value_parser = clap::value_parser!(u64).range(0..=MAX_TIMEOUT_SEC))]
    pub(crate) drain_timeout_sec: u64,

    /// Log every prompt and answer too, at debug and whatever --log-level says: for finding faults.
    #[arg(long, env = "WORKER_ORCD_LOG_PROMPTS", hide_env_values = true, value_parser = BoolishValueParser::new())]
    #[arg(help_heading = "Logging")]
    pub(crate) log_prompts: bool,
}

/// Who may ask.
#[derive(Debug, Args)]
#[command(next_help_heading = "Access")]
pub(crate) struct AccessArgs {
    /// A key that requests must have (Authorization: Bearer KEY), but for /, /health, /ready and /metrics; may be given
    /// several times. Other users of this machine can read it in the list of processes: the environment and --api-key-file
    /// keep it to yourself.
    #[arg(long, value_name = "KEY", env = "WORKER_ORCD_API_KEY", hide_env_values = true, hide_default_value = true)]
    pub(crate) api_key: Vec<Secret>,

    /// A file with further keys, one a line; blank lines and lines that begin with # do not count.
    #[arg(long, value_name = "FILE", env = "WORKER_ORCD_API_KEY_FILE", hide_env_values = true)]
    pub(crate) api_key_file: Option<PathBuf>,

    /// An origin whose web pages may ask, such as https://app.example, beside the worker's own; * lets all. May be given
    /// several times.
    #[allow(rustdoc::bare_urls, reason = "the text is for a terminal")]
    #[arg(long, value_name = "ORIGIN", env = "WORKER_ORCD_CORS_ORIGIN", hide_env_values = true, value_delimiter = ',')]
    pub(crate) cors_origin: Vec<String>,

    /// A name by which the worker may be called, beside addresses, localhost and the hosts of --cors-origin; * lets all. May
    /// be given several times [default: none where --host is a loopback address, else all].
    #[arg(long, value_name = "NAME", env = "WORKER_ORCD_ALLOWED_HOST", hide_env_values = true, value_delimiter = ',')]
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) allowed_host: Vec<String>,
}

/// A value that nothing prints. Any text is one: a parser that refused it would show it.
#[derive(Clone)]
pub(crate) struct Secret(pub(crate) String);

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[secret]")
    }
}

/// Which model.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelArgs {
    /// The .gguf file to load [default: the built-in haiku model].
    #[arg(long, short, value_name = "FILE", env = "WORKER_ORCD_MODEL", hide_env_values = true)]
    pub(crate) model: Option<PathBuf>,
}

/// Where it runs.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Device")]
pub(crate) struct DeviceArgs {
    /// Where to run the model; auto takes a GPU where this build and this machine have one, else the CPU.
    #[arg(long, value_enum, env = "WORKER_ORCD_DEVICE", hide_env_values = true, default_value_t = DeviceChoice::Auto)]
    pub(crate) device: DeviceChoice,

    /// Which GPU to use, counted from 0; implies --device cuda.
    #[arg(long, value_name = "N", env = "WORKER_ORCD_GPU_DEVICE", hide_env_values = true)]
    pub(crate) gpu_device: Option<u32>,

    /// Threads that compute on the CPU [default: the cores this process may use].
    #[arg(long, short, value_name = "N", env = "WORKER_ORCD_THREADS", hide_env_values = true)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=MAX_THREADS as i64))]
    pub(crate) threads: Option<u32>,

    /// Launch each kernel of a step by itself instead of replaying the step as a CUDA graph: slower, for finding faults.
    #[arg(long, env = "WORKER_ORCD_NO_CUDA_GRAPHS", hide_env_values = true, value_parser = BoolishValueParser::new())]
    pub(crate) no_cuda_graphs: bool,
}

/// How much it may hold.
#[derive(Debug, Args)]
#[command(next_help_heading = "Context and memory")]
pub(crate) struct LimitArgs {
    /// Requests that may generate at the same time [default: 8 on a CPU, 256 on a GPU with room for them].
    #[arg(long, value_name = "N", env = "WORKER_ORCD_MAX_SEQS", hide_env_values = true)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=MAX_SEQS as i64))]
    pub(crate) max_seqs: Option<u32>,

    /// The longest prompt and answer together, in tokens [default: what the model was trained for, if it fits].
    #[arg(long, short, value_name = "TOKENS", env = "WORKER_ORCD_CTX_SIZE", hide_env_values = true)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=MAX_CTX as i64))]
    pub(crate) ctx_size: Option<u32>,

    /// Memory for the keys and values of all requests together, in MiB [default: --max-seqs whole contexts, at
    /// most 1024 on a CPU, 16384 on a GPU].
    #[arg(long, value_name = "MIB", env = "WORKER_ORCD_KV_CACHE_MB", hide_env_values = true)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=MAX_KV_MB))]
    pub(crate) kv_cache_mb: Option<u64>,

    /// How keys and values are stored; f32 takes twice the memory and rounds less.
    #[arg(long, value_enum, value_name = "TYPE", env = "WORKER_ORCD_KV_TYPE", hide_env_values = true, default_value_t = KvTypeChoice::F16)]
    pub(crate) kv_type: KvTypeChoice,

    /// Do not reuse the keys and values of an earlier request that began with the same tokens.
    #[arg(long, env = "WORKER_ORCD_NO_PREFIX_REUSE", hide_env_values = true, value_parser = BoolishValueParser::new())]
    pub(crate) no_prefix_reuse: bool,
}

/// What it says while it works. Logs go to standard error.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Logging")]
pub(crate) struct LogArgs {
    /// How log lines look: text for people, json for programs.
    #[arg(long, value_enum, value_name = "FORMAT", env = "WORKER_ORCD_LOG_FORMAT", hide_env_values = true, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,

    /// What is logged: error, warn, info, debug, trace, or a filter as in RUST_LOG [default: RUST_LOG, else info for
    /// serve and warn for the other commands].
    #[arg(long, value_name = "FILTER", env = "WORKER_ORCD_LOG_LEVEL", hide_env_values = true)]
    pub(crate) log_level: Option<String>,
}

/// `generate`.
#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    /// The prompt; - reads it from standard input, whole.
    #[arg(value_name = "PROMPT")]
    pub(crate) prompt_operand: Option<String>,

    /// The prompt, as an option; - reads it from standard input, whole.
    #[arg(long, value_name = "PROMPT", conflicts_with = "prompt_operand", allow_hyphen_values = true)]
    pub(crate) prompt: Option<String>,

    /// Put the prompt through the model's chat template, as the user's turn.
    #[arg(long)]
    pub(crate) chat: bool,

    /// Write one JSON object at the end instead of the text: text, ids, stop_reason, seed and figures.
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    #[command(flatten)]
    pub(crate) context: ContextArgs,
    #[command(flatten)]
    pub(crate) log: LogArgs,
}

/// `chat`.
#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    /// What the model is told before the conversation; /system changes it.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) system: Option<String>,

    /// Keep no history of what was typed; otherwise it is in worker-orcd/chat_history in $XDG_STATE_HOME or
    /// ~/.local/state.
    #[arg(long)]
    pub(crate) no_history: bool,

    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    #[command(flatten)]
    pub(crate) context: ContextArgs,
    #[command(flatten)]
    pub(crate) log: LogArgs,
}

/// How the answer is chosen, with the limits and defaults of `POST /execute`.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Answer")]
pub(crate) struct SamplingArgs {
    /// The most tokens to generate; the context caps it.
    #[arg(long, short = 'n', value_name = "N", default_value_t = 2048)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=MAX_TOKENS as i64))]
    pub(crate) max_tokens: u32,

    /// 0 always takes the most likely token; higher is more varied (0 to 2).
    #[arg(long, value_name = "T", default_value_t = 1.0, value_parser = parse_temperature, allow_negative_numbers = true)]
    pub(crate) temperature: f32,

    /// Keep the fewest tokens whose probabilities add up to this (0 to 1; 1 is off).
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = parse_fraction, allow_negative_numbers = true)]
    pub(crate) top_p: f32,

    /// Keep this many of the most likely tokens (0 is off).
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub(crate) top_k: u32,

    /// Drop tokens less likely than this times the most likely one (0 to 1; 0 is off).
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = parse_fraction, allow_negative_numbers = true)]
    pub(crate) min_p: f32,

    /// Make tokens that were already generated less likely (above 0 to 2; 1 is off).
    #[arg(long, value_name = "F", default_value_t = 1.0, value_parser = parse_penalty, allow_negative_numbers = true)]
    pub(crate) repetition_penalty: f32,

    /// Same model, prompt and seed, same answer [default: a random one, which is reported].
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,

    /// End the answer before this text; may be given up to 4 times.
    #[arg(long, value_name = "TEXT", value_parser = parse_stop, allow_hyphen_values = true)]
    pub(crate) stop: Vec<String>,
}

/// The context of one sequence alone.
#[derive(Debug, Args)]
#[command(next_help_heading = "Context and memory")]
pub(crate) struct ContextArgs {
    /// The longest prompt and answer together, in tokens [default: what the model was trained for, if it fits].
    #[arg(long, short, value_name = "TOKENS", env = "WORKER_ORCD_CTX_SIZE", hide_env_values = true)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=MAX_CTX as i64))]
    pub(crate) ctx_size: Option<u32>,

    /// How keys and values are stored; f32 takes twice the memory and rounds less.
    #[arg(long, value_enum, value_name = "TYPE", env = "WORKER_ORCD_KV_TYPE", hide_env_values = true, default_value_t = KvTypeChoice::F16)]
    pub(crate) kv_type: KvTypeChoice,
}

/// `inspect`.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// The file to look into.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,

    /// Write JSON instead of text.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `tokenize`.
#[derive(Debug, Args)]
pub(crate) struct TokenizeArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,

    /// Read special tokens such as <|im_start|> as plain text.
    #[arg(long)]
    pub(crate) no_parse_special: bool,

    /// Add the special tokens that the model wants around a text, such as BOS.
    #[arg(long)]
    pub(crate) add_special: bool,
}

/// `detokenize`.
#[derive(Debug, Args)]
pub(crate) struct DetokenizeArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
}

/// `bench`.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Prompt lengths to measure, in tokens, separated by commas (0: none).
    #[arg(long, short = 'p', value_name = "N,...", value_delimiter = ',', default_value = "512")]
    pub(crate) n_prompt: Vec<u32>,

    /// Numbers of tokens to decode, separated by commas (0: none).
    #[arg(long, short = 'n', value_name = "N,...", value_delimiter = ',', default_value = "128")]
    pub(crate) n_gen: Vec<u32>,

    /// Tokens already in the context before each measurement, separated by commas.
    #[arg(long, short = 'd', value_name = "N,...", value_delimiter = ',', default_value = "0")]
    pub(crate) depth: Vec<u32>,

    /// Sequences that run together, separated by commas.
    #[arg(long, short = 'b', value_name = "N,...", value_delimiter = ',', default_value = "1")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=MAX_SEQS as i64))]
    pub(crate) batch: Vec<u32>,

    /// Measure what docs/performance.md tells: prompts of 128, 512 and 2048 tokens; 128 tokens decoded at depth 0, 1024,
    /// 4096 and 16384, and by 8, 32, 128 and 256 sequences. What the model's context has no room for is left out.
    #[arg(long, conflicts_with_all = ["n_prompt", "n_gen", "depth", "batch"])]
    pub(crate) suite: bool,

    /// How often each measurement is repeated; the median, least and most are shown.
    #[arg(long, short = 'r', value_name = "N", default_value_t = 5)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) repetitions: u32,

    /// Measure a running server instead, through POST /execute: -p and -n then are the tokens of each prompt, about, and of
    /// each answer, at most.
    #[arg(long, value_name = "URL", value_parser = parse_http_url, help_heading = "A running server")]
    #[arg(conflicts_with_all = ["suite", "depth", "batch", "repetitions"])]
    pub(crate) url: Option<reqwest::Url>,

    /// Clients, each of which sends a request as soon as its last one is answered.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "url", help_heading = "A running server")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=MAX_CONCURRENCY))]
    pub(crate) concurrency: u32,

    /// Requests a second, sent at random times whether or not others are answered (Poisson arrivals).
    #[arg(long, value_name = "R", requires = "url", conflicts_with = "concurrency", help_heading = "A running server")]
    #[arg(value_parser = parse_rate)]
    pub(crate) request_rate: Option<f64>,

    /// Requests to send, all of them together.
    #[arg(long, value_name = "N", default_value_t = 64, requires = "url", help_heading = "A running server")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=MAX_REQUESTS))]
    pub(crate) requests: u32,

    /// The key that the server wants.
    #[arg(long, value_name = "KEY", env = "WORKER_ORCD_API_KEY", hide_env_values = true)]
    #[arg(help_heading = "A running server")]
    pub(crate) api_key: Option<String>,

    /// Prompt tokens are drawn at random from this seed.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,

    /// Write one JSON object instead of the table.
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,

    /// How keys and values are stored.
    #[arg(long, value_enum, value_name = "TYPE", env = "WORKER_ORCD_KV_TYPE", hide_env_values = true, default_value_t = KvTypeChoice::F16)]
    pub(crate) kv_type: KvTypeChoice,

    #[command(flatten)]
    pub(crate) log: LogArgs,
}

/// `quantize`.
#[derive(Debug, Args)]
pub(crate) struct QuantizeArgs {
    /// The .gguf file to read.
    #[arg(value_name = "IN")]
    pub(crate) input: PathBuf,

    /// The .gguf file to write; it appears when it is complete.
    #[arg(value_name = "OUT")]
    pub(crate) output: PathBuf,

    /// What the matrices are to be written as. Those that end in _S and _M are mixtures, in which some matrices get more
    /// bits; Q4_K and Q5_K are short for Q4_K_M and Q5_K_M.
    #[arg(value_name = "TYPE", value_enum, ignore_case = true)]
    pub(crate) to: WeightsChoice,

    /// Threads that compute [default: the cores this process may use].
    #[arg(long, short, value_name = "N", env = "WORKER_ORCD_THREADS", hide_env_values = true)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=MAX_THREADS as i64))]
    pub(crate) threads: Option<u32>,

    /// Replace OUT where it exists.
    #[arg(long)]
    pub(crate) force: bool,

    /// Read matrices that are quantized already, too: what they lost stays lost, and they lose again.
    #[arg(long)]
    pub(crate) allow_requantize: bool,

    #[command(flatten)]
    pub(crate) log: LogArgs,
}

/// `perplexity`.
#[derive(Debug, Args)]
pub(crate) struct PerplexityArgs {
    /// Write one JSON object at the end instead of the table.
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) text: TextArgs,

    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    #[command(flatten)]
    pub(crate) log: LogArgs,
}

/// `compare`.
#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// The reference: the .gguf file that the other was made from.
    #[arg(value_name = "A")]
    pub(crate) reference: PathBuf,

    /// The .gguf file to be measured.
    #[arg(value_name = "B")]
    pub(crate) other: PathBuf,

    /// Write one JSON object at the end instead of the table.
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) text: TextArgs,

    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    #[command(flatten)]
    pub(crate) log: LogArgs,
}

/// The text whose tokens are predicted.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Text")]
pub(crate) struct TextArgs {
    /// The text to predict, in UTF-8; a newline at its end does not count. It needs two windows of tokens.
    #[arg(long, short, value_name = "TEXT")]
    pub(crate) file: PathBuf,

    /// Tokens in a window: the second half of each is predicted, the first is what comes before it.
    #[arg(long, short, value_name = "TOKENS", default_value_t = 512)]
    #[arg(value_parser = clap::value_parser!(u32).range(MIN_WINDOW..=MAX_CTX as i64))]
    pub(crate) ctx_size: u32,

    /// How keys and values are stored.
    #[arg(long, value_enum, value_name = "TYPE", env = "WORKER_ORCD_KV_TYPE", hide_env_values = true, default_value_t = KvTypeChoice::F16)]
    pub(crate) kv_type: KvTypeChoice,
}

/// `completions`.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell to write it for.
    #[arg(value_enum, value_name = "SHELL")]
    pub(crate) shell: Shell,
}

/// `man`.
#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// The subcommand to explain [default: the worker, and serving].
    #[arg(value_name = "COMMAND")]
    pub(crate) command: Option<String>,
}

/// `--device`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceChoice {
    Auto,
    Cpu,
    Cuda,
}

/// `--kv-type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum KvTypeChoice {
    F16,
    F32,
}

impl From<KvTypeChoice> for transformer::KvType {
    fn from(choice: KvTypeChoice) -> Self {
        match choice {
            KvTypeChoice::F16 => Self::F16,
            KvTypeChoice::F32 => Self::F32,
        }
    }
}

/// The TYPE of `quantize`, in llama.cpp's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "verbatim")]
#[allow(non_camel_case_types, reason = "the spelling of GGUF")]
pub(crate) enum WeightsChoice {
    F32,
    F16,
    BF16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q4_K_S,
    #[value(alias = "Q4_K")]
    Q4_K_M,
    Q5_K_S,
    #[value(alias = "Q5_K")]
    Q5_K_M,
    Q6_K,
}

/// `--log-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// The most stop texts a request may have, as in `POST /execute`.
pub(crate) const MAX_STOPS: usize = 4;
/// The longest stop text in bytes, as in `POST /execute`.
const MAX_STOP_BYTES: usize = 100;

fn parse_host(text: &str) -> Result<IpAddr, String> {
    match text {
        "localhost" => Ok(IpAddr::from([127, 0, 0, 1])),
        "" => Err("needs an IP address".to_owned()),
        _ => {
            text.trim_start_matches('[').trim_end_matches(']').parse().map_err(|_| {
                "not an IP address (use 127.0.0.1 for this machine, 0.0.0.0 for every interface)".to_owned()
            })
        }
    }
}

fn parse_http_url(text: &str) -> Result<reqwest::Url, String> {
    let url = reqwest::Url::parse(text).map_err(|e| format!("not a full URL: {e}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("scheme is `{}`, needs http or https", url.scheme()));
    }
    Ok(url)
}

fn parse_rate(text: &str) -> Result<f64, String> {
    let rate: Option<f64> = text.parse().ok().filter(|rate| *rate > 0.0 && *rate <= MAX_RATE);
    rate.ok_or_else(|| format!("needs a number above 0, at most {MAX_RATE}"))
}

fn parse_in(text: &str, rule: &str, fits: impl Fn(f32) -> bool) -> Result<f32, String> {
    let value: f32 = text.parse().map_err(|_| format!("not a number; needs {rule}"))?;
    if fits(value) { Ok(value) } else { Err(format!("needs {rule}")) }
}

pub(crate) fn parse_temperature(text: &str) -> Result<f32, String> {
    parse_in(text, "0 to 2", |v| (0.0..=2.0).contains(&v))
}

fn parse_fraction(text: &str) -> Result<f32, String> {
    parse_in(text, "0 to 1", |v| (0.0..=1.0).contains(&v))
}

fn parse_penalty(text: &str) -> Result<f32, String> {
    parse_in(text, "more than 0, at most 2", |v| v > 0.0 && v <= 2.0)
}

fn parse_stop(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > MAX_STOP_BYTES {
        return Err(format!("has {} bytes, needs 1 to {MAX_STOP_BYTES}", text.len()));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(args: &[&str]) -> Result<Cli, String> {
        Cli::try_parse_from(std::iter::once("worker-orcd").chain(args.iter().copied())).map_err(|e| e.to_string())
    }

    #[test]
    fn the_table_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_and_subcommand_has_a_help_sentence() {
        fn check(command: &clap::Command) {
            for arg in command.get_arguments() {
                let help = arg.get_help().map(|h| h.to_string()).unwrap_or_default();
                assert!(!help.is_empty(), "{} {}", command.get_name(), arg.get_id());
            }
            for sub in command.get_subcommands() {
                assert!(sub.get_about().is_some(), "{}", sub.get_name());
                check(sub);
            }
        }
        check(&Cli::command());
    }

    #[test]
    fn every_flag_of_serve_has_a_variable_of_its_own_name() {
        let command = Cli::command();
        for arg in command.get_arguments().filter(|a| !matches!(a.get_id().as_str(), "help" | "version")) {
            let flag = arg.get_long().expect("a long flag");
            let variable = format!("WORKER_ORCD_{}", flag.replace('-', "_").to_uppercase());
            assert_eq!(arg.get_env().and_then(|v| v.to_str()), Some(variable.as_str()), "--{flag}");
        }
    }

    #[test]
    fn serves_by_default() {
        let cli = parse(&["--model", "a.gguf", "--port", "9"]).unwrap();
        assert!(cli.command.is_none());
        assert_eq!((cli.serve.worker.port, cli.serve.limits.max_seqs), (9, None));
        let Some(Command::Serve(args)) = parse(&["serve", "--port", "9"]).unwrap().command else { panic!("serve") };
        assert_eq!(args.worker.port, 9);
    }

    #[test]
    fn refuses_values_outside_their_range() {
        for args in [
            &["--port", "65536"][..],
            &["--port", "-1"],
            &["--max-seqs", "0"],
            &["--threads", "0"],
            &["--ctx-size", "0"],
            &["--worker-id", ""],
            &["--device", "tpu"],
            &["--host", "example.org"],
            &["--callback-url", "localhost:9999/callback"],
            &["--callback-url", "ftp://localhost/callback"],
            &["--callback-url", "callback"],
            &["generate", "x", "--temperature", "2.5"],
            &["generate", "x", "--temperature", "-1"],
            &["generate", "x", "--temperature", "nan"],
            &["generate", "x", "--top-p", "1.5"],
            &["generate", "x", "--repetition-penalty", "0"],
            &["generate", "x", "--stop", ""],
            &["generate", "x", "--prompt", "y"],
            &["bench", "--request-rate", "1"],
            &["bench", "--url", "http://h", "--request-rate", "0"],
            &["bench", "--url", "http://h", "--request-rate", "1", "--concurrency", "2"],
            &["bench", "--url", "http://h", "--suite"],
            &["quantize", "a", "b"],
            &["quantize", "a", "b", "Q9"],
            &["perplexity"],
            &["perplexity", "--file", "t", "--ctx-size", "3"],
            &["compare", "a", "--file", "t"],
            &["--no-such-flag"],
            &["no-such-command"],
        ] {
            assert!(parse(args).is_err(), "{args:?}");
        }
    }

    #[test]
    fn a_host_may_be_localhost_or_a_bracketed_address() {
        assert_eq!(parse_host("localhost").unwrap().to_string(), "127.0.0.1");
        assert_eq!(parse_host("[::1]").unwrap().to_string(), "::1");
        assert_eq!(parse_host("0.0.0.0").unwrap().to_string(), "0.0.0.0");
    }
}
