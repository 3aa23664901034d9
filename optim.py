"""AdamW with decay on matrices only, and the learning rate as a pure function of the step."""

import math

import torch

from config import UserError


def build_optimizer(model, lr, weight_decay, beta2=0.95):
    """AdamW (arXiv:1711.05101), betas 0.9 and beta2. Norm weights are scales: not decayed."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    scales = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": scales, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, beta2), fused=True)


def lr_at(step, steps, lr, warmup, schedule):
    """Learning rate of optimizer step 0 .. steps-1: linear warmup over the share `warmup` of all
    steps, then down to 0 along a line or a cosine, or constant."""
    if schedule not in ("linear", "cosine", "constant"):
        raise UserError(f"schedule: {schedule!r} is not linear, cosine or constant")
    warm = round(warmup * steps)
    if step < warm:
        return lr * (step + 1) / warm
    left = (steps - step) / max(1, steps - warm)  # 1 after warmup, 1/steps at the last step
    return (
        lr
        * {"linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left), "constant": 1}[schedule]
    )
