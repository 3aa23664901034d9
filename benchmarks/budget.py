"""What a training step needs, counted: bytes kept for the backward pass, and FLOPs. Counts carry
over from one machine to another; times would not.

    python benchmarks/budget.py

Saved bytes: of one block, and of the head at a vocabulary of 128,256, against Hugging Face's. Each
storage counts once; parameters do not count, nor what all layers share (the tables of rope, the
layout of the row).

FLOPs: of a whole step of Llama-3-8B on 8,192 packed tokens, against the least it could take: 6 per
matrix weight and token, and attention over the pairs of query and key that see each other.

Both run on meta tensors, with the kernels that a GPU would run: what a kernel allocates counts, but
nothing is launched. The CPU path is counted on real tensors of a narrower block.
"""

import contextlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch.fx.experimental import _config as meta_config
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig as TheirConfig
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from triton.runtime.jit import KernelInterface

import kernels
from kernels.attention import make_layout
from kernels.cross_entropy import linear_logprobs
from model import Block, Llama, LlamaConfig

LLAMA_8B = LlamaConfig(128_256, 4096, 14_336, 32, 32, 8, 128)
NARROW = LlamaConfig(4096, 256, 896, 2, 8, 2, 32)  # the same proportions
DOCUMENTS = (3000, 1500, 2500, 192, 1000)  # of the row of 8,192 tokens


@contextlib.contextmanager
def nothing_launched():
    """The kernels of a GPU on any device: they allocate what they return, and compute nothing."""
    mode, launch = kernels.MODE, KernelInterface.__getitem__
    kernels.MODE, KernelInterface.__getitem__ = "triton", lambda *_: lambda *args, **options: None
    meta_config.meta_nonzero_assume_all_nonzero = True  # choosing rows by a mask keeps all
    try:
        yield
    finally:
        kernels.MODE, KernelInterface.__getitem__ = mode, launch


# ---- bytes kept for the backward pass ------------------------------------------------------------


def saved_bytes(forward, parameters):
    """Bytes that the graph of forward() holds on to, parameters and their gradients left out."""
    parameters = list(parameters)
    known = {p.untyped_storage()._cdata for p in parameters}
    shapes = {p.shape for p in parameters if p.ndim == 2}
    storages = {}  # kept alive, so that no address comes twice

    def keep(x):
        storage = x.untyped_storage()
        if storage._cdata not in known and x.shape not in shapes:
            storages[storage._cdata] = storage
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        output = forward()
    nodes = [output.grad_fn]
    for node in nodes:  # the list grows; a node may keep tensors as attributes, too
        nodes += [n for n, _ in node.next_functions if n is not None and n not in nodes]
        for value in getattr(node, "__dict__", {}).values():
            for x in value if isinstance(value, (tuple, list)) else [value]:
                if isinstance(x, torch.Tensor):
                    keep(x)
    return sum(storage.nbytes() for storage in storages.values())


def per_block(block, x, *inputs, **named):
    """Bytes that one more block of a stack keeps: of two minus of one."""
    one = saved_bytes(lambda: block(x, *inputs, **named), block.parameters())
    two = saved_bytes(lambda: block(block(x, *inputs, **named), *inputs, **named),
                      block.parameters())  # fmt: skip
    return two - one


def our_block(config, tokens, dtype, device):
    """Bytes a token."""
    with torch.device("meta"):
        block = Block(config, 0).to(dtype)
    block.to_empty(device=device)
    x = torch.ones(tokens, config.hidden_size, dtype=dtype, device=device, requires_grad=True)
    cos = sin = torch.ones(tokens, config.head_dim // 2, device=device)
    layout = make_layout(torch.tensor([0, tokens // 3, tokens], dtype=torch.int32))
    return per_block(block, x, cos, sin, layout, None) / tokens


def their_block(config, tokens, dtype):
    """Bytes a token of Hugging Face's block, eager with scaled_dot_product_attention. On the CPU:
    on meta tensors torch chooses an attention that writes its scores out."""
    with torch.device("meta"):
        block = LlamaDecoderLayer(their_config(config), 0).to(dtype)
    block.to_empty(device="cpu")
    x = torch.ones(1, tokens, config.hidden_size, dtype=dtype, requires_grad=True)
    cos = sin = torch.ones(1, tokens, config.head_dim, dtype=dtype)
    return per_block(block, x, position_embeddings=(cos, sin)) / tokens


def their_config(config):
    names = ("vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
             "num_key_value_heads head_dim")  # fmt: skip
    values = {name: getattr(config, name) for name in names.split()}
    return TheirConfig(**values, attn_implementation="sdpa", tie_word_embeddings=False)


def heads(config, tokens, dtype):
    """Bytes a token: (ours, ours with a common gradient, Hugging Face's)."""
    width, vocabulary = config.hidden_size, config.vocab_size
    weight = torch.empty(vocabulary, width, dtype=dtype, device="meta", requires_grad=True)
    hidden = torch.empty(tokens, width, dtype=dtype, device="meta", requires_grad=True)
    labels = torch.empty(tokens, dtype=torch.long, device="meta")

    def theirs():
        return ForCausalLMLoss((hidden @ weight.T)[None], labels[None], vocabulary)

    forwards = (
        lambda: linear_logprobs(hidden, weight, labels),
        lambda: linear_logprobs(hidden, weight, labels, common_gradient=True),
        theirs,
    )
    return [saved_bytes(forward, [weight]) / tokens for forward in forwards]


# ---- FLOPs of a whole step -----------------------------------------------------------------------


def added_product(shape, a, b, **_):
    return 2 * a[0] * a[1] * b[1]


def step_flops(config, lengths, common_gradient):
    """FLOPs of a step on one row of documents: (matrix products outside attention, the least they
    could be, attention at its least)."""
    with torch.device("meta"):
        model = Llama(config).to(torch.bfloat16)
        ids = torch.empty(sum(lengths), dtype=torch.long)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    in_place = {torch.ops.aten.addmm_: added_product}  # the counter knows only addmm
    with nothing_launched(), FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        logprobs = model(ids, ids, cu_seqlens, labels=ids, common_gradient=common_gradient)
        logprobs.sum().backward()
    matrices = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    matrices -= 0 if config.tie_word_embeddings else model.model.embed_tokens.weight.numel()
    pairs = sum(n * (n + 1) // 2 for n in lengths)  # of a query and a key that it sees
    # Six products of 2 FLOPs a number: scores and outputs, and the gradients of probabilities, q, k
    # and v. The kernels take scores and gradients of probabilities once more: nine.
    attention = 12 * pairs * config.num_attention_heads * config.head_dim * config.num_hidden_layers
    return counter.get_total_flops(), 6 * matrices * len(ids), attention


def main():
    print("bytes a token, kept for the backward pass      ours  Hugging Face   share")
    for dtype in (torch.bfloat16, torch.float32):
        with nothing_launched():
            ours = our_block(LLAMA_8B, 8192, dtype, "meta")
        theirs = their_block(LLAMA_8B, 128, dtype)
        cpu, cpu_theirs = our_block(NARROW, 250, dtype, "cpu"), their_block(NARROW, 250, dtype)
        for name, a, b in (("8B, kernels", ours, theirs), ("narrow, CPU path", cpu, cpu_theirs)):
            print(f"block {name:<17}{dtype!s:<23}{a:10,.0f} {b:13,.0f} {a / b:7.3f}")
    for dtype in (torch.bfloat16, torch.float32):
        with nothing_launched():
            *ours, theirs = heads(LLAMA_8B, 8192, dtype)
        for form, mine in zip(("per token", "common"), ours, strict=True):
            print(f"head {form:<18}{dtype!s:<23}{mine:10,.0f} {theirs:13,.0f} {mine / theirs:7.3f}")
    print(
        "\nTFLOP, 8B, 8,192 tokens                matrices    least  attention   share  +repeated"
    )
    for name, lengths in (("five documents", DOCUMENTS), ("one document", (8192,))):
        for form, common in (("common gradient", True), ("per token", False)):
            counted, matrices, attention = step_flops(LLAMA_8B, lengths, common)
            least = matrices + attention
            print(f"{name + ', ' + form:<36}{counted / 1e12:11.1f}{matrices / 1e12:9.1f}"
                  f"{attention / 1e12:11.1f}{(counted + attention) / least:8.4f}"
                  f"{(counted + 1.5 * attention) / least:10.4f}")  # fmt: skip


if __name__ == "__main__":
    main()
