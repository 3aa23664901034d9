"""Every op against its formula in fp64: at most twice as far from it as torch in the same dtype."""

from types import SimpleNamespace

import pytest
import torch
from closeness import (
    DEVICE,
    D,
    Launches,
    N,
    both,
    check,
    head_inputs,
    normal,
    paths,
    root_mean_square,
    use,
)
from tiny import tiny_config
from torch.nn import functional as F

import kernels
from kernels import rms_norm as norm_file
from kernels import rope as rope_file
from kernels import swiglu as swiglu_file
from kernels.cross_entropy import linear_logprobs
from kernels.linear import linears
from kernels.rms_norm import rms_norm
from kernels.rope import rope
from kernels.swiglu import swiglu
from model import Llama, LlamaConfig
from optim import build_optimizer
from packing import collate, document, family

H, K, DH = 6, 2, 16
triton_only = pytest.mark.parametrize("path", ["triton"])


# ---- rms_norm, swiglu, rope ----------------------------------------------------------------------


@paths
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e-3])  # 1e-3: eps weighs as much as the mean
@pytest.mark.parametrize("n, d", [(150, 64), (1, 1000), (37, 33)])
def test_rms_norm_is_as_close_to_its_formula_as_torch(path, dtype, scale, n, d, monkeypatch):
    use(path, monkeypatch)
    launches = Launches(monkeypatch, norm_file._forward, norm_file._backward)
    check(
        lambda x, w: rms_norm(x, w, 1e-5),
        lambda x, w: x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * w,
        # Hugging Face's Llama rounds twice in bf16, before the weight and behind it: so do we
        lambda x, w: w * F.rms_norm(x, (d,), None, 1e-5),
        [scale * normal(n, d), 1 + 0.2 * normal(d, seed=1)],
        dtype,
    )
    assert launches.count == (2 if path == "triton" else 0)  # fp64 stays in PyTorch


def test_the_size_of_a_row_is_taken_in_fp32():
    """In bf16 the mean of squares would be off by 1/512 for the whole row; single roundings of its
    512 numbers cancel out."""
    x, w = normal(40, 512).bfloat16(), torch.ones(512, dtype=torch.bfloat16)
    got = rms_norm(x.to(DEVICE), w.to(DEVICE), 1e-5).double().cpu()
    want = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-5).sqrt()
    ratio = (got * want).sum(-1) / want.square().sum(-1)
    assert root_mean_square(ratio - 1) < 1e-3  # 0.4e-3; 2.2e-3 with bf16 squares


@paths
@pytest.mark.parametrize("n, f", [(150, 64), (1, 1), (3, 683), (2, 1024)])  # 2,048 a program
def test_swiglu_is_as_close_to_its_formula_as_torch(path, dtype, n, f, monkeypatch):
    use(path, monkeypatch)
    launches = Launches(monkeypatch, swiglu_file._forward, swiglu_file._backward)
    check(
        swiglu,
        lambda gate, up: gate / (1 + (-gate).exp()) * up,
        lambda gate, up: F.silu(gate) * up,
        [3 * normal(n, f), normal(n, f, seed=1)],
        dtype,
    )
    assert launches.count == (2 if path == "triton" else 0)


@paths
@pytest.mark.parametrize("n, h, k, dh", [(150, 6, 2, 16), (1, 1, 1, 2), (7, 9, 3, 20)])
def test_rope_turns_pairs_as_complex_numbers_do(path, dtype, n, h, k, dh, monkeypatch):
    """Pair i is (x[i], x[i + Dh/2]); multiplying by exp(i angle) turns it."""
    use(path, monkeypatch)
    launches = Launches(monkeypatch, rope_file._rope)
    half = dh // 2
    angle = (normal(n, half, seed=9) * 5).to(DEVICE)
    cos, sin = angle.cos().float(), angle.sin().float()

    def complex_product(x):
        z = torch.complex(x[..., :half], x[..., half:])
        z = z * torch.complex(cos.double(), sin.double())[:, None]
        return torch.cat([z.real, z.imag], -1)

    def halves(x):  # as in Hugging Face's Llama
        c, s = (torch.cat([t, t], -1)[:, None].to(x.dtype) for t in (cos, sin))
        return x * c + torch.cat([-x[..., half:], x[..., :half]], -1) * s

    check(
        lambda q, k: rope(q, k, cos, sin),
        lambda q, k: (complex_product(q), complex_product(k)),
        lambda q, k: (halves(q), halves(k)),
        [normal(n, h, dh), normal(n, k, dh, seed=1)],
        dtype,
    )
    assert launches.count == (2 if path == "triton" else 0)


def calls(op, *tensors):
    """One call with gradients, twice: [(outputs, gradients), (outputs, gradients)]."""
    found = []
    for _ in range(2):
        inputs = [x.clone().requires_grad_() if x.is_floating_point() else x for x in tensors]
        y = op(*inputs)
        y = y if isinstance(y, tuple) else (y,)
        grads = torch.autograd.grad(
            y, [x for x in inputs if x.is_floating_point()], [torch.ones_like(o) for o in y]
        )
        found.append([*y, *grads])
        assert all(torch.equal(x, kept) for x, kept in zip(inputs, tensors, strict=True))
    return found


@both
def test_two_calls_give_the_same_bits_and_leave_their_inputs_alone(path, monkeypatch):
    use(path, monkeypatch)
    f32 = torch.float32
    x, w = normal(90, 40).to(DEVICE, f32), normal(40, seed=1).to(DEVICE, f32)
    q, k = normal(9, H, DH).to(DEVICE, f32), normal(9, K, DH).to(DEVICE, f32)
    cos = normal(9, DH // 2).to(DEVICE, f32)
    hidden, weight, labels = (x.to(DEVICE) for x in head_inputs(20))
    hidden, weight = hidden.to(f32), weight.to(f32)
    for op, tensors in (
        (lambda x, w: rms_norm(x, w, 1e-5), (x, w)),
        (swiglu, (x, x + 1)),
        (lambda q, k: rope(q, k, cos, cos), (q, k)),
        (linear_logprobs, (hidden, weight, labels)),
        (lambda *a: linear_logprobs(*a, common_gradient=True), (hidden, weight, labels)),
    ):
        first, second = calls(op, *tensors)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@triton_only
def test_a_gradient_of_a_gradient_is_refused_rather_than_wrong(path, monkeypatch):
    use(path, monkeypatch)
    x, w = torch.ones(4, 8, device=DEVICE), torch.ones(8, device=DEVICE)
    q, cos = torch.ones(4, 2, 8, device=DEVICE), torch.ones(4, 4, device=DEVICE)
    weight, labels = torch.ones(5, 8, device=DEVICE), torch.zeros(4, dtype=torch.long).to(DEVICE)
    for op, value in (
        (lambda x: rms_norm(x, w, 1e-5), x),
        (lambda x: swiglu(x, x), x),
        (lambda x: rope(x, x, cos, cos)[0], q),
        (lambda x: linears(swiglu, (x, x), (weight,))[0], x),
        (lambda x: linear_logprobs(x, weight, labels), x),
        (lambda x: linear_logprobs(x, weight, labels, common_gradient=True), x),
    ):
        x = value.clone().requires_grad_()
        (grad,) = torch.autograd.grad(op(x).square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            grad.sum().backward()


@triton_only
def test_inputs_that_are_views_with_strides_give_the_numbers_of_their_copies(path, monkeypatch):
    use(path, monkeypatch)
    wide, w = normal(12, 80).to(DEVICE, torch.float32), normal(40, seed=1).to(DEVICE, torch.float32)
    x, y = wide[:, :40], wide[:, 40:]
    assert not x.is_contiguous()
    assert torch.equal(rms_norm(x, w, 1e-5), rms_norm(x.contiguous(), w, 1e-5))
    assert torch.equal(swiglu(x, y), swiglu(x.contiguous(), y.contiguous()))
    q, k = wide.view(12, 10, 8)[:, :6], wide.view(12, 10, 8)[:, 6:8]
    cos = w[:4].expand(12, 4)
    for a, b in zip(
        rope(q, k, cos, cos),
        rope(q.contiguous(), k.contiguous(), cos.contiguous(), cos.contiguous()),
        strict=True,
    ):
        assert torch.equal(a, b)
    # and the gradient that comes in may be one
    up, halves = wide.T.contiguous().T, (wide[:, :40].clone(), wide[:, 40:].clone())
    for op, inputs, ups in (
        (swiglu, halves, (up[:, :40],)),
        (lambda x: rms_norm(x, w, 1e-5), halves[:1], (up[:, :40],)),
        (lambda *qk: rope(*qk, cos, cos), (q.clone(), k.clone()), (up.view(12, 10, 8)[:, :6], k)),
    ):
        inputs = [x.requires_grad_() for x in inputs]
        assert not ups[0].is_contiguous()
        got = torch.autograd.grad(op(*inputs), inputs, ups)
        want = torch.autograd.grad(op(*inputs), inputs, [u.contiguous() for u in ups])
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@both
def test_leading_dimensions_and_empty_inputs_are_served(path, monkeypatch):
    use(path, monkeypatch)
    x, w = normal(2, 3, 8).float().to(DEVICE), normal(8).float().to(DEVICE)
    assert torch.equal(rms_norm(x, w, 1e-5), rms_norm(x.view(6, 8), w, 1e-5).view(2, 3, 8))
    assert torch.equal(swiglu(x, x), swiglu(x.view(6, 8), x.view(6, 8)).view(2, 3, 8))
    assert rms_norm(x[:0], w, 1e-5).shape == swiglu(x[:0], x[:0]).shape == (0, 3, 8)


def test_a_wrong_shape_or_dtype_is_an_error_that_names_op_and_argument():
    x, w = torch.ones(3, 8), torch.ones(8)
    q, k, cos = torch.ones(3, 4, 8), torch.ones(3, 2, 8), torch.ones(3, 4)
    hidden, weight, labels = torch.ones(3, 8), torch.ones(5, 8), torch.zeros(3, dtype=torch.long)
    for call, words in (
        (lambda: rms_norm(x, w[:7], 1e-5), "rms_norm: weight has shape (7,), must be (8)"),
        (lambda: rms_norm(x, w.bfloat16(), 1e-5), "rms_norm: weight is torch.bfloat16"),
        (lambda: rms_norm(x.long(), w, 1e-5), "rms_norm: x must be floating point"),
        (lambda: swiglu(x, x[:2]), "swiglu: up has shape (2, 8), must be (3, 8)"),
        (lambda: swiglu(x, x.half()), "swiglu: up is torch.float16"),
        (lambda: swiglu(x, x.to("meta")), "swiglu: up is torch.float32 on meta"),
        (lambda: rope(q, k[:2], cos, cos), "rope: k has shape (2, 2, 8), must be (3, any, 8)"),
        (lambda: rope(q, k, cos[:, :3], cos), "rope: cos has shape (3, 3), must be (3, 4)"),
        (lambda: rope(q, k, cos, cos[:1]), "rope: sin has shape (1, 4), must be (3, 4)"),
        (lambda: rope(q, k.half(), cos, cos), "rope: k is torch.float16"),
        (
            lambda: linear_logprobs(hidden, weight[:, :7], labels),
            "logprobs: weight has shape",
        ),
        (lambda: linear_logprobs(hidden, weight, labels[:2]), "linear_logprobs: labels has shape"),
        (lambda: linear_logprobs(hidden, weight.half(), labels), "linear_logprobs: weight is"),
        (lambda: linear_logprobs(hidden, weight, labels.int()), "labels must be int64"),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert words in str(error.value), str(error.value)


@triton_only
def test_a_row_too_wide_for_registers_goes_to_pytorch(path, monkeypatch):
    use(path, monkeypatch)
    launches = Launches(monkeypatch, norm_file._forward)
    for d, count in ((8192, 1), (8193, 1)):
        x = normal(1, d).float().to(DEVICE)
        got = rms_norm(x, torch.ones_like(x[0]), 1e-5)
        assert (got - x / x.square().mean().sqrt()).abs().max() < 1e-4
        assert launches.count == count


@triton_only
def test_what_a_kernel_does_not_serve_is_an_error_too(path, monkeypatch):
    use(path, monkeypatch)
    q, cos = torch.ones(3, 4, 8), torch.ones(3, 4)
    with pytest.raises(ValueError, match="rope: cos is torch.float16"):
        rope(q, q, cos.half(), cos.half())


def test_kernels_torch_turns_them_all_off_and_fp64_never_reaches_one(monkeypatch):
    x = torch.ones(2, 8)
    on_gpu = SimpleNamespace(
        is_floating_point=lambda: True, dtype=x.dtype, device=torch.device("cuda"), is_cuda=True
    )
    for mode, for_gpu, for_cpu in (
        ("auto", True, False), ("torch", False, False), ("triton", True, True),
    ):  # fmt: skip
        monkeypatch.setattr(kernels, "MODE", mode)
        assert kernels.use_triton("an op", x=on_gpu) == for_gpu
        assert kernels.use_triton("an op", x=x, nothing=None) == for_cpu
        assert not kernels.use_triton("an op", x=x.double())


# ---- projections that keep only what they are made from ------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_linears_are_the_projections_of_the_op(dtype):
    def products(x, w, a, b):
        h = x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * w
        return h @ a.T, h @ b.T

    def torchs(x, w, a, b):
        h = w * F.rms_norm(x, (D,), None, 1e-5)
        return F.linear(h, a), F.linear(h, b)

    weights = [normal(48, D, seed=2), normal(16, D, seed=3)]
    inputs = [normal(N, D), 1 + 0.2 * normal(D, seed=1), *weights]

    def op(x, w, a, b):
        return tuple(linears(lambda x, w: rms_norm(x, w, 1e-5), (x, w), (a, b)))

    check(op, products, torchs, inputs, dtype)


def test_linears_keep_their_inputs_and_nothing_they_made():
    x, w, a = (
        torch.randn(40, 8, requires_grad=True),
        torch.ones(8, requires_grad=True),
        torch.eye(8),
    )
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        (y,) = linears(lambda x, w: rms_norm(x, w, 1e-5), (x, w), (a,))
    assert {t.data_ptr() for t in kept} == {x.data_ptr(), w.data_ptr(), a.data_ptr()}
    with torch.no_grad():
        (again,) = linears(lambda x, w: rms_norm(x, w, 1e-5), (x, w), (a,))
    assert torch.equal(y, again) and not again.requires_grad


# ---- all of them in a model ----------------------------------------------------------------------


def test_a_training_step_by_kernels_is_the_one_by_definitions(monkeypatch):
    """Log-probs, every gradient and every updated weight, of a row with a family."""
    torch.manual_seed(0)
    config = LlamaConfig.from_dict(tiny_config(head_dim=16))
    row = collate([family([1, 2, 3, 4], [[5, 6], [7]]), document(range(9, 40))]).to(DEVICE)
    start, found = Llama(config).state_dict(), {}
    for path in ("torch", "triton"):
        use(path, monkeypatch)
        model = Llama(config).to(DEVICE)
        model.load_state_dict(start)
        args = (row.input_ids, row.position_ids, row.cu_seqlens, row.labels, row.parent)
        logprobs = model(*args, common_gradient=True)
        (-logprobs.sum()).backward()
        grads = [p.grad.clone() for p in model.parameters()]
        build_optimizer(model, 1e-3, 0.1).step(scale=0.5)
        found[path] = [logprobs.detach(), *grads], list(model.parameters())
    (gradients, weights), (want, want_weights) = found["triton"], found["torch"]
    for a, b in zip(gradients, want, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()
    # The first step of Adam is the rate times the sign of the gradient, even of one next to nothing
    for a, b in zip(weights, want_weights, strict=True):
        assert (a - b).abs().max() <= 1e-3 / 50
