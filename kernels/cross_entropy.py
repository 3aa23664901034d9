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

Tiles are sized by bytes (TILE_BYTES): small ones starve the matrix units (256 tokens leave most of
an H200 idle) and each tile of the second form adds to the whole of dweight; large ones cost the
memory that this file is there to save, and on a CPU they only fall out of the cache.

In bf16 the per-token form works on fp32 logits, the common one on bf16 logits as Hugging Face does:
its log-probs are only logged, and an error of 1/512 in dz is what bf16 has anyway.

Shapes: hidden (N, D), weight (V, D), labels (N,) with -100 = ignored -> logprobs (N,), at
least fp32. Ignored rows give 0 and cost nothing: prompts pay no head.
"""

import torch
import triton
import triton.language as tl

from kernels import check_shape, use_triton, wide

IGNORE = -100
TILE_BYTES = {"cpu": 2**22, "cuda": 2**30}  # a second-level cache; what an H200 can spare
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
    total = z.sub_(top[:, None]).exp_().sum(-1)  # in place: half the time of z.logsumexp(-1)
    return top + total.log(), torch.where(here, picked, 0.0)


def dlogits_ref(z, column, lse, g):
    """-> g * (one-hot of column - exp(z - lse)) (R, C), in place of z; lse, g (R,)."""
    here = (column >= 0) & (column < z.shape[1])
    z.sub_(lse[:, None]).exp_().mul_(-g[:, None])
    column = column.clamp(0, z.shape[1] - 1)[:, None]
    return z.scatter_add_(1, column, torch.where(here, g, 0.0)[:, None])


def stats_and_dlogits_ref(z, column):
    """-> lse, picked, dz for g = 1 in place of z, for a tile of whole rows. One exp, not two."""
    lse, picked = stats_ref(z, column)
    z.mul_(-1 / z.sum(-1, keepdim=True))
    return lse, picked, z.scatter_add_(1, column[:, None], torch.ones_like(picked)[:, None])


@triton.jit
def _stats(z_ptr, column_ptr, lse_ptr, picked_ptr, C, BLOCK: tl.constexpr):
    """Row r of z (R, C), BLOCK columns at a time; the sum is relative to the largest so far."""
    r = tl.program_id(0).to(tl.int64)
    top, total = -float("inf"), 0.0
    for first in range(0, C, BLOCK):
        cols = first + tl.arange(0, BLOCK)
        z = tl.load(z_ptr + r * C + cols, cols < C, -float("inf")).to(tl.float32)
        new_top = tl.maximum(top, tl.max(z, 0))
        total = total * tl.exp(top - new_top) + tl.sum(tl.exp(z - new_top), 0)
        top = new_top
    tl.store(lse_ptr + r, top + tl.log(total))
    column = tl.load(column_ptr + r)
    here = (column >= 0) & (column < C)
    tl.store(picked_ptr + r, tl.load(z_ptr + r * C + column, here, 0.0).to(tl.float32))


@triton.jit
def _dlogits(z_ptr, dz_ptr, column_ptr, lse_ptr, g_ptr, C, BLOCK: tl.constexpr):
    """BLOCK columns of row r; dz may be z."""
    r = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    lse, g = tl.load(lse_ptr + r), tl.load(g_ptr + r)
    z = tl.load(z_ptr + r * C + cols, cols < C, 0.0).to(tl.float32)
    hit = (cols == tl.load(column_ptr + r)).to(tl.float32)
    tl.store(dz_ptr + r * C + cols, g * (hit - tl.exp(z - lse)), cols < C)


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


def stats_and_dlogits(z, column):
    """-> log-probs (R,), dz (R, C) for g = 1, in z's dtype; z is lost."""
    if use_triton("linear_logprobs", logits=z):
        lse, picked = stats(z, column)
        dz = dlogits(z, column, lse, torch.ones_like(lse), z.dtype)
    else:
        lse, picked, dz = stats_and_dlogits_ref(z.to(wide(z.dtype)), column)
    return picked - lse, dz.to(z.dtype)


def product(a, b):
    """a (n, k) @ b (k, m), added up and returned in fp32 or wider."""
    if a.is_cuda and a.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(a, b, out_dtype=torch.float32)
    return (a @ b).to(wide(a.dtype))


def tiles(total, across, bytes_each, device, at_most=None):
    """range(0, total) in slices: of TILE_BYTES with `across` numbers of bytes_each beside it, in
    whole blocks of 128, and no more than `at_most` of them."""
    size = TILE_BYTES.get(device.type, 2**30) // (across * bytes_each) // 128 * 128
    size = max(size, 128, -(-total // at_most) if at_most else 0)
    return [slice(i, min(i + size, total)) for i in range(0, total, size)]


class _PerToken(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, labels):
        """All rows labelled: hidden (M, D), weight (V, D), labels (M,) -> (M,)."""
        parts = []
        for cols in _PerToken.tiles(hidden, weight):
            z = product(hidden, weight[cols].T)  # (M, columns)
            parts.append(stats(z, labels - cols.start))
        lse, picked = map(torch.stack, zip(*parts, strict=True))  # (tiles, M)
        lse = lse.logsumexp(0)
        ctx.save_for_backward(hidden, weight, labels, lse)
        return picked.sum(0) - lse

    @staticmethod
    def backward(ctx, grad):
        hidden, weight, labels, lse = ctx.saved_tensors
        dhidden = torch.zeros_like(hidden, dtype=lse.dtype)
        dweight = torch.empty_like(weight)
        for cols in _PerToken.tiles(hidden, weight):
            z = product(hidden, weight[cols].T)
            dz = dlogits(z, labels - cols.start, lse, grad.to(lse.dtype).contiguous(), hidden.dtype)
            dhidden += product(dz, weight[cols])
            torch.mm(dz.T, hidden, out=dweight[cols])
        return dhidden.to(hidden.dtype), dweight, None

    @staticmethod
    def tiles(hidden, weight):
        each = 4 if hidden.element_size() == 4 else 4 + hidden.element_size()  # z, and dz beside it
        return tiles(len(weight), max(1, len(hidden)), each, hidden.device)


class _CommonGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, labels):
        """As _PerToken, with the gradients for an upstream gradient of 1."""
        logprobs = hidden.new_empty(len(hidden), dtype=wide(hidden.dtype))
        dhidden, dweight = torch.empty_like(hidden), torch.zeros_like(weight)
        # In bf16 every tile rounds dweight once more: four are still within twice one rounding
        at_most = None if hidden.dtype == logprobs.dtype else 4
        rows = tiles(len(hidden), len(weight), hidden.element_size(), hidden.device, at_most)
        space = hidden.new_empty(rows[0].stop if rows else 0, len(weight))  # one for all tiles
        for tile in rows:
            x = hidden[tile]
            z = torch.mm(x, weight.T, out=space[: len(x)])  # (rows, V)
            logprobs[tile], dz = stats_and_dlogits(z, labels[tile])
            torch.mm(dz, weight, out=dhidden[tile])
            dweight.addmm_(dz.T, x)
        ctx.gradients = dhidden, dweight
        return logprobs

    @staticmethod
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
    use_triton("linear_logprobs", hidden=hidden, weight=weight)  # checks dtypes and devices
    kept = labels != IGNORE
    labels = labels[kept]
    torch._assert_async(
        ((labels >= 0) & (labels < V)).all(), f"linear_logprobs: a label is not in 0 .. {V - 1}"
    )
    form = _CommonGradient if common_gradient and torch.is_grad_enabled() else _PerToken
    logprobs = form.apply(hidden[kept], weight, labels)  # (M,)
    return logprobs.new_zeros(N).masked_scatter(kept, logprobs)
