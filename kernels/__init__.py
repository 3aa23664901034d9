"""One fused operation per file. Each file begins with the formula and `op_ref`, its definition in
PyTorch: the CPU path and the oracle of the tests. `wide` is the arithmetic dtype they all use."""

import torch


def wide(dtype):
    """The dtype to compute in: fp32 for anything narrower, fp64 stays fp64."""
    return torch.promote_types(dtype, torch.float32)
