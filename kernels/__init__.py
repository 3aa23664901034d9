"""One fused operation per file: rms_norm, rope, swiglu, cross_entropy, attention, adamw. All in one
order: the formula, `op_ref` (its definition in PyTorch: the CPU path and the oracle of the tests),
the Triton kernels, the autograd Function, `op` (what model.py calls), and a benchmark,
`python -m kernels.op`. attention has its layout, its CPU path and its benchmark in files of their
own. linear.py fuses nothing: it decides what is kept for the backward pass.

    KERNELS=torch     the definitions everywhere, to find out whether a kernel is at fault
    KERNELS=triton    the kernels also on a CPU, where Triton interprets them in Python: slow, but
                      print() and a debugger work inside
"""

import os

import torch

MODE = os.environ.get("KERNELS", "auto")
if MODE not in ("auto", "torch", "triton"):
    raise SystemExit(f"error: KERNELS={MODE}: must be auto, torch or triton")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # heard only before triton is first imported

SERVED = (torch.bfloat16, torch.float16, torch.float32)


def wide(dtype):
    """The dtype to compute in: fp32 for anything narrower, fp64 stays fp64."""
    return torch.promote_types(dtype, torch.float32)


def use_triton(op, **tensors):
    """Does this call go to the kernel? On a GPU yes, but for fp64, which stays in PyTorch.

    Raises ValueError naming the op and the argument unless all tensors (None is skipped) share one
    device and one floating dtype.
    """
    tensors = {name: x for name, x in tensors.items() if x is not None}
    (first, x), *others = tensors.items()
    if not x.is_floating_point():
        raise ValueError(f"{op}: {first} must be floating point, is {x.dtype}")
    for name, y in others:
        if (y.dtype, y.device) != (x.dtype, x.device):
            raise ValueError(
                f"{op}: {name} is {y.dtype} on {y.device}, {first} {x.dtype} on {x.device}"
            )
    if MODE == "torch" or x.dtype not in SERVED:
        return False
    return MODE == "triton" or x.is_cuda


def check_shape(op, name, x, shape):
    """ValueError unless x has this shape; None in it = any size."""
    fits = x.ndim == len(shape) and all(
        want in (None, size) for want, size in zip(shape, x.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{op}: {name} has shape {tuple(x.shape)}, must be ({wanted})")
