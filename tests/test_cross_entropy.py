"""The head: log-probs without logits, in both forms, against the softmax in fp64."""

import pytest
import torch
from closeness import (
    DEVICE,
    Launches,
    V,
    both,
    check,
    head_inputs,
    normal,
    outputs_and_gradients,
    paths,
    root_mean_square,
    use,
)
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import cross_entropy
from kernels.cross_entropy import IGNORE, linear_logprobs, linear_logprobs_ref


def softmax_definition(hidden, weight, labels):
    p = (hidden @ weight.T).exp()
    p = p / p.sum(-1, keepdim=True)
    picked = p[torch.arange(len(p), device=p.device), labels.clamp(min=0)].log()
    return torch.where(labels == IGNORE, 0.0, picked)


def torch_logprobs(hidden, weight, labels):
    return -F.cross_entropy(F.linear(hidden, weight).float(), labels, reduction="none")


def tiles_of(count, monkeypatch):
    """Tiles of at most `count` rows or columns instead of those that memory asks for."""

    def tiles(total, *_):
        return [slice(i, min(i + count, total)) for i in range(0, total, count)]

    monkeypatch.setattr(cross_entropy, "tiles", tiles)


@paths
@pytest.mark.parametrize("n, v, tile, block", [(150, 500, 1000, 4096), (150, 500, 37, 128),
                                               (1, 500, 100, 128), (20, 130, 1, 64)])  # fmt: skip
def test_linear_logprobs_is_as_close_to_its_formula_as_torch(
    path, dtype, n, v, tile, block, monkeypatch
):
    use(path, monkeypatch)
    tiles_of(tile, monkeypatch)  # over the vocabulary
    monkeypatch.setattr(cross_entropy, "BLOCK", block)
    launches = Launches(monkeypatch, cross_entropy._stats, cross_entropy._dlogits)
    check(linear_logprobs, softmax_definition, torch_logprobs, head_inputs(n, v), dtype)
    assert launches.count == (2 * -(-v // tile) if path == "triton" else 0)


def summed(logprobs):
    """The head under a loss that weighs every label alike, here by -0.3."""
    return lambda hidden, weight, labels: -0.3 * logprobs(hidden, weight, labels).sum()


@paths
@pytest.mark.parametrize("n, v, tile, block", [(150, 500, 1000, 4096), (150, 500, 37, 128),
                                               (1, 500, 100, 128), (5, 130, 2, 64)])  # fmt: skip
def test_with_a_common_gradient_it_is_as_close(path, dtype, n, v, tile, block, monkeypatch):
    use(path, monkeypatch)
    tiles_of(tile, monkeypatch)  # over the tokens
    monkeypatch.setattr(cross_entropy, "BLOCK", block)

    def common(*inputs):
        return linear_logprobs(*inputs, common_gradient=True)

    check(
        summed(common), summed(softmax_definition), summed(torch_logprobs), head_inputs(n, v), dtype
    )
    inputs = [x.to(DEVICE, dtype if x.is_floating_point() else None) for x in head_inputs(n, v)]
    inputs[0].requires_grad_()  # without a gradient to take it would be the other form
    got = common(*inputs).detach().double()
    assert (got - linear_logprobs(*inputs).detach().double()).abs().max() < (
        1e-5 if dtype == torch.float32 else 0.1
    )


def test_a_broken_promise_of_a_common_gradient_is_an_error_and_so_is_a_second_backward():
    hidden, weight, labels = (x.to(DEVICE) for x in head_inputs(8))
    hidden.requires_grad_()
    if DEVICE == "cpu":  # on a GPU it is an assertion of the device, which ends the process
        with pytest.raises(RuntimeError, match="common_gradient was promised"):
            loss = linear_logprobs(hidden, weight, labels, common_gradient=True)
            (loss * torch.arange(8)).sum().backward()
    loss = linear_logprobs(hidden, weight, labels, common_gradient=True).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward pass"):
        loss.backward()


def test_without_gradients_a_common_one_costs_no_more_than_scoring(monkeypatch):
    monkeypatch.setattr(cross_entropy._CommonGradient, "forward", None)
    with torch.no_grad():
        inputs = [x.to(DEVICE) for x in head_inputs(8)]
        got = linear_logprobs(*inputs, common_gradient=True)
    assert torch.equal(got, linear_logprobs(*inputs))


@pytest.mark.parametrize("common", [False, True])
def test_a_label_outside_the_vocabulary_is_an_error(common):
    if DEVICE == "cuda":
        pytest.skip("an assertion of the device there: it would end this process")
    hidden, weight, labels = head_inputs(8)
    for wrong in (V, -1):
        labels[3] = wrong
        with pytest.raises(RuntimeError, match="a label is not in 0 .. 499"):
            linear_logprobs(hidden, weight, labels, common)


def test_four_tiles_of_bf16_add_up_nearly_as_exactly_as_one(monkeypatch):
    """With small logits, whose own rounding would hide it."""
    hidden, weight, labels = head_inputs()
    inputs = [hidden.bfloat16().double(), (0.02 * weight).bfloat16().double(), labels]
    want = outputs_and_gradients(summed(softmax_definition), inputs, torch.float64)[2]

    def common(*inputs):
        return linear_logprobs(*inputs, common_gradient=True)

    error = {}
    for count in (1000, 29):  # of 112 labelled rows
        tiles_of(count, monkeypatch)
        got = outputs_and_gradients(summed(common), inputs, torch.bfloat16)[2]
        error[count] = root_mean_square(got - want)
    assert error[29] < 2 * error[1000]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("block", [32, 64, 512])
def test_the_gradient_of_logits_may_take_their_place_in_half_the_size(dtype, block, monkeypatch):
    """Rows of one, and of many blocks: none is overwritten before it was read."""
    monkeypatch.setattr(cross_entropy, "BLOCK", block)
    z, column = (
        3 * normal(5, 300).float().to(DEVICE),
        torch.tensor([0, 299, 150, 31, 32]).to(DEVICE),
    )
    want, exact = cross_entropy.stats_and_dlogits(z.double(), column, torch.float64)
    use("triton", monkeypatch)
    space = z.data_ptr()
    got, dz = cross_entropy.stats_and_dlogits(z, column, dtype)
    assert dz.data_ptr() == space and dz.dtype == dtype and dz.shape == (5, 300)
    assert (got - want).abs().max() < 1e-5
    assert (dz.double() - exact).abs().max() < 2 * torch.finfo(dtype).eps


@both
def test_fp16_gradients_that_add_up_beyond_its_range_are_taken_per_token(path, monkeypatch):
    use(path, monkeypatch)
    hidden = torch.full((4096, 2), 40.0, dtype=torch.float16, device=DEVICE)
    weight = torch.zeros(2, 2, dtype=torch.float16, device=DEVICE, requires_grad=True)
    labels = torch.zeros(4096, dtype=torch.long, device=DEVICE)
    loss = -linear_logprobs(hidden, weight, labels, common_gradient=True).sum() / 4096
    loss.backward()
    assert weight.grad.tolist() == [[-20, -20], [20, 20]]


@pytest.mark.parametrize("dtype, count", [(torch.float32, 16), (torch.bfloat16, 4)])
def test_however_small_a_tile_bf16_gradients_are_rounded_four_times_at_most(
    dtype, count, monkeypatch
):
    used = []

    def tiles(*args):
        used.append(all_tiles(*args))
        return used[-1]

    all_tiles = cross_entropy.tiles
    monkeypatch.setattr(cross_entropy, "tiles", tiles)
    monkeypatch.setattr(cross_entropy, "TILE_BYTES", {"cpu": 1, "cuda": 1})
    hidden = torch.ones(8000, 4, dtype=dtype, device=DEVICE, requires_grad=True)
    weight, labels = torch.ones(9, 4, dtype=dtype, device=DEVICE), torch.zeros(8000).long()
    linear_logprobs(hidden, weight, labels.to(DEVICE), common_gradient=True).sum().backward()
    assert [len(found) for found in used] == [count]


def test_tiles_cover_everything_once():
    for total, across, size in ((1, 9, 4), (130, 10**6, 4), (5000, 300, 2), (128_256, 8192, 6)):
        for least in (64, 512):
            parts = cross_entropy.tiles(total, across, size, torch.device("cpu"), least)
            assert [i for p in parts for i in range(p.start, p.stop)] == list(range(total))
            assert all(p.stop - p.start >= least for p in parts[:-1])
    assert cross_entropy.tiles(0, 9, 4, torch.device("cpu"), 64) == []
    # Llama 3 on a GPU: 8,192 tokens with a GiB to spare
    cuda = torch.device("cuda")
    rows = cross_entropy.tiles(8192, 128_256, 4, cuda, 2048)
    assert [p.stop - p.start for p in rows] == [2048] * 4
    cols = cross_entropy.tiles(128_256, 8192, 6, cuda, 64)
    assert [p.stop - p.start for p in cols] == [16_384] * 7 + [13_568]


def test_the_definition_in_the_file_is_the_softmax():
    inputs = head_inputs()
    want = outputs_and_gradients(softmax_definition, inputs, torch.float64)
    got = outputs_and_gradients(linear_logprobs_ref, inputs, torch.float64)
    assert all((a - b).abs().max() < 1e-12 for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("common", [False, True])
@both
def test_only_minus_100_is_ignored_and_token_zero_is_scored(path, common, monkeypatch):
    use(path, monkeypatch)
    hidden, weight, _ = (x.to(DEVICE) for x in head_inputs(8))
    hidden, weight = hidden.float().requires_grad_(), weight.float()
    labels = torch.tensor([0, IGNORE, 0, 5, IGNORE, 0, 1, 0], device=DEVICE)
    got = linear_logprobs(hidden, weight, labels, common)
    assert ((got != 0) == (labels != IGNORE)).all() and (got <= 0).all()
    got.sum().backward()
    assert ((hidden.grad.abs().sum(1) > 0) == (labels != IGNORE)).all()


@pytest.mark.parametrize("common", [False, True])
@both
def test_a_row_without_labels_gives_zeros_that_still_hang_on_the_graph(path, common, monkeypatch):
    use(path, monkeypatch)
    hidden, weight, labels = (x.to(DEVICE) for x in head_inputs(5))
    hidden, weight = hidden.float().requires_grad_(), weight.float().requires_grad_()
    got = linear_logprobs(hidden, weight, torch.full_like(labels, IGNORE), common)
    assert got.tolist() == [0] * 5
    got.sum().backward()  # another rank waits for this one
    assert hidden.grad.abs().sum() == 0 and weight.grad.abs().sum() == 0


@pytest.mark.parametrize("common", [False, True])
@both
def test_logits_beyond_the_range_of_exp_stay_finite(path, common, monkeypatch):
    use(path, monkeypatch)
    hidden, weight, labels = head_inputs(40)

    def op(*inputs):
        return linear_logprobs(*inputs, common).sum()

    for found in outputs_and_gradients(op, [100 * hidden, 100 * weight, labels], torch.float32):
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


@pytest.mark.parametrize("common", [False, True])
@pytest.mark.parametrize("tile_bytes, n, v", [(2**20, 5000, 6000), (None, 4000, 100_000)])
def test_the_logits_never_exist_in_full(common, tile_bytes, n, v, monkeypatch):
    if tile_bytes:  # None: as shipped
        monkeypatch.setitem(cross_entropy.TILE_BYTES, DEVICE, tile_bytes)
    elif DEVICE == "cuda":
        n = 5 * cross_entropy.TILE_BYTES["cuda"] // (2 * v)
    hidden, weight, labels = (x.to(DEVICE) for x in head_inputs(n, v))
    weight, hidden = (x[:, :8].float().contiguous().requires_grad_() for x in (weight, hidden))
    with Largest() as largest:
        linear_logprobs(hidden, weight, labels, common).sum().backward()
    allowed = max(512 * v, cross_entropy.TILE_BYTES[DEVICE] // 4)
    assert weight.numel() < largest.numel <= allowed < n * v / 7
    if tile_bytes:
        with Largest() as largest:
            linear_logprobs_ref(hidden, weight, labels).sum()
        assert largest.numel == n * v
