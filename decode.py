"""One more token for every sequence of a KV cache: Llama.forward for the one shape that sampling
asks for over and over.

    tokens (A,) -> embed -> [ x += attention(x, cache); x += swiglu(x) ] * L -> logits (A, V)

The numbers are those of Llama.forward (a test says so). What is different is what a step costs
besides its matrix products, which on a small model is most of it:

- no packing: sequence a stands in slot a of the cache, its token at positions[a];
- q|k|v is one product, gate|up another: the weights are joined once, without a second copy of them;
- keys and values enter the cache by one write, and attention reads them where they lie;
- nothing is kept for a backward pass, so torch's own operations do, in place where they can;
- nothing is waited for: every size is known on the host.

Shapes: A sequences, S slots of T tokens, the other letters as in model.py.
"""

import functools
import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from kernels import wide
from kernels.attention import cached_attention


@dataclass
class BlockWeights:
    """What a step reads of a block: attributes of a module cost more than a small product."""

    input_norm: torch.Tensor  # (D,)
    qkv: torch.Tensor  # ((H + 2 K) Dh, D)
    o: torch.Tensor  # (D, H Dh)
    post_norm: torch.Tensor  # (D,)
    gate_up: torch.Tensor  # (2 F, D)
    down: torch.Tensor  # (D, F)


def joined(*linears):
    """The weights (E_i, D) of these layers as one matrix (sum of E_i, D).

    The layers' parameters become views of its rows, so that it takes no memory besides them, and
    a later call finds them joined.
    """
    weights = [linear.weight for linear in linears]
    first = weights[0].data
    end, shape = first.data_ptr(), (sum(map(len, weights)), first.shape[1])
    for w in weights:
        if w.data_ptr() != end or w.untyped_storage()._cdata != first.untyped_storage()._cdata:
            break
        end += w.nbytes
    else:
        return first.as_strided(shape, (shape[1], 1))
    with torch.inference_mode(False):  # else no later training step could use the parameters
        whole = torch.cat([w.data for w in weights])
        for w, rows in zip(weights, whole.split([len(w) for w in weights]), strict=True):
            w.data = rows
    return whole


def block_weights(model):
    """[BlockWeights of each block]. Joins weights in place: not for a model that FSDP has sharded.

    To be called anew whenever the parameters were replaced, not when their numbers changed."""
    return [
        BlockWeights(
            block.input_layernorm.weight.data,
            joined(block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj),
            block.self_attn.o_proj.weight.data,
            block.post_attention_layernorm.weight.data,
            joined(block.mlp.gate_proj, block.mlp.up_proj),
            block.mlp.down_proj.weight.data,
        )
        for block in model.model.layers
    ]


def product(x, weight):
    """x (A, D) times the transpose of weight (E, D) -> (A, E)."""
    if x.is_cuda or x.dtype != torch.float32 or weight.numel() < 2**18:
        return F.linear(x, weight)
    # A large fp32 weight on a CPU has only to be read once, which MKL does well with it on the
    # left and more than one column: all products of SmolLM2 for 1, 2, 4, 16 rows take 32, 57, 50,
    # 60 ms by F.linear and 13, 13, 15, 44 ms by this, on 2 cores. So a single row is doubled.
    columns = x.repeat(2, 1).T if len(x) == 1 else x.T
    return (weight @ columns).T[: len(x)].contiguous()


def turned(x, cos, sin):
    """Rotary embedding, as in kernels/rope.py but of q and k at once and in three operations.

    x (A, H + K, Dh), cos and sin (A, 1, Dh) as KVCache has them -> fp32 or wider.
    """
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


@torch.inference_mode()
def decode_step(model, blocks, cache, tokens, positions):
    """tokens and positions: lists, of sequence a in slot a. Logits (A, V) of the tokens after them.

    blocks: block_weights(model). ValueError for a position outside the cache.
    """
    A, used = len(tokens), max(positions) + 1
    cache.reserve(used)
    _, S, K, T, Dh = cache.kv[0].shape
    config, head = model.config, model.lm_head.weight
    H = config.num_attention_heads
    norm = functools.partial(F.rms_norm, normalized_shape=[len(head[0])], eps=config.rms_norm_eps)

    tokens, positions = torch.tensor([tokens, positions], device=head.device)  # (A,) each
    cos, sin = cache.cos[positions, None], cache.sin[positions, None]  # (A, 1, Dh)
    # Rows of the new keys and values among all (k or v, slot, head, position) of a layer, (A, 2 K)
    heads = torch.arange(A * K, device=head.device).view(A, K)
    places = torch.cat((heads, heads + S * K), 1) * T + positions[:, None]
    # Added to the scores, (A, 1, 1, T). Several sequences read all that is allocated: a part of it
    # would be copied before the product. A single one reads what it sees.
    bias, read = None, used
    if A > 1:
        read, unseen = T, torch.arange(T, device=head.device) > positions[:, None]
        bias = torch.zeros_like(unseen, dtype=wide(head.dtype)).masked_fill_(unseen, -math.inf)
        bias = bias[:, None, None]

    x = F.embedding(tokens, model.model.embed_tokens.weight)  # (A, D)
    for w, kv in zip(blocks, cache.kv, strict=True):  # kv (2, S, K, T, Dh)
        qkv = product(norm(x, weight=w.input_norm), w.qkv).view(A, H + 2 * K, Dh)
        qkv[:, : H + K] = turned(qkv[:, : H + K], cos, sin)
        kv.view(-1, Dh).index_put_((places,), qkv[:, H:])
        o = cached_attention(qkv[:, :H], *kv[:, :A, :, :read], bias)
        x += product(o.view(A, -1), w.o)
        gate, up = product(norm(x, weight=w.post_norm), w.gate_up).chunk(2, -1)  # (A, F) each
        x += product(F.silu(gate).mul_(up), w.down)
    return product(norm(x, weight=model.model.norm.weight), head)
