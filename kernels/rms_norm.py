"""RMSNorm: y = x / rms(x) * w,  rms(x) = sqrt(mean(x^2) + eps)      (arXiv:1910.07467)

Why fuse: eager PyTorch makes about a dozen passes over the (N, D) activation, several of them in
fp32. A row fits in registers, so forward is one read and one write, 4 bytes a number in bf16.

Backward, per row, with r = 1 / rms(x) and g = dy * w; r is taken from x again rather than kept:

    dx = r * (g - x * r^2 * mean(g * x))           2 reads, 1 write
    dw = sum over rows of dy * x * r               each program sums its rows, torch the programs

Shapes: x (..., D), w (D,) -> (..., D). The mean is taken in fp32 or wider: squares of bf16 numbers
lose three digits otherwise. The leading dimensions are flattened to N rows. A row of more than
MAX_BYTES does not fit in the registers of a program: PyTorch takes it.
"""

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from kernels import check_shape, use_triton, wide

MAX_BYTES = 32_768  # 16,384 numbers in bf16


def rms_norm_ref(x, weight, eps):
    h = x.to(wide(x.dtype))
    h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)
    return weight * h.to(x.dtype)  # rounded before the weight, as in Hugging Face's Llama


@triton.jit
def _forward(x_ptr, w_ptr, y_ptr, N, D, eps, ROWS: tl.constexpr, COLS: tl.constexpr):
    """ROWS rows of x (N, D) -> the same rows of y."""
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)  # N * D may pass 2^31
    cols = tl.arange(0, COLS)
    inside = (rows < N)[:, None] & (cols < D)[None]
    at = rows[:, None] * D + cols[None]
    x = tl.load(x_ptr + at, inside, 0.0).to(tl.float32)  # (ROWS, COLS)
    w = tl.load(w_ptr + cols, cols < D, 0.0).to(tl.float32)
    r = tl.rsqrt(tl.sum(x * x, 1) / D + eps)  # (ROWS,)
    x_hat = (x * r[:, None]).to(y_ptr.dtype.element_ty).to(tl.float32)  # rounded as in rms_norm_ref
    tl.store(y_ptr + at, x_hat * w[None], inside)


@triton.jit
def _backward(
    x_ptr, w_ptr, dy_ptr, dx_ptr, dw_ptr, N, D, eps, ROWS: tl.constexpr, COLS: tl.constexpr
):
    """Program p takes every P-th tile of rows: their dx, and row p of dw (P, D)."""
    cols = tl.arange(0, COLS)
    w = tl.load(w_ptr + cols, cols < D, 0.0).to(tl.float32)
    dw = tl.zeros((COLS,), tl.float32)
    for tile in tl.range(tl.program_id(0), tl.cdiv(N, ROWS), tl.num_programs(0), num_stages=3):
        rows = (tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        inside = (rows < N)[:, None] & (cols < D)[None]
        at = rows[:, None] * D + cols[None]
        x = tl.load(x_ptr + at, inside, 0.0).to(tl.float32)
        dy = tl.load(dy_ptr + at, inside, 0.0).to(tl.float32)
        g = dy * w[None]
        r = tl.rsqrt(tl.sum(x * x, 1) / D + eps)
        mean = tl.sum(g * x, 1) / D
        dx = r[:, None] * (g - x * (r * r * mean)[:, None])
        tl.store(dx_ptr + at, dx, inside)
        dw += tl.sum(dy * x * r[:, None], 0)
    tl.store(dw_ptr + tl.program_id(0).to(tl.int64) * D + cols, dw, cols < D)


def programs(device):
    """How many programs share the rows of the backward pass: 2 a multiprocessor."""
    if device.type == "cuda":
        return 2 * torch.cuda.get_device_properties(device).multi_processor_count
    return 4


def tile(D):
    """(rows, columns, warps) of one program: about 4,096 numbers, whole rows."""
    cols = triton.next_power_of_2(D)
    return max(1, 4096 // cols), cols, min(16, max(4, cols // 512))


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        """x (N, D), contiguous -> (N, D)."""
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        N, D = x.shape
        y = torch.empty_like(x)
        rows, cols, warps = tile(D)
        _forward[(triton.cdiv(N, rows),)](x, weight, y, N, D, eps, rows, cols, num_warps=warps)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        N, D = x.shape
        rows, cols, warps = tile(D)
        P = min(programs(x.device), triton.cdiv(N, rows))
        dx = torch.empty_like(x)
        dw = torch.empty(P, D, dtype=torch.float32, device=x.device)
        _backward[(P,)](
            x, weight, dy.contiguous(), dx, dw, N, D, ctx.eps, rows, cols, num_warps=warps
        )
        return dx, dw.sum(0).to(weight.dtype), None


def rms_norm(x, weight, eps):
    """x (..., D), weight (D,) -> (..., D) in x's dtype. ValueError for other shapes or dtypes."""
    check_shape("rms_norm", "weight", weight, (x.shape[-1],))
    D = x.shape[-1]
    fits = triton.next_power_of_2(D) * x.element_size() <= MAX_BYTES and x.numel() > 0
    if not use_triton("rms_norm", x=x, weight=weight) or not fits:
        return rms_norm_ref(x, weight, eps)
    rows = x.reshape(-1, D).contiguous()
    return _RMSNorm.apply(rows, weight.contiguous(), eps).view(x.shape)


if __name__ == "__main__":
    from kernels.bench import compare, liger

    for D in (2048, 4096):
        x, w = torch.randn(8192, D), 1 + 0.1 * torch.randn(D)
        compare("rms_norm", rms_norm, rms_norm_ref, (x, w, 1e-5), forward=2 * x.numel(),
                backward=3 * x.numel(), others=liger("liger_rms_norm"))  # fmt: skip
