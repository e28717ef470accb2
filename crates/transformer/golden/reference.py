"""The reference: Hugging Face transformers' own Qwen2ForCausalLM and LlamaForCausalLM, in float64, on the weights of a GGUF file.

Nothing here knows the worker's code. The weights come out of the GGUF through `gguf_file.py`, and go into the model in
double.

transformers computes three things in float32 whatever the model's type: RMSNorm, the RoPE angles and the eager softmax.
They would put a floor of about 1e-7 (and, for angles at large positions, 1e-4) under every comparison, so the first two
are restated in double below and the softmax is torch's own scaled_dot_product_attention, which stays in double. On a GPU
torch has no such kernel in double but one that wants all scores at once, 52 GB for 16,385 tokens and 14 heads with their
softmax: there attention is written out below, some queries at a time.

GGUF `llama` files hold the rows of attn_q and attn_k reordered, so that RoPE turns neighbours (2i, 2i + 1) instead of
halves (i, i + d/2). `unpermute` undoes it for the reference; `permute` puts recorded q and k into the file's order.
"""

import numpy as np
import torch
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
from transformers.models.llama import modeling_llama
from transformers.models.qwen2 import modeling_qwen2

from gguf_file import GgufFile

torch.set_grad_enabled(False)

NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}


def permute(x, n_heads):
    """Halves to neighbours along axis 0: what llama.cpp's converter does to q and k of `llama` files."""
    return x.reshape(n_heads, 2, x.shape[0] // n_heads // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def unpermute(x, n_heads):
    """Neighbours to halves along axis 0."""
    return x.reshape(n_heads, x.shape[0] // n_heads // 2, 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def hf_name(name):
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    if name == "output.weight":
        return "lm_head.weight"
    blk, layer, module, leaf = name.split(".")
    assert blk == "blk", name
    return f"model.layers.{layer}.{NAMES[module]}.{leaf}"


def norm_f64(self, x):
    """RMSNorm without the detour through float32."""
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


modeling_qwen2.Qwen2RMSNorm.forward = norm_f64
modeling_llama.LlamaRMSNorm.forward = norm_f64


class RopeF64(torch.nn.Module):
    """cos and sin of position * frequency, all in double; pairs beyond `rope.dimension_count` are not turned."""

    def __init__(self, base, d_head, n_dims, scale, freqs):
        super().__init__()
        i = torch.arange(0, n_dims, 2, dtype=torch.float64)
        inv = base ** (-i / n_dims) / scale
        if freqs is not None:
            inv = inv / torch.from_numpy(freqs.astype(np.float64))
        self.inv_freq = torch.cat([inv, torch.zeros((d_head - n_dims) // 2, dtype=torch.float64)])

    def forward(self, x, position_ids):
        angles = position_ids[..., None].double() * self.inv_freq.to(x.device)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()


QUERIES_AT_A_TIME = 512


def attention_in_pieces(module, query, key, value, attention_mask, scaling, **_):
    """Causal attention of a whole sequence, `[1, n_heads, n_tokens, d_head]`: softmax(q k^T) v, in the type of `query`."""
    assert attention_mask is None and query.shape[0] == 1 and query.shape[2] == key.shape[2]
    n_tokens, n_groups = query.shape[2], module.num_key_value_groups
    key, value = key.repeat_interleave(n_groups, 1), value.repeat_interleave(n_groups, 1)
    out = torch.empty_like(query)
    for start in range(0, n_tokens, QUERIES_AT_A_TIME):
        end = min(start + QUERIES_AT_A_TIME, n_tokens)
        scores = query[:, :, start:end] @ key[:, :, :end].transpose(2, 3) * scaling
        places = torch.arange(end, device=query.device)
        scores.masked_fill_(places[None, :] > places[start:, None], float("-inf"))
        out[:, :, start:end] = scores.softmax(-1) @ value[:, :, :end]
    return out.transpose(1, 2).contiguous(), None


# transformers makes no mask for attention that it does not know.
AttentionInterface.register("in_pieces", attention_in_pieces)


class Reference:
    """A GGUF file as a transformers model in float64, on a device of torch's."""

    def __init__(self, path, device="cpu", attention=None):
        file = GgufFile(path)
        meta, tensors = file.meta, file.tensors
        self.arch = arch = meta["general.architecture"]
        self.device = device
        key = lambda k, default=None: meta.get(f"{arch}.{k}", default)
        self.d_model, self.n_heads = key("embedding_length"), key("attention.head_count")
        self.n_kv_heads = key("attention.head_count_kv", self.n_heads)
        self.d_head = key("attention.key_length", self.d_model // self.n_heads)
        self.n_layers = key("block_count")
        tied = "output.weight" not in tensors
        n_vocab = tensors["token_embd.weight"][0][0]
        n_dims = key("rope.dimension_count", self.d_head)
        base = key("rope.freq_base", 10000.0)
        scale = key("rope.scaling.factor", 1.0) if key("rope.scaling.type", "none") == "linear" else 1.0
        freqs = file.tensor("rope_freqs.weight") if "rope_freqs.weight" in tensors else None
        biased = "blk.0.attn_q.bias" in tensors
        common = dict(
            vocab_size=n_vocab, hidden_size=self.d_model, intermediate_size=key("feed_forward_length"),
            num_hidden_layers=self.n_layers, num_attention_heads=self.n_heads, num_key_value_heads=self.n_kv_heads,
            head_dim=self.d_head, hidden_act="silu", max_position_embeddings=key("context_length"),
            rms_norm_eps=key("attention.layer_norm_rms_epsilon"), tie_word_embeddings=tied,
            rope_parameters={"rope_type": "default", "rope_theta": base},
            attn_implementation=attention or ("sdpa" if device == "cpu" else "in_pieces"),
        )
        if arch == "qwen2":
            self.module, config, cls = modeling_qwen2, Qwen2Config(**common), Qwen2ForCausalLM
        else:
            self.module, config, cls = modeling_llama, LlamaConfig(**common, attention_bias=biased), LlamaForCausalLM
        with torch.device("meta"):
            self.model = cls(config)
        state = {}
        for name in tensors:
            if name == "rope_freqs.weight":
                continue
            x = file.tensor(name)
            if arch == "llama" and ".attn_q." in name:
                x = unpermute(x, self.n_heads)
            if arch == "llama" and ".attn_k." in name:
                x = unpermute(x, self.n_kv_heads)
            state[hf_name(name)] = torch.tensor(x, device=device).double()
        if tied:
            state["lm_head.weight"] = state["model.embed_tokens.weight"]
        if arch == "llama" and biased:  # transformers' attention_bias covers o_proj too; GGUF has none
            for i in range(self.n_layers):
                state[f"model.layers.{i}.self_attn.o_proj.bias"] = torch.zeros(self.d_model, device=device, dtype=torch.float64)
        self.model.load_state_dict(state, strict=True, assign=True)
        self.model.model.rotary_emb = RopeF64(base, self.d_head, n_dims, scale, freqs)
        self.model.eval()
        assert all(p.dtype == torch.float64 and not p.is_meta for p in self.model.parameters())
        assert self.model.config._attn_implementation == common["attn_implementation"]

    def logits(self, ids, keep=0):
        """`[len(ids), n_vocab]` in double; only the rows in `keep` when given."""
        keep = torch.tensor(keep, device=self.device) if keep else 0
        ids = torch.tensor([ids], device=self.device)
        return self.model(input_ids=ids, use_cache=False, logits_to_keep=keep).logits[0].cpu().numpy()

    def greedy(self, ids, n, stop=()):
        """The next `n` most likely tokens, one after the other, up to and with the first of `stop`."""
        ids, made = list(ids), []
        for _ in range(n):
            made.append(int(self.logits(ids, [len(ids) - 1])[0].argmax()))
            ids.append(made[-1])
            if made[-1] in stop:
                break
        return made

    def steps(self, ids, positions):
        """Every step's values at `positions`: a dict of name to `[len(positions), width]`, and the logits of all rows."""
        values, hooks, rope_calls = {}, [], []

        def keep(name, x):
            values[name] = x.reshape(len(ids), -1)[positions].cpu().numpy().copy()

        def on(module, name, of_input=False):
            hooks.append(module.register_forward_hook(
                lambda _m, args, out: keep(name, args[0] if of_input else (out[0] if isinstance(out, tuple) else out))))

        on(self.model.model.embed_tokens, "embeddings")
        for i, layer in enumerate(self.model.model.layers):
            a, m = layer.self_attn, layer.mlp
            on(layer.input_layernorm, f"blk.{i}.attn_norm")
            on(a.q_proj, f"blk.{i}.q"), on(a.k_proj, f"blk.{i}.k"), on(a.v_proj, f"blk.{i}.v")
            on(a.o_proj, f"blk.{i}.attn", of_input=True), on(a.o_proj, f"blk.{i}.attn_out")
            on(layer.post_attention_layernorm, f"blk.{i}.ffn_norm")
            on(m.down_proj, f"blk.{i}.ffn_act", of_input=True), on(m, f"blk.{i}.ffn")
            on(layer, f"blk.{i}.out")
        on(self.model.model.norm, "final_norm")

        original = self.module.apply_rotary_pos_emb

        def recording(q, k, *args, **kwargs):
            q, k = original(q, k, *args, **kwargs)
            i = len(rope_calls)
            rope_calls.append(i)
            keep(f"blk.{i}.q_rope", q[0].transpose(0, 1))
            keep(f"blk.{i}.k_rope", k[0].transpose(0, 1))
            return q, k

        self.module.apply_rotary_pos_emb = recording
        try:
            logits = self.logits(ids)
        finally:
            self.module.apply_rotary_pos_emb = original
            for h in hooks:
                h.remove()
        assert len(rope_calls) == self.n_layers
        if self.arch == "llama":
            for name in values:
                leaf = name.split(".")[-1]
                if leaf in ("q", "q_rope"):
                    values[name] = permute(values[name].T, self.n_heads).T
                if leaf in ("k", "k_rope"):
                    values[name] = permute(values[name].T, self.n_kv_heads).T
        return values, logits
