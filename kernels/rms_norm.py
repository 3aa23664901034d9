"""RMSNorm: y = x / rms(x) * w,  rms(x) = sqrt(mean(x^2) + eps)      (arXiv:1910.07467)

Shapes: x (..., D), w (D,) -> (..., D). The mean is taken in fp32 or wider: squares of bf16 numbers
lose three digits otherwise.
"""

import torch

from kernels import wide


def rms_norm_ref(x, weight, eps):
    h = x.to(wide(x.dtype))
    h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)
    return weight * h.to(x.dtype)  # rounded before the weight, as in Hugging Face's Llama


def rms_norm(x, weight, eps):
    """x (..., D), weight (D,) -> (..., D) in x's dtype."""
    return rms_norm_ref(x, weight, eps)
