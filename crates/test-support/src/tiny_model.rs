//! A small random model as the bytes of a GGUF file, with a tokenizer, for tests that need a model and not its wisdom.
//!
//! Seeded: the same [`TinyModel`] always gives the same bytes, and a tensor's values depend on the seed and its name
//! alone. The vocabulary holds every byte, so that any text can be encoded, and a few merges, so that encoding is not
//! trivial. What the model writes is noise, invalid UTF-8 included; greedy decoding never ends by itself.

use crate::gguf::GgufBuilder;

/// Which architecture the file claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// `qwen2`: biases on q, k and v.
    Qwen2,
    /// `llama`: no biases.
    Llama,
}

/// The shape of a tiny model. Change a field of the [`default`](TinyModel::default) to get another one.
#[derive(Debug, Clone, PartialEq)]
pub struct TinyModel {
    /// `qwen2` or `llama`.
    pub architecture: Architecture,
    /// Layers.
    pub n_layers: usize,
    /// Width.
    pub d_model: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Width of the feed-forward part.
    pub d_ff: usize,
    /// The longest context, in tokens.
    pub n_ctx: usize,
    /// No `output.weight`: the embedding serves as the output matrix.
    pub tied_output: bool,
    /// Matrices in F16 instead of F32.
    pub f16: bool,
    /// What all values depend on.
    pub seed: u64,
    /// Further tokens, between the merges' results and the specials.
    pub tags: &'static [(&'static str, TagKind)],
    /// Its source.
    pub chat_template: &'static str,
}

/// What a token stands for that is written like a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TagKind {
    /// Nothing that a reader sees.
    Control = 3,
    /// Its text.
    UserDefined = 4,
}

impl Default for TinyModel {
    fn default() -> Self {
        TinyModel {
            architecture: Architecture::Qwen2,
            n_layers: 2,
            d_model: 64,
            n_heads: 4,
            n_kv_heads: 2,
            d_ff: 96,
            n_ctx: 512,
            tied_output: false,
            f16: true,
            seed: 1,
            tags: &[],
            chat_template: CHAT_TEMPLATE,
        }
    }
}

/// Pairs that the tokenizer merges, by rank. Each one's result is the token 256 + rank.
pub const MERGES: &[&str] = &["Ġ t", "h e", "i n", "Ġt he", "Ġ a", "e r", "o n", "r e", "in g"];

/// Tokens that stand for no text, after everything else. The first is BOS, the last EOS.
pub const SPECIALS: &[&str] = &["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/// The chat template: ChatML, as of Qwen2 without the default system turn.
pub const CHAT_TEMPLATE: &str = "{% if tools %}{{ '<|im_start|>system\\n' + tools | tojson + '<|im_end|>\\n' }}{% endif %}\
     {% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + \
     message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}\
     {{ '<|im_start|>assistant\\n' }}{% endif %}";

impl TinyModel {
    /// Bytes, merges, tags and specials.
    pub fn n_vocab(&self) -> usize {
        self.vocabulary().len()
    }

    /// The file's bytes.
    pub fn build(&self) -> Vec<u8> {
        self.builder().build()
    }

    /// The file before it becomes bytes, for tests that add to it.
    pub fn builder(&self) -> GgufBuilder {
        let builder = self.tokenizer(self.hyper_parameters(GgufBuilder::new()));
        self.tensors(builder)
    }

    /// All tokens by id: 256 bytes, the merges' results, tags, the specials.
    fn vocabulary(&self) -> Vec<String> {
        let merged = MERGES.iter().map(|merge| merge.replace(' ', ""));
        let tags = self.tags.iter().map(|(tag, _)| *tag);
        let named = tags.chain(SPECIALS.iter().copied()).map(String::from);
        byte_tokens().into_iter().map(String::from).chain(merged).chain(named).collect()
    }

    fn name(&self) -> &'static str {
        match self.architecture {
            Architecture::Qwen2 => "qwen2",
            Architecture::Llama => "llama",
        }
    }

    fn hyper_parameters(&self, builder: GgufBuilder) -> GgufBuilder {
        let arch = self.name();
        builder
            .str("general.architecture", arch)
            .str("general.name", &format!("tiny {arch}"))
            .u32("general.file_type", u32::from(self.f16))
            .u32(&format!("{arch}.block_count"), self.n_layers as u32)
            .u32(&format!("{arch}.context_length"), self.n_ctx as u32)
            .u32(&format!("{arch}.embedding_length"), self.d_model as u32)
            .u32(&format!("{arch}.feed_forward_length"), self.d_ff as u32)
            .u32(&format!("{arch}.attention.head_count"), self.n_heads as u32)
            .u32(&format!("{arch}.attention.head_count_kv"), self.n_kv_heads as u32)
            .f32(&format!("{arch}.attention.layer_norm_rms_epsilon"), 1e-6)
            .f32(&format!("{arch}.rope.freq_base"), 10_000.0)
    }

    fn tokenizer(&self, builder: GgufBuilder) -> GgufBuilder {
        let tokens = self.vocabulary();
        let n_ordinary = tokens.len() - SPECIALS.len();
        let mut types = vec![1; n_ordinary - self.tags.len()];
        types.extend(self.tags.iter().map(|(_, kind)| *kind as i32));
        types.extend(SPECIALS.iter().map(|_| TagKind::Control as i32));
        let bos = n_ordinary as u32;
        let eos = tokens.len() as u32 - 1;
        let pre = match self.architecture {
            Architecture::Qwen2 => "qwen2",
            Architecture::Llama => "llama-bpe",
        };
        builder
            .str("tokenizer.ggml.model", "gpt2")
            .str("tokenizer.ggml.pre", pre)
            .strs("tokenizer.ggml.tokens", &tokens)
            .i32s("tokenizer.ggml.token_type", &types)
            .strs("tokenizer.ggml.merges", MERGES)
            .u32("tokenizer.ggml.bos_token_id", bos)
            .u32("tokenizer.ggml.eos_token_id", eos)
            .u32("tokenizer.ggml.padding_token_id", bos)
            .bool("tokenizer.ggml.add_bos_token", self.architecture == Architecture::Llama)
            .str("tokenizer.chat_template", self.chat_template)
    }

    fn tensors(&self, mut builder: GgufBuilder) -> GgufBuilder {
        let d_kv = self.d_model / self.n_heads * self.n_kv_heads;
        let (d, d_ff, n_vocab) = (self.d_model, self.d_ff, self.n_vocab());
        builder = self.matrix(builder, "token_embd.weight", n_vocab, d, 1.0);
        for layer in 0..self.n_layers {
            let name = |part: &str| format!("blk.{layer}.{part}");
            builder = self.norm(builder, &name("attn_norm.weight"));
            for (part, n_rows) in [("attn_q", d), ("attn_k", d_kv), ("attn_v", d_kv)] {
                builder = self.matrix(builder, &name(&format!("{part}.weight")), n_rows, d, 1.0);
                if self.architecture == Architecture::Qwen2 {
                    let bias = format!("{}.bias", name(part));
                    builder = builder.tensor_f32(&bias, &[n_rows as u64], &self.values(&bias, n_rows, 0.0, 0.5));
                }
            }
            builder = self.matrix(builder, &name("attn_output.weight"), d, d, 1.0);
            builder = self.norm(builder, &name("ffn_norm.weight"));
            builder = self.matrix(builder, &name("ffn_gate.weight"), d_ff, d, 1.0);
            builder = self.matrix(builder, &name("ffn_up.weight"), d_ff, d, 1.0);
            builder = self.matrix(builder, &name("ffn_down.weight"), d, d_ff, 1.0);
        }
        builder = self.norm(builder, "output_norm.weight");
        if self.tied_output { builder } else { self.matrix(builder, "output.weight", n_vocab, d, 4.0) }
    }

    /// `[n_rows, row_len]`, scaled so that unit inputs give outputs of size `gain`.
    fn matrix(&self, builder: GgufBuilder, name: &str, n_rows: usize, row_len: usize, gain: f32) -> GgufBuilder {
        let mut values = self.values(name, n_rows * row_len, 0.0, gain / (row_len as f32).sqrt());
        if matches!(name, "output.weight" | "token_embd.weight") {
            // Specials get rows of almost nothing: their logits stay near 0, and greedy decoding takes others.
            let ordinary = (n_rows - SPECIALS.len()) * row_len;
            values[ordinary..].iter_mut().for_each(|value| *value *= 0.01);
        }
        let shape = [n_rows as u64, row_len as u64];
        if self.f16 { builder.tensor_f16(name, &shape, &values) } else { builder.tensor_f32(name, &shape, &values) }
    }

    fn norm(&self, builder: GgufBuilder, name: &str) -> GgufBuilder {
        builder.tensor_f32(name, &[self.d_model as u64], &self.values(name, self.d_model, 1.0, 0.1))
    }

    /// `n` values, evenly spread around `mean` with standard deviation `std`.
    fn values(&self, name: &str, n: usize, mean: f32, std: f32) -> Vec<f32> {
        let mut state = name.bytes().fold(self.seed, |hash, byte| split_mix(&mut (hash ^ u64::from(byte))));
        (0..n)
            .map(|_| {
                let unit = (split_mix(&mut state) >> 40) as f32 / (1u64 << 24) as f32; // [0, 1), exact
                mean + std * 12f32.sqrt() * (unit - 0.5)
            })
            .collect()
    }
}

/// SplitMix64: good enough for weights, and the same everywhere.
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// GPT-2's characters for bytes, in GPT-2's order: the printable bytes stand for themselves and come first; the others
/// get the code points from 256 on.
fn byte_tokens() -> Vec<char> {
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let n_others = (0..=255u8).filter(|byte| !printable(byte)).count() as u32;
    let others = (256..256 + n_others).filter_map(char::from_u32);
    (0..=255u8).filter(printable).map(char::from).chain(others).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_a_file_that_the_parser_accepts() {
        for architecture in [Architecture::Qwen2, Architecture::Llama] {
            for tied_output in [false, true] {
                let model = TinyModel { architecture, tied_output, ..TinyModel::default() };
                let file = model.build();
                let gguf = gguf_parser::Gguf::parse(&file).unwrap();
                let per_layer = if architecture == Architecture::Qwen2 { 12 } else { 9 };
                assert_eq!(gguf.tensors.len(), 2 * per_layer + if tied_output { 2 } else { 3 });
                let tokens = gguf.metadata.require_array("tokenizer.ggml.tokens").unwrap();
                assert_eq!(tokens.len(), model.n_vocab());
            }
        }
    }

    #[test]
    fn is_the_same_every_time() {
        assert_eq!(TinyModel::default().build(), TinyModel::default().build());
        assert_ne!(TinyModel::default().build(), TinyModel { seed: 2, ..TinyModel::default() }.build());
    }

    #[test]
    fn has_a_token_for_every_byte_and_every_merge() {
        let tokens = TinyModel::default().vocabulary();
        assert_eq!(tokens.iter().collect::<std::collections::HashSet<_>>().len(), tokens.len());
        for (rank, merge) in MERGES.iter().enumerate() {
            let (left, right) = merge.split_once(' ').unwrap();
            assert_eq!(tokens[256 + rank], format!("{left}{right}"));
            assert!(tokens[..256 + rank].contains(&left.to_owned()), "{left}");
            assert!(tokens[..256 + rank].contains(&right.to_owned()), "{right}");
        }
    }
}
