"""AdamW with decay on matrices only, and the learning rate as a pure function of the step."""

import math

import torch

from config import UserError, check_choice, check_range
from kernels import wide
from kernels.adamw import CHUNK, adamw
from parallel import local, sum_over_ranks

SCHEDULES = ("linear", "cosine", "constant")


def check_settings(cfg, model_config):
    """UserError for settings that no training run can work with, before any data is read."""
    sizes = ("max_length", "batch_tokens", "micro_batch_tokens", "eval_every", "save_every")
    sizes = (*sizes, "keep_last", "replicas")
    shares = ("warmup", "max_skipped", "weight_decay", "seed", "keep_every", "dry_run")
    check_range(cfg, (*sizes, "epochs", "lr", "grad_clip"), shares)
    check_choice(cfg, schedule=SCHEDULES, dtype=("auto", "float32", "bfloat16"))
    if cfg.warmup > 1:
        raise UserError(f"--warmup is a share of the steps, at most 1, not {cfg.warmup}")
    if cfg.max_length > model_config.max_position_embeddings:
        context = model_config.max_position_embeddings
        raise UserError(f"--max_length {cfg.max_length} is beyond the model's context of {context}")


class AdamW(torch.optim.Optimizer):
    """torch.optim.AdamW for parameters that parallel.shard spread over the ranks.

    A bf16 parameter p stands for an fp32 master, the other half of which is p.low; each update is
    one pass over memory that also clips (kernels/adamw.py). Unlike torch's, a group counts its
    steps as a plain number, and the moments are there from the start.
    """

    def __init__(self, groups, lr, betas, eps=1e-8):
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "step": 0})
        for group in self.param_groups:
            for p in group["params"]:
                for moment in ("exp_avg", "exp_avg_sq"):
                    self.state[p][moment] = torch.zeros_like(p, dtype=wide(p.dtype))

    def grad_norm(self):
        """Length of the whole gradient, all parameters on all ranks: 0-dim, the same everywhere."""
        params = [p for group in self.param_groups for p in group["params"]]
        grads = [local(p.grad) for p in params if p.grad is not None]
        norms = [
            torch.linalg.vector_norm(chunk, dtype=wide(g.dtype))
            for g in grads  # in chunks: over 10^8 numbers at once torch is off by 1.5% on a CPU
            for chunk in g.view(-1).split(CHUNK[g.device.type])
        ]
        total = sum_over_ranks(torch.stack(norms).double().square().sum())
        mesh = getattr(params[0], "device_mesh", None)  # (shards,), or (replicas, shards)
        once = mesh.size(-1) / mesh.size() if mesh else 1  # replicas hold the same gradient
        return (total * once).sqrt().float()

    @torch.no_grad()
    def step(self, scale=1.0):
        """One update with `scale` times the gradient: a float, or a 0-dim tensor on the device."""
        for group in self.param_groups:
            group["step"] += 1
            for p in filter(lambda p: p.grad is not None, group["params"]):
                low = local(p.low) if hasattr(p, "low") else None
                tensors = (p.grad, self.state[p]["exp_avg"], self.state[p]["exp_avg_sq"])
                adamw(
                    *(local(p), low, *map(local, tensors), group["lr"], *group["betas"]),
                    *(group["eps"], group["weight_decay"], group["step"], scale),
                )


def build_optimizer(model, lr, weight_decay, beta2=0.95):
    """AdamW (arXiv:1711.05101), betas 0.9 and beta2. Norm weights are scales: not decayed."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    scales = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": scales, "weight_decay": 0.0},
    ]
    return AdamW(groups, lr, betas=(0.9, beta2))


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
