"""The `tokenizers` object of a GGUF vocabulary, put together as the published tokenizer.json is."""

from gguf import GGUFReader
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?%(word)s+|\p{N}%(digits)s| ?[^\s%(symbol)s\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(pattern):
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def byte_level():
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def pre_tokenizer(pre):
    cl100k = lambda **parts: pre_tokenizers.Sequence([split(CL100K % parts), byte_level()])
    return {
        "qwen2": lambda: cl100k(word=r"\p{L}", digits="", symbol=r"\p{L}"),
        "qwen35": lambda: cl100k(word=r"[\p{L}\p{M}]", digits="", symbol=r"\p{L}\p{M}"),
        "llama-bpe": lambda: cl100k(word=r"\p{L}", digits="{1,3}", symbol=r"\p{L}"),
        "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        "deepseek-coder": lambda: pre_tokenizers.Sequence(
            [split(p) for p in ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥\u0800-一가-\ud7ff]+")]
            + [pre_tokenizers.Digits(individual_digits=True), byte_level()]
        ),
    }[pre]()


def load(path, pre=None):
    fields = GGUFReader(path).fields
    value = lambda key: fields[f"tokenizer.ggml.{key}"].contents()
    pre = pre or value("pre")
    tokens, types = value("tokens"), value("token_type")
    vocab = {token: i for i, token in enumerate(tokens) if types[i] == 1}
    merges = [tuple(merge.split(" ")) for merge in value("merges")]
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=pre == "llama-bpe"))
    if pre in ("qwen2", "qwen35"):
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizer(pre)
    tokenizer.decoder = decoders.ByteLevel()
    # The model's own vocabulary gets the control tokens too, so that they keep their ids.
    special = [(i, t) for i, t in enumerate(tokens) if types[i] == 3]
    base = {**vocab, **{t: i for i, t in special}}
    tokenizer.model = models.BPE(base, merges, ignore_merges=pre == "llama-bpe")
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for _, t in special])
    assert all(tokenizer.token_to_id(t) == i for i, t in special)
    return tokenizer
