"""`python -m kernels.attention`: the kernel and the alternatives that PyTorch ships, on one GPU.

Rates count the pairs of tokens that see each other, 4 Dh FLOPs per pair and head forward (q k and
p v) and 10 Dh backward, and nothing that an implementation does besides.
"""

import inspect
import time
from statistics import median

import torch

from kernels.attention import attention, attention_ref, make_layout
from kernels.attention_cpu import sdpa
from kernels.attention_layout import key_blocks, query_blocks, token_ranges
from kernels.bench import DEVICE, ON_GPU, matrix_rate, milliseconds, store

ROWS = {  # lengths, parents: 8,192 tokens each
    "one document": ([8192], [-1]),
    "packed, mean 1k": ([1900, 300, 1024, 512, 2300, 150, 800, 1206], [-1] * 8),
    "families": ([1024, 512, 512, 1400, 648, 3000, 400, 300, 396],
                 [-1, 0, 0, -1, 3, -1, 5, 5, 5]),
}  # fmt: skip
HEADS, KV_HEADS = 32, 8


def build_ms(build):
    """Median wall-clock milliseconds of build(), GPU work included."""
    times = []
    for _ in range(20):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        build()
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - begin))
    return median(times)


def by_minfin(starts, parents):
    def build():
        layout = make_layout(starts, parents)
        for make, *size in ((query_blocks, 128), (key_blocks, 128), (token_ranges,)):
            layout.part(make, *size, starts.device)
        return layout

    layout = build()
    return lambda q, k, v: attention(q, k, v, layout), build


def by_flex(starts, parents):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch.compiler.reset()  # dynamo gives up on a function compiled for too many rows
    lengths = starts.diff().long()
    doc = torch.arange(len(lengths), device=starts.device).repeat_interleave(lengths)
    before = parents.long()[doc]  # (N,) the parent of each token's document

    def sees(batch, head, i, j):
        return ((doc[i] == doc[j]) & (i >= j)) | (before[i] == doc[j])

    make, flex = torch.compile(create_block_mask), torch.compile(flex_attention)

    def build():
        return make(sees, None, None, len(doc), len(doc), device=str(starts.device))

    mask = build()

    def op(q, k, v):
        gqa = q.shape[1] != k.shape[1]
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))  # (1, H, N, Dh)
        return flex(q, k, v, block_mask=mask, enable_gqa=gqa)[0].transpose(0, 1)

    return op, build


def by_varlen(starts, parents):
    from torch.nn.attention.varlen import varlen_attn

    if (parents >= 0).any():
        return None  # it knows no families
    longest = int(starts.diff().max())
    gqa_flag = "enable_gqa" in inspect.signature(varlen_attn).parameters

    def op(q, k, v):
        gqa = {"enable_gqa": q.shape[1] != k.shape[1]} if gqa_flag else {}
        return varlen_attn(q, k, v, starts, starts, longest, longest, window_size=(-1, 0), **gqa)

    return op, None


def by_cudnn(starts, parents):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if len(parents) > 1:
        return None  # it knows no documents

    def op(q, k, v):
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return sdpa(q[None], k[None], v[None], None)[0]

    return op, None


CANDIDATES = {"minfin": by_minfin, "flex_attention": by_flex, "varlen_attn": by_varlen,
              "cuDNN": by_cudnn}  # fmt: skip


def results(op, q, k, v, upstream):
    """[o, dq, dk, dv], dk and dv summed over heads that stand for one key-value head."""
    o = op(q, k, v)
    dq, dk, dv = torch.autograd.grad(o, (q, k, v), upstream)
    return [o, dq, *(x.unflatten(1, (KV_HEADS, -1)).sum(2) for x in (dk, dv))]


def exact(q, k, v, upstream, starts, parents):
    """results() of the definition in fp64 for the first key-value head and the heads that read it:
    the scores of all heads would take 17 GB."""
    group = HEADS // KV_HEADS
    q, upstream = q[:, :group].double().detach().requires_grad_(), upstream[:, :group].double()
    k, v = (x[:, :1].double().detach().requires_grad_() for x in (k, v))
    o = attention_ref(q, k, v, starts, parents)
    return [o.detach(), *torch.autograd.grad(o, (q, k, v), upstream)]


def measure(op, inputs, upstream, want, pairs):
    """One row of results: largest relative root mean square error, milliseconds, FLOP/s."""
    found = results(op, *inputs, upstream)
    error = max(
        ((x[:, : w.shape[1]].double() - w).square().mean() / w.square().mean()).sqrt().item()
        for x, w in zip(found, want, strict=True)
    )
    o = op(*inputs)
    ms = {
        "forward": milliseconds(lambda: op(*inputs)),
        "backward": milliseconds(
            lambda: torch.autograd.grad(o, inputs, upstream, retain_graph=True)
        ),
    }
    flops = {"forward": 4 * HEADS * o.shape[2] * pairs, "backward": 10 * HEADS * o.shape[2] * pairs}
    row = {"error": error}
    for phase, milli in ms.items():
        row |= {f"{phase}_ms": milli, f"{phase}_flops": flops[phase] / milli * 1e3}
    return row


def attempt(arm, q, k, v, upstream, starts, parents, want, pairs):
    """The results of one candidate, or None after a line that says why there are none."""
    for kv_heads in (KV_HEADS, HEADS):  # if it cannot share key-value heads, give it one a head
        try:
            prepared = CANDIDATES[arm](starts, parents)
            if prepared is None:
                return None
            op, build = prepared
            k_given, v_given = (x.repeat_interleave(kv_heads // KV_HEADS, 1) for x in (k, v))
            inputs = [x.detach().clone().requires_grad_() for x in (q, k_given, v_given)]
            row = {"arm": arm, "kv_heads": kv_heads} | measure(op, inputs, upstream, want, pairs)
            return row | {"layout_ms": build_ms(build) if build else None}
        except Exception as why:  # of whatever kind: the others are still worth a line
            reason = f"{type(why).__name__}: {str(why).strip()[:300]}"
            print(f"  {arm:<15} K {kv_heads:<3} did not run: {reason}")
    return None


def run_row(name, head_dim, ceiling):
    lengths, parents = ROWS[name]
    context = [lengths[p] if p >= 0 else 0 for p in parents]
    pairs = sum(n * (n + 1) // 2 + n * c for n, c in zip(lengths, context, strict=True))
    starts = torch.tensor([0, *lengths], device=DEVICE).cumsum(0).to(torch.int32)
    parents = torch.tensor(parents, device=DEVICE, dtype=torch.int32)
    q, k, v, upstream = (
        torch.randn(sum(lengths), heads, head_dim, device=DEVICE).bfloat16()
        for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS)
    )
    want = exact(q, k, v, upstream, starts, parents)
    print(f"attention, {name}, H {HEADS}, K {KV_HEADS}, Dh {head_dim}, bf16")
    for arm in CANDIDATES:
        row = attempt(arm, q, k, v, upstream, starts, parents, want, pairs)
        if row is None:
            continue
        print(f"  {arm:<15} K {row['kv_heads']:<3} error {row['error']:.2e}", end="")
        for phase in ("forward", "backward"):
            rate = row[f"{phase}_flops"]
            print(f"  {phase} {row[f'{phase}_ms']:7.3f} ms {rate / 1e12:4.0f} TFLOP/s"
                  f" {rate / ceiling:6.1%}", end="")  # fmt: skip
        print(f"  layout {row['layout_ms']:.3f} ms" if row["layout_ms"] else "")
        store({"op": "attention", "row": name, "head_dim": head_dim, "ceiling": ceiling} | row)


def main():
    if not ON_GPU:
        print("attention: no GPU here, so no speed; tests/test_attention.py holds the errors")
        return
    ceiling = matrix_rate()
    print(f"matrix product: {ceiling / 1e12:.0f} TFLOP/s")
    for head_dim in (128, 64):
        for name in ROWS:
            run_row(name, head_dim, ceiling)
