import math

import pytest
import torch
from runs import run, torchrun, write_data
from safetensors.torch import load_file
from tiny import tiny_config, write_checkpoint

import parallel
from checkpoint import load_weights, whole
from metrics import read_metrics
from model import Llama, LlamaConfig
from optim import build_optimizer, lr_at
from parallel import DTYPES, local


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


# ---- clipping ------------------------------------------------------------------------------------


def plain(tied=False):
    torch.manual_seed(0)
    return Llama(LlamaConfig.from_dict(tiny_config(tie_word_embeddings=tied)))


def random_gradients(model, size, seed):
    torch.manual_seed(seed)
    for p in model.parameters():
        p.grad = size * torch.randn_like(p)


def test_the_norm_is_that_of_torch():
    parallel.init("cpu")
    model = plain()
    for size in (1e-6, 1.0, 1e6):
        random_gradients(model, size, 1)
        got = build_optimizer(model, 1e-3, 0.1).grad_norm()
        assert got.shape == () and got.dtype == torch.float32
        want = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
        assert got.item() == pytest.approx(want.item(), rel=1e-6)


def test_the_norm_of_many_numbers_is_exact():
    """torch's sum of squares in fp32 is off by 3e-4 here, and by more the more there are."""
    parallel.init("cpu")
    p = torch.nn.Parameter(torch.empty(2**12, 2**12))
    p.grad = torch.randn(2**12, 2**12).abs() + 1
    want = p.grad.double().norm().item()
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 1e-4)):
        p.data, p.grad = p.data.to(dtype), p.grad.to(dtype)
        model = torch.nn.ParameterList([p])
        assert build_optimizer(model, 1e-3, 0.1).grad_norm().item() == pytest.approx(
            want, tolerance
        )


def test_a_gradient_that_is_not_finite_shows_in_the_norm():
    parallel.init("cpu")
    model = plain()
    for bad in (float("nan"), float("inf")):
        random_gradients(model, 1.0, 1)
        list(model.parameters())[-1].grad[3] = bad
        assert not build_optimizer(model, 1e-3, 0.1).grad_norm().isfinite()


def test_clipping_inside_the_update_is_clipping_before_it():
    """Three steps, the second with a gradient too small to be clipped."""
    parallel.init("cpu")
    ours, theirs = plain(), plain()
    optimizer = build_optimizer(ours, 1e-2, 0.1)
    groups = [
        {"params": [p for p in theirs.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in theirs.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    torchs = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95))
    for step, size in enumerate((1.0, 1e-4, 0.1)):
        for model in (ours, theirs):
            random_gradients(model, size, step)
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        assert (norm > 0.5) == (size > 0.01)
        optimizer.step(scale=(0.5 / optimizer.grad_norm()).clamp(max=1))
        torchs.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (p - q).abs().max() < 1e-6
        for moment in ("exp_avg", "exp_avg_sq"):
            a, b = optimizer.state[p][moment], torchs.state[q][moment]
            assert (a - b).norm() < 1e-5 * b.norm()


def test_ranks_without_rows_of_a_parameter_take_part(tmp_path):
    """Norm weights of 4 numbers on three ranks, 2 + 2 + 0: norms and weights as on one rank."""
    data = write_data(tmp_path, hidden_size=4, head_dim=8)
    settings = {"stage": "sft", "data": data, "epochs": 0.5, "lr": 1e-2, "grad_clip": 0.1}
    ranks = [tmp_path / f"three {dtype}" for dtype in DTYPES]
    jobs = [{"out": out, "dtype": d} | settings for out, d in zip(ranks, DTYPES, strict=True)]
    torchrun(3, tmp_path, jobs)
    for dtype, three, norm, weight in zip(DTYPES, ranks, (1e-5, 2e-2), (1e-4, 1e-2), strict=True):
        one = tmp_path / dtype
        want, got = run(**settings, out=one, dtype=dtype), read_metrics(three)
        assert len(got) == len(want) > 2
        for row, other in zip(got, want, strict=True):
            assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=norm)
            assert row["grad_norm"] > 0.1  # clipped, by the same factor on every rank
        one, three = (load_file(out / "model.safetensors") for out in (one, three))
        for name, w in one.items():
            assert (w - three[name]).norm() < weight * w.norm(), name


# ---- sharded, in both dtypes ---------------------------------------------------------------------


def sharded(path, dtype):
    """A model in training, and a function that takes the gradient of a loss of it."""
    device = parallel.init("cpu")[2]
    model = parallel.shard(Llama.from_pretrained(path, "meta"), device, dtype)
    load_weights(model, path)
    ids = torch.arange(2, 66)

    def backward():
        starts = torch.tensor([0, 64])
        (-model(ids, torch.arange(64), starts, labels=ids.roll(-1)).mean()).backward()

    return model, backward


@pytest.mark.parametrize("dtype, size", [("bfloat16", 14), ("float32", 16)])
@pytest.mark.parametrize("tied", [False, True])
def test_a_parameter_in_training_takes_14_bytes_or_16(dtype, size, tied, tmp_path):
    path = write_checkpoint(tmp_path / "base", tie_word_embeddings=tied)
    model, backward = sharded(path, dtype)
    optimizer = build_optimizer(model, 1e-3, 0.1)
    params = list(model.parameters())
    for _ in range(2):
        backward()
        held = [p.low for p in params if hasattr(p, "low")]
        held += [x for p in params for x in (p, p.grad, *optimizer.state[p].values())]
        held += [x for x in model.parameters() if all(x is not p for p in params)]
        assert sum(local(x).nbytes for x in held) == size * sum(p.numel() for p in params)
        optimizer.step()
        optimizer.zero_grad()


def test_at_a_rate_of_5e_7_bf16_weights_move_but_not_without_their_low_halves(tmp_path):
    path = write_checkpoint(tmp_path / "base")
    moved = {}
    for rounded in (False, True):
        model, backward = sharded(path, "bfloat16")
        optimizer = build_optimizer(model, 5e-7, 0.0)
        if rounded:
            for p in model.parameters():
                local(p.low).zero_()
        before = [whole(p) for p in model.parameters()]
        for _ in range(100):
            backward()
            optimizer.step(scale=(1.0 / optimizer.grad_norm()).clamp(max=1))
            optimizer.zero_grad()
            if rounded:  # what training on bf16 weights alone comes to
                for p in model.parameters():
                    local(p.low).zero_()
        changes = [
            (whole(p) != b).flatten() for p, b in zip(model.parameters(), before, strict=True)
        ]
        moved[rounded] = torch.cat(changes).double().mean()
    assert moved[False] > 0.99 and moved[True] < 0.25


@pytest.mark.parametrize("dtype", DTYPES)
def test_micro_batches_are_added_up_in_fp32_and_rounded_once(dtype, tmp_path):
    """As if FSDP kept fp32 gradients: 60 parts lose no more than the last rounding takes."""
    path = write_checkpoint(tmp_path / "base")
    model, backward = sharded(path, dtype)
    backward()
    part = [whole(p.grad) for p in model.parameters()]
    model.zero_grad()
    for i in range(60):
        model.set_requires_gradient_sync(i == 59)
        backward()
    for p, g in zip(model.parameters(), part, strict=True):
        assert p.grad.dtype == DTYPES[dtype]
        error = (whole(p.grad).double() - 60 * g.double()).norm() / (60 * g.double()).norm()
        assert error < (1e-5 if dtype == "float32" else 4e-3)
