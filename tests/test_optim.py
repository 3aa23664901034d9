import math

import pytest
import torch
from tiny import tiny_config

from model import Llama, LlamaConfig
from optim import build_optimizer, lr_at


def rates(steps, warmup, schedule, lr=1.0):
    return [lr_at(step, steps, lr, warmup, schedule) for step in range(steps)]


def test_the_rate_rises_then_falls_along_a_line():
    assert rates(10, 0.2, "linear") == pytest.approx(
        [0.5, 1.0, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    )


def test_the_rate_falls_along_half_a_cosine():
    got = rates(8, 0.0, "cosine", lr=2.0)
    assert got == pytest.approx([1 + math.cos(math.pi * i / 8) for i in range(8)])
    assert got[0] == 2.0 and got[4] == pytest.approx(1.0)


def test_a_constant_rate_rises_and_stays():
    assert rates(4, 0.5, "constant") == [0.5, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_no_step_is_without_a_rate_and_none_is_above_the_peak(schedule):
    for steps in (1, 2, 3, 7, 100):
        for warmup in (0.0, 0.1, 0.5, 1.0):
            got = rates(steps, warmup, schedule, lr=3.0)
            assert all(0 < rate <= 3.0 for rate in got), (steps, warmup, got)


def test_one_step_of_adamw_moves_by_the_rate_and_decays_matrices_only():
    """After one step m / sqrt(v) is the sign of the gradient: p - lr * (sign(g) + decay * p)."""
    torch.manual_seed(0)
    model = Llama(LlamaConfig.from_dict(tiny_config(tie_word_embeddings=False)))
    with torch.no_grad():
        for p in model.parameters():
            p.uniform_(0.5, 1.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.where(torch.rand_like(p) < 0.5, -0.3, 0.3)
    build_optimizer(model, lr=1e-2, weight_decay=0.1).step()
    for name, p in model.named_parameters():
        decay = 0.0 if name.endswith("norm.weight") else 0.1
        want = before[name] - 1e-2 * (p.grad.sign() + decay * before[name])
        assert (p - want).abs().max() < 1e-6, name


def test_every_parameter_is_in_one_group_a_tied_head_once():
    for tied in (True, False):
        model = Llama(LlamaConfig.from_dict(tiny_config(tie_word_embeddings=tied)))
        groups = build_optimizer(model, 1e-3, 0.1).param_groups
        held = [id(p) for group in groups for p in group["params"]]
        assert sorted(held) == sorted(id(p) for p in model.parameters())
        assert all(group["betas"] == (0.9, 0.95) for group in groups)
