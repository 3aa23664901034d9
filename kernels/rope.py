"""Rotary position embedding, rotate-half form      (arXiv:2104.09864)

The head dimension is cut in two halves (x1, x2), as in Hugging Face checkpoints; pair i is
turned by the angle position * inv_freq[i]:

    y1 = x1 * cos - x2 * sin
    y2 = x2 * cos + x1 * sin

Why fuse: eager PyTorch writes both halves, four products and their joint, for q and for k. Here one
launch reads q and k once and writes them once, and a token's cos and sin serve all of its heads.

Backward: the same turn by -angle, so nothing but cos and sin is kept.

Shapes: q (N, H, Dh), k (N, K, Dh), cos and sin (N, Dh/2) fp32.
"""

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from kernels import check_shape, use_triton, wide


def rope_ref(x, cos, sin):
    x1, x2 = x.to(wide(x.dtype)).chunk(2, dim=-1)  # (N, H, Dh/2) each
    cos, sin = cos[:, None], sin[:, None]  # (N, 1, Dh/2): the same for every head
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1).to(x.dtype)


@triton.jit
def _turn(x_ptr, y_ptr, n, cos, sin, heads, HALF, HEADS: tl.constexpr, COLS: tl.constexpr):
    """All heads of token n: y = x turned by the angles of cos, sin (COLS,)."""
    head, col = tl.arange(0, HEADS)[:, None], tl.arange(0, COLS)[None]
    first = (n * heads + head) * 2 * HALF + col  # x1; x2 stands HALF further
    inside = (head < heads) & (col < HALF)
    x1 = tl.load(x_ptr + first, inside, 0.0).to(tl.float32)  # (HEADS, COLS)
    x2 = tl.load(x_ptr + first + HALF, inside, 0.0).to(tl.float32)
    tl.store(y_ptr + first, x1 * cos - x2 * sin, inside)
    tl.store(y_ptr + first + HALF, x2 * cos + x1 * sin, inside)


@triton.jit
def _rope(
    q_ptr, k_ptr, cos_ptr, sin_ptr, q_out_ptr, k_out_ptr, H, K, HALF,
    BACK: tl.constexpr, Q_HEADS: tl.constexpr, K_HEADS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Token n of q and of k. BACK turns the other way."""
    n = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, COLS)
    cos = tl.load(cos_ptr + n * HALF + col, col < HALF, 0.0)[None]
    sin = tl.load(sin_ptr + n * HALF + col, col < HALF, 0.0)[None]
    if BACK:
        sin = -sin
    _turn(q_ptr, q_out_ptr, n, cos, sin, H, HALF, Q_HEADS, COLS)
    _turn(k_ptr, k_out_ptr, n, cos, sin, K, HALF, K_HEADS, COLS)


def turn(q, k, cos, sin, back):
    """Launch: q (N, H, Dh), k (N, K, Dh), contiguous -> both turned by angle, or -angle if back."""
    (N, H, Dh), K = q.shape, k.shape[1]
    q_out, k_out = torch.empty_like(q), torch.empty_like(k)
    blocks = [triton.next_power_of_2(size) for size in (H, K, Dh // 2)]
    _rope[(N,)](q, k, cos, sin, q_out, k_out, H, K, Dh // 2, back, *blocks, num_warps=4)
    return q_out, k_out


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, cos, sin):
        ctx.save_for_backward(cos, sin)
        return turn(q, k, cos, sin, False)

    @staticmethod
    @once_differentiable
    def backward(ctx, dq, dk):
        return *turn(dq.contiguous(), dk.contiguous(), *ctx.saved_tensors, True), None, None


def rope(q, k, cos, sin):
    """q (N, H, Dh), k (N, K, Dh), cos, sin (N, Dh/2) fp32 -> the turned q and k, in their dtype.

    ValueError for other shapes or dtypes."""
    N, _, Dh = q.shape
    check_shape("rope", "k", k, (N, None, Dh))
    check_shape("rope", "cos", cos, (N, Dh // 2))
    check_shape("rope", "sin", sin, (N, Dh // 2))
    if not use_triton("rope", q=q, k=k) or q.numel() == 0:
        return rope_ref(q, cos, sin), rope_ref(k, cos, sin)
    use_triton("rope", cos=cos, sin=sin)  # both alike
    if (cos.dtype, cos.device) != (torch.float32, q.device):
        raise ValueError(f"rope: cos is {cos.dtype} on {cos.device}, must be fp32 on {q.device}")
    return _Rope.apply(q.contiguous(), k.contiguous(), cos.contiguous(), sin.contiguous())


if __name__ == "__main__":
    from kernels.bench import DEVICE, compare

    for H, K, Dh in ((32, 8, 64), (32, 8, 128)):
        q, k, angle = torch.randn(8192, H, Dh), torch.randn(8192, K, Dh), torch.randn(8192, Dh // 2)
        cos, sin = angle.cos().to(DEVICE), angle.sin().to(DEVICE)
        compare("rope", lambda q, k, c=cos, s=sin: rope(q, k, c[: len(q)], s[: len(q)]),
                lambda q, k, c=cos, s=sin: (rope_ref(q, c[: len(q)], s[: len(q)]),
                                            rope_ref(k, c[: len(q)], s[: len(q)])), (q, k),
                forward=2 * 8192 * (H + K) * Dh, backward=2 * 8192 * (H + K) * Dh)  # fmt: skip
