"""A Llama by hand: Llama 2, 3, 3.1, 3.2 and relatives such as SmolLM2.

    embed -> [ x += attention(rms_norm(x));  x += swiglu(rms_norm(x)) ] * L -> rms_norm -> head

Modules carry Hugging Face's names, so a checkpoint's tensors go in and out without conversion.

There is no batch dimension and no padding. Documents lie side by side in one packed row, and
cu_seqlens says where each begins. Shapes in comments:

    N tokens in the row   B documents   D hidden size   V vocabulary   F ffn size
    H query heads         K key-value heads             Dh head dimension
"""

import functools
import math
from dataclasses import dataclass, field, fields

import torch
from torch import nn
from torch.nn import functional as F

import checkpoint
from config import UserError
from kernels import wide
from kernels.attention import attention, cached_attention, make_layout
from kernels.cross_entropy import linear_logprobs
from kernels.linear import linears
from kernels.rms_norm import rms_norm
from kernels.rope import rope
from kernels.swiglu import swiglu

REQUIRED = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads".split()
OPTIONAL_SIZES = "num_key_value_heads head_dim max_position_embeddings".split()
NUMBERS = "rms_norm_eps rope_theta initializer_range".split()
LLAMA3_ROPE = "factor low_freq_factor high_freq_factor original_max_position_embeddings".split()


GROWTH = 32  # tokens by which a cache grows: attention reads what is allocated, growing is a copy


def is_number(value):
    return type(value) in (int, float) and math.isfinite(value) and value > 0


@dataclass
class LlamaConfig:
    """The fields of a Hugging Face config.json that a Llama needs, under their names there."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    rope_scaling: dict = field(default_factory=lambda: {"rope_type": "default"})
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02

    @classmethod
    def from_dict(cls, raw, where="config.json"):
        """From the json of a config.json. UserError names the key of anything not supported."""
        if raw.get("model_type", "llama") != "llama" or raw.get("architectures") not in (
            None,
            ["LlamaForCausalLM"],
        ):
            kind = raw.get("architectures") or raw.get("model_type")
            raise UserError(f"{where}: architectures: {kind} is not LlamaForCausalLM")
        for key in (*REQUIRED, *(key for key in OPTIONAL_SIZES if raw.get(key) is not None)):
            if type(raw.get(key)) is not int or raw[key] < 1:
                raise UserError(f"{where}: {key}: must be a positive integer, is {raw.get(key)!r}")
        for key in NUMBERS:
            if raw.get(key) is not None and not is_number(raw[key]):
                raise UserError(f"{where}: {key}: must be a number, is {raw[key]!r}")
        for key in ("attention_bias", "mlp_bias", "quantization_config", "attention_dropout"):
            if raw.get(key):
                raise UserError(f"{where}: {key}: {raw[key]!r} is not supported")
        if type(raw.get("tie_word_embeddings", False)) is not bool:
            tied = raw["tie_word_embeddings"]
            raise UserError(f"{where}: tie_word_embeddings: must be true or false, is {tied!r}")
        if raw.get("hidden_act", "silu") != "silu":
            raise UserError(
                f"{where}: hidden_act: {raw['hidden_act']!r} is not supported, only silu"
            )
        values = {f.name: raw[f.name] for f in fields(cls) if raw.get(f.name) is not None}
        heads = raw["num_attention_heads"]
        values.setdefault("num_key_value_heads", heads)
        values.setdefault("head_dim", raw["hidden_size"] // heads)
        if heads % values["num_key_value_heads"]:
            raise UserError(f"{where}: num_key_value_heads: must divide {heads} attention heads")
        if "head_dim" not in raw and raw["hidden_size"] % heads or values["head_dim"] % 2:
            raise UserError(f"{where}: head_dim: hidden_size / heads must be a whole, even number")
        # transformers 5 writes rope_parameters with the theta inside; older files rope_scaling
        rope_values = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
        if not isinstance(rope_values, dict):
            raise UserError(f"{where}: rope_scaling: must be an object, is {rope_values!r}")
        rope_values = dict(rope_values)
        values["rope_theta"] = rope_values.pop("rope_theta", values.get("rope_theta", 10_000.0))
        if not is_number(values["rope_theta"]):
            raise UserError(f"{where}: rope_theta: must be a number, is {values['rope_theta']!r}")
        kind = rope_values.setdefault("rope_type", rope_values.pop("type", "default"))
        if kind not in ("default", "llama3"):
            raise UserError(
                f"{where}: rope_type: {kind!r} is not supported, only default and llama3"
            )
        if {**raw, **rope_values}.get("partial_rotary_factor", 1.0) != 1.0:
            raise UserError(f"{where}: partial_rotary_factor: only 1.0 is supported")
        for key in LLAMA3_ROPE if kind == "llama3" else ():
            if not is_number(rope_values.get(key)):
                raise UserError(f"{where}: rope_scaling: llama3 needs {key} as a number")
        return cls(**values | {"rope_scaling": rope_values})


def inv_freq(config, device=None):
    """Angle per position of each dimension pair, (Dh/2,) fp32.

    "llama3" scaling (Llama 3.1): wavelengths longer than the original context are stretched by
    `factor`, short ones are kept, and between the two it goes over smoothly.
    """
    pair = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device)
    freq = 1.0 / config.rope_theta ** (pair / config.head_dim)  # in this order: HF's bits
    scaling = config.rope_scaling
    if scaling["rope_type"] == "default":
        return freq
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * freq / (2 * math.pi)
    keep = ((turns - low) / (high - low)).clamp(0, 1)  # 0 = long wave, 1 = short wave
    return (1 - keep) * freq / scaling["factor"] + keep * freq


def rope_table(config, positions):
    """cos and sin of every angle at positions (N,): (N, Dh/2) fp32 each."""
    angle = positions[:, None].float() * inv_freq(config, positions.device)
    return angle.cos(), angle.sin()


class RMSNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        return rms_norm(x, self.weight, self.eps)

    def then(self, x, *projections):
        """Each projection of the norm of x; the norm itself is not kept for the backward pass."""
        norm = functools.partial(rms_norm, eps=self.eps)
        return linears(norm, (x, self.weight), [p.weight for p in projections])


class KVCache:
    """Keys and values already computed, for `slots` sequences of up to max_len tokens.

    kv[layer] (2, S, K, T, Dh): keys and values are one tensor, so that a token's are written at
    once (decode.py), and those of a head lie together, as attention reads them. T grows with the
    longest sequence.
    """

    def __init__(self, config, slots, max_len, dtype=torch.float32, device="cpu"):
        shape = (2, slots, config.num_key_value_heads, 0, config.head_dim)
        layers = range(config.num_hidden_layers)
        self.kv = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
        self.slots, self.max_len = slots, max_len
        cos, sin = rope_table(config, torch.arange(max_len, device=device))
        # (T, Dh), for both halves of a head: y = x * cos + (x, halves swapped) * sin
        self.cos, self.sin = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)

    def reserve(self, tokens):
        """Make room for so many tokens in every slot. ValueError beyond max_len."""
        if tokens > self.max_len:
            raise ValueError(f"position {tokens - 1} is outside a cache of {self.max_len} tokens")
        have = self.kv[0].shape[3]
        if tokens > have:
            more = min(self.max_len, -(-tokens // GROWTH) * GROWTH) - have
            # One at a time: a layer, not the cache, is there twice
            for i, old in enumerate(self.kv):
                self.kv[i] = F.pad(old, (0, 0, 0, more))  # by zeros: 0 * what is not seen = 0

    def copy_slot(self, src, dst, length=None):
        """Give the slots `dst` (a list) the first `length` tokens of slot `src`, None = all."""
        for kv in self.kv:
            kv[:, dst, :, :length] = kv[:, src, None, :, :length]

    def place(self, rows, position_ids):
        """Where the tokens of this forward belong: slots `rows` and positions, both (N,)."""
        self.rows, self.positions = rows, position_ids
        self.used = int(position_ids.max()) + 1
        self.reserve(self.used)

    def write(self, layer, k, v):
        """k, v (N, K, Dh)."""
        for half, new in enumerate((k, v)):
            kv = self.kv[layer]
            kv[half, self.rows, :, self.positions] = new.to(kv.dtype)

    def attend(self, layer, q):
        """Each query (N, H, Dh) to what its slot holds up to its position -> (N, H, Dh)."""
        k, v = self.kv[layer][:, self.rows, :, : self.used].to(q.dtype)  # (N, K, T, Dh) each
        unseen = torch.arange(self.used, device=q.device) > self.positions[:, None]  # (N, T)
        bias = torch.zeros_like(unseen, dtype=wide(q.dtype)).masked_fill_(unseen, -math.inf)
        return cached_attention(q, k, v, bias[:, None, None])


class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        width, head_dim = config.hidden_size, config.head_dim
        self.layer, self.head_dim = layer, head_dim
        self.q_proj = nn.Linear(width, config.num_attention_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(width, config.num_key_value_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(width, config.num_key_value_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * head_dim, width, bias=False)

    def forward(self, x, norm, cos, sin, layout, cache):
        """x (N, D) before its norm, cos, sin (N, Dh/2), layout None = read the cache -> (N, D)."""
        q, k, v = (
            y.unflatten(-1, (-1, self.head_dim))  # (N, H, Dh), (N, K, Dh), (N, K, Dh)
            for y in norm.then(x, self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rope(q, k, cos, sin)
        if cache is not None:
            cache.write(self.layer, k, v)
        o = cache.attend(self.layer, q) if layout is None else attention(q, k, v, layout)
        return self.o_proj(o.flatten(-2))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x, norm):
        """x (N, D) before its norm -> (N, D)."""
        gate, up = norm.then(x, self.gate_proj, self.up_proj)  # (N, F) each
        return linears(swiglu, (gate, up), [self.down_proj.weight])[0]


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x, cos, sin, layout, cache):
        x = x + self.self_attn(x, self.input_layernorm, cos, sin, layout, cache)
        return x + self.mlp(x, self.post_attention_layernorm)


class Llama(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.model = nn.Module()  # only a name: tensors are called model.layers.0... in checkpoints
        self.model.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.model.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.model.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.tie_weights()
        for name, p in self.named_parameters():
            if not name.endswith("norm.weight"):
                nn.init.normal_(p, std=config.initializer_range)

    def tie_weights(self):
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @classmethod
    def from_pretrained(cls, path, device="cpu", dtype=torch.float32):
        """The model of a Hugging Face folder. device="meta" gives the shapes without the weights;
        a folder that has none will do.

        Raises UserError naming the file and the key or tensor that is missing or not supported.
        """
        config = LlamaConfig.from_dict(checkpoint.read_config(path), f"{path}/config.json")
        planned = str(device) == "meta" and not checkpoint.has_weights(path)
        if not planned:  # what a wrong number would build could take hours, or all memory
            checkpoint.check_layers(path, config.num_hidden_layers)
        with torch.device("meta"):
            model = cls(config).to(dtype)
        if not planned:
            checkpoint.checked_files(checkpoint.named_weights(model), path)
        if str(device) == "meta":
            return model
        model.to_empty(device=device).tie_weights()
        checkpoint.load_weights(model, path)
        return model

    def forward(
        self,
        input_ids,
        position_ids,
        cu_seqlens,
        labels=None,
        parent=None,
        cache=None,
        slots=None,
        common_gradient=False,
    ):
        """One packed row through the model.

        input_ids, position_ids (N,) integers; cu_seqlens (B+1,) with cu_seqlens[-1] == N.
        labels (N,) ALREADY SHIFTED: labels[n] is the token after input_ids[n] in its document, -100
        where nothing is to be scored. With labels the result is the log-prob of each label, (N,) in
        fp32 or wider, 0 where ignored; without, the logits (N, V).
        common_gradient: the loss will be a scaled sum of these log-probs; the head is then cheaper.
        parent (B,): document b goes on where document parent[b] ends and sees all of it; -1 = none.
        A child stands behind its parent with only siblings between, and its positions go on.
        cache, slots (B,): document b continues sequence slots[b] of a KVCache, None = sequence b.
        The result is then the logits of each document's last token, (B, V).
        """
        # On the host, for everything that looks at them: a GPU is waited for here and not again
        starts, parents = cu_seqlens.cpu(), None if parent is None else parent.cpu()
        check_row(input_ids, position_ids, starts, parents)
        layout = None
        if cache is not None:
            if parent is not None or labels is not None:
                raise ValueError("a cache goes with neither labels nor parent")
            if slots is None:
                slots = torch.arange(len(cu_seqlens) - 1, device=input_ids.device)
            cache.place(slots.repeat_interleave(cu_seqlens.diff().long()), position_ids)
        if cache is None or not position_ids[cu_seqlens[:-1].long()].any():  # nothing goes on
            layout = make_layout(starts, parents)
        cos, sin = rope_table(self.config, position_ids)

        x = self.model.embed_tokens(input_ids)  # (N, D)
        for layer in self.model.layers:
            x = layer(x, cos, sin, layout, cache)
        if cache is not None:
            x = x[cu_seqlens[1:].long() - 1]  # (B, D): only the last token of each asks a question
        x = self.model.norm(x)
        if labels is not None:
            return linear_logprobs(x, self.lm_head.weight, labels, common_gradient)
        return self.lm_head(x)


def check_row(input_ids, position_ids, cu_seqlens, parent):
    """ValueError for a row whose parts do not fit together."""
    n, b = len(input_ids), len(cu_seqlens) - 1
    if input_ids.shape != (n,) or position_ids.shape != (n,):
        raise ValueError(f"input_ids {tuple(input_ids.shape)} and position_ids must both be (N,)")
    if b < 1 or cu_seqlens[0] != 0 or cu_seqlens[-1] != n or (cu_seqlens.diff() < 1).any():
        raise ValueError(f"cu_seqlens must rise from 0 to N = {n}, is {cu_seqlens.tolist()}")
    if parent is None:
        return
    parents = parent.tolist()
    if len(parents) != b:
        raise ValueError(f"parent has {len(parents)} entries for {b} documents")
    for child, p in enumerate(parents):
        if p >= 0 and (
            p >= child or parents[p] >= 0 or any(x != p for x in parents[p + 1 : child])
        ):
            raise ValueError(
                f"document {child}: parent {p} must be a root with only siblings between"
            )
