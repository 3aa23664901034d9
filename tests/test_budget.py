"""What a step keeps for its backward pass, and its FLOPs: counts that hold on any machine."""

import dataclasses

import pytest
import torch

from benchmarks.budget import (
    DOCUMENTS,
    LLAMA_8B,
    NARROW,
    heads,
    nothing_launched,
    our_block,
    saved_bytes,
    step_flops,
    their_block,
)

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


class Keeper(torch.autograd.Function):
    """Keeps 10 numbers the usual way and 7 as an attribute."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(torch.ones(10))
        ctx.mine = (torch.ones(7),)
        return x.clone()

    @staticmethod
    def backward(ctx, dy):
        return dy


def test_the_counter_sees_all_that_a_graph_keeps_once_and_no_parameter():
    w, x = torch.ones(3, 4, requires_grad=True), torch.ones(5, 4, requires_grad=True)
    assert saved_bytes(lambda: x @ w.T, [w]) == 5 * 4 * 4  # x, for the gradient of w
    assert saved_bytes(lambda: (x[1:] * x[:4]) @ w.T, [w]) == (5 * 4 + 4 * 4) * 4  # two views of x
    assert saved_bytes(lambda: Keeper.apply(x), []) == 17 * 4


@dtypes
def test_a_block_keeps_at_most_60_percent_of_hugging_faces(dtype):
    assert our_block(NARROW, 250, dtype, "cpu") <= 0.60 * their_block(NARROW, 250, dtype)
    with nothing_launched():
        kernels = our_block(LLAMA_8B, 8192, dtype, "meta")
    assert kernels <= 0.60 * their_block(LLAMA_8B, 32, dtype)


@dtypes
def test_the_head_keeps_at_most_5_percent_of_hugging_faces(dtype):
    with nothing_launched():
        per_token, common, theirs = heads(LLAMA_8B, 8192, dtype)
    assert 0 < per_token <= 0.05 * theirs and 0 < common <= 0.05 * theirs
    assert theirs > 128_256 * 4  # at least the log-probs in fp32


def test_of_matrix_products_outside_attention_a_step_makes_none_twice():
    config = dataclasses.replace(LLAMA_8B, num_hidden_layers=4)
    counted, matrices, attention = step_flops(config, DOCUMENTS, common_gradient=True)
    body = config.num_hidden_layers * 218_103_808
    assert matrices == 6 * 8192 * (body + 128_256 * 4096)
    assert 1 <= counted / matrices <= 1.001
    # Per-token gradients cost one product of the head more
    again, _, _ = step_flops(config, DOCUMENTS, common_gradient=False)
    assert again - counted == pytest.approx(2 * 8192 * 128_256 * 4096, rel=1e-3)


def test_packed_documents_cost_two_percent_more_than_the_least_with_all_that_attention_repeats():
    """At the true 8B shape. The kernels make nine products for the least of six."""
    counted, matrices, attention = step_flops(LLAMA_8B, DOCUMENTS, common_gradient=True)
    assert 1.01 < (counted + 1.5 * attention) / (matrices + attention) <= 1.02
