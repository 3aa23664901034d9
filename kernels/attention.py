"""Causal attention over a packed row: documents side by side, none sees another.

    o[i] = sum_j p[i, j] v[j],   p[i] = softmax_j(q[i] . k[j] / sqrt(Dh))   over the j that i sees

Token i sees token j when j <= i and both stand in the same document, or when j stands in the parent
of i's document (a family: a prompt and its continuations, each of which sees the prompt and itself,
never a sibling). Query head h reads key-value head h // (H / K).

Why fuse: the scores of one document of 8,192 tokens are 4 GB in bf16 at 32 heads. A program takes
a block of queries past the keys it sees and keeps a running maximum and sum instead
(FlashAttention-2, arXiv:2307.08691): only o and lse, the log-sum-exp of each row, are written.
Blocks that never meet are never visited, and only those at the diagonal or the end of a range are
masked (attention_layout.py).

Backward takes p again from lse. With delta[i] = do[i] . o[i]:

    dv[j] = sum_i p[i, j] do[i]
    ds[i, j] = p[i, j] (do[i] . v[j] - delta[i]) / sqrt(Dh)
    dq[i] = sum_j ds[i, j] k[j]         one program per block of queries
    dk[j] = sum_i ds[i, j] q[i]         one program per block of keys, over all heads that read it

p is taken twice, seven matrix products instead of five. In return no two programs add to the same
number: no atomics, the same bits every time.

model.py uses this kernel on a GPU. It was compiled for sm_80 and sm_90 and checked in the
interpreter; on a GPU nothing has been measured yet, neither it nor the other candidates of
`python -m kernels.attention` (torch's varlen_attn, flex_attention, cuDNN).

Shapes: q (N, H, Dh), k and v (N, K, Dh) -> (N, H, Dh). Head dims 16, 32, 64 and 128 have a kernel;
others, fp64 and the CPU take the PyTorch path of attention_cpu.py.
"""

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

from kernels import check_shape, use_triton
from kernels.attention_cpu import bucket_attention, make_buckets, sdpa
from kernels.attention_layout import Layout, key_blocks, query_blocks, token_ranges

LOG2E = tl.constexpr(1.4426950408889634)
HIDDEN = tl.constexpr(-1e30)  # the score of a hidden key: a block of -inf would give inf - inf

# Head dim: (queries, keys, warps, stages) of a program, chosen so that the code for sm_90 keeps its
# accumulators in registers (ptxas), not yet by time. In the first two keys divide queries, in the
# last queries divide keys. fp32 products are exact and have no tensor cores.
FORWARD = {"fp32": (32, 16, 8, 1), 16: (128, 64, 4, 3), 32: (128, 64, 4, 3),
           64: (128, 64, 4, 3), 128: (128, 64, 8, 3)}  # fmt: skip
BACKWARD_Q = {"fp32": (16, 16, 8, 1), 16: (128, 64, 4, 3), 32: (128, 64, 4, 3),
              64: (128, 64, 8, 3), 128: (128, 64, 8, 3)}  # fmt: skip
BACKWARD_KV = {"fp32": (32, 32, 8, 1), 16: (64, 128, 8, 3), 32: (64, 128, 8, 3),
               64: (64, 128, 8, 3), 128: (64, 128, 8, 3)}  # fmt: skip


def visible(cu_seqlens, parent=None):
    """The (N, N) mask of the definition: may query i see key j?

    cu_seqlens (B+1,): document b holds the tokens cu_seqlens[b] .. cu_seqlens[b+1].
    parent (B,): index of the document it continues, or -1.
    """
    lengths = cu_seqlens.diff().long()
    doc = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)  # (N,)
    place = torch.arange(len(doc), device=doc.device)
    mask = (doc[:, None] == doc[None]) & (place[:, None] >= place[None])
    if parent is not None:
        mask |= parent.long()[doc][:, None] == doc[None]
    return mask


def attention_ref(q, k, v, cu_seqlens, parent=None):
    return sdpa(q[None], k[None], v[None], visible(cu_seqlens, parent)[None, None])[0]


def make_layout(cu_seqlens, parent=None):
    """What `attention` needs to know of a packed row: made once per batch, for all layers."""
    return Layout(cu_seqlens, parent)


@triton.jit
def _rows(x_ptr, first, stride: tl.constexpr, SIZE: tl.constexpr, D: tl.constexpr, stop=None):
    """Rows first .. first + SIZE of one head of x, (SIZE, D); zeros from row `stop` on."""
    place = tl.arange(0, SIZE)
    x_ptr += first.to(tl.int64) * stride  # N * stride may pass 2^31, SIZE * stride does not
    at = place[:, None] * stride + tl.arange(0, D)[None]
    if stop is None:
        return tl.load(x_ptr + at)
    else:  # spelled out: else the compiler would also take the line below for stop = None
        return tl.load(x_ptr + at, (first + place < stop)[:, None], 0.0)


@triton.jit
def _full_keys(t, own, parent, parent_stop, KEYS: tl.constexpr):
    """First key of number t of the blocks without a mask: the parent's, then the document's."""
    shared = (parent_stop - parent) // KEYS
    return tl.where(t < shared, parent + t * KEYS, own + (t - shared) * KEYS)


@triton.jit
def _masked_keys(t, first, stop, parent, parent_stop, i, doc, KEYS: tl.constexpr):
    """Number t of the blocks under a mask: 0 is the rest of the parent, then comes the diagonal.

    i (QUERIES,): the queries; doc (QUERIES,): the first token of their documents
    -> first key, end of the keys, mask (QUERIES, KEYS).
    """
    rest = parent + (parent_stop - parent) // KEYS * KEYS
    start = tl.where(t == 0, rest, first + (t - 1) * KEYS)
    end = tl.where(t == 0, parent_stop, stop)
    j = start + tl.arange(0, KEYS)
    low = tl.where(t == 0, start, doc)
    return start, end, (j[None] < end) & (j[None] <= i[:, None]) & (j[None] >= low[:, None])


@triton.jit
def _online_softmax(s, v, top, total, o, SCALE: tl.constexpr):
    """Take in one block of keys: scores s (QUERIES, KEYS) and v (KEYS, D) into the running maximum
    `top` and sum `total` (QUERIES,) and the output o (QUERIES, D)."""
    higher = tl.maximum(top, tl.max(s, 1) * SCALE)
    p = tl.exp2(s * SCALE - higher[:, None])
    shrink = tl.exp2(top - higher)
    o = tl.dot(p.to(v.dtype), v, o * shrink[:, None], input_precision="ieee")
    return higher, total * shrink + tl.sum(p, 1), o


@triton.jit
def _forward(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, blocks_ptr, range_ptr, N, H: tl.constexpr, K: tl.constexpr,
    D: tl.constexpr, SCALE: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):
    """One block of queries of one head: o (N, H, D), and lse (H, N) as a power of two."""
    head, block = tl.program_id(0), blocks_ptr + 6 * tl.program_id(1)
    first, stop, own = tl.load(block), tl.load(block + 1), tl.load(block + 2)
    parent, parent_stop = tl.load(block + 3), tl.load(block + 4)
    i = first + tl.arange(0, QUERIES)
    doc = tl.load(range_ptr + i, i < stop, 0)
    k_ptr += head // (H // K) * D
    v_ptr += head // (H // K) * D
    q = _rows(q_ptr + head * D, first, H * D, QUERIES, D, stop)
    top = tl.full((QUERIES,), HIDDEN, tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    o = tl.zeros((QUERIES, D), tl.float32)
    for t in range(0, (parent_stop - parent) // KEYS + (first - own) // KEYS):
        start = _full_keys(t, own, parent, parent_stop, KEYS)
        k = _rows(k_ptr, start, K * D, KEYS, D)
        v = _rows(v_ptr, start, K * D, KEYS, D)
        s = tl.dot(q, k.T, input_precision="ieee")
        top, total, o = _online_softmax(s, v, top, total, o, SCALE)
    skip = tl.where((parent_stop - parent) % KEYS == 0, 1, 0)
    for t in range(skip, 1 + tl.cdiv(stop - first, KEYS)):
        start, end, mask = _masked_keys(t, first, stop, parent, parent_stop, i, doc, KEYS)
        k = _rows(k_ptr, start, K * D, KEYS, D, end)
        v = _rows(v_ptr, start, K * D, KEYS, D, end)
        s = tl.where(mask, tl.dot(q, k.T, input_precision="ieee"), HIDDEN)
        top, total, o = _online_softmax(s, v, top, total, o, SCALE)
    at = i.to(tl.int64)[:, None] * (H * D) + head * D + tl.arange(0, D)[None]
    tl.store(o_ptr + at, o / total[:, None], (i < stop)[:, None])
    tl.store(lse_ptr + head * N + i, top + tl.log2(total), i < stop)


@triton.jit
def _backward_q(
    q_ptr, k_ptr, v_ptr, o_ptr, do_ptr, lse_ptr, delta_ptr, dq_ptr, blocks_ptr, range_ptr, N,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, SCALE: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):
    """dq and delta (H, N) of one block of queries of one head."""
    head, block = tl.program_id(0), blocks_ptr + 6 * tl.program_id(1)
    first, stop, own = tl.load(block), tl.load(block + 1), tl.load(block + 2)
    parent, parent_stop = tl.load(block + 3), tl.load(block + 4)
    i = first + tl.arange(0, QUERIES)
    doc = tl.load(range_ptr + i, i < stop, 0)
    k_ptr += head // (H // K) * D
    v_ptr += head // (H // K) * D
    q = _rows(q_ptr + head * D, first, H * D, QUERIES, D, stop)
    do = _rows(do_ptr + head * D, first, H * D, QUERIES, D, stop)
    o = _rows(o_ptr + head * D, first, H * D, QUERIES, D, stop)
    delta = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
    per_row = head * N + i
    tl.store(delta_ptr + per_row, delta, i < stop)
    lse = tl.load(lse_ptr + per_row, i < stop, 0.0)
    dq = tl.zeros((QUERIES, D), tl.float32)
    for t in range(0, (parent_stop - parent) // KEYS + (first - own) // KEYS):
        start = _full_keys(t, own, parent, parent_stop, KEYS)
        k = _rows(k_ptr, start, K * D, KEYS, D)
        v = _rows(v_ptr, start, K * D, KEYS, D)
        p = tl.exp2(tl.dot(q, k.T, input_precision="ieee") * SCALE - lse[:, None])
        ds = p * (tl.dot(do, v.T, input_precision="ieee") - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision="ieee")
    skip = tl.where((parent_stop - parent) % KEYS == 0, 1, 0)
    for t in range(skip, 1 + tl.cdiv(stop - first, KEYS)):
        start, end, mask = _masked_keys(t, first, stop, parent, parent_stop, i, doc, KEYS)
        k = _rows(k_ptr, start, K * D, KEYS, D, end)
        v = _rows(v_ptr, start, K * D, KEYS, D, end)
        p = tl.exp2(tl.dot(q, k.T, input_precision="ieee") * SCALE - lse[:, None])
        p = tl.where(mask, p, 0.0)
        ds = p * (tl.dot(do, v.T, input_precision="ieee") - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision="ieee")
    at = i.to(tl.int64)[:, None] * (H * D) + head * D + tl.arange(0, D)[None]
    tl.store(dq_ptr + at, dq * (SCALE / LOG2E), (i < stop)[:, None])


@triton.jit
def _backward_kv(
    q_ptr, k_ptr, v_ptr, do_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr, blocks_ptr, range_ptr, N,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, SCALE: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):
    """dk and dv of one block of keys of one key-value head. Scores are (KEYS, QUERIES) here."""
    kv_head, block = tl.program_id(0), blocks_ptr + 6 * tl.program_id(1)
    first, stop, seen = tl.load(block), tl.load(block + 1), tl.load(block + 5)
    group: tl.constexpr = H // K
    j = first + tl.arange(0, KEYS)
    until = tl.load(range_ptr + N + j, j < stop, 0)  # (KEYS,) end of the queries that see the key
    k = _rows(k_ptr + kv_head * D, first, K * D, KEYS, D, stop)
    v = _rows(v_ptr + kv_head * D, first, K * D, KEYS, D, stop)
    dk = tl.zeros((KEYS, D), tl.float32)
    dv = tl.zeros((KEYS, D), tl.float32)
    # Queries behind the diagonal see the whole block. One loop over heads and blocks of queries, so
    # that loads run ahead from one head into the next. lse and delta are asked for behind the
    # products that they meet: before, they would hold registers, of which there are none to spare
    behind = tl.maximum(seen - first - KEYS, 0)
    full = behind // QUERIES
    for t in range(0, group * full):
        turns = tl.maximum(full, 1)  # loads run ahead of an empty loop too: never divide by 0
        head = kv_head * group + t // turns
        start = first + KEYS + t % turns * QUERIES
        q = _rows(q_ptr + head * D, start, H * D, QUERIES, D)
        do = _rows(do_ptr + head * D, start, H * D, QUERIES, D)
        per_row = head * N + start + tl.arange(0, QUERIES)
        s = tl.dot(k, q.T, input_precision="ieee")
        p = tl.exp2(s * SCALE - tl.load(lse_ptr + per_row)[None])
        dv = tl.dot(p.to(do.dtype), do, dv, input_precision="ieee")
        dp = tl.dot(v, do.T, input_precision="ieee")
        ds = p * (dp - tl.load(delta_ptr + per_row)[None])
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision="ieee")
    # The diagonal and the rest of the queries have a mask; in smaller blocks, less of it is hidden
    SMALL: tl.constexpr = QUERIES // 2
    diagonal = tl.cdiv(tl.minimum(seen - first, KEYS), SMALL)
    turns = diagonal + tl.cdiv(behind % QUERIES, SMALL)
    for t in tl.range(0, group * turns, num_stages=2):
        head, n = kv_head * group + t // turns, t % turns
        start = first + tl.where(n < diagonal, n, n + 2 * full) * SMALL
        i = start + tl.arange(0, SMALL)
        q = _rows(q_ptr + head * D, start, H * D, SMALL, D, seen)
        do = _rows(do_ptr + head * D, start, H * D, SMALL, D, seen)
        per_row = head * N + i
        mask = (i[None] >= j[:, None]) & (i[None] < until[:, None])
        s = tl.dot(k, q.T, input_precision="ieee")
        p = tl.exp2(s * SCALE - tl.load(lse_ptr + per_row, i < seen, 0.0)[None])
        p = tl.where(mask, p, 0.0)
        dv = tl.dot(p.to(do.dtype), do, dv, input_precision="ieee")
        dp = tl.dot(v, do.T, input_precision="ieee")
        ds = p * (dp - tl.load(delta_ptr + per_row, i < seen, 0.0)[None])
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision="ieee")
    at = j.to(tl.int64)[:, None] * (K * D) + kv_head * D + tl.arange(0, D)[None]
    tl.store(dk_ptr + at, dk * (SCALE / LOG2E), (j < stop)[:, None])
    tl.store(dv_ptr + at, dv, (j < stop)[:, None])


def tiles(table, q):
    return table["fp32" if q.dtype == torch.float32 else q.shape[-1]]


def launch(kernel, table, heads, blocks_of, layout, q, *args):
    """Run a kernel over (heads, blocks of the layout) with the tile sizes of its table."""
    N, H, D = q.shape
    queries, keys, warps, stages = tiles(table, q)
    blocks = layout.part(blocks_of, keys if blocks_of is key_blocks else queries, q.device)
    kernel[(heads, len(blocks))](
        q, *args, blocks, layout.part(token_ranges, q.device), N, H, args[0].shape[1], D,
        LOG2E.value / D**0.5, queries, keys, num_warps=warps, num_stages=stages,
    )


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, layout):
        """q (N, H, D), k, v (N, K, D), contiguous -> (N, H, D)."""
        N, H, _ = q.shape
        o, lse = torch.empty_like(q), torch.empty(H, N, dtype=torch.float32, device=q.device)
        launch(_forward, FORWARD, H, query_blocks, layout, q, k, v, o, lse)
        ctx.save_for_backward(q, k, v, o, lse)
        ctx.layout = layout
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx, do):
        q, k, v, o, lse = ctx.saved_tensors
        do, H, K = do.contiguous(), q.shape[1], k.shape[1]
        dq, dk, dv, delta = (torch.empty_like(x) for x in (q, k, v, lse))
        launch(_backward_q, BACKWARD_Q, H, query_blocks, ctx.layout,
               q, k, v, o, do, lse, delta, dq)  # fmt: skip
        launch(_backward_kv, BACKWARD_KV, K, key_blocks, ctx.layout,
               q, k, v, do, lse, delta, dk, dv)  # fmt: skip
        return dq, dk, dv, None


def attention(q, k, v, layout):
    """q (N, H, Dh), k, v (N, K, Dh), layout of make_layout -> (N, H, Dh).

    ValueError for other shapes or dtypes. A view that is not contiguous is copied.
    """
    check_shape("attention", "q", q, (layout.starts[-1], None, None))
    N, H, D = q.shape
    check_shape("attention", "k", k, (N, None, D))
    check_shape("attention", "v", v, k.shape)
    if k.shape[1] == 0 or H % k.shape[1]:
        raise ValueError(f"attention: k has {k.shape[1]} heads, must divide the {H} of q")
    if use_triton("attention", q=q, k=k, v=v) and D in FORWARD:
        return _Attention.apply(q.contiguous(), k.contiguous(), v.contiguous(), layout)
    return bucket_attention(q, k, v, layout.part(make_buckets, q.device))


def cached_attention(q, k, v, bias=None):
    """One query a sequence, to the keys and values of its slot of a cache.

    q (S, H, Dh), k and v (S, K, T, Dh); bias (S, 1, 1, T), fp32 or wider: 0 where key t is seen,
    -inf where not; None = all are seen -> (S, H, Dh).
    """
    S, H, Dh = q.shape
    q = q.reshape(S, k.shape[1], -1, Dh)  # (S, K, H/K, Dh): a key is read once for all its queries
    if bias is None:
        return scaled_dot_product_attention(q, k, v).reshape(S, H, Dh)
    # Two batched products: for 16 sequences of SmolLM2 on a CPU they take half the time of SDPA in
    # bf16, with the keys on the left, where they are read as they lie. The scores become fp32.
    scores = torch.add(bias, (k @ q.mT).mT.contiguous(), alpha=Dh**-0.5)  # (S, K, H/K, T)
    return (scores.softmax(-1).to(v.dtype) @ v).view(S, H, Dh)


if __name__ == "__main__":
    from kernels.attention_bench import main

    main()
