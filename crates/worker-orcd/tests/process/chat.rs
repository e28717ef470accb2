//! `chat`: a conversation, through a pipe and at a terminal.

use std::io::{Read, Write};
use std::sync::mpsc;
use std::time::Instant;

use portable_pty::{Child, CommandBuilder, MasterPty, PtySize, native_pty_system};
use serde_json::Value;
use test_support::tiny_model::TinyModel;

use crate::harness::{Files, PATIENCE, error_of, run, run_with, stdout_of};

const GREEDY: &[&str] = &["chat", "--temperature", "0"];
/// Greedy, it writes until it is told to end.
const ENDLESS: TinyModel = TinyModel { n_ctx: 1 << 20, ..DEFAULT };
const DEFAULT: TinyModel = TinyModel {
    architecture: test_support::tiny_model::Architecture::Qwen2,
    n_layers: 2,
    d_model: 64,
    n_heads: 4,
    n_kv_heads: 2,
    d_ff: 96,
    n_ctx: 128,
    tied_output: false,
    f16: true,
    seed: 1,
    tags: &[],
    chat_template: test_support::tiny_model::CHAT_TEMPLATE,
};

/// What `generate` answers to the raw prompt.
fn generated(prompt: &str) -> String {
    let output = stdout_of(&run(&["generate", prompt, "--json", "--temperature", "0"]));
    serde_json::from_str::<Value>(&output).unwrap()["text"].as_str().unwrap().to_owned()
}

fn turn(role: &str, text: &str) -> String {
    format!("<|im_start|>{role}\n{text}<|im_end|>\n")
}

/// As chat writes an answer.
fn line(answer: &str) -> String {
    if answer.ends_with('\n') { answer.to_owned() } else { format!("{answer}\n") }
}

#[test]
fn each_turn_continues_the_conversation() {
    let (one, two) = ("Write a haiku about rain", "Write a haiku about snow");
    let start = "<|im_start|>assistant\n";
    let first = generated(&(turn("user", one) + start));
    let history = turn("user", one) + &turn("assistant", &first);
    let second = generated(&(history + &turn("user", two) + start));
    let alone = generated(&(turn("user", two) + start));
    assert_ne!(second, alone, "the test could not tell whether the first turn was read");

    let output = run_with(GREEDY, &format!("{one}\n{two}\n/reset\n\n{two}\n"));
    assert_eq!(stdout_of(&output), line(&first) + &line(&second) + &line(&alone));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr.matches(" tokens/s; EOS, seed ").count(), 3, "{stderr}");
    assert_eq!(stderr.matches("first after ").count(), 3, "{stderr}");
    assert!(!stderr.contains('\x1b'), "{stderr}");
}

#[test]
fn commands_change_what_follows() {
    let asked = "Write a haiku about rain";
    let input =
        format!("/system Be brief.\n{asked}\n/reset\n/system\n/seed 7\n/temp 1\n{asked}\n/reset\n{asked}\n/quit\nx\n");
    let output = run_with(GREEDY, &input);
    let system = turn("system", "Be brief.") + &turn("user", asked) + "<|im_start|>assistant\n";
    let told = line(&generated(&system));
    let seeded = ["generate", "--chat", asked, "--seed", "7", "--json"];
    let seeded = serde_json::from_str::<Value>(&stdout_of(&run(&seeded))).unwrap()["text"].as_str().unwrap().to_owned();
    let seeded = line(&seeded);
    assert_eq!(stdout_of(&output), told + &seeded + &seeded);
    assert_eq!(String::from_utf8(output.stderr).unwrap().matches("seed 7]").count(), 2);
}

#[test]
fn a_backslash_joins_lines() {
    let joined = stdout_of(&run_with(GREEDY, "Write a haiku\\\nabout rain\n"));
    let expected = generated(&(turn("user", "Write a haiku\nabout rain") + "<|im_start|>assistant\n"));
    assert_eq!(joined, line(&expected));
}

#[test]
fn a_long_conversation_forgets_its_oldest_turns() {
    let input = "Write a haiku about rain and snow and clouds and wind and the sea\n".repeat(30);
    let output = run_with(GREEDY, &input);
    stdout_of(&output);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("the oldest turn is forgotten: the context is full"), "{stderr}");
    assert_eq!(stderr.matches("EOS, seed").count() + stderr.matches("MAX_TOKENS, seed").count(), 30, "{stderr}");
}

#[test]
fn a_model_without_a_template_gets_plain_prompts_and_says_so_once() {
    let files = Files::new();
    let key = b"tokenizer.chat_template";
    let mut bytes = DEFAULT.build();
    let at = bytes.windows(key.len()).position(|window| window == key).unwrap();
    bytes[at] = b'T';
    let model = files.write("plain.gguf", &bytes);
    let args = ["chat", "--model", &model, "--temperature", "0", "--max-tokens", "4"];
    let output = run_with(&args, "a b\na b\n/system x\n");
    let report = ["generate", "a b", "--model", &model, "--temperature", "0", "--max-tokens", "4"];
    let expected = line(&stdout_of(&run(&report)));
    assert_eq!(stdout_of(&output), format!("{expected}{expected}"), "the second is no continuation of the first");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr.matches("has no chat template: every message is a prompt of its own").count(), 1, "{stderr}");
    assert!(stderr.contains("cannot be told anything before"), "{stderr}");
}

#[test]
fn a_fault_in_a_pipe_ends_it() {
    assert!(error_of(&run_with(GREEDY, "/temp hot\n")).contains("/temp hot: needs a number from 0 to 2"));
    let error = error_of(&run_with(GREEDY, &"word ".repeat(1000)));
    assert!(error.contains("the context of 512"), "{error}");
    assert_eq!(stdout_of(&run_with(GREEDY, "")), "");
}

/// The binary at a terminal.
struct AtTerminal {
    child: Box<dyn Child + Send + Sync>,
    keys: Box<dyn Write + Send>,
    screen: mpsc::Receiver<Vec<u8>>,
    seen: String,
    _master: Box<dyn MasterPty + Send>,
}

impl AtTerminal {
    fn start(files: &Files, args: &[&str]) -> Self {
        let pair = native_pty_system().openpty(PtySize { rows: 40, cols: 120, pixel_width: 0, pixel_height: 0 });
        let pair = pair.expect("a terminal");
        let mut command = CommandBuilder::new(env!("CARGO_BIN_EXE_worker-orcd"));
        command.env_clear();
        command.env("TERM", "xterm");
        command.env("XDG_STATE_HOME", files.path("state"));
        command.args(["chat", "--temperature", "0"]);
        command.args(args);
        let child = pair.slave.spawn_command(command).expect("the binary starts");
        let mut output = pair.master.try_clone_reader().expect("a reader");
        let (sender, screen) = mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = output.read(&mut buffer) {
                if sender.send(buffer[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        let keys = pair.master.take_writer().expect("a writer");
        let mut chat = Self { child, keys, screen, seen: String::new(), _master: pair.master };
        // The bar that shows how far loading is has a "> " too.
        chat.wait_for("Ctrl-D leaves.");
        chat.wait_for("> ");
        chat
    }

    /// Waits for the prompt, then presses a key that is a signal or the end of input while there is none.
    fn press_at_prompt(&mut self, key: &str) {
        self.wait_for("> ");
        self.press(key);
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).expect("it reads");
        self.keys.flush().expect("it reads");
    }

    /// Waits until `text` is on the screen, after what was waited for before.
    fn wait_for(&mut self, text: &str) {
        let began = Instant::now();
        while !self.seen.contains(text) {
            let left = PATIENCE.saturating_sub(began.elapsed());
            let bytes = self.screen.recv_timeout(left).unwrap_or_else(|_| panic!("no {text:?} in {:?}", self.seen));
            self.seen.push_str(&String::from_utf8_lossy(&bytes));
        }
        let end = self.seen.find(text).expect("seen") + text.len();
        self.seen.drain(..end);
    }

    /// Waits until so many bytes more have been written than the text that was waited for: an answer has begun.
    fn wait_for_more(&mut self, n_bytes: usize) {
        while self.seen.len() < n_bytes {
            let bytes = self.screen.recv_timeout(PATIENCE).expect("more");
            self.seen.push_str(&String::from_utf8_lossy(&bytes));
        }
    }

    fn end(mut self) -> u32 {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("it can be waited for") {
                return status.exit_code();
            }
            assert!(began.elapsed() < PATIENCE, "it does not end: {:?}", self.seen);
            // Whoever writes to a terminal waits for its reader.
            while self.screen.recv_timeout(std::time::Duration::from_millis(2)).is_ok() {}
        }
    }
}

impl Drop for AtTerminal {
    fn drop(&mut self) {
        // Fails where it has ended.
        let _ = self.child.kill();
    }
}

const CTRL_C: &str = "\x03";
const CTRL_D: &str = "\x04";
const UP: &str = "\x1b[A";

#[test]
fn ctrl_c_stops_an_answer_and_keeps_the_conversation() {
    let files = Files::new();
    let model = files.write("endless.gguf", &ENDLESS.build());
    let mut chat = AtTerminal::start(&files, &["--model", &model, "--max-tokens", "1000000", "--seed", "5"]);
    chat.press("hello\r");
    chat.wait_for("hello");
    chat.wait_for_more(20);
    chat.press(CTRL_C);
    chat.wait_for("; stopped, seed 5]");
    chat.wait_for("> ");
    chat.press("again\r");
    chat.wait_for("again");
    chat.wait_for_more(20);
    chat.press(CTRL_C);
    chat.wait_for("; stopped, seed 5]");
    chat.press_at_prompt(CTRL_D);
    assert_eq!(chat.end(), 0);
}

#[test]
fn ctrl_c_at_the_prompt_clears_the_line_then_leaves() {
    let files = Files::new();
    let mut chat = AtTerminal::start(&files, &[]);
    chat.press("half a thought");
    chat.wait_for("thought");
    chat.press(CTRL_C);
    chat.press("/seed 11\r");
    chat.wait_for("Seed 11.");
    chat.press_at_prompt(CTRL_C);
    chat.wait_for("(Ctrl-C again or Ctrl-D leaves)");
    chat.press_at_prompt(CTRL_C);
    assert_eq!(chat.end(), 0);
}

#[test]
fn what_was_typed_is_remembered_unless_nobody_wants_that() {
    let files = Files::new();
    let history = files.path("state/worker-orcd/chat_history");
    let mut chat = AtTerminal::start(&files, &["--no-history"]);
    chat.press("/seed 11\r");
    chat.wait_for("Seed 11.");
    chat.press_at_prompt(CTRL_D);
    assert_eq!(chat.end(), 0);
    assert!(!history.exists());

    let mut chat = AtTerminal::start(&files, &[]);
    chat.press("/seed 12\r");
    chat.wait_for("Seed 12.");
    chat.press_at_prompt(CTRL_D);
    assert_eq!(chat.end(), 0);
    assert!(std::fs::read_to_string(&history).unwrap().contains("/seed 12"));

    let mut chat = AtTerminal::start(&files, &[]);
    chat.press(UP);
    chat.wait_for("/seed 12");
    chat.press("3\r");
    chat.wait_for("Seed 123.");
    chat.press_at_prompt(CTRL_D);
    assert_eq!(chat.end(), 0);
}

#[test]
fn alt_enter_begins_a_line_and_enter_sends() {
    let files = Files::new();
    let mut chat = AtTerminal::start(&files, &[]);
    chat.press("Write a haiku\x1b\rabout rain\r");
    chat.wait_for(" tokens read, first after ");
    chat.press_at_prompt(CTRL_D);
    assert_eq!(chat.end(), 0);
    let history = std::fs::read_to_string(files.path("state/worker-orcd/chat_history")).unwrap();
    assert!(history.ends_with("Write a haiku\\nabout rain\n"), "{history:?}");
}

#[test]
fn pasted_lines_are_one_message() {
    let files = Files::new();
    let mut chat = AtTerminal::start(&files, &[]);
    // Bracketed paste, as terminals mark it.
    chat.press("\x1b[200~Write a haiku\nabout rain\x1b[201~\r");
    chat.wait_for(" tokens read, first after ");
    chat.press_at_prompt(CTRL_D);
    assert_eq!(chat.end(), 0);
    let history = std::fs::read_to_string(files.path("state/worker-orcd/chat_history")).unwrap();
    assert!(history.ends_with("Write a haiku\\nabout rain\n"), "{history:?}");
}
