"""Helpers of the kernel tests: an op against its formula in fp64.

The rule: an op may be at most twice as far from the fp64 answer as PyTorch in the same dtype is.
"""

import pytest
import torch

import kernels
from kernels.cross_entropy import IGNORE

N, D, V = 150, 64, 500  # tokens, hidden size, vocabulary
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# What runs: PyTorch's definitions, and the Triton kernels: on a GPU in every dtype, elsewhere in
# Triton's interpreter, which is exact in fp32 but cuts bf16 off instead of rounding it.
PATHS = [("torch", torch.float32), ("torch", torch.bfloat16), ("triton", torch.float32)]
PATHS += [("triton", torch.bfloat16)] if DEVICE == "cuda" else []
both = pytest.mark.parametrize("path", ["torch", "triton"])
paths = pytest.mark.parametrize("path, dtype", PATHS, ids=[f"{p}-{str(d)[6:]}" for p, d in PATHS])


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def outputs_and_gradients(op, inputs, dtype):
    """[outputs..., gradient of each floating input] of op in a dtype, as fp64 on the CPU."""
    inputs = [x.to(DEVICE, dtype if x.is_floating_point() else None) for x in inputs]
    inputs = [x.clone().requires_grad_() if x.is_floating_point() else x for x in inputs]
    outputs = op(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    # A different upstream gradient for every number that comes out
    ups = [normal(*o.shape, seed=100 + i).to(DEVICE) for i, o in enumerate(outputs)]
    torch.autograd.backward(outputs, [u.to(o.dtype) for u, o in zip(ups, outputs, strict=True)])
    found = [*outputs, *(x.grad for x in inputs if x.is_floating_point())]
    return [x.detach().double().cpu() for x in found]


def root_mean_square(x):
    return float(x.square().mean().sqrt())


def check(op, definition, torchs, inputs, dtype):
    """op <= 2 * torch's own error, both against `definition` in fp64 of the same rounded inputs."""
    inputs = [x.to(dtype).double() if x.is_floating_point() else x for x in inputs]
    want = outputs_and_gradients(definition, inputs, torch.float64)
    exact = outputs_and_gradients(op, inputs, torch.float64)
    ours = outputs_and_gradients(op, inputs, dtype)
    theirs = outputs_and_gradients(torchs, inputs, dtype)
    assert len(want) == len(ours) == len(theirs)
    for w, e, a, b in zip(want, exact, ours, theirs, strict=True):
        size = root_mean_square(w)
        assert size > 1e-3 and w.shape == a.shape
        assert root_mean_square(e - w) < 1e-7 * size  # cos, sin and eps may have passed fp32
        # A few numbers are no sample of an error: an eighth of a rounding is always allowed
        floor = torch.finfo(dtype).eps / 8 * size
        assert root_mean_square(a - w) <= 2 * root_mean_square(b - w) + floor


class Launches:
    """Counts the launches of a Triton kernel: a test of a kernel that never ran shows nothing."""

    def __init__(self, monkeypatch, *kernel_functions):
        self.count = 0
        for function in kernel_functions:
            monkeypatch.setattr(function, "run", self.counted(function.run))

    def counted(self, run):
        def counting(*args, **kwargs):
            self.count += 1
            return run(*args, **kwargs)

        return counting


def use(path, monkeypatch):
    """Send the ops to PyTorch or to Triton for the rest of a test."""
    monkeypatch.setattr(kernels, "MODE", path)


def head_inputs(n=N, v=V):
    labels = torch.randint(0, v, (n,), generator=torch.Generator().manual_seed(3))
    if n > 2:
        labels[::4], labels[1], labels[2] = IGNORE, 0, v - 1
    return [normal(n, D), normal(v, D, seed=1) / 3, labels]
