//! Can this worker serve a file, and if not, why: the same checks that loading makes, all of them, without loading.

use std::fmt;

use gguf_parser::Gguf;
use serde_json::json;
use tokenizer::{ChatTemplate, Tokenizer};
use transformer::{KvType, ModelSpec, SpecError};

use crate::memory;

/// A file of another make may differ in every tensor; people need no more than this to see it.
const MAX_SHOWN_REASONS: usize = 20;

/// The answer.
pub(crate) struct Verdict {
    /// The model, as far as its metadata can be read.
    spec: Option<ModelSpec>,
    /// Its vocabulary, if that can be used.
    tokenizer: Option<Tokenizer>,
    /// Its chat template.
    template: Template,
    /// Why it cannot be served; empty when it can.
    reasons: Vec<String>,
}

/// What there is of a chat template.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Template {
    None,
    Usable,
    /// Why not. Raw prompts work all the same.
    Unusable(String),
}

impl Verdict {
    /// Looks at everything that start-up looks at.
    pub(crate) fn of(gguf: &Gguf<'_>) -> Self {
        let mut reasons = Vec::new();
        let is_vocabulary = gguf.tensors.is_empty();
        if is_vocabulary {
            reasons.push("it holds no tensors: a vocabulary at most, not a model".to_owned());
        }
        let spec = match ModelSpec::from_gguf(gguf) {
            Ok(spec) => {
                reasons.extend(weight_loader::faults(gguf, &spec.tensors()).iter().map(ToString::to_string));
                Some(spec)
            }
            // That a vocabulary has no tensors has been said.
            Err(SpecError::Tensor { .. }) if is_vocabulary => None,
            Err(e) => {
                reasons.push(e.to_string());
                None
            }
        };
        let tokenizer = match Tokenizer::from_gguf(gguf) {
            Ok(tokenizer) => Some(tokenizer),
            Err(e) => {
                reasons.push(format!("its vocabulary: {e}"));
                None
            }
        };
        let template = tokenizer.as_ref().map_or(Template::None, |tokenizer| Template::of(gguf, tokenizer));
        Self { spec, tokenizer, template, reasons }
    }

    /// For programs.
    pub(crate) fn as_json(&self) -> serde_json::Value {
        let model = self.spec.as_ref().map(|spec| {
            json!({
                "architecture": spec.architecture,
                "name": spec.name,
                "n_params": spec.n_params(),
                "n_layers": spec.n_layers,
                "d_model": spec.d_model,
                "d_ff": spec.d_ff,
                "n_heads": spec.n_heads,
                "n_kv_heads": spec.n_kv_heads,
                "d_head": spec.d_head,
                "n_vocab": spec.n_vocab,
                "n_ctx": spec.n_ctx,
                "kv_bytes_per_token": spec.kv_bytes_per_token(KvType::F16.n_bytes()),
            })
        });
        let vocabulary = self
            .tokenizer
            .as_ref()
            .map(|tokenizer| json!({"kind": tokenizer.kind(), "pre": tokenizer.pre(), "n_vocab": tokenizer.n_vocab()}));
        json!({
            "servable": self.reasons.is_empty(),
            "reasons": self.reasons,
            "model": model,
            "vocabulary": vocabulary,
            "chat_template": self.template == Template::Usable,
        })
    }
}

impl Template {
    fn of(gguf: &Gguf<'_>, tokenizer: &Tokenizer) -> Self {
        match ChatTemplate::from_gguf(gguf, tokenizer) {
            Ok(Some(_)) => Self::Usable,
            Ok(None) => Self::None,
            Err(e) => Self::Unusable(e.to_string()),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(spec) = &self.spec {
            write_model(f, spec)?;
        }
        if let Some(tokenizer) = &self.tokenizer {
            writeln!(f, "vocabulary: {} ({}), {} tokens", tokenizer.kind(), tokenizer.pre(), tokenizer.n_vocab())?;
        }
        match &self.template {
            Template::None => {}
            Template::Usable => writeln!(f, "chat template: yes")?,
            Template::Unusable(why) => writeln!(f, "chat template: cannot be used: {why}")?,
        }
        self.write_verdict(f)
    }
}

impl Verdict {
    fn write_verdict(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.reasons.is_empty() {
            return writeln!(f, "verdict: this worker can serve it");
        }
        writeln!(f, "verdict: this worker cannot serve it:")?;
        for reason in self.reasons.iter().take(MAX_SHOWN_REASONS) {
            writeln!(f, "  - {}", reason.replace('\n', "\n    "))?;
        }
        if self.reasons.len() > MAX_SHOWN_REASONS {
            writeln!(f, "  - and {} more (--json has all)", self.reasons.len() - MAX_SHOWN_REASONS)?;
        }
        if self.tokenizer.is_some() {
            writeln!(f, "its vocabulary works: tokenize and detokenize can use it")?;
        }
        Ok(())
    }
}

/// `494.0 million`.
pub(crate) fn shown_count(n: u64) -> String {
    match n {
        0..1_000_000 => n.to_string(),
        1_000_000..1_000_000_000 => format!("{:.1} million", n as f64 / 1e6),
        _ => format!("{:.1} billion", n as f64 / 1e9),
    }
}

fn write_model(f: &mut fmt::Formatter<'_>, spec: &ModelSpec) -> fmt::Result {
    let name = spec.name.as_deref().map(|name| format!(" {:?}", name)).unwrap_or_default();
    let kv_bytes = spec.kv_bytes_per_token(KvType::F16.n_bytes());
    writeln!(f, "model: {}{name}, {} parameters", spec.architecture, shown_count(spec.n_params()))?;
    writeln!(
        f,
        "shape: {} layers, width {}, feed-forward {}, {} heads of {}, {} KV heads",
        spec.n_layers, spec.d_model, spec.d_ff, spec.n_heads, spec.d_head, spec.n_kv_heads
    )?;
    writeln!(
        f,
        "context: {} tokens, {kv_bytes} bytes of F16 keys and values each, {} in all",
        spec.n_ctx,
        memory::shown(kv_bytes.saturating_mul(spec.n_ctx as u64))
    )
}
