"""Log-probs of the labels under the output head, without ever holding the (N, V) logits.

    z = hidden @ weight.T                        (N, V), only a tile of it at a time
    logprob[n] = z[n, label[n]] - lse[n]         lse[n] = logsumexp(z[n])
    dz[n, v] = g[n] * ((v == label[n]) - exp(z[n, v] - lse[n]))      g = upstream gradient
    dhidden = dz @ weight                        dweight = dz.T @ hidden

With V = 128,256 the logits of 8,192 tokens take 4.2 GB in fp32, their gradient as much again. Two
forms, both exact:

per token (DPO, scoring): g may differ from token to token and is known only in the backward pass.
    Forward keeps lse, one number a token; backward makes the logits again: four matrix products.
    Tiles hold all tokens and some columns, so a tile's rows of dweight are finished at once.
common gradient (CPT, SFT): the caller promises one g for all labels. Forward then takes the
    gradients for g = 1 while it has the logits, and backward only scales them: three products.
    Tiles hold some tokens and all columns, as lse must be known before dz.

Tiles are sized by bytes (TILE_BYTES): small ones starve the matrix units (the dhidden of 256 tokens
at D = 4,096 is 32 blocks of 128 x 256, for the 132 multiprocessors of an H200) and each tile of the
second form adds to the whole of dweight; large ones cost the memory that this file is there to
save, and on a CPU they only fall out of the cache. dweight is added up in its own dtype, in bf16
from four tiles at most, so there a tile is a quarter of the tokens at least.

Logits of bf16 inputs are fp32 on a GPU. Rounded to bf16, as Hugging Face's are, a logit of 20 is
off by up to 1/16, and so is its probability. (On a CPU torch has no such product: they are.)

Shapes: hidden (N, D), weight (V, D), labels (N,) with -100 = ignored -> logprobs (N,), at
least fp32. Ignored rows give 0 and cost nothing: prompts pay no head.
"""

import math

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from kernels import check_shape, use_triton, wide

IGNORE = -100
TILE_BYTES = {"cpu": 2**23, "cuda": 3 * 2**28}  # about a cache; what an H200 can spare
BLOCK, WARPS = 4096, 8  # columns that one program takes at a time


def linear_logprobs_ref(hidden, weight, labels):
    logits = (hidden @ weight.T).to(wide(hidden.dtype))  # (N, V)
    picked = logits.gather(1, labels.clamp(min=0)[:, None])[:, 0]  # (N,)
    return torch.where(labels == IGNORE, 0.0, picked - logits.logsumexp(-1))


# What happens to a tile of logits z (R, C). `column` (R,) is the place of each row's label in the
# tile; outside of 0 .. C-1 the label stands in another tile.


def stats_ref(z, column):
    """-> logsumexp of each row (R,), z at its label or 0 (R,); z becomes exp(z - its largest)."""
    here = (column >= 0) & (column < z.shape[1])
    picked = z.gather(1, column.clamp(0, z.shape[1] - 1)[:, None])[:, 0]
    top = z.amax(-1)
    total = z.sub_(top[:, None]).exp_().sum(-1)  # in place: z.logsumexp(-1) copies first
    return top + total.log(), torch.where(here, picked, 0.0)


def dlogits_ref(z, column, lse, g):
    """-> g * (one-hot of column - exp(z - lse)) (R, C), in place of z; lse, g (R,)."""
    here = (column >= 0) & (column < z.shape[1])
    z.sub_(lse[:, None]).exp_().mul_(-g[:, None])
    column = column.clamp(0, z.shape[1] - 1)[:, None]
    return z.scatter_add_(1, column, torch.where(here, g, 0.0)[:, None])


def stats_and_dlogits_ref(z, column):
    """-> log-probs (R,), dz for g = 1 in place of z, for a tile of whole rows. One exp, not two."""
    lse, picked = stats_ref(z, column)
    z.mul_(-1 / z.sum(-1, keepdim=True))
    return picked - lse, z.scatter_add_(1, column[:, None], torch.ones_like(picked)[:, None])


@triton.jit
def _logsumexp(z_ptr, C, BLOCK: tl.constexpr):
    """Of the C numbers at z_ptr, BLOCK at a time; the sum is relative to the largest so far."""
    top, total = -float("inf"), 0.0
    for first in range(0, C, BLOCK):
        cols = first + tl.arange(0, BLOCK)
        z = tl.load(z_ptr + cols, cols < C, -float("inf"))
        new_top = tl.maximum(top, tl.max(z, 0))
        total = total * tl.exp(top - new_top) + tl.sum(tl.exp(z - new_top), 0)
        top = new_top
    return top + tl.log(total)


@triton.jit
def _stats(z_ptr, column_ptr, lse_ptr, picked_ptr, C, BLOCK: tl.constexpr):
    """Row r of z (R, C)."""
    r = tl.program_id(0).to(tl.int64)
    column = tl.load(column_ptr + r)
    here = (column >= 0) & (column < C)
    tl.store(picked_ptr + r, tl.load(z_ptr + r * C + column, here, 0.0))
    tl.store(lse_ptr + r, _logsumexp(z_ptr + r * C, C, BLOCK))


@triton.jit
def _dlogits(z_ptr, dz_ptr, column_ptr, lse_ptr, g_ptr, C, BLOCK: tl.constexpr):
    """BLOCK columns of row r; dz may be z."""
    r = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    lse, g = tl.load(lse_ptr + r), tl.load(g_ptr + r)
    z = tl.load(z_ptr + r * C + cols, cols < C, 0.0)
    hit = (cols == tl.load(column_ptr + r)).to(tl.float32)
    tl.store(dz_ptr + r * C + cols, g * (hit - tl.exp(z - lse)), cols < C)


@triton.jit
def _stats_and_dlogits(
    z_ptr, dz_ptr, column_ptr, logprob_ptr, C, dz_stride, BLOCK: tl.constexpr
):
    """Row r of z (R, C): log-prob of its label, and dz for g = 1, which takes the place of z.

    dz_ptr is z_ptr in a dtype of the same or half the size: dz then ends where half of z did, and a
    block of it covers only numbers that have been read. The barrier holds the fast warps back."""
    r = tl.program_id(0).to(tl.int64)
    z_ptr += r * C
    dz_ptr += r * dz_stride
    column, lse = tl.load(column_ptr + r), _logsumexp(z_ptr, C, BLOCK)
    tl.store(logprob_ptr + r, tl.load(z_ptr + column) - lse)
    for first in range(0, C, BLOCK):
        cols = first + tl.arange(0, BLOCK)
        z = tl.load(z_ptr + cols, cols < C, 0.0)
        tl.debug_barrier()
        tl.store(dz_ptr + cols, (cols == column).to(tl.float32) - tl.exp(z - lse), cols < C)


def stats(z, column):
    if not use_triton("linear_logprobs", logits=z):
        return stats_ref(z, column)
    R, C = z.shape
    lse, picked = torch.empty(2, R, dtype=torch.float32, device=z.device)
    _stats[(R,)](z, column, lse, picked, C, BLOCK, num_warps=WARPS)
    return lse, picked


def dlogits(z, column, lse, g, dtype):
    """dz in `dtype`; z is lost."""
    if not use_triton("linear_logprobs", logits=z):
        return dlogits_ref(z, column, lse, g).to(dtype)
    R, C = z.shape
    dz = z if z.dtype == dtype else torch.empty_like(z, dtype=dtype)
    _dlogits[(R, triton.cdiv(C, BLOCK))](z, dz, column, lse, g, C, BLOCK, num_warps=WARPS)
    return dz


def stats_and_dlogits(z, column, dtype):
    """z (R, C) in fp32 or wider -> log-probs (R,), dz (R, C) for g = 1 in `dtype`; z is lost."""
    if not use_triton("linear_logprobs", logits=z):
        logprobs, dz = stats_and_dlogits_ref(z, column)
        return logprobs, dz.to(dtype)
    R, C = z.shape
    logprobs = torch.empty(R, dtype=torch.float32, device=z.device)
    dz = z.view(dtype)  # (R, C) or, of numbers half the size, (R, 2 C)
    _stats_and_dlogits[(R,)](z, dz, column, logprobs, C, dz.stride(0), BLOCK, num_warps=WARPS)
    return logprobs, dz[:, :C]


def product(a, b, space):
    """a (n, k) @ b (k, m) in the dtype and memory of `space` (n m or more,), fp32 or wider. On a
    CPU the product of 16-bit inputs has been rounded to 16 bits."""
    shape = len(a), b.shape[1]
    out = space[: math.prod(shape)].view(shape)
    if a.dtype == out.dtype:
        return torch.mm(a, b, out=out)
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=out.dtype, out=out)
    return out.copy_(a @ b)


def add_product(total, a, b):
    """total (n, m) += a @ b, added up in total's dtype."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total += product(a, b, torch.empty_like(total).view(-1))


def tiles(total, across, bytes_each, device, least):
    """range(0, total) in slices of `least` or more, in steps of 64: of TILE_BYTES where each of the
    slice has `across` numbers of bytes_each."""
    size = TILE_BYTES["cpu" if device.type == "cpu" else "cuda"] // (across * bytes_each)
    size = max(size // 64, -(-least // 64)) * 64
    return [slice(i, min(i + size, total)) for i in range(0, total, size)]


class _PerToken(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, labels):
        """All rows labelled: hidden (M, D), weight (V, D), labels (M,) -> (M,)."""
        columns, space = _PerToken.plan(hidden, weight)
        parts = []
        for cols in columns:
            z = product(hidden, weight[cols].T, space)  # (M, columns)
            parts.append(stats(z, labels - cols.start))
        lse, picked = map(torch.stack, zip(*parts, strict=True))  # (tiles, M)
        lse = lse.logsumexp(0)
        ctx.save_for_backward(hidden, weight, labels, lse)
        return picked.sum(0) - lse

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        hidden, weight, labels, lse = ctx.saved_tensors
        dhidden = torch.zeros_like(hidden, dtype=lse.dtype)
        dweight, g = torch.empty_like(weight), grad.contiguous()
        columns, space = _PerToken.plan(hidden, weight)
        for cols in columns:
            z = product(hidden, weight[cols].T, space)
            dz = dlogits(z, labels - cols.start, lse, g, hidden.dtype)
            add_product(dhidden, dz, weight[cols])
            torch.mm(dz.T, hidden, out=dweight[cols])
            del dz  # before the next one is made
        return dhidden.to(hidden.dtype), dweight, None

    @staticmethod
    def plan(hidden, weight):
        """-> slices of the vocabulary, and space for the logits of one of them: made once, as on a
        CPU a product into memory that is new takes half as long again."""
        M, beside = max(1, len(hidden)), hidden.element_size() % 4  # of z in fp32, a dz in bf16
        found = tiles(len(weight), M, 4 + beside, hidden.device, 64)
        return found, hidden.new_empty(M * found[0].stop, dtype=wide(hidden.dtype))


class _CommonGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, labels):
        """As _PerToken, with the gradients for an upstream gradient of 1."""
        logprobs = hidden.new_empty(len(hidden), dtype=wide(hidden.dtype))
        dhidden, dweight = torch.empty_like(hidden), torch.zeros_like(weight)
        # Fewer rows starve a CPU, too: 64 of them take a third longer in all than 512. And in bf16
        # every tile rounds dweight once more; four are still within twice one rounding
        least = 512 if hidden.dtype == logprobs.dtype else max(512, -(-len(hidden) // 4))
        parts = tiles(len(hidden), len(weight), 4, hidden.device, least)
        size = parts[0].stop * len(weight) if parts else 0
        space = hidden.new_empty(size, dtype=logprobs.dtype)
        for rows in parts:
            x = hidden[rows]
            z = product(x, weight.T, space)  # (rows, V)
            logprobs[rows], dz = stats_and_dlogits(z, labels[rows], hidden.dtype)
            torch.mm(dz, weight, out=dhidden[rows])
            dweight.addmm_(dz.T, x)
        ctx.gradients = dhidden, dweight
        return logprobs

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        if ctx.gradients is None:
            raise RuntimeError("linear_logprobs: common_gradient allows one backward pass")
        (dhidden, dweight), ctx.gradients = ctx.gradients, None  # scaled in place below
        message = "linear_logprobs: common_gradient was promised, but the gradients differ"
        torch._assert_async((grad == grad[:1]).all(), message)
        g = grad[:1].to(dhidden.dtype).sum()  # 0-dim; 0 without any label
        return dhidden.mul_(g), dweight.mul_(g), None


def linear_logprobs(hidden, weight, labels, common_gradient=False):
    """hidden (N, D), weight (V, D), labels (N,) already shifted -> log-probs (N,), 0 where ignored.

    common_gradient: the caller promises that the loss gives every label the same gradient, as a
    (scaled) sum of log-probs does; the backward pass raises an error if it does not.
    A row set without any label gives zeros that still hang on the graph, so that a rank without
    targets takes part in the backward pass and no other rank waits for it.
    ValueError for other shapes or dtypes, RuntimeError for a label outside 0 .. V-1.
    """
    (N, D), V = hidden.shape, len(weight)
    check_shape("linear_logprobs", "weight", weight, (V, D))
    check_shape("linear_logprobs", "labels", labels, (N,))
    if labels.dtype != torch.int64:
        raise ValueError(f"linear_logprobs: labels must be int64, is {labels.dtype}")
    use_triton("linear_logprobs", hidden=hidden, weight=weight)  # checks dtypes and devices
    kept = (labels != IGNORE).nonzero()[:, 0]  # (M,) once, as a GPU waits for their number
    labels = labels[kept]
    torch._assert_async(
        ((labels >= 0) & (labels < V)).all(), f"linear_logprobs: a label is not in 0 .. {V - 1}"
    )
    # fp16 ends at 65,504, too soon for gradients that are not scaled yet
    at_once = common_gradient and torch.is_grad_enabled() and hidden.dtype != torch.float16
    form = _CommonGradient if at_once else _PerToken
    logprobs = form.apply(hidden.index_select(0, kept), weight, labels)  # (M,)
    return logprobs.new_zeros(N).index_copy(0, kept, logprobs)


def benchmark():
    """Llama-3-8B's head for 8,192 tokens: forward and backward together, and memory beyond the
    inputs and their gradients; the errors of both gradients, relative to fp64 for some tokens."""
    from kernels import bench

    if not bench.ON_GPU:
        print("linear_logprobs: no GPU here; benchmarks/head.py measures on a CPU")
        return
    N, D, V = 8192, 4096, 128_256
    hidden, weight = torch.randn(N, D), 0.02 * torch.randn(V, D)
    labels, ceiling = torch.randint(V, (N,), device="cuda"), bench.matrix_rate()

    def plain(h, w, labels):
        return -torch.nn.functional.cross_entropy(h @ w.T, labels, reduction="none")

    arms = {
        "per token": linear_logprobs,
        "common gradient": lambda h, w, y: linear_logprobs(h, w, y, common_gradient=True),
        "torch": plain,
        "torch.compile": torch.compile(plain),
    }
    for name, liger in bench.liger("liger_fused_linear_cross_entropy").items():
        arms[name] = lambda h, w, y, liger=liger: -liger(h, w, y, reduction="sum")[None]
    for arm, op in arms.items():
        inputs = bench.prepared((hidden, weight), torch.bfloat16)

        def step(op=op, inputs=inputs):
            return torch.autograd.grad(-op(*inputs, labels).sum() / N, inputs)

        own = sum(x.nbytes for x in step())
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        beyond = torch.cuda.max_memory_allocated() - before - own
        ms = bench.milliseconds(step)
        few = [x[:256].detach().requires_grad_() if len(x) == N else x for x in inputs]
        exact = [x.detach().double().requires_grad_() for x in few]
        want = torch.autograd.grad(-plain(*exact, labels[:256]).sum(), exact)
        got = torch.autograd.grad(-op(*few, labels[:256]).sum(), few)
        error = [((a - b).norm() / b.norm()).item() for a, b in zip(got, want, strict=True)]
        rate = 6 * N * D * V / ms * 1e3  # of three products, whatever the arm does
        print(f"{arm:<16}{ms:8.2f} ms {rate / 1e12:6.0f} TFLOP/s {rate / ceiling:6.1%} "
              f"{beyond / 1e9:6.2f} GB  errors {error[0]:.1e} {error[1]:.1e}")  # fmt: skip
        bench.store({"op": "linear_logprobs", "shape": f"{N}x{D}x{V}", "arm": arm, "ms": ms,
                     "share": rate / ceiling, "ceiling": ceiling, "bytes_beyond": beyond,
                     "errors": error})  # fmt: skip


if __name__ == "__main__":
    benchmark()
