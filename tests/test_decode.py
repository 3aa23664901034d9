"""A step of decoding, and whose turn it is."""

import random
from collections import deque

import pytest
import torch
from tiny import tiny_config, write_checkpoint

from decode import block_weights, decode_step, product
from generate import Sequence, generate, prefill, schedule
from model import KVCache, Llama, LlamaConfig

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 0.03)]
)
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    "changes",
    [
        {"head_dim": 16},
        {"num_key_value_heads": 4, "tie_word_embeddings": False},
        {"num_key_value_heads": 1, "rope_scaling": LLAMA3_ROPE},
    ],
)
def test_a_step_equals_the_packed_forward(changes, count, dtype, tolerance):
    torch.manual_seed(0)
    model = Llama(LlamaConfig.from_dict(tiny_config(initializer_range=0.3, **changes))).to(dtype)
    cache = KVCache(model.config, slots=4, max_len=60, dtype=dtype)
    cache.reserve(20)  # it has to grow later
    for kv in cache.kv:
        kv.fill_(1e3)  # what earlier sequences left there
    held = [torch.randint(384, (length,)) for length in (50, 1, 9)][:count]
    prefill(model, cache, [ids.tolist() for ids in held], list(range(count)))
    blocks, gaps = block_weights(model), []
    for _ in range(4):
        new, positions = torch.randint(384, (count,)).tolist(), [len(ids) for ids in held]
        logits = decode_step(model, blocks, cache, new, positions)
        held = [torch.cat([ids, torch.tensor([t])]) for ids, t in zip(held, new, strict=True)]
        for got, ids in zip(logits, held, strict=True):
            want = model(ids, torch.arange(len(ids)), torch.tensor([0, len(ids)]))[-1].detach()
            gaps.append(((got - want).norm() / want.norm()).item())
    assert max(gaps) < tolerance


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("width", [8, 600])
def test_a_product_is_the_same_for_large_weights_and_for_small(width, rows):
    x, weight = torch.randn(rows, width), torch.randn(512, width)
    y = product(x, weight)
    assert y.is_contiguous() and y.shape == (rows, 512)
    torch.testing.assert_close(y.double(), x.double() @ weight.double().T, atol=1e-3, rtol=1e-4)


def test_a_step_outside_the_cache_is_refused():
    model = Llama(LlamaConfig.from_dict(tiny_config()))
    cache = KVCache(model.config, slots=1, max_len=4)
    with pytest.raises(ValueError, match="position 4 is outside a cache of 4 tokens"):
        decode_step(model, block_weights(model), cache, [5], [4])


def test_joined_weights_are_the_parameters_and_the_model_still_trains(tmp_path):
    path = write_checkpoint(tmp_path)
    model, untouched = Llama.from_pretrained(path), Llama.from_pretrained(path)
    sizes = [p.nbytes for p in model.parameters()]
    generate(model, [[5, 6]], frozenset(), 3)
    joined = block_weights(model)[0]
    assert joined.qkv.data_ptr() == block_weights(model)[0].qkv.data_ptr()  # not joined again
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage() for p in model.parameters()}
    assert sum(s.nbytes() for s in storages.values()) == sum(sizes)  # no second copy
    row = torch.tensor([5, 6, 7]), torch.arange(3), torch.tensor([0, 3])
    for m in (model, untouched):
        m(*row, labels=torch.tensor([6, 7, 8])).sum().backward()
    for (name, p), q in zip(model.named_parameters(), untouched.parameters(), strict=True):
        assert torch.equal(p, q) and torch.equal(p.grad, q.grad), name
    with torch.no_grad():  # a step of an optimizer reaches what is sampled from
        model.model.layers[0].self_attn.v_proj.weight.add_(1.0)
    assert torch.equal(joined.qkv[-16:], model.model.layers[0].self_attn.v_proj.weight)


def play(lengths, slots):
    """Drive the scheduler by a trace of answer lengths. Yields (active, waiting) of every step."""
    waiting = deque(Sequence(i, 0, 10, length) for i, length in enumerate(lengths))
    held = [None] * slots  # the sequence whose keys and values a slot holds

    def move(src, dst, length):
        assert length == held[src].position
        held[dst[0]] = held[src]

    for turn, start in schedule(waiting, slots, move):
        if start is None:
            assert held[: len(turn)] == turn
            yield len(turn), len(waiting)
        else:
            held[start : start + len(turn)] = turn
        for seq in turn:
            seq.position += start is None
            seq.room -= 1
            seq.out.finish = None if seq.room else "length"
            assert seq.room >= 0


@pytest.mark.parametrize("slots", [1, 3, 32])
def test_the_scheduler_gives_every_sequence_its_tokens_and_keeps_slots_in_step(slots):
    lengths = random.Random(0).choices((1, 2, 3, 5, 40), k=100)
    steps = [active for active, _ in play(lengths, slots)]
    assert sum(steps) == sum(lengths) - len(lengths)  # each one's first token is the prefill's
    assert max(steps) <= slots


def test_long_tailed_lengths_leave_few_slots_empty():
    rng = random.Random(0)
    lengths = [min(1024, 1 + round(100 * rng.lognormvariate(0, 0.7))) for _ in range(2048)]
    assert max(lengths) > 5 * sum(lengths) / len(lengths)
    steps = list(play(lengths, 32))
    assert sum(active for active, _ in steps) >= 0.92 * 32 * len(steps)
    full = [active for active, waiting in steps if waiting]
    assert sum(full) >= 0.98 * 32 * len(full)
