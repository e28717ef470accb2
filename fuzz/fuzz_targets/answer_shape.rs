//! Any text as a schema, an expression or a grammar: understood or refused, and what is understood is followed for a while, on
//! a stack as large as the engine's. Nothing may panic or overflow its stack.
#![no_main]

use std::sync::LazyLock;

use engine::{Progress, TokenMask};
use gguf_parser::Gguf;
use libfuzzer_sys::fuzz_target;
use structured::{Compiled, Grammars, Shape};
use test_support::tiny_model::TinyModel;
use tokenizer::{TokenId, Tokenizer};

/// Of one answer.
const MAX_TOKENS: usize = 24;

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    let file = TinyModel::default().build();
    Tokenizer::from_gguf(&Gguf::parse(&file).expect("GGUF")).expect("a tokenizer")
});
static GRAMMARS: LazyLock<Grammars> = LazyLock::new(|| Grammars::new(&TOKENIZER).expect("a trie"));

// The first byte says what the text is, the second which of the allowed tokens are chosen.
fuzz_target!(|input: &[u8]| {
    let [kind, choice, text @ ..] = input else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let shape = match kind % 4 {
        0 => match serde_json::from_str(text) {
            Ok(schema) => Shape::JsonSchema(schema),
            Err(_) => return,
        },
        1 => Shape::Regex(text.into()),
        2 => Shape::Lark(text.into()),
        _ => Shape::Gbnf(text.into()),
    };
    match GRAMMARS.compile(&shape) {
        Ok(compiled) => follow(&compiled, *choice),
        Err(error) => assert!(!error.message.is_empty()),
    }
});

fn follow(compiled: &Compiled, choice: u8) {
    let mut constraint = compiled.constraint();
    let walk = move || {
        let mut mask = TokenMask::new(TOKENIZER.n_vocab());
        for i in 0..MAX_TOKENS {
            mask.clear();
            let Ok(Progress::Unfinished | Progress::MayEnd) = constraint.allowed(&mut mask) else { return };
            let allowed: Vec<TokenId> = (0..TOKENIZER.n_vocab() as TokenId).filter(|&id| mask.allows(id)).collect();
            let Some(&id) = allowed.get((usize::from(choice) * 31 + i * 7) % allowed.len().max(1)) else { return };
            if constraint.accept(id).is_err() {
                return;
            }
        }
    };
    std::thread::spawn(walk).join().expect("no panic");
}
