"""SwiGLU: y = silu(gate) * up,  silu(z) = z * sigmoid(z)      (arXiv:2002.05202)

Shapes: gate (..., F), up (..., F) -> (..., F).
"""

from torch.nn import functional as F


def swiglu_ref(gate, up):
    return F.silu(gate) * up


def swiglu(gate, up):
    """gate, up (..., F) -> (..., F)."""
    return swiglu_ref(gate, up)
