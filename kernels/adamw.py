"""AdamW on exact fp32 weights (arXiv:1711.05101), kept as bf16 + 16 bits; gradient clipping inside.

    g  = scale * grad                             scale: what clipping leaves of the gradient
    m <- m + (1 - beta1) (g - m)                  t = step, counted from 1
    v <- v + (1 - beta2) (g^2 - v)                c = sqrt(1 - beta2^t)
    w <- w - (lr weight_decay w + rate m / (sqrt(v) + eps c)),  rate = lr c / (1 - beta1^t)

The fraction is the usual m / (1 - beta1^t) over sqrt(v / (1 - beta2^t)) + eps, expanded by c.

Why 16 + 16 bits: at a learning rate of 5e-7 a step is far below half a unit in the last place of a
bf16 weight, and rounding would undo nearly all of them. So the update is made on an fp32 master,
and the forward pass needs its bf16 rounding. Both fit in 32 bits, as the rounding is nearly the
master's upper half already:

    bits(master) = (bits(weight) << 16) + low     low in -2^15 .. 2^15 - 1, for any 32 bits

`weight` is the master rounded to nearest (ties away from zero), `low` what the rounding took away
or added. 14 bytes a parameter with a bf16 gradient and two fp32 moments; with a copy of the master
it would be 16, with an fp32 gradient too 18.

Why fuse: one pass over memory. Read weight, low, grad, m, v, write all but grad: 26 bytes a
parameter, 28 where weight and gradient are fp32 and there is no low. Scaling the gradient in place
first would add 4, a master made and dropped in memory 16.

Shapes: all tensors alike, of any shape, contiguous; updated in place.
"""

import math

import torch
import triton
import triton.language as tl

from kernels import check_shape, use_triton, wide

# Numbers at a time where masters are made and dropped: on a CPU they stay in the cache
CHUNK = {"cpu": 2**17, "cuda": 2**26}


def split(master):
    """fp32 -> (bf16, int16) of the same shape; join gives exactly the same fp32 again."""
    bits = master.contiguous().view(torch.int32)
    high = (bits + 0x8000).bitwise_right_shift_(16)  # bit 16 takes a carry at 2^15 or more
    return high.to(torch.int16).view(torch.bfloat16), bits.to(torch.int16)


def join(weight, low):
    """(bf16, int16) -> the fp32 they were split from."""
    return weight.float().view(torch.int32).add_(low).view(torch.float32)


def adamw_ref(
    weight, low, grad, exp_avg, exp_avg_sq, lr, beta1, beta2, eps, weight_decay, step, scale=1.0
):
    """torch's own fused AdamW, of bf16 weights on one chunk after another of their masters.

    An fp32 gradient is left scaled, as clip_grad_norm_ leaves it: that saves a pass over it.
    """
    steps = [torch.tensor(float(step), device=weight.device)]
    scale = torch.as_tensor(scale, dtype=torch.float32, device=weight.device)
    flat = [x if x is None else x.view(-1) for x in (weight, low, grad, exp_avg, exp_avg_sq)]
    size = CHUNK[weight.device.type] if low is not None else weight.numel()
    for begin in range(0, weight.numel(), size):
        w, rest, g, m, v = (x if x is None else x[begin : begin + size] for x in flat)
        master = w if low is None else join(w, rest)
        torch._fused_adamw_(  # what torch.optim.AdamW(fused=True) calls, without its bookkeeping
            [master], [g.to(m.dtype)], [m], [v], [], steps, lr=lr, beta1=beta1, beta2=beta2,
            weight_decay=weight_decay, eps=eps, amsgrad=False, maximize=False, grad_scale=1 / scale,
        )  # fmt: skip
        if low is not None:
            for part, new in zip((w, rest), split(master), strict=True):
                part.copy_(new)


@triton.jit
def _update(
    w_ptr, low_ptr, g_ptr, m_ptr, v_ptr, scale_ptr, n, gain1, gain2, rate, eps, decay,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK of n numbers. gain = 1 - beta; low_ptr None: w is fp32, else the int16 view of bf16."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    g = tl.load(g_ptr + at, inside, 0.0).to(tl.float32) * tl.load(scale_ptr).to(tl.float32)
    m = tl.load(m_ptr + at, inside, 0.0)
    v = tl.load(v_ptr + at, inside, 0.0)
    w = tl.load(w_ptr + at, inside, 0)
    if low_ptr is not None:
        low = tl.load(low_ptr + at, inside, 0).to(tl.int32)
        w = ((w.to(tl.int32) << 16) + low).to(tl.float32, bitcast=True)
    m += gain1 * (g - m)
    v += gain2 * (g * g - v)
    # w is rounded once: (1 - lr weight_decay) w on its own would lose a decay of 5e-8, as fp32 has
    # no number between 1 and 1 - 6e-8
    w -= decay * w + rate * (m / (tl.sqrt(v) + eps))
    tl.store(m_ptr + at, m, inside)
    tl.store(v_ptr + at, v, inside)
    if low_ptr is None:
        tl.store(w_ptr + at, w, inside)
    else:
        bits = w.to(tl.int32, bitcast=True)
        tl.store(w_ptr + at, ((bits + 0x8000) >> 16).to(tl.int16), inside)
        tl.store(low_ptr + at, bits.to(tl.int16), inside)


def check(weight, low, grad, exp_avg, exp_avg_sq, scale):
    """ValueError for tensors that do not go together."""
    wanted = (torch.float32, torch.float64) if low is None else (torch.bfloat16,)
    if weight.dtype not in wanted:
        raise ValueError(f"adamw: weight is {weight.dtype}; with low it is bf16, else fp32 or fp64")
    state = wide(weight.dtype)
    served = {
        "weight": (weight, [weight.dtype]),
        "low": (low, [torch.int16]),
        "grad": (grad, [weight.dtype, state]),
        "exp_avg": (exp_avg, [state]),
        "exp_avg_sq": (exp_avg_sq, [state]),
    }
    for name, (x, dtypes) in served.items():
        if x is None:
            continue
        check_shape("adamw", name, x, weight.shape)
        if x.dtype not in dtypes or x.device != weight.device:
            raise ValueError(f"adamw: {name} is {x.dtype} on {x.device}, weight {weight.dtype} on "
                             f"{weight.device}")  # fmt: skip
        if not x.is_contiguous():
            raise ValueError(f"adamw: {name} must be contiguous, has strides {x.stride()}")
    if isinstance(scale, torch.Tensor) and (scale.ndim or scale.device != weight.device):
        raise ValueError(f"adamw: scale must be 0-dim on {weight.device}, is {tuple(scale.shape)} "
                         f"on {scale.device}")  # fmt: skip


@torch.no_grad()
def adamw(
    weight, low, grad, exp_avg, exp_avg_sq, lr, beta1, beta2, eps, weight_decay, step, scale=1.0
):
    """One step, in place. weight bf16 with low int16, or fp32 (fp64: torch) with low None; grad in
    weight's dtype or that of the moments, fp32. step is 1 at the first. scale: a float or a 0-dim
    tensor on the device, so that a gradient norm need not come to the host."""
    check(weight, low, grad, exp_avg, exp_avg_sq, scale)
    if weight.numel() == 0:
        return
    if not use_triton("adamw", exp_avg=exp_avg, exp_avg_sq=exp_avg_sq):
        adamw_ref(weight, low, grad, exp_avg, exp_avg_sq, lr, beta1, beta2, eps, weight_decay, step,
                  scale)  # fmt: skip
        return
    if not isinstance(scale, torch.Tensor):
        scale = torch.full((), scale, device=weight.device)
    n, block, warps = weight.numel(), 1024, 8  # 4 numbers a thread: fp32 loads of 16 bytes
    c = math.sqrt(1 - beta2**step)
    _update[(triton.cdiv(n, block),)](
        weight if low is None else weight.view(torch.int16), low, grad, exp_avg, exp_avg_sq, scale,
        n, 1 - beta1, 1 - beta2, lr * c / (1 - beta1**step), eps * c, lr * weight_decay, block,
        num_warps=warps,
    )  # fmt: skip


def benchmark():
    """One step on half a billion parameters, Llama-3-8B's embedding, against torch's fp32 AdamW."""
    from kernels.bench import ON_GPU, copy_bandwidth, milliseconds, store

    if not ON_GPU:
        print("adamw: no GPU here, so no speed; tests/test_adamw.py holds the errors")
        return
    n, ceiling = 128_256 * 4096, copy_bandwidth()
    m, v = torch.zeros(2, n, device="cuda")
    master, scale = torch.randn(n, device="cuda"), torch.full((), 0.5, device="cuda")
    grad = torch.randn(n, device="cuda", dtype=torch.bfloat16)
    halves, wide_grad = split(master), grad.float()
    settings = (5e-7, 0.9, 0.95, 1e-8, 0.1, 10, scale)
    steps = [torch.tensor(10.0, device="cuda")]
    arms = {
        "bf16 + 16 bits": (26, lambda: adamw(*halves, grad, m, v, *settings)),
        "fp32": (28, lambda: adamw(master, None, wide_grad, m, v, *settings)),
        "torch fused fp32": (28, lambda: torch._fused_adamw_(
            [master], [wide_grad], [m], [v], [], steps, lr=5e-7, beta1=0.9, beta2=0.95,
            weight_decay=0.1, eps=1e-8, amsgrad=False, maximize=False)),
    }  # fmt: skip
    for arm, (size, step) in arms.items():
        ms = milliseconds(step)
        rate = size * n / ms * 1e3
        print(f"adamw {n} {arm:<16} {ms:8.3f} ms {rate / 1e9:8.0f} GB/s {rate / ceiling:6.1%}")
        store({"op": "adamw", "shape": str(n), "arm": arm, "step_ms": ms, "step_bytes": size * n,
               "step_share": rate / ceiling, "ceiling": ceiling})  # fmt: skip


if __name__ == "__main__":
    benchmark()
