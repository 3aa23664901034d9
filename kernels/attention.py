"""Causal attention over a packed row: documents side by side, none sees another.

    o[i] = sum_j softmax_j(q[i] . k[j] / sqrt(Dh)) v[j]    over the j that i may see

Token i sees token j when j <= i and both stand in the same document, or when j stands in the parent
of i's document (a family: a prompt and its continuations, each of which sees the prompt and itself,
never a sibling). Query head h reads key-value head h // (H / K).

Shapes: q (N, H, Dh), k and v (N, K, Dh) -> (N, H, Dh). cu_seqlens (B+1,): document b holds the
tokens cu_seqlens[b] .. cu_seqlens[b+1]. parent (B,): index of the document it continues, or -1.
"""

import torch
from torch.nn import functional as F

WASTE = 1.25  # documents share one padded call while it does at most this factor of extra work


def visible(cu_seqlens, parent=None):
    """The (N, N) mask of the definition: may query i see key j?"""
    lengths = cu_seqlens.diff().long()
    doc = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)  # (N,)
    place = torch.arange(len(doc), device=doc.device)
    mask = (doc[:, None] == doc[None]) & (place[:, None] >= place[None])
    if parent is not None:
        mask |= parent.long()[doc][:, None] == doc[None]
    return mask


def attention_ref(q, k, v, cu_seqlens, parent=None):
    return _sdpa(q[None], k[None], v[None], visible(cu_seqlens, parent)[None, None])[0]


def _sdpa(q, k, v, mask):
    """q (B, n, H, Dh), k, v (B, m, K, Dh), mask (B, 1, n, m), None = causal -> (B, n, H, Dh)."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    gqa = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=gqa
    )
    return out.transpose(1, 2)


def make_layout(cu_seqlens, parent=None):
    """What every layer needs to know of a packed row, worked out once per batch.

    Documents of similar length go into one padded call. Returns (buckets, back): per bucket the
    token numbers of its queries (b, n) and keys (b, m), its mask (b, 1, n, m) or None for plain
    causal, and which queries are real (b, n); back (N,) puts the real outputs in row order.
    """
    starts = cu_seqlens.tolist()
    parents = [-1] * (len(starts) - 1) if parent is None else parent.tolist()
    spans = []  # (keys, queries, first query, first key of the parent)
    for b, p in enumerate(parents):
        queries = starts[b + 1] - starts[b]
        context = starts[p + 1] - starts[p] if p >= 0 else 0
        spans.append((context + queries, queries, starts[b], starts[max(p, 0)]))
    buckets, bucket, work, longest = [], [], 0, 0
    for span in sorted(spans):  # by number of keys
        longest, work = max(longest, span[1]), work + span[0] * span[1]
        if bucket and (len(bucket) + 1) * longest * span[0] > WASTE * work:
            buckets.append(_bucket(bucket, cu_seqlens.device))
            bucket, work, longest = [], span[0] * span[1], span[1]
        bucket.append(span)
    buckets.append(_bucket(bucket, cu_seqlens.device))
    order = torch.cat([rows[real] for rows, _, _, real in buckets])
    return buckets, order.argsort()


def _bucket(spans, device):
    keys, queries, first, parent_first = torch.tensor(spans, device=device).T[:, :, None]  # (b, 1)
    context = keys - queries
    i = torch.arange(int(queries.max()), device=device)[None]  # (1, n)
    j = torch.arange(int(keys.max()), device=device)[None]  # (1, m)
    # Padding repeats the last token. Its keys stand after every real query: causality hides them.
    rows = first + torch.minimum(i, queries - 1)
    own = first + torch.minimum(j - context, queries - 1)
    columns = torch.where(j < context, parent_first + j, own)
    mask = None
    if context.any():
        mask = (j[:, None] <= context[:, None] + i[:, :, None])[:, None]  # (b, 1, n, m)
    return rows, columns, mask, i < queries


def attention(q, k, v, layout):
    """q (N, H, Dh), k, v (N, K, Dh), layout of make_layout -> (N, H, Dh).

    One padded SDPA call per bucket of similar lengths. Forward and backward of 25 documents of 20
    to 60 tokens (H 4, K 2, Dh 32, one CPU core): 4 ms, against 9 ms with a call per document and
    38 ms with one call under the block mask of the definition.
    """
    buckets, back = layout
    outputs = []
    for rows, columns, mask, real in buckets:
        picked = [
            x.index_select(0, index.flatten()).unflatten(0, index.shape)
            for x, index in ((q, rows), (k, columns), (v, columns))
        ]
        outputs.append(_sdpa(*picked, mask)[real])  # (real queries, H, Dh)
    return torch.cat(outputs).index_select(0, back)


def cached_attention(q, k_cache, v_cache, positions):
    """One query a sequence, to a cache of earlier tokens and itself.

    q (S, H, Dh), k_cache and v_cache (S, T, K, Dh) with the new key already in, positions (S,) of
    the queries -> (S, H, Dh). The query at position p sees cache[: p + 1].
    """
    mask = torch.arange(k_cache.shape[1], device=q.device) <= positions[:, None]  # (S, T)
    return _sdpa(q[:, None], k_cache, v_cache, mask[:, None, None])[:, 0]
