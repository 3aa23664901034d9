"""Every op against its formula in fp64: at most twice as far from it as torch in the same dtype."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import cross_entropy
from kernels.attention import (
    WASTE,
    attention,
    attention_ref,
    cached_attention,
    make_layout,
    visible,
)
from kernels.cross_entropy import IGNORE, linear_logprobs, linear_logprobs_ref
from kernels.rms_norm import rms_norm
from kernels.rope import rope
from kernels.swiglu import swiglu

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
N, D, V, H, K, DH = 150, 64, 500, 6, 2, 16


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def outputs_and_gradients(op, inputs, dtype):
    """[outputs..., gradient of each floating input] of op in a dtype, as fp64 on the CPU."""
    inputs = [x.to(DEVICE, dtype if x.is_floating_point() else None) for x in inputs]
    inputs = [x.clone().requires_grad_() if x.is_floating_point() else x for x in inputs]
    outputs = op(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    # A different upstream gradient for every number that comes out
    ups = [normal(*o.shape, seed=100 + i).to(DEVICE) for i, o in enumerate(outputs)]
    torch.autograd.backward(outputs, [u.to(o.dtype) for u, o in zip(ups, outputs, strict=True)])
    found = [*outputs, *(x.grad for x in inputs if x.is_floating_point())]
    return [x.detach().double().cpu() for x in found]


def root_mean_square(x):
    return float(x.square().mean().sqrt())


def check(op, definition, torchs, inputs, dtype):
    """op <= 2 * torch's own error, both against `definition` in fp64 of the same rounded inputs."""
    inputs = [x.to(dtype).double() if x.is_floating_point() else x for x in inputs]
    want = outputs_and_gradients(definition, inputs, torch.float64)
    exact = outputs_and_gradients(op, inputs, torch.float64)
    ours = outputs_and_gradients(op, inputs, dtype)
    theirs = outputs_and_gradients(torchs, inputs, dtype)
    assert len(want) == len(ours) == len(theirs)
    for w, e, a, b in zip(want, exact, ours, theirs, strict=True):
        size = root_mean_square(w)
        assert size > 1e-3 and w.shape == a.shape
        assert root_mean_square(e - w) < 1e-7 * size  # cos, sin and eps may have passed fp32
        assert root_mean_square(a - w) <= 2 * root_mean_square(b - w) + 1e-8 * size


dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


@dtypes
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e-3])  # 1e-3: eps weighs as much as the mean
def test_rms_norm_is_as_close_to_its_formula_as_torch(dtype, scale):
    inputs = [scale * normal(N, D), 1 + 0.2 * normal(D, seed=1)]
    check(
        lambda x, w: rms_norm(x, w, 1e-5),
        lambda x, w: x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * w,
        # Hugging Face's Llama rounds twice in bf16, before the weight and behind it: so do we
        lambda x, w: w * F.rms_norm(x, (D,), None, 1e-5),
        inputs,
        dtype,
    )


def test_the_size_of_a_row_is_taken_in_fp32():
    """In bf16 the mean of squares would be off by 1/512 for the whole row; single roundings of its
    512 numbers cancel out."""
    x, w = normal(40, 512).bfloat16(), torch.ones(512, dtype=torch.bfloat16)
    got = rms_norm(x.to(DEVICE), w.to(DEVICE), 1e-5).double().cpu()
    want = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-5).sqrt()
    ratio = (got * want).sum(-1) / want.square().sum(-1)
    assert root_mean_square(ratio - 1) < 1e-3  # 0.4e-3; 2.2e-3 with bf16 squares


@dtypes
def test_swiglu_is_as_close_to_its_formula_as_torch(dtype):
    check(
        swiglu,
        lambda gate, up: gate / (1 + (-gate).exp()) * up,
        lambda gate, up: F.silu(gate) * up,
        [3 * normal(N, D), normal(N, D, seed=1)],
        dtype,
    )


@dtypes
def test_rope_turns_pairs_as_complex_numbers_do(dtype):
    """Pair i is (x[i], x[i + Dh/2]); multiplying by exp(i angle) turns it."""
    angle = (normal(N, DH // 2, seed=9) * 5).to(DEVICE)
    cos, sin = angle.cos().float(), angle.sin().float()

    def complex_product(x):
        z = torch.complex(x[..., : DH // 2], x[..., DH // 2 :])
        z = z * torch.complex(cos.double(), sin.double())[:, None]
        return torch.cat([z.real, z.imag], -1)

    def halves(x):  # as in Hugging Face's Llama
        c, s = (torch.cat([t, t], -1)[:, None].to(x.dtype) for t in (cos, sin))
        return x * c + torch.cat([-x[..., DH // 2 :], x[..., : DH // 2]], -1) * s

    check(
        lambda q, k: rope(q, k, cos, sin),
        lambda q, k: (complex_product(q), complex_product(k)),
        lambda q, k: (halves(q), halves(k)),
        [normal(N, H, DH), normal(N, K, DH, seed=1)],
        dtype,
    )


# ---- linear + cross-entropy ----------------------------------------------------------------------


def head_inputs(n=N, v=V):
    labels = torch.randint(0, v, (n,), generator=torch.Generator().manual_seed(3))
    labels[::4], labels[1], labels[2] = IGNORE, 0, v - 1
    return [normal(n, D), normal(v, D, seed=1) / 3, labels]


def softmax_definition(hidden, weight, labels):
    p = (hidden @ weight.T).exp()
    p = p / p.sum(-1, keepdim=True)
    picked = p[torch.arange(len(p), device=p.device), labels.clamp(min=0)].log()
    return torch.where(labels == IGNORE, 0.0, picked)


def torch_logprobs(hidden, weight, labels):
    return -F.cross_entropy(F.linear(hidden, weight).float(), labels, reduction="none")


@dtypes
@pytest.mark.parametrize("rows", [1000, 7, 1])  # rows per chunk: one chunk, ragged chunks, rows
def test_linear_logprobs_is_as_close_to_its_formula_as_torch(dtype, rows, monkeypatch):
    monkeypatch.setitem(cross_entropy.CHUNK_LOGITS, DEVICE, rows * V)
    check(linear_logprobs, softmax_definition, torch_logprobs, head_inputs(), dtype)


def test_many_chunks_of_bf16_add_up_nearly_as_exactly_as_one(monkeypatch):
    """1.2 times the error of one chunk, 2.9 times where the sum itself is bf16. With small logits,
    whose own rounding would hide it."""
    hidden, weight, labels = head_inputs()
    inputs = [hidden.bfloat16().double(), (0.02 * weight).bfloat16().double(), labels]
    want = outputs_and_gradients(softmax_definition, inputs, torch.float64)[2]
    error = {}
    for rows in (1000, 1):
        monkeypatch.setitem(cross_entropy.CHUNK_LOGITS, DEVICE, rows * V)
        got = outputs_and_gradients(linear_logprobs, inputs, torch.bfloat16)[2]
        error[rows] = root_mean_square(got - want)
    assert error[1] < 1.6 * error[1000]


def test_the_definition_in_the_file_is_the_softmax():
    inputs = head_inputs()
    want = outputs_and_gradients(softmax_definition, inputs, torch.float64)
    got = outputs_and_gradients(linear_logprobs_ref, inputs, torch.float64)
    assert all((a - b).abs().max() < 1e-12 for a, b in zip(got, want, strict=True))


def test_only_minus_100_is_ignored_and_token_zero_is_scored():
    hidden, weight, _ = head_inputs(8)
    hidden.requires_grad_()
    labels = torch.tensor([0, IGNORE, 0, 5, IGNORE, 0, 1, 0])
    got = linear_logprobs(hidden, weight, labels)
    assert ((got != 0) == (labels != IGNORE)).all() and (got <= 0).all()
    got.sum().backward()
    assert ((hidden.grad.abs().sum(1) > 0) == (labels != IGNORE)).all()


def test_a_row_without_labels_gives_zeros_that_still_hang_on_the_graph():
    hidden, weight, labels = head_inputs(5)
    hidden.requires_grad_(), weight.requires_grad_()
    got = linear_logprobs(hidden, weight, torch.full_like(labels, IGNORE))
    assert got.tolist() == [0] * 5
    got.sum().backward()  # another rank waits for this one
    assert hidden.grad.abs().sum() == 0 and weight.grad.abs().sum() == 0


def test_logits_beyond_the_range_of_exp_stay_finite():
    hidden, weight, labels = head_inputs()
    inputs = [100 * hidden, 100 * weight, labels]
    for found in outputs_and_gradients(linear_logprobs, inputs, torch.float32):
        assert found.isfinite().all()


class Largest(TorchDispatchMode):
    """Remembers how many numbers the largest tensor had that any operation made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor):
                self.numel = max(self.numel, x.numel())
        return out


@pytest.mark.parametrize("chunk, v", [(10 * V, V), (None, 100_000)])
def test_the_logits_never_exist_in_full(chunk, v, monkeypatch):
    if chunk:
        monkeypatch.setitem(cross_entropy.CHUNK_LOGITS, DEVICE, chunk)
    allowed = cross_entropy.CHUNK_LOGITS[DEVICE]
    n = 5 * allowed // (2 * v)
    hidden, weight, labels = (x.to(DEVICE) for x in head_inputs(n, v))
    weight, hidden = (x[:, :8].float().contiguous().requires_grad_() for x in (weight, hidden))
    with Largest() as largest:
        linear_logprobs(hidden, weight, labels).sum().backward()
    assert weight.numel() < largest.numel <= allowed < n * v / 2
    if chunk:
        with Largest() as largest:
            linear_logprobs_ref(hidden, weight, labels).sum()
        assert largest.numel == n * v


# ---- attention over packed documents -------------------------------------------------------------


def random_row(seed):
    """(cu_seqlens, parent) of random documents, some of them families with up to four children."""
    g = torch.Generator().manual_seed(seed)

    def draw(high):
        return int(torch.randint(0, high, (), generator=g))

    lengths, parents = [], []
    for _ in range(1 + draw(6)):
        root = len(lengths)
        longest = (3, 20, 90)[draw(3)]
        lengths.append(1 + draw(longest))
        parents.append(-1)
        for _ in range(draw(5) if draw(2) else 0):
            lengths.append(1 + draw(longest))
            parents.append(root)
    starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return starts, torch.tensor(parents, dtype=torch.int32)


def one_document_at_a_time(q, k, v, starts, parents):
    """The definition: softmax over what a document may see, in nothing but matrix products."""
    starts, outputs = starts.tolist(), []
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    for b, p in enumerate(parents.tolist()):
        own = slice(starts[b], starts[b + 1])
        before = slice(starts[p], starts[p + 1]) if p >= 0 else slice(0, 0)
        keys, values = (torch.cat([x[before], x[own]]) for x in (k, v))  # (m, H, Dh)
        scores = torch.einsum("nhd,mhd->hnm", q[own], keys) / q.shape[2] ** 0.5
        n, m = scores.shape[1:]
        hidden = torch.ones(n, m, dtype=torch.bool, device=q.device).triu(m - n + 1)
        outputs.append(
            torch.einsum("hnm,mhd->nhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), values)
        )
    return torch.cat(outputs)


def sdpa_per_document(q, k, v, starts, parents):
    mask = visible(starts.to(q.device), parents.to(q.device))
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))  # (H, N, Dh)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(0, 1)


@dtypes
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_attention_is_as_close_to_its_formula_as_torch(dtype, kv_heads):
    for seed in (0, 1, 3, 5):  # rows of 89 to 205 tokens: enough for an error to be a mean
        starts, parents = random_row(seed)
        n = int(starts[-1])
        starts, parents = starts.to(DEVICE), parents.to(DEVICE)
        layout = make_layout(starts, parents)
        check(
            lambda q, k, v, layout=layout: attention(q, k, v, layout),
            lambda q, k, v, s=starts, p=parents: one_document_at_a_time(q, k, v, s, p),
            lambda q, k, v, s=starts, p=parents: sdpa_per_document(q, k, v, s, p),
            [normal(n, H, DH), normal(n, kv_heads, DH, seed=1), normal(n, kv_heads, DH, seed=2)],
            dtype,
        )


def test_any_layout_gives_the_numbers_of_the_definition():
    for seed in range(60):
        starts, parents = random_row(seed)
        n = int(starts[-1])
        q, k, v = normal(n, H, DH, seed=seed), normal(n, K, DH, seed=1), normal(n, K, DH, seed=2)
        want = one_document_at_a_time(q, k, v, starts, parents)
        assert (attention(q, k, v, make_layout(starts, parents)) - want).abs().max() < 1e-12
        assert (attention_ref(q, k, v, starts, parents) - want).abs().max() < 1e-12
        alone = torch.full_like(parents, -1)
        want = one_document_at_a_time(q, k, v, starts, alone)
        assert (attention(q, k, v, make_layout(starts)) - want).abs().max() < 1e-12


def test_padding_never_adds_more_work_than_allowed_and_every_token_is_asked_once():
    shared = 0
    for seed in range(60):
        starts, parents = random_row(seed)
        buckets, back = make_layout(starts, parents)
        lengths = starts.diff().tolist()
        needed = sum(
            n * (n + (lengths[p] if p >= 0 else 0))
            for n, p in zip(lengths, parents.tolist(), strict=True)
        )
        done = sum(rows.numel() * columns.shape[1] for rows, columns, _, _ in buckets)
        assert done <= WASTE * needed
        asked = torch.cat([rows[real] for rows, _, _, real in buckets])
        assert sorted(asked.tolist()) == list(range(int(starts[-1])))
        shared += len(lengths) - len(buckets)
    assert shared > 50  # documents do share calls


def test_the_mask_hides_siblings_strangers_and_the_future():
    starts, parents = torch.tensor([0, 2, 3, 5, 6]), torch.tensor([-1, 0, 0, -1])
    want = """
        1.....
        11....
        111...
        11.1..
        11.11.
        .....1"""
    rows = [[c == "1" for c in line] for line in want.split()]
    assert visible(starts, parents).tolist() == rows


def test_a_cached_query_sees_its_own_sequence_up_to_its_position():
    positions = torch.tensor([0, 7, 3, 11])
    q, k, v = normal(4, H, DH), normal(4, 12, K, DH, seed=1), normal(4, 12, K, DH, seed=2)
    got = cached_attention(q, k, v, positions)
    for s, p in enumerate(positions.tolist()):
        seen = slice(0, p + 1)
        row = torch.cat([torch.zeros(p, H, DH, dtype=q.dtype), q[s : s + 1]])  # the last one asks
        starts, lone = torch.tensor([0, p + 1]), torch.tensor([-1])
        want = one_document_at_a_time(row, k[s, seen], v[s, seen], starts, lone)[-1]
        assert (got[s] - want).abs().max() < 1e-12
