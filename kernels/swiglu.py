"""SwiGLU: y = silu(gate) * up,  silu(z) = z * sigmoid(z)      (arXiv:2002.05202)

Why fuse: eager PyTorch writes silu(gate) and reads it again, in the backward pass more. Here
forward is two reads and one write, backward three reads and two writes:

    s = sigmoid(gate)
    dgate = dy * up * s * (1 + gate * (1 - s))
    dup   = dy * gate * s

Shapes: gate (..., F), up (..., F) -> (..., F).
"""

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from kernels import check_shape, use_triton

BLOCK, WARPS = 2048, 4  # 16 numbers a thread: 16-byte loads, enough of them in flight


def swiglu_ref(gate, up):
    return F.silu(gate) * up


@triton.jit
def _forward(gate_ptr, up_ptr, y_ptr, size, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(gate_ptr + at, at < size, 0.0).to(tl.float32)
    up = tl.load(up_ptr + at, at < size, 0.0).to(tl.float32)
    tl.store(y_ptr + at, gate * tl.sigmoid(gate) * up, at < size)


@triton.jit
def _backward(gate_ptr, up_ptr, dy_ptr, dgate_ptr, dup_ptr, size, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(gate_ptr + at, at < size, 0.0).to(tl.float32)
    up = tl.load(up_ptr + at, at < size, 0.0).to(tl.float32)
    dy = tl.load(dy_ptr + at, at < size, 0.0).to(tl.float32)
    s = tl.sigmoid(gate)
    tl.store(dgate_ptr + at, dy * up * s * (1 + gate * (1 - s)), at < size)
    tl.store(dup_ptr + at, dy * gate * s, at < size)


def launch(kernel, *tensors):
    """One program per BLOCK numbers; tensors contiguous and of one size."""
    size = tensors[0].numel()
    kernel[(triton.cdiv(size, BLOCK),)](*tensors, size, BLOCK, num_warps=WARPS)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        y = torch.empty_like(gate)
        launch(_forward, gate, up, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        gate, up = ctx.saved_tensors
        dgate, dup = torch.empty_like(gate), torch.empty_like(up)
        launch(_backward, gate, up, dy.contiguous(), dgate, dup)
        return dgate, dup


def swiglu(gate, up):
    """gate, up (..., F) -> (..., F). ValueError for other shapes or dtypes."""
    check_shape("swiglu", "up", up, gate.shape)
    if not use_triton("swiglu", gate=gate, up=up) or gate.numel() == 0:
        return swiglu_ref(gate, up)
    return _SwiGLU.apply(gate.contiguous(), up.contiguous())


if __name__ == "__main__":
    from kernels.bench import compare, liger

    for width in (8192, 14336):
        gate, up = torch.randn(8192, width), torch.randn(8192, width)
        compare("swiglu", swiglu, swiglu_ref, (gate, up), forward=3 * gate.numel(),
                backward=5 * gate.numel(), others=liger("liger_swiglu"))  # fmt: skip
