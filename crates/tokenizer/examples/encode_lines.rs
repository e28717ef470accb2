//! Ids for texts, for comparing with another tokenizer: reads a JSON string a line, writes a JSON list a line.
//!
//! `cargo run -p tokenizer --example encode_lines -- VOCAB.gguf [PRE] < texts > ids`; `PRE` overrides the file's
//! pre-tokenizer, so that one without a vocabulary at hand can be compared too.

use std::io::{BufRead, BufWriter, Write};

use gguf_parser::Gguf;
use tokenizer::{EncodeOptions, Tokenizer, Vocab};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let bytes = std::fs::read(args.next().ok_or("expected a vocabulary file")?)?;
    let pre = args.next();
    let gguf = Gguf::parse(&bytes)?;
    let mut vocab = Vocab::from_gguf(&gguf)?;
    vocab.pre = pre.as_deref().or(vocab.pre);
    let tokenizer = Tokenizer::new(&vocab)?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    for line in std::io::stdin().lock().lines() {
        let text: String = serde_json::from_str(&line?)?;
        let ids = tokenizer.encode(&text, EncodeOptions { parse_special: true, add_special: false });
        serde_json::to_writer(&mut out, &ids)?;
        out.write_all(b"\n")?;
    }
    out.flush()?;
    Ok(())
}
