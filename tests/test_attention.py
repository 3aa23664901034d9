"""Attention over packed rows: the kernels against the formula, and the tables that steer them."""

import pytest
import torch
from closeness import DEVICE, Launches, check, normal, paths, use
from torch.nn import functional as F

from kernels import attention as file
from kernels.attention import attention, attention_ref, cached_attention, make_layout, visible
from kernels.attention_cpu import WASTE, make_buckets
from kernels.attention_layout import key_blocks, query_blocks, token_ranges

H, K, DH = 6, 2, 16
CPU = torch.device("cpu")
ALONE = -1


def row(*documents):
    """(cu_seqlens, parent) of documents: a length, or a family (length, [lengths of children])."""
    lengths, parents = [], []
    for document in documents:
        length, children = document if isinstance(document, tuple) else (document, [])
        parents += [ALONE] + [len(lengths)] * len(children)
        lengths += [length, *children]
    starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return starts, torch.tensor(parents, dtype=torch.int32)


def random_row(seed):
    """Random documents, some of them families with up to four children."""
    g = torch.Generator().manual_seed(seed)

    def draw(high):
        return int(torch.randint(0, high, (), generator=g))

    documents = []
    for _ in range(1 + draw(6)):
        longest = (3, 20, 90)[draw(3)]
        parent, children = 1 + draw(longest), draw(5) if draw(2) else 0
        documents.append((parent, [1 + draw(longest) for _ in range(children)]))
    return row(*documents)


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


def sdpa_of_the_row(q, k, v, starts, parents):
    mask = visible(starts.to(q.device), parents.to(q.device))
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))  # (H, N, Dh)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(0, 1)


def check_row(starts, parents, heads, kv_heads, head_dim, dtype):
    n = int(starts[-1])
    layout = make_layout(starts.to(DEVICE), parents.to(DEVICE))
    check(
        lambda q, k, v: attention(q, k, v, layout),
        lambda q, k, v: one_document_at_a_time(q, k, v, starts, parents),
        lambda q, k, v: sdpa_of_the_row(q, k, v, starts, parents),
        [normal(n, h, head_dim, seed=s) for s, h in enumerate((heads, kv_heads, kv_heads))],
        dtype,
    )


def use_large_blocks(monkeypatch):
    """The block sizes of 16-bit numbers also in fp32, where the interpreter is exact."""
    monkeypatch.setattr(file, "tiles", lambda table, q: table[q.shape[-1]])


@paths
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_attention_is_as_close_to_its_formula_as_torch(path, dtype, kv_heads, monkeypatch):
    use(path, monkeypatch)
    launches = Launches(monkeypatch, file._forward, file._backward_q, file._backward_kv)
    seeds = (0, 1, 3, 5) if path == "torch" or DEVICE == "cuda" else (1,)  # 89 to 205 tokens
    for seed in seeds:
        check_row(*random_row(seed), H, kv_heads, DH, dtype)
    assert launches.count == (3 * len(seeds) if path == "triton" else 0)


LARGE = [  # row, heads, key-value heads, head dim
    (row(1, 1, 2, 40, 1), 4, 1, 16),
    (row(5, 1, 70, 1, 33), 3, 1, 32),
    (row(63, 64, 65), 4, 4, 16),
    (row(127, 129), 2, 1, 64),
    (row(128, 1, 257), 2, 2, 16),
    (row(30, 31, 67, 2, 128), 4, 1, 16),  # whole documents fill a block to the last token
    (row((70, [1, 5, 70]), 3, 2), 3, 1, 64),
    (row((1, [1, 1]), (64, [1, 130, 64, 1]), 9, (130, [20, 129])), 4, 2, 32),
    (row(20, (128, [128, 3]), (129, [1]), 1, (65, [62, 65, 1, 1])), 2, 1, 128),
]


@pytest.mark.parametrize("case", LARGE, ids=range(len(LARGE)))
def test_the_blocks_of_16_bit_numbers_give_the_formula_too(case, monkeypatch):
    (starts, parents), *shape = case
    use("triton", monkeypatch)
    use_large_blocks(monkeypatch)
    # In fp32 such blocks would not fit in a GPU's shared memory; the interpreter has no such limit
    check_row(starts, parents, *shape, torch.bfloat16 if DEVICE == "cuda" else torch.float32)


def test_a_lone_token_attends_to_itself(monkeypatch):
    use("triton", monkeypatch)
    q, k, v, upstream = (x.float().to(DEVICE) for x in example([0, 1]))
    o, dq, dk, dv = outputs(q, k, v, *row(1), upstream)
    assert torch.equal(o, v.repeat_interleave(H // K, 1))
    assert (dv - upstream.unflatten(1, (K, -1)).sum(2)).abs().max() < 1e-6
    assert dq.abs().max() < 1e-6 and dk.abs().max() < 1e-6


def test_fp16_is_served(monkeypatch):
    use("triton", monkeypatch)
    check_row(*row(40, (20, [30, 1]), 66), 4, 2, 32, torch.float16)


def outputs(q, k, v, starts, parents, upstream):
    """[o, dq, dk, dv] of the op in fp32."""
    inputs = [x.to(DEVICE, torch.float32, copy=True).requires_grad_() for x in (q, k, v)]
    o = attention(*inputs, make_layout(starts, parents))
    return [o, *torch.autograd.grad(o, inputs, upstream.to(o))]


def example(starts, seed=0):
    """q, k, v and an upstream gradient for a row."""
    n = int(starts[-1])
    return [normal(n, h, DH, seed=seed + i) for i, h in enumerate((H, K, K, H))]


def test_a_packed_row_gives_what_its_documents_give_alone(monkeypatch):
    use("triton", monkeypatch)
    use_large_blocks(monkeypatch)
    starts, parents = row(5, 140, 64, 1)
    tensors = example(starts)
    packed = outputs(*tensors[:3], starts, parents, tensors[3])
    for a, b in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        part = [x[a:b] for x in tensors]
        alone = outputs(*part[:3], *row(b - a), part[3])
        assert all((x - y[a:b]).abs().max() < 1e-5 for x, y in zip(alone, packed, strict=True))


def test_a_family_gives_what_its_sequences_give_apart(monkeypatch):
    use("triton", monkeypatch)
    use_large_blocks(monkeypatch)
    starts, parents = row((70, [1, 66, 3]))
    tensors = example(starts)
    family = outputs(*tensors[:3], starts, parents, tensors[3])
    total = [torch.zeros_like(x) for x in family]
    for child, (a, b) in enumerate([(70, 71), (71, 137), (137, 140)]):
        places = torch.cat([torch.arange(70), torch.arange(a, b)])
        q, k, v, upstream = (x[places].clone() for x in tensors)
        upstream[:70] *= child == 0  # the prompt's own outputs count once
        found = outputs(q, k, v, *row(len(places)), upstream)
        found[0][:70] *= child == 0
        for t, x in zip(total, found, strict=True):
            t[places] += x
    assert all((x - y).abs().max() < 1e-5 for x, y in zip(total, family, strict=True))


def test_two_runs_give_the_same_bits_and_leave_their_inputs_alone(monkeypatch):
    use("triton", monkeypatch)
    use_large_blocks(monkeypatch)
    starts, parents = random_row(1)
    tensors = example(starts)
    before = [x.clone() for x in tensors]
    first, again = (outputs(*tensors[:3], starts, parents, tensors[3]) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    assert all(torch.equal(x, y) for x, y in zip(tensors, before, strict=True))


# Of scores that the mask hides; numpy, for the interpreter, says so
hidden_scores = pytest.mark.filterwarnings("ignore:overflow encountered in exp2")


@hidden_scores
def test_a_document_changes_no_bit_of_another_ones_outputs_and_gradients(monkeypatch):
    use("triton", monkeypatch)
    use_large_blocks(monkeypatch)
    starts, parents = row(20, (30, [7, 12]), 40)
    tensors = example(starts)
    want = outputs(*tensors[:3], starts, parents, tensors[3])
    for changed, seen in [((57, 69), (20, 69)), ((69, 109), (69, 109)), ((0, 20), (0, 20))]:
        other = [x.clone() for x in tensors]
        for x in other:
            x[slice(*changed)] *= 1000
        got = outputs(*other[:3], starts, parents, other[3])
        outside = torch.ones(int(starts[-1]), dtype=torch.bool)
        outside[slice(*seen)] = False
        assert all(torch.equal(x[outside], y[outside]) for x, y in zip(got, want, strict=True))
        # A sibling's outputs and dq stay as well; only what the parent gives both sums over both
        sibling = slice(50, 57)
        assert changed != (57, 69) or all(
            torch.equal(x[sibling], y[sibling]) for x, y in zip(got, want, strict=True)
        )


def test_views_that_are_not_contiguous_give_the_numbers_of_their_copies(monkeypatch):
    use("triton", monkeypatch)
    starts, parents = row(20, 13)
    layout = make_layout(starts, parents)
    fused = normal(33, H + K, DH).float().to(DEVICE).requires_grad_()
    turned = normal(DH, K, 33, seed=1).float().to(DEVICE).requires_grad_()
    upstream = torch.ones(33, 1, 1, device=DEVICE).expand(33, H, DH)
    q, k, v = fused[:, :H], fused[:, H:], turned.permute(2, 1, 0)
    assert not any(x.is_contiguous() for x in (q, k, v, upstream))
    got = attention(q, k, v, layout)
    want = attention(*(x.contiguous() for x in (q, k, v)), layout)
    assert torch.equal(got, want)
    got = torch.autograd.grad(got, (fused, turned), upstream)
    want = torch.autograd.grad(want, (fused, turned), upstream.contiguous())
    assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))


@hidden_scores
def test_scores_beyond_the_range_of_exp_stay_finite(monkeypatch):
    use("triton", monkeypatch)
    starts, parents = row(40, (20, [3, 30]))
    q, k, v, upstream = example(starts)
    for x in outputs(100 * q, 100 * k, v, starts, parents, upstream):
        assert x.isfinite().all()


def test_rows_past_2_to_the_31_numbers_are_found(monkeypatch):
    """All kernels on the last document of a row, whose other documents nobody touches: tensors of
    4 GB each of which the system only hands out the last page."""
    use("triton", monkeypatch)
    heads, head_dim, last = 16, 128, 40
    n = 2**31 // (heads * head_dim) + last
    layout = make_layout(*row(n - last, last))

    def part_of_the_last(make, *key):
        whole = make(layout.starts, layout.parents, *key)
        return whole if make is token_ranges else whole[whole[:, 0] == n - last]

    monkeypatch.setattr(layout, "part", part_of_the_last)
    inputs = [torch.empty(n, heads, head_dim, dtype=torch.float16, device=DEVICE) for _ in "qkvu"]
    small = [normal(last, heads, head_dim, seed=s).to(inputs[0]) for s in range(4)]
    for x, y in zip(inputs, small, strict=True):
        x[-last:] = y
    q, k, v = (x.requires_grad_() for x in inputs[:3])
    o = attention(q, k, v, layout)
    got = [o, *torch.autograd.grad(o, (q, k, v), inputs[3])]
    q, k, v = (x.float().requires_grad_() for x in small[:3])
    o = attention_ref(q, k, v, torch.tensor([0, last], device=DEVICE))
    want = [o, *torch.autograd.grad(o, (q, k, v), small[3].float())]
    assert all((x[-last:] - y).abs().max() < 1e-2 for x, y in zip(got, want, strict=True))


def test_a_wrong_shape_or_dtype_is_an_error_that_names_the_argument():
    starts, parents = row(4, 5)
    layout = make_layout(starts, parents)
    q, k, v = torch.zeros(9, H, DH), torch.zeros(9, K, DH), torch.zeros(9, K, DH)
    for wrong, name in [
        ((q[:8], k[:8], v[:8]), "q"),
        ((q[0], k, v), "q"),
        ((q, k[:8], v), "k"),
        ((q, k[..., :8], v[..., :8]), "k"),
        ((q, k, v[:, :1]), "v"),
        ((q, q[:, :4], q[:, :4]), "k has 4 heads, must divide the 6 of q"),
        ((q, k[:, :0], v[:, :0]), "k has 0 heads"),
        ((q, k.half(), v), "k"),
        ((q, k, v.double()), "v"),
        ((q.long(), k.long(), v.long()), "q"),
    ]:
        with pytest.raises(ValueError, match=f"attention: {name}"):
            attention(*wrong, layout)


@pytest.mark.parametrize("head_dim, dtype", [(8, torch.float32), (48, torch.float32), (16, None)])
def test_other_head_dims_and_fp64_take_the_pytorch_path(head_dim, dtype, monkeypatch):
    use("triton", monkeypatch)
    launches = Launches(monkeypatch, file._forward)
    starts, parents = row(4, (5, [2, 3]))
    q, k, v = (normal(14, h, head_dim, seed=h).to(DEVICE, dtype) for h in (H, K, K))
    want = attention_ref(q, k, v, starts.to(DEVICE), parents.to(DEVICE))
    assert (attention(q, k, v, make_layout(starts, parents)) - want).abs().max() < 1e-5
    assert launches.count == 0


# ---- the tables ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [4, 16, 128])
def test_blocks_meet_exactly_where_a_query_sees_a_key(size):
    for seed in range(40):
        starts, parents = random_row(seed)
        layout, mask = make_layout(starts, parents), visible(starts, parents)
        own, until = layout.part(token_ranges, CPU).tolist()
        n = len(mask)
        asked = torch.zeros(n, n, dtype=torch.long)
        for first, stop, doc, parent, parent_stop, _ in layout.part(
            query_blocks, size, CPU
        ).tolist():
            assert 0 < stop - first <= size
            full = [*range(parent, parent_stop), *range(doc, first)]  # read without a mask
            assert mask[first:stop, full].all()
            asked[first:stop, full] += 1
            for i in range(first, stop):
                asked[i, max(own[i], first) : i + 1] += 1
        assert torch.equal(asked, mask.long())
        asked = torch.zeros(n, n, dtype=torch.long)
        for first, stop, _, _, _, seen in layout.part(key_blocks, size, CPU).tolist():
            assert 0 < stop - first <= size
            assert mask[first + size : seen, first:stop].all()  # read without a mask
            for j in range(first, stop):
                asked[j : min(seen, until[j]), j] += 1
        assert torch.equal(asked, mask.long())


def test_the_longest_blocks_come_first_and_short_documents_share_one():
    layout = make_layout(*row(300, *[4] * 32, (10, [3] * 30)))
    queries = layout.part(query_blocks, 128, CPU)
    work = queries[:, 1] - queries[:, 2] + queries[:, 4] - queries[:, 3]
    assert (work.diff() <= 0).all()
    keys = layout.part(key_blocks, 128, CPU)
    assert ((keys[:, 5] - keys[:, 0]).diff() <= 0).all()
    assert len(queries) == len(keys) == 3 + 1 + 1 + 1  # not 3 + 32 + 1 + 30
    assert layout.part(key_blocks, 128, CPU) is keys  # worked out once, not per layer


# ---- the PyTorch path ----------------------------------------------------------------------------


def test_any_layout_gives_the_numbers_of_the_definition():
    for seed in range(60):
        starts, parents = random_row(seed)
        n = int(starts[-1])
        q, k, v = normal(n, H, DH, seed=seed), normal(n, K, DH, seed=1), normal(n, K, DH, seed=2)
        want = one_document_at_a_time(q, k, v, starts, parents)
        assert (attention(q, k, v, make_layout(starts, parents)) - want).abs().max() < 1e-12
        assert (attention_ref(q, k, v, starts, parents) - want).abs().max() < 1e-12
        alone = torch.full_like(parents, ALONE)
        want = one_document_at_a_time(q, k, v, starts, alone)
        assert (attention(q, k, v, make_layout(starts)) - want).abs().max() < 1e-12


def test_padding_never_adds_more_work_than_allowed_and_every_token_is_asked_once():
    shared = 0
    for seed in range(60):
        starts, parents = random_row(seed)
        buckets, _ = make_layout(starts, parents).part(make_buckets, CPU)
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
    starts, parents = row((2, [1, 2]), 1)
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
    q, k, v = normal(4, H, DH), normal(4, K, 12, DH, seed=1), normal(4, K, 12, DH, seed=2)
    bias = torch.where(torch.arange(12) <= positions[:, None], 0.0, -torch.inf)[:, None, None]
    got = cached_attention(q, k, v, bias)
    alone = cached_attention(q[3:], k[3:], v[3:])
    assert (got[3:] - alone).abs().max() < 1e-12  # no bias: all 12 are seen
    k, v = k.transpose(1, 2), v.transpose(1, 2)
    for s, p in enumerate(positions.tolist()):
        seen = slice(0, p + 1)
        asked = torch.cat([torch.zeros(p, H, DH, dtype=q.dtype), q[s : s + 1]])  # the last one asks
        want = one_document_at_a_time(asked, k[s, seen], v[s, seen], *row(p + 1))[-1]
        assert (got[s] - want).abs().max() < 1e-12
