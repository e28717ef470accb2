//! `generate`: one answer on standard output, as it is made, and nothing else there.

use std::process::ExitCode;

use anyhow::Context as _;
use serde_json::json;
use tokenizer::{ChatInput, ChatTemplate, EncodeOptions, TokenId};
use weight_loader::ModelFile;

use crate::answer::{self, Answer, End, rate};
use crate::cli::GenerateArgs;
use crate::logging::{self, Quiet};
use crate::signals::INTERRUPTED;
use crate::start::Loaded;
use crate::{output, signals, source};

/// The longest prompt that is read from standard input, in bytes. What fits into the context is far less.
const MAX_PROMPT_BYTES: u64 = 64 << 20;

/// Runs the command.
pub(crate) fn run(args: &GenerateArgs) -> anyhow::Result<ExitCode> {
    logging::init(&args.log, Quiet::Yes)?;
    answer::check(&args.sampling)?;
    let file = source::open(&args.model)?;
    let prompt = prompt(args)?;
    let loaded = answer::load(&file, &args.device, &args.context, &args.log)?;
    let ids = prompt_ids(&file, &loaded, &prompt, args.chat)?;

    let engine = answer::start_engine(loaded.executor);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let seed = args.sampling.seed.unwrap_or_else(worker_http::drawn_seed);
    let answer = runtime.block_on(async {
        let interrupted = signals::watch().context("cannot watch for signals")?;
        let write = &mut |text: &str| if args.json { Ok(()) } else { output::write_answer(text) };
        answer::stream(&engine, &loaded.tokenizer, &ids, seed, &args.sampling, &interrupted, write).await
    })?;
    report(args, &source::name(&args.model), ids.len(), seed, &answer)
}

fn prompt(args: &GenerateArgs) -> anyhow::Result<String> {
    match args.prompt.as_deref().or(args.prompt_operand.as_deref()) {
        Some("-") => output::read_standard_input(MAX_PROMPT_BYTES),
        Some(text) => Ok(text.to_owned()),
        None => anyhow::bail!("no prompt: give it as --prompt TEXT, or - to read it from standard input"),
    }
}

fn prompt_ids(file: &ModelFile, loaded: &Loaded, prompt: &str, chat: bool) -> anyhow::Result<Vec<TokenId>> {
    let text = if chat {
        let template = ChatTemplate::from_gguf(&file.gguf()?, &loaded.tokenizer)
            .context("--chat: the model's template cannot be used")?
            .context("--chat: the model has no chat template")?;
        let messages = [json!({"role": "user", "content": prompt})];
        let input =
            ChatInput { messages: &messages, tools: None, add_generation_prompt: true, extra: Default::default() };
        template.render(&input).context("--chat: the model's template")?
    } else {
        prompt.to_owned()
    };
    let ids = loaded.tokenizer.encode(&text, EncodeOptions { parse_special: true, add_special: true });
    anyhow::ensure!(!ids.is_empty(), "the prompt is empty: needs at least one token");
    Ok(ids)
}

/// The figures to standard error, or everything as JSON to standard output.
fn report(args: &GenerateArgs, model: &str, n_prompt: usize, seed: u64, answer: &Answer) -> anyhow::Result<ExitCode> {
    let (n_answer, decode_rate, stop_reason) = (answer.ids.len(), answer.decode_rate(), answer.end.name());
    if args.json {
        let mut report = json!({
            "text": answer.text,
            "ids": answer.ids,
            "stop_reason": stop_reason,
            "seed": seed,
            "model": model,
            "prompt_tokens": n_prompt,
            "tokens_out": n_answer,
            "prompt_ms": answer.first.as_secs_f64() * 1e3,
            "decode_ms": answer.rest.as_secs_f64() * 1e3,
            "tokens_per_sec": decode_rate,
        });
        if let End::Stopped(stop) = answer.end {
            report["stop_sequence_matched"] = json!(args.sampling.stop[stop]);
        }
        output::write(&format!("{report}\n"))?;
    } else if output::is_terminal() && !answer.text.ends_with('\n') {
        output::write("\n")?;
    }
    output::note(&format!(
        "prompt {n_prompt} tokens in {:.0} ms ({:.1} tokens/s), answer {n_answer} tokens ({decode_rate:.1} tokens/s), \
         {stop_reason}, seed {seed}",
        answer.first.as_secs_f64() * 1e3,
        rate(n_prompt, answer.first),
    ));
    Ok(if answer.end == End::Interrupted { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
}
