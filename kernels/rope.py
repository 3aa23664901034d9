"""Rotary position embedding, rotate-half form      (arXiv:2104.09864)

The head dimension is cut in two halves (x1, x2), as in Hugging Face checkpoints; pair i is
turned by the angle position * inv_freq[i]:

    y1 = x1 * cos - x2 * sin
    y2 = x2 * cos + x1 * sin

Shapes: q (N, H, Dh), k (N, K, Dh), cos and sin (N, Dh/2). The backward is the same turn by -angle.
"""

import torch

from kernels import wide


def rope_ref(x, cos, sin):
    x1, x2 = x.to(wide(x.dtype)).chunk(2, dim=-1)  # (N, H, Dh/2) each
    cos, sin = cos[:, None], sin[:, None]  # (N, 1, Dh/2): the same for every head
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1).to(x.dtype)


def rope(q, k, cos, sin):
    """q (N, H, Dh), k (N, K, Dh), cos, sin (N, Dh/2) fp32 -> the turned q and k."""
    return rope_ref(q, cos, sin), rope_ref(k, cos, sin)
