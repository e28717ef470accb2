//! `chat`: a conversation with a model of this process, at a terminal or through a pipe.
//!
//! Answers go to standard output and everything else to standard error, so that a pipe gets the answers alone. The model's
//! chat template makes a prompt of the conversation; turns that the engine has already read are found in its cache.

mod conversation;
mod input;
mod slash;

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use engine::EngineHandle;
use tokenizer::{ChatTemplate, Tokenizer};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use self::conversation::Conversation;
use self::input::Input;
use self::slash::Slash;
use crate::answer::{self, Answer, End};
use crate::cli::{ChatArgs, SamplingArgs};
use crate::logging::{self, Quiet};
use crate::output::aside;
use crate::signals::{CtrlC, INTERRUPTED};
use crate::start::Loaded;
use crate::{output, source};

/// Runs the command until the other side has no more to say.
pub(crate) fn run(args: &ChatArgs) -> anyhow::Result<ExitCode> {
    logging::init(&args.log, Quiet::Yes)?;
    answer::check(&args.sampling)?;
    let file = source::open(&args.model)?;
    let loaded = answer::load(&file, &args.device, &args.context, &args.log)?;
    let template = ChatTemplate::from_gguf(&file.gguf()?, &loaded.tokenizer)
        .with_context(|| format!("model {:?}: its chat template cannot be used", file.name()))?;
    let history = if args.no_history { None } else { input::history_file() };
    let input = Input::open(history)?;
    greet(&source::name(&args.model), &loaded, template.is_some(), &input);
    // One thread waits for Ctrl-C while the main one reads a line.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.context("cannot start")?;
    let interrupts = Interrupts::watch(&runtime, input.is_terminal())?;
    let mut chat = Chat {
        conversation: Conversation::new(template, args.system.clone()),
        sampling: args.sampling.clone(),
        tokenizer: loaded.tokenizer,
        n_ctx: loaded.executor.info().n_ctx,
        engine: answer::start_engine(loaded.executor),
        runtime,
        interrupts,
    };
    chat.converse(input)?;
    Ok(ExitCode::SUCCESS)
}

fn greet(model: &str, loaded: &Loaded, has_template: bool, input: &Input) {
    let info = loaded.executor.info();
    if input.is_terminal() {
        aside(&format!(
            "{model} on {}, context {} tokens. /help shows what can be typed, Ctrl-D leaves.",
            info.device, info.n_ctx
        ));
    }
    if !has_template {
        aside("This model has no chat template: every message is a prompt of its own, which the model continues.");
    }
}

/// A model and what was said to it.
struct Chat {
    conversation: Conversation,
    sampling: SamplingArgs,
    tokenizer: Arc<Tokenizer>,
    n_ctx: usize,
    engine: EngineHandle,
    runtime: Runtime,
    interrupts: Interrupts,
}

impl Chat {
    /// Answers until there is nothing more to answer. At a terminal a fault ends no conversation.
    fn converse(&mut self, mut input: Input) -> anyhow::Result<()> {
        while let Some(text) = input.next()? {
            let stop = self.interrupts.begin();
            let outcome = match Slash::parse(&text) {
                Some(Ok(Slash::Quit)) => return Ok(()),
                Some(Ok(command)) => {
                    self.obey(command);
                    Ok(())
                }
                Some(Err(fault)) => Err(anyhow::anyhow!(fault)),
                None if text.trim().is_empty() => Ok(()),
                None => self.answer(text, &stop),
            };
            self.interrupts.end();
            match outcome {
                Err(error) if input.is_terminal() && !error.is::<output::ReaderGone>() => {
                    output::note(&format!("{error:#}"));
                }
                outcome => outcome?,
            }
        }
        Ok(())
    }

    fn obey(&mut self, command: Slash) {
        match command {
            Slash::System(_) if !self.conversation.has_template() => {
                aside("This model has no chat template, so it cannot be told anything before the conversation.");
            }
            Slash::System(text) => {
                aside(if text.is_some() { "System text set." } else { "No system text." });
                self.conversation.system = text;
            }
            Slash::Seed(seed) => {
                aside(&seed.map_or("A new seed for each answer.".to_owned(), |seed| format!("Seed {seed}.")));
                self.sampling.seed = seed;
            }
            Slash::Temp(temperature) => {
                aside(&format!("Temperature {temperature}."));
                self.sampling.temperature = temperature;
            }
            Slash::Reset => {
                aside("The conversation is forgotten.");
                self.conversation.reset();
            }
            Slash::Help => aside(&slash::help()),
            // The caller leaves.
            Slash::Quit => {}
        }
    }

    fn answer(&mut self, message: String, stop: &CancellationToken) -> anyhow::Result<()> {
        let prompt = self.conversation.prompt(&message, &self.tokenizer, self.n_ctx)?;
        match prompt.n_forgotten {
            0 => {}
            1 => aside("(the oldest turn is forgotten: the context is full)"),
            n => aside(&format!("(the {n} oldest turns are forgotten: the context is full)")),
        }
        let seed = self.sampling.seed.unwrap_or_else(worker_http::drawn_seed);
        let (engine, tokenizer, sampling) = (&self.engine, &self.tokenizer, &self.sampling);
        let write = &mut output::write_answer;
        let answer =
            self.runtime.block_on(answer::stream(engine, tokenizer, &prompt.ids, seed, sampling, stop, write))?;
        if !answer.text.ends_with('\n') {
            output::write("\n")?;
        }
        aside(&figures(&answer, prompt.ids.len(), seed));
        self.conversation.add(message, answer.text);
        Ok(())
    }
}

fn figures(answer: &Answer, n_prompt: usize, seed: u64) -> String {
    let how = match &answer.end {
        End::Interrupted => "stopped",
        end => end.name(),
    };
    format!(
        "[{n_prompt} tokens read, first after {:.0} ms; {} written, {:.1} tokens/s; {how}, seed {seed}]",
        answer.first.as_secs_f64() * 1e3,
        answer.ids.len(),
        answer.decode_rate(),
    )
}

/// Ctrl-C: it stops the answer that is being written, or about to be.
struct Interrupts {
    /// Stops the answer to the message that was read last; none while the next one is waited for.
    current: Arc<Mutex<Option<CancellationToken>>>,
}

impl Interrupts {
    /// Starts to watch. While no message is being answered, a signal ends the process, except `at_a_terminal`, where Ctrl-C
    /// at the prompt is a key like any other and a late one must not end the conversation.
    ///
    /// # Errors
    /// When the handler cannot be installed.
    fn watch(runtime: &Runtime, at_a_terminal: bool) -> anyhow::Result<Self> {
        let _entered = runtime.enter();
        let mut ctrl_c = CtrlC::new().context("cannot watch for signals")?;
        let current: Arc<Mutex<Option<CancellationToken>>> = Arc::default();
        let watched = Arc::clone(&current);
        runtime.spawn(async move {
            loop {
                ctrl_c.next().await;
                match &*watched.lock().unwrap_or_else(PoisonError::into_inner) {
                    Some(stop) => stop.cancel(),
                    None if at_a_terminal => {}
                    None => std::process::exit(INTERRUPTED.into()),
                }
            }
        });
        Ok(Self { current })
    }

    /// A message was read: from here on Ctrl-C cancels the token.
    fn begin(&self) -> CancellationToken {
        let stop = CancellationToken::new();
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(stop.clone());
        stop
    }

    /// The next message is waited for.
    fn end(&self) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
