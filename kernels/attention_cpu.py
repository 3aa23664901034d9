"""Attention in PyTorch: padded SDPA calls over documents of similar length.

The path of CPU, fp64, KERNELS=torch and head dims that the kernels do not serve. Forward and
backward of 25 documents of 20 to 60 tokens (H 4, K 2, Dh 32, one CPU core): 4 ms, against 9 ms with
a call per document and 38 ms with one call under the block mask of the definition.
"""

import torch
from torch.nn import functional as F

WASTE = 1.25  # documents share one padded call while it does at most this factor of extra work


def sdpa(q, k, v, mask):
    """q (B, n, H, Dh), k, v (B, m, K, Dh), mask (B, 1, n, m), None = causal -> (B, n, H, Dh)."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    gqa = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=gqa
    )
    return out.transpose(1, 2)


def make_buckets(starts, parents, device):
    """Documents of similar length, as one padded call each.

    starts (B+1) and parents (B), lists -> (buckets, back): per bucket the token numbers of its
    queries (b, n) and keys (b, m), its mask (b, 1, n, m) or None for plain causal, and which
    queries are real (b, n); back (N,) puts the real outputs in row order.
    """
    spans = []  # (keys, queries, first query, first key of the parent)
    for b, p in enumerate(parents):
        queries = starts[b + 1] - starts[b]
        context = starts[p + 1] - starts[p] if p >= 0 else 0
        spans.append((context + queries, queries, starts[b], starts[max(p, 0)]))
    buckets, bucket, work, longest = [], [], 0, 0
    for span in sorted(spans):  # by number of keys
        longest, work = max(longest, span[1]), work + span[0] * span[1]
        if bucket and (len(bucket) + 1) * longest * span[0] > WASTE * work:
            buckets.append(_bucket(bucket, device))
            bucket, work, longest = [], span[0] * span[1], span[1]
        bucket.append(span)
    buckets.append(_bucket(bucket, device))
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


def bucket_attention(q, k, v, layout):
    """q (N, H, Dh), k, v (N, K, Dh), layout of make_buckets -> (N, H, Dh)."""
    buckets, back = layout
    outputs = []
    for rows, columns, mask, real in buckets:
        picked = [
            x.index_select(0, index.flatten()).unflatten(0, index.shape)
            for x, index in ((q, rows), (k, columns), (v, columns))
        ]
        outputs.append(sdpa(*picked, mask)[real])  # (real queries, H, Dh)
    return torch.cat(outputs).index_select(0, back)
