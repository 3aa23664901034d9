"""What a run will need, before anything starts: memory of a GPU, steps, hours.

    python train_cpt.py --dry_run 16 --init_from DIR --mixture recipes/group1.json ...

DIR needs a config.json, no weights; data that are not there are taken at the totals of the mixture.
Nothing is allocated, no GPU is needed. What the kernels keep and allocate is counted by running one
block and the head on meta tensors. The rest is arithmetic on what FSDP2 does (parallel.shard):

    always       weights, the low halves of their masters, both Adam moments: rows over the ranks
    root         embedding, head and last norm: gathered for the whole of both passes
    a block      gathered while it runs, and the next one ahead of it
    gradients    whole in the dtype of the weights, copied to fp32 to be reduced, kept by rows

Of the moments of a step the worst counts. Not in it: what CUDA, NCCL and the allocator hold.
"""

import contextlib
import math
import weakref
from collections import Counter
from unittest import mock

import torch
from torch.fx.experimental import _config as meta_config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint as recomputed
from triton.runtime.jit import KernelInterface

import kernels
from config import UserError, read_json
from data import load_chat, load_pairs
from kernels import cross_entropy
from kernels.attention import make_layout
from kernels.rms_norm import rms_norm
from metrics import PEAK_FLOPS, flops_per_token
from mixture import load_mixed
from model import Block, Llama
from optim import check_settings
from packing import Curriculum, size
from parallel import auto_dtype, print0
from tokenizer import Tokenizer

MFU = 0.40  # of the peak below, true work only: what good code reaches on packed rows of 8,192
GPU = "H100"
SIZES = (80, 141)  # GB of an A100 or H100, and of an H200
SAMPLE = 10_000  # families that are read to find out how many keys a query sees


# ---- bytes of a block and of the head, counted ---------------------------------------------------


class Live(TorchDispatchMode):
    """Bytes of the storages that operations make and that still live: .now, and the most, .peak.

    known: tensors that do not count, nor what is a view of them.
    """

    def __init__(self, *known):
        super().__init__()
        self.now = self.peak = 0
        self.known = {x.untyped_storage()._cdata for x in known}

    def drop(self, key, size):
        self.known.discard(key)
        self.now -= size

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out = op(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            storage = x.untyped_storage() if isinstance(x, torch.Tensor) else None
            if storage is not None and storage._cdata not in self.known:
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self.drop, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out


@contextlib.contextmanager
def allocating_as(device):
    """On meta tensors: operations allocate as on "cuda", where the kernels run, or as on "cpu"."""
    with contextlib.ExitStack() as stack:
        put = stack.enter_context
        put(mock.patch.object(meta_config, "meta_nonzero_assume_all_nonzero", True))
        if device == "cuda":
            put(mock.patch.object(kernels, "MODE", "triton"))
            put(mock.patch.object(KernelInterface, "__getitem__", lambda *_: lambda *a, **k: None))
            into = lambda a, b, space: space[: len(a) * b.shape[1]].view(len(a), -1)  # noqa: E731
            put(mock.patch.object(cross_entropy, "product", into))  # no copy, as cuBLAS writes fp32
        else:
            tiles = {"cuda": cross_entropy.TILE_BYTES["cpu"]}  # of whatever is not on the CPU
            put(mock.patch.dict(cross_entropy.TILE_BYTES, tiles))
        yield


def block_bytes(config, tokens, dtype, device, recompute=False):
    """(bytes a block keeps of a row of one document, the most that its backward pass takes beyond
    what all blocks keep, its weights' gradients included). On a CPU a real block runs: on meta
    tensors torch chooses another attention."""
    where = "cpu" if device == "cpu" else "meta"
    with torch.device("meta"):
        block = Block(config, 0).to(dtype)
    block.to_empty(device=where)
    x, dz = torch.zeros(2, tokens, config.hidden_size, dtype=dtype, device=where)
    cos = sin = torch.ones(tokens, config.head_dim // 2, device=where)
    layout = make_layout(torch.tensor([0, tokens], dtype=torch.int32))

    def run(x):
        if recompute:
            return recomputed(block, x, cos, sin, layout, None, use_reentrant=False)
        return block(x, cos, sin, layout, None)

    with allocating_as(device), Live(x, dz, cos, *block.parameters()) as live:
        y = run(x.requires_grad_())  # the first one makes the tables of the row, too
        one = live.now
        z = run(y)
        kept = live.now - one
        z = run(y.detach().requires_grad_())
        before, live.peak = live.now, live.now
        z.backward(dz)
    return kept, live.peak - before


def head_bytes(config, tokens, dtype, device, common_gradient):
    """Last norm and head, every token a target: bytes (at most in the forward pass, between the
    passes, at most in the backward pass)."""
    shapes = ((tokens, config.hidden_size), (config.hidden_size,),
              (config.vocab_size, config.hidden_size))  # fmt: skip
    x, scale, weight = (
        torch.empty(shape, dtype=dtype, device="meta", requires_grad=True) for shape in shapes
    )
    labels = torch.empty(tokens, dtype=torch.int64, device="meta")
    with allocating_as(device), Live(x, scale, weight, labels) as live:
        hidden = rms_norm(x, scale, config.rms_norm_eps)
        logprobs = cross_entropy.linear_logprobs(hidden, weight, labels, common_gradient)
        forward, between = live.peak, live.now
        live.peak = live.now
        torch.autograd.backward(logprobs.sum())
    return forward, between, live.peak


# ---- memory of a rank ----------------------------------------------------------------------------


def rows_of(parameters, shards):
    """Numbers that the first of `shards` ranks holds of these parameters: FSDP cuts by rows."""
    return sum(-(-len(p) // shards) * (p.numel() // len(p)) for p in parameters)


def moments_of(model, shards, tokens, micro, dtype, device, recompute, common_gradient):
    """{moment of the last micro-batch: Counter of bytes} beyond weights and Adam's moments."""
    config, wide, layers = model.config, dtype.itemsize, model.config.num_hidden_layers
    block = list(model.model.layers[0].parameters())
    root = [model.model.norm.weight, *{model.model.embed_tokens.weight, model.lm_head.weight}]
    b, r = (sum(p.numel() for p in group) for group in (block, root))
    b_mine, r_mine = rows_of(block, shards), rows_of(root, shards)
    table = config.vocab_size * config.hidden_size * wide  # of embedding or head
    row = tokens * config.hidden_size * wide  # what goes from block to block
    kept, working = block_bytes(config, tokens, dtype, device, recompute)
    head = head_bytes(config, tokens, dtype, device, common_gradient)
    copies = 1 if shards == 1 else 3  # of a block: in use, just gathered, and the next one
    flat = 0 if shards == 1 else r * wide  # what the root is gathered into, for a moment
    whole = 4 if micro > 1 else 0  # bytes a parameter that is not reduced yet, unsharded
    new = 0 if whole else wide  # bytes a gradient that is not among those

    def moment(blocks, working, gathered, gradients):
        return Counter({"activations": row + blocks * kept, "working memory": working,
                        "gathered weights": gathered, "gradients": gradients})  # fmt: skip

    every = whole * (r + layers * b)
    found = {
        "the head, forward": moment(layers, head[0], r * wide, every),
        "the head, gathered again": moment(layers, head[1], r * wide + flat, every),
        "the head, backward": moment(layers, head[2], r * wide, every),
    }
    for done in range(layers):
        left, gathered = layers - done, r * wide + copies * b * wide
        gradients = table + whole * (r + left * b) + done * b_mine * wide
        before = 4 * b if done else 0  # fp32 copy of the block before, being reduced
        found[f"block {left - 1}"] = moment(left, row + working, gathered, gradients + before)
        gradients += new * b + 4 * b + 4 * b_mine
        gathered -= b * wide
        found[f"block {left - 1}, reduced"] = moment(left - 1, row, gathered, gradients)
    mine = layers * b_mine * wide
    found["embedding"] = moment(0, row, r * wide, mine + 4 * b + whole * r + 2 * table)
    gradients = mine + (whole + new + 4) * r + 4 * r_mine
    found["embedding, reduced"] = moment(0, 0, 0, gradients)
    return found


def memory(model, shards, tokens, micro, dtype, device, recompute, common_gradient):
    """(Counter of bytes on a rank at the worst moment of a step, that moment).

    model: on the meta device; shards: ranks that share one copy of it; tokens: of a micro-batch of
    a rank; micro: how many of them a step has; common_gradient: the form of the head.
    """
    mine, low = rows_of(model.parameters(), shards), 2 if dtype == torch.bfloat16 else 0
    always = {"weights": mine * dtype.itemsize, "low halves": mine * low, "Adam moments": mine * 8}
    found = moments_of(model, shards, tokens, micro, dtype, device, recompute, common_gradient)
    worst = max(found, key=lambda name: found[name].total())
    return Counter(always) + found[worst], worst


# ---- steps and work ------------------------------------------------------------------------------


def keys_of(family):
    """Keys that the queries of a family see, all together."""
    sizes = [len(segment.input_ids) for segment in family]
    before = [sizes[segment.parent] if segment.parent >= 0 else 0 for segment in family]
    return sum(n * (n + 1) / 2 + n * m for n, m in zip(sizes, before, strict=True))


def planned(cfg, common_gradient):
    """(steps, tokens, keys that a query sees on average) of a train script's data, packed as there.
    UserError where they cannot be read. Of pairs a common gradient (SFT) takes the chosen side."""
    tokenizer = Tokenizer(cfg.init_from)
    settings = tokenizer, cfg.max_length, cfg.max_skipped, cfg.token_cache
    if hasattr(cfg, "mixture"):
        families, _, _, groups, _ = load_mixed(cfg, tokenizer)
    else:
        files = cfg.pairs or getattr(cfg, "chat", "")
        families, _ = (load_pairs if cfg.pairs else load_chat)(files, *settings)
        if cfg.pairs and common_gradient:
            families = [members[:2] for members in families]
        groups = [len(families)]
    sizes = list(map(size, families)) if isinstance(families, list) else families.sizes
    lengths = cfg.max_length, cfg.batch_tokens
    plan = Curriculum(sizes, groups, *lengths, cfg.epochs, cfg.seed)
    some = families[:: math.ceil(len(families) / SAMPLE)]
    return plan.steps, int(sum(sizes) * cfg.epochs), sum(map(keys_of, some)) / sum(map(size, some))


def stated(cfg):
    """As planned, of a mixture's totals: rows full, a document each. 0 steps if it states none."""
    mixture = read_json(cfg.mixture) if getattr(cfg, "mixture", "") else {}
    totals = [group.get("total", 0) for group in mixture.get("groups", [])]
    if not all(totals) or mixture.get("unit", "tokens") != "tokens":
        totals = []
    step = cfg.batch_tokens // cfg.max_length * cfg.max_length
    steps = sum(max(1, round(cfg.epochs * math.ceil(total / step))) for total in totals)
    return steps, int(sum(totals) * cfg.epochs), cfg.max_length / 2


# ---- what is printed -----------------------------------------------------------------------------


def memory_lines(parts, moment):
    yield f"memory of a rank in GB, at its most ({moment}):"
    yield from (f"  {name:<20}{count / 1e9:8.3f}" for name, count in parts.items())
    shares = ", ".join(f"{parts.total() / 1e9 / gpu:.0%} of {gpu} GB" for gpu in SIZES)
    yield f"  {'total':<20}{parts.total() / 1e9:8.3f}: {shares}; CUDA and NCCL come on top"


def work_lines(config, cfg, ranks, steps, tokens, keys, common_gradient):
    """Of true work: nothing that is made again, attention over what is seen."""
    rows, mfu = cfg.batch_tokens // cfg.max_length, MFU * (3 / 4 if cfg.recompute else 1)
    rate = mfu * PEAK_FLOPS[GPU] * rows / math.ceil(rows / ranks)  # FLOP/s of the ranks with rows
    each = flops_per_token(config, keys)
    step = each * rows * cfg.max_length
    yield (f"a step: {rows} rows of {cfg.max_length:,} tokens, {step / 1e12:,.2f} TFLOP, "
           f"{step / rate:.2f} s at {mfu:.0%} of {PEAK_FLOPS[GPU] / 1e12:.0f} TFLOP/s"
           + (f", as recompute costs a quarter of {MFU:.0%}" if cfg.recompute else ""))  # fmt: skip
    if not steps:
        yield f"steps: not known without data; 1,000 take {step / rate / 3.6:.2f} hours"
        return
    flops = tokens * each * (1 if common_gradient else 4 / 3)  # DPO: the reference, forward once
    hours = flops / rate / 3600
    yield (f"in all: {steps:,} steps, {tokens:,} tokens, {flops / 1e15:,.1f} PFLOP, "
           f"{hours:,.1f} hours, {hours * ranks:,.0f} GPU hours")  # fmt: skip


def warnings(rows, ranks, per, parameters, max_length):
    """What a person should change, or know. per: rows in one forward pass of a rank."""
    most = math.ceil(rows / ranks)  # rows of the busiest rank
    if rows < ranks:
        yield (f"{ranks - rows} of {ranks} ranks never have a row: a step has {rows}; take "
               f"--batch_tokens {ranks * max_length}, or fewer ranks")  # fmt: skip
    elif rows % ranks:
        idle = 1 - rows / ranks / most
        yield f"{rows} rows over {ranks} ranks: up to {most} each, {idle:.0%} of the time is idle"
    if most > per:
        yield (f"{math.ceil(most / per)} micro-batches: {4 * parameters / 1e9:.1f} GB of gradients "
               f"on every rank; --micro_batch_tokens {most * max_length} saves them")  # fmt: skip
        if most % per:
            yield f"{most} rows a rank, {per} at a time: the last micro-batch is smaller"


def show(cfg, common_gradient=True):
    """Print what a run of this Config over cfg.dry_run ranks will need. Its data, if they are there
    with a tokenizer, are tokenised for it (kept for the run); else what is stated counts.

    common_gradient: the form of the head, False where tokens weigh differently (DPO).
    """
    model = Llama.from_pretrained(cfg.init_from, "meta")
    check_settings(cfg, model.config)
    ranks, replicas = cfg.dry_run, cfg.replicas
    rows, per = (n // cfg.max_length for n in (cfg.batch_tokens, cfg.micro_batch_tokens))
    if not rows or not per:
        raise UserError("batch_tokens and micro_batch_tokens must take a row of max_length")
    if replicas < 1 or ranks < 1 or ranks % replicas:
        raise UserError(f"{ranks} ranks cannot share {replicas} copies of the model evenly")
    try:
        known = planned(cfg, common_gradient)
    except UserError as e:
        print0(f"without data: {e}")
        known = stated(cfg)
    device = torch.device("cpu" if cfg.device == "cpu" else "cuda")
    dtype, most = auto_dtype(cfg.dtype, device), math.ceil(rows / ranks)
    shape = ranks // replicas, min(per, most) * cfg.max_length, math.ceil(most / per)
    found = memory(model, *shape, dtype, device.type, cfg.recompute, common_gradient)
    count = sum(p.numel() for p in model.parameters())
    tables = sum(p.numel() for p in {model.model.embed_tokens.weight, model.lm_head.weight})
    print0(f"{cfg.init_from}: {count:,} parameters, {tables:,} of them in embedding and head\n"
           f"on {ranks} ranks, {replicas} x {shape[0]} shards, {str(dtype)[6:]}"
           + (", recompute" if cfg.recompute else ""))  # fmt: skip
    print0("\n".join(memory_lines(*found)))
    print0("\n".join(work_lines(model.config, cfg, ranks, *known, common_gradient)))
    for line in warnings(rows, ranks, per, count, cfg.max_length):
        print0(f"warning: {line}")
