"""Log-probs of the labels under the output head, without ever holding the (N, V) logits.

    z = hidden @ weight.T          (N, V), only CHUNK_LOGITS numbers of it at a time
    logprob[n] = z[n, label[n]] - logsumexp(z[n])

With V = 128,256 the logits of 8,192 tokens take 4.2 GB in fp32, their gradient as much again.
Here the forward keeps one number per token, the log-sum-exp, and the backward makes each chunk
of logits a second time (four matrix products in all instead of three):

    dz[n, v] = g[n] * ((v == label[n]) - exp(z[n, v] - lse[n]))
    dhidden  = dz @ weight          dweight = dz.T @ hidden

Shapes: hidden (N, D), weight (V, D), labels (N,) with -100 = ignored -> logprobs (N,), at
least fp32. Ignored rows give 0 and cost nothing: prompts pay no head.
"""

import torch

from kernels import wide

IGNORE = -100
# 128 MiB and 1 GiB of fp32. Each chunk adds to the whole (V, D) weight gradient, so small chunks
# pay for it often: at V 49,152 on a CPU 85 rows a chunk made the backward pass 25% slower than 500.
CHUNK_LOGITS = {"cpu": 2**25, "cuda": 2**28}


def linear_logprobs_ref(hidden, weight, labels):
    logits = (hidden @ weight.T).to(wide(hidden.dtype))  # (N, V)
    picked = logits.gather(1, labels.clamp(min=0)[:, None])[:, 0]  # (N,)
    return torch.where(labels == IGNORE, 0.0, picked - logits.logsumexp(-1))


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, labels):
        """All rows labelled: hidden (M, D), weight (V, D), labels (M,) -> (M,)."""
        lse = hidden.new_empty(len(hidden), dtype=wide(hidden.dtype))
        picked = torch.empty_like(lse)
        for rows in _chunks(hidden, weight):
            logits = (hidden[rows] @ weight.T).to(lse.dtype)  # (chunk, V)
            lse[rows] = logits.logsumexp(-1)
            picked[rows] = logits.gather(1, labels[rows, None])[:, 0]
        ctx.save_for_backward(hidden, weight, labels, lse)
        return picked - lse

    @staticmethod
    def backward(ctx, grad):
        hidden, weight, labels, lse = ctx.saved_tensors
        dhidden = torch.empty_like(hidden)
        dweight = torch.zeros_like(weight, dtype=lse.dtype)  # many chunks add up: not in bf16
        for rows in _chunks(hidden, weight):
            g = grad[rows, None].to(lse.dtype)  # (chunk, 1)
            dlogits = (hidden[rows] @ weight.T).to(lse.dtype)
            dlogits.sub_(lse[rows, None]).exp_().mul_(-g)  # -g * softmax
            dlogits.scatter_add_(1, labels[rows, None], g)
            dlogits = dlogits.to(hidden.dtype)
            dhidden[rows] = dlogits @ weight
            dweight += dlogits.T @ hidden[rows]
        return dhidden, dweight.to(weight.dtype), None


def _chunks(hidden, weight):
    size = max(1, CHUNK_LOGITS.get(hidden.device.type, 2**28) // len(weight))
    return [slice(i, i + size) for i in range(0, len(hidden), size)]


def linear_logprobs(hidden, weight, labels):
    """hidden (N, D), weight (V, D), labels (N,) already shifted -> log-probs (N,), 0 where ignored.

    A row set without any label gives zeros that still hang on the graph, so that a rank without
    targets takes part in the backward pass and no other rank waits for it.
    """
    kept = labels != IGNORE
    logprobs = _LinearLogprobs.apply(hidden[kept], weight, labels[kept])  # (M,)
    return logprobs.new_zeros(len(labels)).masked_scatter(kept, logprobs)
