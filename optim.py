"""AdamW with decay on matrices only, and the learning rate as a pure function of the step."""

import math

import torch

from config import UserError, check_choice, check_range

SCHEDULES = ("linear", "cosine", "constant")


def check_settings(cfg, model_config):
    """UserError for settings that no training run can work with, before any data is read."""
    sizes = ("max_length", "batch_tokens", "micro_batch_tokens", "eval_every", "save_every")
    check_range(cfg, (*sizes, "epochs", "lr", "grad_clip"), ("warmup", "weight_decay", "seed"))
    check_choice(cfg, schedule=SCHEDULES, dtype=("auto", "float32", "bfloat16"))
    if cfg.warmup > 1:
        raise UserError(f"--warmup is a share of the steps, at most 1, not {cfg.warmup}")
    if cfg.max_length > model_config.max_position_embeddings:
        context = model_config.max_position_embeddings
        raise UserError(f"--max_length {cfg.max_length} is beyond the model's context of {context}")


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
    warm = round(warmup * steps)
    if step < warm:
        return lr * (step + 1) / warm
    left = (steps - step) / max(1, steps - warm)  # 1 after warmup, 1/steps at the last step
    return (
        lr
        * {"linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left), "constant": 1}[schedule]
    )
