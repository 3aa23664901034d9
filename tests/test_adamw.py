"""The update against AdamW's formula in fp64, by the kernel and by torch; 32 bits as 16 + 16."""

import numpy as np
import pytest
import torch

import kernels
from kernels import adamw as file
from kernels.adamw import adamw, adamw_ref, join, split

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
N = 2500  # three programs of the kernel, the last one ragged
BETAS, EPS, DECAY = (0.9, 0.95), 1e-8, 0.1
modes = pytest.mark.parametrize("mode", ["triton", "torch"])


def bits_of(x):
    return x.contiguous().view(torch.int32)


def normal(n, seed, size=1.0):
    return size * torch.randn(n, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def gradients(steps, n=N):
    """Of ten sizes, 1 to 1e-9, which eps outweighs; exact in bf16."""
    sizes = 10.0 ** -torch.arange(n, device=DEVICE).remainder(10)
    return [(normal(n, 10 + i) * sizes).bfloat16() for i in range(steps)]


def train(master, grads, lr, mode, monkeypatch, low=False, grad_dtype=torch.float32, scale=1.0):
    """(master, m, v) after a step with each gradient, the weight kept in fp32 or as bf16 + low."""
    monkeypatch.setattr(kernels, "MODE", mode)
    weight, rest = split(master) if low else (master.clone(), None)
    m, v = torch.zeros(2, len(master), device=DEVICE)
    for i, g in enumerate(grads):
        adamw(weight, rest, g.to(grad_dtype), m, v, lr, *BETAS, EPS, DECAY, i + 1, scale)
    return (join(weight, rest) if low else weight), m, v


# ---- 16 + 16 bits --------------------------------------------------------------------------------


def test_any_32_bits_come_back_from_16_and_16():
    """All 2^16 upper halves, so every sign, exponent, subnormal, infinity and NaN."""
    lower = [0, 1, 0x1234, 0x7FFE, 0x7FFF, 0x8000, 0x8001, 0xABCD, 0xFFFE, 0xFFFF]
    bits = torch.arange(2**16)[:, None] << 16 | torch.tensor(lower)
    master = bits.flatten().to(torch.int32).view(torch.float32)
    weight, low = split(master)
    assert (weight.dtype, low.dtype) == (torch.bfloat16, torch.int16)
    assert torch.equal(bits_of(join(weight, low)), bits_of(master))


def test_the_weight_is_the_master_rounded_to_nearest_and_ties_away_from_zero():
    master = torch.arange(0, 2**31 - 2**24, 4099, dtype=torch.int64).to(torch.int32)  # no NaN
    ties = torch.arange(0x8000, 0x7F7F_0000, 2**16 * 7).to(torch.int32)
    master = torch.cat([master, ties]).view(torch.float32)
    master = torch.cat([master, -master])
    weight, low = split(master)
    ours, torchs = ((x.double() - master.double()).abs() for x in (weight, master.bfloat16()))
    finite = weight.isfinite()
    assert finite.double().mean() > 0.99 and torch.equal(ours[finite], torchs[finite])
    tie = (bits_of(master) & 0xFFFF == 0x8000) & finite
    assert tie.sum() > 8000 and (weight.double().abs() > master.double().abs())[tie].all()
    assert (low[tie] == -(2**15)).all()


@modes
def test_an_update_by_nothing_leaves_every_bit(mode, monkeypatch):
    """So the kernel reads and writes the halves just as split and join do."""
    bits = np.random.default_rng(0).integers(-(2**31), 2**31, 20_000, dtype=np.int32)
    bits[:4] = [0, -(2**31), 0x8000, 0x7FFF]
    master = torch.from_numpy(bits).view(torch.float32).to(DEVICE)
    # No bf16 number above 2^127; no subnormals, which a GPU may take for 0 when it computes
    size = master.abs()
    master = master[(size == 0) | ((size > 1e-37) & (size < 1e38))]
    got, _, _ = train(master, [torch.zeros_like(master)], 0.0, mode, monkeypatch, low=True)
    assert len(master) > 19_000 and torch.equal(bits_of(got), bits_of(master))


# ---- the update ----------------------------------------------------------------------------------


def exact(master, grads, lr, scale):
    """The textbook's AdamW in fp64: arXiv:1711.05101, algorithm 2, with bias correction."""
    w = master.double()
    m = v = torch.zeros_like(w)
    for t, g in enumerate(grads, 1):
        g = g.double() * scale
        m = BETAS[0] * m + (1 - BETAS[0]) * g
        v = BETAS[1] * v + (1 - BETAS[1]) * g**2
        m_hat, v_hat = m / (1 - BETAS[0] ** t), v / (1 - BETAS[1] ** t)
        w = w - lr * DECAY * w - lr * m_hat / (v_hat.sqrt() + EPS)
    return w, m, v


def torchs(master, grads, lr, scale):
    p = torch.nn.Parameter(master.clone())
    optimizer = torch.optim.AdamW([p], lr=lr, betas=BETAS, eps=EPS, weight_decay=DECAY)
    for g in grads:
        p.grad = g.float() * scale
        optimizer.step()
    return p.detach(), optimizer.state[p]["exp_avg"], optimizer.state[p]["exp_avg_sq"]


@modes
@pytest.mark.parametrize("kept", ["fp32", "bf16 + low", "bf16 + low, fp32 gradient"])
@pytest.mark.parametrize("lr", [1e-3, 5e-7])
def test_the_update_is_as_close_to_its_formula_as_torchs(kept, lr, mode, monkeypatch):
    master, grads, scale = normal(N, 1, 0.1), gradients(8), 0.37
    wanted = exact(master, grads, lr, torch.tensor(scale).item())
    theirs = torchs(master, grads, lr, scale)
    ours = train(
        *(master, grads, lr, mode, monkeypatch, kept != "fp32"),
        *(torch.bfloat16 if kept == "bf16 + low" else torch.float32, scale),
    )
    for want, a, b in zip(wanted, ours, theirs, strict=True):
        error, allowed = ((x.double() - want).square().mean().sqrt() for x in (a, b))
        assert error <= 2 * allowed + 1e-8 * want.square().mean().sqrt()
        assert a.dtype == torch.float32
    moved, error = (x.double() - wanted[0] for x in (master, ours[0]))
    assert error.square().mean().sqrt() < 0.03 * moved.square().mean().sqrt()


@modes
def test_halves_train_as_a_master_does_bit_for_bit(mode, monkeypatch):
    """50 steps, three rates: far below half a unit in bf16's last place, of its size, above."""
    master = normal(N, 1, 0.1)
    for lr in (5e-7, 1e-4, 1e-1):
        grads = gradients(50)
        want = train(master, grads, lr, mode, monkeypatch)
        got = train(master, grads, lr, mode, monkeypatch, low=True, grad_dtype=torch.bfloat16)
        for a, b in zip(got, want, strict=True):
            assert torch.equal(a, b)
        moved = (split(want[0])[0] != split(master)[0]).double().mean()
        assert moved < 0.1 if lr == 5e-7 else moved > 0.5  # what bf16 alone would have seen


def test_the_kernel_loses_no_weight_decay(monkeypatch):
    """lr * decay = 3e-8 is nothing beside 1 in fp32, but something beside an update of 3e-7."""
    master, grads = normal(N, 1, 8.0), [torch.ones(N, device=DEVICE) * 1e-3] * 4
    lr = 3e-7
    want = exact(master, grads, lr, 1.0)[0]
    found = {
        "ours": train(master, grads, lr, "triton", monkeypatch)[0],
        "torch": torchs(master, grads, lr, 1.0)[0],
    }
    bias = {k: ((x.double() - want) * want.sign()).mean().abs() for k, x in found.items()}
    assert bias["ours"] < 0.2 * bias["torch"]


@modes
@pytest.mark.parametrize("n", [0, 1, 7, 1023, 1024, 1025])
@pytest.mark.parametrize("low", [False, True])
def test_any_size_is_updated_and_nothing_beyond_it(n, low, mode, monkeypatch):
    """Views into larger tensors: what stands behind the n numbers must stay."""
    monkeypatch.setattr(kernels, "MODE", mode)
    monkeypatch.setitem(file.CHUNK, DEVICE, 500)
    room = 1100
    weight, rest = split(normal(room, 1)) if low else (normal(room, 1), None)
    grad = normal(room, 2).to(weight.dtype)
    m, v = torch.zeros(2, room, device=DEVICE)
    whole = [x for x in (weight, rest, m, v) if x is not None]
    before = [x.clone() for x in whole]
    parts = [x if x is None else x[:n] for x in (weight, rest, grad, m, v)]
    adamw(*parts, 1e-2, *BETAS, EPS, DECAY, 1)
    for x, old in zip(whole, before, strict=True):
        assert torch.equal(x[n:], old[n:])
    assert (m[:n] != 0).all() and (v[:n] != 0).all()
    old = join(*before[:2]) if low else before[0]
    want = exact(old[:n], [grad[:n]], 1e-2, 1.0)[0]
    got = join(weight, rest) if low else weight
    assert torch.allclose(got[:n].double(), want, rtol=1e-6, atol=1e-6)


@modes
def test_a_scale_on_the_device_is_the_same_as_a_number(mode, monkeypatch):
    master, grads = normal(N, 1), gradients(3)
    a = train(master, grads, 1e-3, mode, monkeypatch, scale=0.25)
    b = train(master, grads, 1e-3, mode, monkeypatch, scale=torch.tensor(0.25, device=DEVICE))
    c = train(master, [0.25 * g for g in grads], 1e-3, mode, monkeypatch)
    for x, y, z in zip(a, b, c, strict=True):
        assert torch.equal(x, y) and torch.equal(x, z)
    assert not torch.equal(a[1], train(master, grads, 1e-3, mode, monkeypatch)[1])


# ---- where a call goes ---------------------------------------------------------------------------


def arguments(dtype=torch.float32, state=torch.float32, low=False, shape=(4, 6)):
    """A dict of adamw's tensors."""
    names = ("weight", "low", "grad", "exp_avg", "exp_avg_sq")
    dtypes = (dtype, torch.int16 if low else None, dtype, state, state)
    return {
        name: torch.ones(shape, dtype=kind, device=DEVICE) if kind else None
        for name, kind in zip(names, dtypes, strict=True)
    }


def update(tensors, scale=1.0):
    adamw(*tensors.values(), 1e-3, *BETAS, EPS, DECAY, 1, scale)


@pytest.mark.parametrize("mode, kernel", [("triton", True), ("torch", False)])
def test_kernels_torch_turns_the_kernel_off(mode, kernel, monkeypatch):
    called = []
    monkeypatch.setattr(kernels, "MODE", mode)
    monkeypatch.setattr(file, "adamw_ref", lambda *a: called.append(1) or adamw_ref(*a))
    update(arguments())
    update(arguments(torch.bfloat16, low=True))
    assert len(called) == (0 if kernel else 2)


def test_fp64_goes_to_torch_and_stays_fp64(monkeypatch):
    monkeypatch.setattr(kernels, "MODE", "triton")
    master, grads = normal(N, 1).double(), [normal(N, 2).double()] * 3
    m, v = torch.zeros(2, N, dtype=torch.float64, device=DEVICE)
    weight = master.clone()
    for i, g in enumerate(grads):
        adamw(weight, None, g, m, v, 1e-2, *BETAS, EPS, DECAY, i + 1)
    assert (weight - exact(master, grads, 1e-2, 1.0)[0]).abs().max() < 1e-12


@pytest.mark.parametrize(
    "names, changes, complaint",
    [
        (["weight"], {"dtype": torch.bfloat16}, "torch.bfloat16; with low"),
        (["weight"], {"dtype": torch.float16}, "torch.float16; with low"),
        (["weight", "low"], {"low": True}, "torch.float32; with low"),
        (["grad"], {"dtype": torch.float16}, "grad is torch.float16"),
        (["grad"], {"dtype": torch.float64}, "grad is torch.float64"),
        (["exp_avg"], {"state": torch.bfloat16}, "exp_avg is torch.bfloat16"),
        (["exp_avg_sq"], {"state": torch.float64}, "exp_avg_sq is torch.float64"),
        (["grad"], {"shape": (6, 4)}, "grad has shape (6, 4), must be (4, 6)"),
        (["exp_avg"], {"shape": (24,)}, "exp_avg has shape (24,), must be (4, 6)"),
    ],
)
@modes
def test_tensors_that_do_not_go_together_are_refused(names, changes, complaint, mode, monkeypatch):
    monkeypatch.setattr(kernels, "MODE", mode)
    tensors, other = arguments(), arguments(**changes)
    with pytest.raises(ValueError) as e:
        update(tensors | {name: other[name] for name in names})
    assert str(e.value).startswith("adamw: ") and complaint in str(e.value)


@pytest.mark.parametrize("name", ["weight", "low", "grad", "exp_avg", "exp_avg_sq"])
def test_a_tensor_with_gaps_is_refused(name):
    tensors = arguments(torch.bfloat16, low=True)
    tensors[name] = torch.ones(6, 4, dtype=tensors[name].dtype, device=DEVICE).T
    with pytest.raises(ValueError, match=f"adamw: {name} must be contiguous"):
        update(tensors)


@pytest.mark.parametrize("scale", [torch.ones(1), torch.ones((), device="meta")])
def test_a_scale_that_is_no_number_on_the_device_is_refused(scale):
    with pytest.raises(ValueError, match="adamw: scale must be 0-dim on"):
        update(arguments(), scale=scale)
