"""Projections of something cheap: y_i = op(inputs) @ W_i.T, and only `inputs` are kept.

    forward     h = op(inputs)        y_i = h @ W_i.T                           h is dropped
    backward    h = op(inputs) again  dh = sum of dy_i @ W_i   dW_i = dy_i.T @ h   then op's own

A matrix product must have its input h again for dW. Kept, the two norms and the SwiGLU of a block
are 2 D + F numbers a token, a third of all that the block keeps; made again, they cost one
pass over memory each, no matrix product. (torch.utils.checkpoint around `norm, q, k, v` would run
two of the three products a second time.)

Shapes: inputs as op takes them, op(*inputs) (N, D), W_i (E_i, D) -> y_i (N, E_i).
"""

import torch
from torch.autograd.function import once_differentiable


def linears_ref(op, inputs, weights):
    h = op(*inputs)
    return [h @ w.T for w in weights]


class _Linears(torch.autograd.Function):
    @staticmethod
    def forward(ctx, op, count, *tensors):
        """tensors: `count` inputs of op, then the weights."""
        ctx.op, ctx.count = op, count
        ctx.save_for_backward(*tensors)
        return tuple(linears_ref(op, tensors[:count], tensors[count:]))

    @staticmethod
    @once_differentiable
    def backward(ctx, *dys):
        saved = ctx.saved_tensors  # to be asked for once only, says torch.utils.checkpoint
        inputs = [x.detach().requires_grad_() for x in saved[: ctx.count]]
        weights = saved[ctx.count :]
        with torch.enable_grad():
            h = ctx.op(*inputs)  # (N, D)
        dh = dys[0] @ weights[0]
        for dy, w in zip(dys[1:], weights[1:], strict=True):
            dh.addmm_(dy, w)
        dweights = [dy.T @ h.detach() for dy in dys]
        return None, None, *torch.autograd.grad(h, inputs, dh), *dweights


def linears(op, inputs, weights):
    """op(*inputs) (N, D) times each weight (E_i, D) transposed -> [(N, E_i), ...]."""
    if not torch.is_grad_enabled():
        return linears_ref(op, inputs, weights)
    return _Linears.apply(op, len(inputs), *inputs, *weights)
