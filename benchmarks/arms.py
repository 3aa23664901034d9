"""The jobs of benchmarks/train_step.py, each in a process of its own: ceilings, parity, timing.

An arm is a model and two functions: loss(ids (b, T), targets, last) -> the part of the step's mean
loss that these documents add, the last ones or not; update() = what follows the backward passes.
"""

import contextlib
import gc
import math
import os
import subprocess
import tempfile
import time
import zlib
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F
from tqdm import tqdm

import parallel
from benchmarks.measure import device_name, quantiles
from checkpoint import copy_rows
from config import UserError
from kernels.cross_entropy import IGNORE
from metrics import memory_gb
from model import Llama, LlamaConfig
from optim import build_optimizer

LR, DECAY, CLIP = 1e-4, 0.1, 1.0
OPTIONS = {"ours": {"recompute"}, "hf": {"liger", "cudnn", "compile", "bf16"}}
ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192}  # fmt: skip


@dataclass
class Shape:
    config: LlamaConfig
    documents: int  # per step
    length: int  # tokens of each


def llama3(layers):
    return LlamaConfig(128_256, 4096, 14_336, layers, 32, 8, 128, 8192, 1e-5, 500_000.0)


def tiny(vocabulary):  # twice the blocks of sample/base: 1.5M weights besides the embedding
    return LlamaConfig(vocabulary, 128, 352, 8, 4, 2, 32, 512, 1e-5, tie_word_embeddings=True)


def wide(vocabulary):  # 2.9M
    return LlamaConfig(vocabulary, 256, 704, 4, 4, 2, 64, 512, 1e-5, tie_word_embeddings=True)


SHAPES = {
    "tiny-32k": Shape(tiny(32_768), 4, 512),
    "tiny-128k": Shape(tiny(128_256), 4, 512),
    "wide-32k": Shape(wide(32_768), 4, 512),
    "wide-128k": Shape(wide(128_256), 4, 512),
    "llama-3.2-1b": Shape(
        LlamaConfig(128_256, 2048, 8192, 16, 32, 8, 64, 131_072, 1e-5, 500_000.0,
                    ROPE | {"factor": 32.0}, tie_word_embeddings=True), 2, 8192),
    "llama-3-8b": Shape(llama3(32), 1, 8192),
    "llama-3-8b-4-layers": Shape(llama3(4), 2, 8192),
}  # fmt: skip


# ---- the arms ------------------------------------------------------------------------------------


def masters(model):
    """Yields every parameter with its random fp32 value, the same in every arm."""
    for name, p in model.named_parameters():
        generator = torch.Generator(p.device).manual_seed(zlib.crc32(name.encode()))
        value = torch.ones(p.shape, device=p.device)
        yield p, value if p.ndim < 2 else value.normal_(std=0.02, generator=generator)


@torch.no_grad()
def ours(config, device, dtype, options=()):
    with torch.device("meta"):
        model = Llama(config)
    name = str(dtype).removeprefix("torch.")
    model = parallel.shard(model, device, name, **dict.fromkeys(options, True))
    for p, value in masters(model):
        copy_rows(p, value)
    optimizer = build_optimizer(model, LR, DECAY)

    def loss(ids, targets, last):
        documents, length = ids.shape
        labels = F.pad(ids[:, 1:], (0, 1), value=IGNORE).flatten()  # already shifted
        positions = torch.arange(length, device=device).repeat(documents)
        cu_seqlens = torch.arange(documents + 1, dtype=torch.int32, device=device) * length
        model.set_requires_gradient_sync(last)
        logprobs = model(ids.flatten(), positions, cu_seqlens, labels=labels, common_gradient=True)
        return -logprobs.sum() / targets

    def update():
        optimizer.step(scale=(CLIP / optimizer.grad_norm()).clamp(max=1))
        optimizer.zero_grad()

    return model, loss, update


@torch.no_grad()
def hugging_face(config, device, dtype, options=()):
    """fp32 master weights, computing in dtype by autocast, as the Trainer's --bf16 does. With the
    option bf16 the model is in bf16 throughout, and the masters stand beside it."""
    from transformers import LlamaConfig as TheirConfig
    from transformers import LlamaForCausalLM

    values = dict(vars(config))
    rope = {"rope_theta": values.pop("rope_theta"), **values.pop("rope_scaling")}
    their_config = TheirConfig(**values, rope_parameters=rope, attn_implementation="sdpa")
    with torch.device("meta"):
        model = LlamaForCausalLM(their_config)
    if "liger" in options:
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama(model=model)
    model.to(torch.bfloat16 if "bf16" in options else torch.float32).to_empty(device=device)
    model.tie_weights()
    rotary = model.model.rotary_emb  # its buffers have no values yet: they are not parameters
    model.model.rotary_emb = type(rotary)(their_config).to(device)
    updated = []  # what the optimizer updates: the parameters, or their masters
    for p, value in masters(model):
        p.copy_(value)
        updated.append(value.clone() if "bf16" in options else p)
    forward = torch.compile(model) if "compile" in options else model
    decayed, others = [p for p in updated if p.ndim >= 2], [p for p in updated if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), fused=True)

    def loss(ids, targets, last):
        with contextlib.ExitStack() as stack:
            if dtype != torch.float32 and "bf16" not in options:
                stack.enter_context(torch.autocast(device.type, dtype))
            if "cudnn" in options:
                from torch.nn.attention import SDPBackend, sdpa_kernel

                order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]
                stack.enter_context(sdpa_kernel(order, set_priority=True))
            return forward(
                input_ids=ids, labels=ids, use_cache=False, num_items_in_batch=targets
            ).loss

    def update():
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        if "bf16" not in options:
            optimizer.step()
        else:
            copies(updated, model, optimizer)
        model.zero_grad()

    return model, loss, update


@torch.no_grad()
def copies(updated, model, optimizer):
    """Update the fp32 masters with the bf16 gradients, and round them into the model."""
    for master, p in zip(updated, model.parameters(), strict=True):
        master.grad = p.grad.float()
    optimizer.step()
    for master, p in zip(updated, model.parameters(), strict=True):
        p.copy_(master)
        master.grad = None


def check(arm):
    name, *options = arm.split("+")
    if name not in OPTIONS or not set(options) <= OPTIONS[name]:
        raise UserError(f"--arms {arm}: ours and hf have these options: {OPTIONS}")


def build(arm, config, device, dtype):
    name, *options = arm.split("+")
    return {"ours": ours, "hf": hugging_face}[name](config, device, dtype, options)


def backward(loss, ids, micro):
    """Forward and backward over all documents, `micro` at a time. Returns the mean loss, 0-dim."""
    targets = torch.tensor(ids.numel() - len(ids), device=ids.device)  # the last token has none
    total = 0
    parts = ids.split(micro)
    for i, part in enumerate(parts):
        one = loss(part, targets, i == len(parts) - 1)
        one.backward()
        total = total + one.detach()
    return total


def batch(shape, step, device):
    """Random tokens (documents, length), the same for every arm."""
    g = torch.Generator().manual_seed(step)
    ids = torch.randint(shape.config.vocab_size, (shape.documents, shape.length), generator=g)
    return ids.to(device)


def setting(cfg):
    """(shape with the command line's sizes, device, dtype to compute in)."""
    if not cfg.arm.startswith("ours"):
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "0")  # as shipped: init is ours, and sets it
    _, _, device = parallel.init()
    shape = SHAPES[cfg.shape]
    shape = replace(shape, documents=cfg.documents or shape.documents,
                    length=cfg.length or shape.length)  # fmt: skip
    return shape, device, torch.bfloat16 if device.type == "cuda" else torch.float32


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


# ---- ceilings ------------------------------------------------------------------------------------


def sustained(function, device, seconds):
    """Median time of function() over the last half of so many seconds: chips slow down when hot."""
    times, end = [], time.perf_counter() + seconds
    function()
    wait(device)
    while time.perf_counter() < end or len(times) < 4:
        since = time.perf_counter()
        function()
        wait(device)
        times.append(time.perf_counter() - since)
    return sorted(times[len(times) // 2 :])[len(times) // 4]


def ceilings(cfg):
    """What this machine reaches now: FLOP/s of matrix products in the dtype of the run, and bytes
    read and written per second by copies too large for its caches."""
    _, device, dtype = setting(cfg)
    gpu = device.type == "cuda"
    m, k, n = (8192, 4096, 14_336) if gpu else (1024, 1024, 2048)
    a, b = torch.randn(m, k, device=device).to(dtype), torch.randn(k, n, device=device).to(dtype)
    seconds = sustained(lambda: a @ b, device, 20 if gpu else 3)
    source = torch.ones(2**30 if gpu else 2**27, device=device)
    target = torch.ones_like(source)
    copying = sustained(lambda: target.copy_(source), device, 3)
    return {"device": device_name(), "flops": 2 * m * k * n / seconds,
            "bytes": 2 * source.nbytes / copying}  # fmt: skip


# ---- parity --------------------------------------------------------------------------------------


def trained(arm, shape, device, dtype, steps):
    """(losses of some steps, {name: gradient of the first step}) from the common start."""
    model, loss, update = build(arm, shape.config, device, dtype)
    losses, gradients = [], {}
    for step in tqdm(range(steps), f"parity, {arm} {dtype}", disable=None):
        losses.append(backward(loss, batch(shape, step, device), shape.documents).item())
        if step == 0:
            for name, p in model.named_parameters():
                whole = getattr(p.grad, "full_tensor", lambda p=p: p.grad)()
                gradients[name] = whole.to(torch.float32, copy=True)
        update()
    return torch.tensor(losses, dtype=torch.float64), gradients


def angles(gradients, exact):
    """{name: 1 - cosine between the gradient and the exact one}"""
    pairs = {name: (g.double().flatten(), exact[name].double().flatten())
             for name, g in gradients.items()}  # fmt: skip
    return {name: 1 - F.cosine_similarity(a, b, 0).item() for name, (a, b) in pairs.items()}


def parity(cfg):
    """Loss and gradients of an arm against Hugging Face's in fp32, at two layers of the shape.

    In fp32 the losses agree to 1e-5 of themselves, and cosines of gradients are 0.9999. In bf16 the
    losses may be off by 1.1 times as much as Hugging Face's own bf16 is, in the mean over the
    steps, and the gradients by 1.1 times as much, too.
    """
    shape, device, dtype = setting(cfg)
    shape = replace(shape, config=replace(shape.config, num_hidden_layers=2), documents=2,
                    length=min(shape.length, 1024 if device.type == "cuda" else 128))  # fmt: skip
    steps = 20 if device.type == "cuda" else 4
    reference, exact = trained("hf", shape, device, torch.float32, steps)
    losses, gradients = trained(cfg.arm, shape, device, dtype, steps)
    loss_allowed, angle_allowed = 1e-5, dict.fromkeys(exact, 1e-4)
    off = ((losses - reference) / reference).abs().max().item()
    if dtype != torch.float32:
        theirs, rounded = trained("hf+bf16", shape, device, dtype, steps)
        off = (losses - reference).abs().mean().item()
        loss_allowed = 1.1 * (theirs - reference).abs().mean().item()
        angle_allowed = {k: max(1e-4, 1.1 * a) for k, a in angles(rounded, exact).items()}
    found = angles(gradients, exact)
    worst = max(found, key=lambda name: found[name] / angle_allowed[name])
    return {"loss": off, "loss_allowed": loss_allowed, "angle": found[worst],
            "angle_allowed": angle_allowed[worst], "worst": worst,
            "first_loss": reference[0].item()}  # fmt: skip


# ---- timing --------------------------------------------------------------------------------------


@contextlib.contextmanager
def watched(found):
    """Meanwhile let nvidia-smi log clock, power and temperature (p20, p50, p80 of each) and the
    reasons for throttling."""
    fields = ("clocks.sm", "power.draw", "temperature.gpu", "clocks_throttle_reasons.active")
    command = [
        "nvidia-smi",
        f"--query-gpu={','.join(fields)}",
        "--format=csv,noheader,nounits",
        "--id=0",
    ]
    with tempfile.TemporaryFile("w+") as log:
        try:
            process = subprocess.Popen([*command, "-lms", "500"], stdout=log)
        except OSError:  # no GPU
            yield
            return
        try:
            yield
        finally:
            process.terminate()
            process.wait()
        log.seek(0)
        rows = [line.split(", ") for line in log.read().splitlines() if "N/A" not in line]
    rows = [row for row in rows if len(row) == len(fields)]  # the last line may be cut off
    for field, column in zip(fields, zip(*rows, strict=True), strict=bool(rows)):
        if "reasons" in field:
            found[field] = sorted(set(column))
        else:
            found[field] = quantiles(list(map(float, column)))


def trial(cfg, shape, device, dtype, size):
    """Least seconds of a few steps with so many documents at a time, on a model made for it: one
    that ran out of memory in the middle of a step is not to be used again."""
    _, loss, update = build(cfg.arm, shape.config, device, dtype)
    times = []
    for step in range(4):
        since = time.perf_counter()
        backward(loss, batch(shape, step, device), size)
        update()
        wait(device)
        times.append(time.perf_counter() - since)
    return min(times)


def trials(cfg, shape, device, dtype):
    """{documents at a time: seconds of a step} for 1, 2, 4 ... of them, as many as fit."""
    found = {}
    for size in (2**i for i in range(int(math.log2(shape.documents)) + 1)):
        try:
            found[size] = trial(cfg, shape, device, dtype, size)
        except torch.OutOfMemoryError:
            break
        finally:
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
    return found


def timing(cfg):
    """Seconds of each step (and of this process's own CPU time), losses, peak memory of an arm."""
    shape, device, dtype = setting(cfg)
    try:
        tried, smi, seconds, cpu_seconds, losses = {}, {}, [], [], []
        micro = cfg.micro or shape.documents
        if not cfg.micro and device.type == "cuda" and shape.documents > 1:
            tried = trials(cfg, shape, device, dtype)
            micro = min(tried, key=tried.get, default=1)
        _, loss, update = build(cfg.arm, shape.config, device, dtype)
        with watched(smi):
            for step in tqdm(range(cfg.warmup + cfg.steps), cfg.arm, disable=None):
                ids = batch(shape, step, device)
                wait(device)
                since, cpu_since = time.perf_counter(), time.process_time()
                value = backward(loss, ids, micro)
                update()
                losses.append(value.item())
                wait(device)
                seconds.append(time.perf_counter() - since)
                cpu_seconds.append(time.process_time() - cpu_since)
    except torch.OutOfMemoryError:
        return {"error": "out of memory"}
    reserved = torch.cuda.max_memory_reserved() / 1e9 if device.type == "cuda" else None
    return {"seconds": seconds[cfg.warmup :], "cpu_seconds": cpu_seconds[cfg.warmup :],
            "losses": losses, "micro": micro, "trials": tried, "memory_gb": memory_gb(device),
            "reserved_gb": reserved, "nvidia_smi": smi}  # fmt: skip
