import json
import math

import pytest
import torch
from tiny import tiny_config, write_checkpoint
from torch.nn import functional as F
from transformers import LlamaConfig as TheirConfig
from transformers import LlamaForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from checkpoint import save_pretrained
from config import UserError
from model import KVCache, Llama, LlamaConfig, inv_freq
from packing import IGNORE, collate, document, family

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}  # fmt: skip
CONFIGS = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "MHA": {"num_key_value_heads": 4},
    "MHA by default": {"num_key_value_heads": None},
    "MQA": {"num_key_value_heads": 1},
    "head_dim": {"head_dim": 20},
    "9 heads on 3, like SmolLM2": {"hidden_size": 36, "num_attention_heads": 9,
                                   "num_key_value_heads": 3, "rope_theta": 100_000.0},
    "llama3 rope_scaling": {"rope_scaling": {"rope_type": "llama3", **LLAMA3}},
    "llama3 rope_scaling, older type": {"rope_scaling": {"type": "llama3", **LLAMA3}},
    "llama3 rope_parameters": {
        "rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0, **LLAMA3}},
    "default rope_parameters": {"rope_parameters": {"rope_type": "default", "rope_theta": 777.0}},
}  # fmt: skip
TOKENS = 100  # three times the original context of the llama3 cases


def raw_config(changes):
    """A config.json with a None meaning: the key is not there."""
    raw = tiny_config(**changes)
    if "rope_parameters" in changes:
        del raw["rope_theta"]
    return {k: v for k, v in raw.items() if v is not None}


def rewrite(path, changes):
    """What tiny.write_checkpoint cannot say: keys that are absent."""
    (path / "config.json").write_text(json.dumps(raw_config(changes)))
    return path


def one_row(ids):
    return ids, torch.arange(len(ids)), torch.tensor([0, len(ids)], dtype=torch.int32)


def their_logits(model, ids, positions=None):
    positions = None if positions is None else positions[None]
    with torch.no_grad():
        return model.float().eval()(ids[None], position_ids=positions).logits[0]


def tokens(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 384, (count,), generator=generator)


@pytest.fixture(scope="module")
def model():
    """fp64, GQA, llama3 rope: exact enough that a leak between documents cannot hide."""
    torch.manual_seed(0)
    changes = {"rope_scaling": {"rope_type": "llama3", **LLAMA3}, "tie_word_embeddings": False}
    model = Llama(LlamaConfig.from_dict(tiny_config(**changes))).double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(8.0)
    return model


# ---- the same numbers as transformers ------------------------------------------------------------


@pytest.mark.parametrize("case", CONFIGS)
def test_what_transformers_saves_gives_the_same_logits_here(case, tmp_path):
    torch.manual_seed(1)
    theirs = LlamaForCausalLM(TheirConfig(**raw_config(CONFIGS[case])))
    with torch.no_grad():
        for p in theirs.parameters():
            p.mul_(8.0) if p.ndim > 1 else p.add_(0.1 * torch.randn_like(p))
    theirs.save_pretrained(tmp_path)
    ours = Llama.from_pretrained(tmp_path)
    ids = tokens(TOKENS)
    want = their_logits(theirs, ids)
    assert want.std() > 0.5  # numbers near 0 would agree by themselves
    assert (ours(*one_row(ids)) - want).abs().max() <= 1e-4


@pytest.mark.parametrize("case", CONFIGS)
def test_what_we_save_gives_the_same_logits_in_transformers(case, tmp_path):
    changes = {k: v for k, v in CONFIGS[case].items() if v is not None}
    source = write_checkpoint(tmp_path / "source", **changes | {
        "num_key_value_heads": CONFIGS[case].get("num_key_value_heads", 2) or 4})  # fmt: skip
    ours = Llama.from_pretrained(rewrite(source, CONFIGS[case]))
    save_pretrained(ours, tmp_path / "saved", source)
    theirs, report = LlamaForCausalLM.from_pretrained(
        tmp_path / "saved", output_loading_info=True, dtype=torch.float32
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ids = tokens(TOKENS)
    assert (ours(*one_row(ids)) - their_logits(theirs, ids)).abs().max() <= 1e-4


def test_logits_agree_at_positions_beyond_8192(tmp_path):
    """Llama 3.1's own numbers: theta 500,000, stretched by 8 from 8,192 positions on."""
    scaling = {"rope_type": "llama3", **LLAMA3, "original_max_position_embeddings": 8192}
    changes = {"rope_scaling": scaling, "rope_theta": 500_000.0, "head_dim": 64,
               "max_position_embeddings": 131_072}  # fmt: skip
    path = write_checkpoint(tmp_path, **changes)
    ours, theirs = Llama.from_pretrained(path), LlamaForCausalLM.from_pretrained(path)
    ids, positions, starts = one_row(tokens(40))
    positions[20:] += 12_000
    got = ours(ids, positions, starts)
    assert (got - their_logits(theirs, ids, positions)).abs().max() <= 1e-3
    plain = LlamaConfig.from_dict(tiny_config(rope_theta=500_000.0, head_dim=64))
    assert (inv_freq(ours.config) - inv_freq(plain)).abs().max() > 1e-4  # scaling does something


def test_llama3_scaling_keeps_short_waves_and_stretches_long_ones():
    """Against the published rule, one frequency at a time."""
    scaling = {"rope_type": "llama3", **LLAMA3, "original_max_position_embeddings": 8192}
    raw = tiny_config(rope_scaling=scaling, rope_theta=500_000.0, head_dim=128)
    config = LlamaConfig.from_dict(raw)
    for i, got in enumerate(inv_freq(config).tolist()):
        freq = 500_000.0 ** (-2 * i / 128)
        wave = 2 * math.pi / freq
        smooth = (8192 / wave - 1.0) / (4.0 - 1.0)
        want = (1 - smooth) * freq / 8.0 + smooth * freq
        if wave < 8192 / 4.0:
            want = freq
        elif wave > 8192 / 1.0:
            want = freq / 8.0
        assert got == pytest.approx(want, rel=1e-5)
    theirs = ROPE_INIT_FUNCTIONS["llama3"](TheirConfig(**raw), "cpu")[0]
    assert torch.equal(inv_freq(config), theirs)  # to the bit: at position 60,000 an ulp shows


# ---- packed rows, families -----------------------------------------------------------------------


def scored(model, b):
    return model(b.input_ids, b.position_ids, b.cu_seqlens, b.labels, b.parent)


def gradients(model):
    """Those gathered since the last call."""
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    return found


def weights_of(labels):
    """A weight per token that depends on its label only, so that both packings agree on it."""
    return 0.5 + torch.frac(labels.double() * 0.618)


def test_packed_documents_equal_separate_ones(model):
    lengths = [7, 2, 33, 2, 18, 60, 3]
    documents = [document(tokens(n, seed=n + i)) for i, n in enumerate(lengths)]
    row = collate(documents)
    packed = model(row.input_ids, row.position_ids, row.cu_seqlens)
    scores = scored(model, row)
    (scores * weights_of(row.labels)).sum().backward()
    together = gradients(model)
    begin = 0
    for one in map(lambda d: collate([d]), documents):
        part = slice(begin, begin := begin + len(one.input_ids))
        alone = model(one.input_ids, one.position_ids, one.cu_seqlens)
        assert (packed[part] - alone).abs().max() < 1e-10
        score = scored(model, one)
        assert (scores[part] - score).abs().max() < 1e-10
        (score * weights_of(one.labels)).sum().backward()
    for a, b in zip(together, gradients(model), strict=True):
        assert (a - b).abs().max() < 1e-10 * max(1, b.abs().max())


def test_families_equal_separate_rows_with_all_gradients(model):
    prompts = [tokens(n, seed=n).tolist() for n in (9, 2, 30)]
    replies = [[tokens(n, seed=50 + n).tolist() for n in group]
               for group in ((4, 11), (3,), (1, 8, 20, 2))]  # fmt: skip
    lone = document(tokens(12, seed=99))
    row = collate([family(prompts[0], replies[0]), lone, *map(family, prompts[1:], replies[1:])])
    scores = scored(model, row)
    (scores * weights_of(row.labels)).sum().backward()
    together = gradients(model)
    got = {b: scores[row.cu_seqlens[b] : row.cu_seqlens[b + 1]] for b in range(len(row.parent))}
    got = [got[b] for b in range(len(row.parent)) if row.parent[b] >= 0]  # the replies, in order
    flat = [(p, c) for p, group in zip(prompts, replies, strict=True) for c in group]
    for (prompt, reply), score in zip(flat, got, strict=True):
        trained = [False] * len(prompt) + [True] * len(reply)
        one = collate([document(prompt + reply, trained)])
        alone = scored(model, one)
        assert (alone[-len(reply) :] - score).abs().max() < 1e-10
        (alone * weights_of(one.labels)).sum().backward()
    one = collate([lone])
    (scored(model, one) * weights_of(one.labels)).sum().backward()
    for a, b in zip(together, gradients(model), strict=True):
        assert (a - b).abs().max() < 1e-10 * max(1, b.abs().max())


@pytest.mark.parametrize(
    "parent, starts",
    [
        ([-1, 0, 1], [0, 2, 4, 6]),  # a grandchild
        ([0, -1, -1], [0, 2, 4, 6]),  # its own parent
        ([1, -1, -1], [0, 2, 4, 6]),  # a parent that comes later
        ([-1, -1, 0], [0, 2, 4, 6]),  # a stranger between parent and child
        ([-1, 0], [0, 2, 4, 6]),  # one entry too few
        (None, [0, 2, 2, 6]),  # an empty document
        (None, [0, 4, 2, 6]),
        (None, [0, 2, 4]),  # tokens left over
        (None, [1, 2, 6]),
        (None, [0]),
    ],
)
def test_rows_that_do_not_fit_together_are_refused(model, parent, starts):
    parent = None if parent is None else torch.tensor(parent)
    ids, positions, _ = one_row(tokens(6))
    with pytest.raises(ValueError, match="document|cu_seqlens|parent"):
        model(ids, positions, torch.tensor(starts), parent=parent)
    with pytest.raises(ValueError, match="input_ids"):
        model(ids, positions[:-1], torch.tensor([0, 6]))


def test_labels_give_the_log_softmax_of_the_logits_and_zero_where_ignored(model):
    row = collate([document(tokens(20, seed=5)), document(tokens(9, seed=6))])
    labels = row.labels.clone()
    labels[::3], labels[1] = IGNORE, 0  # token id 0 is a label like any other
    logits = model(row.input_ids, row.position_ids, row.cu_seqlens)
    want = F.log_softmax(logits, -1).gather(1, labels.clamp(min=0)[:, None])[:, 0]
    got = model(row.input_ids, row.position_ids, row.cu_seqlens, labels)
    assert (got - want)[labels != IGNORE].abs().max() < 1e-12
    assert (got[labels == IGNORE] == 0).all() and got[1] < 0


def test_a_common_gradient_is_taken_in_the_forward_pass_and_changes_nothing_else(model):
    """The log-probs and every gradient of a sum of them, and it refuses any other loss."""
    row = collate([document(tokens(20, seed=5)), document(tokens(9, seed=6))])
    row = (row.input_ids, row.position_ids, row.cu_seqlens, row.labels)
    found = []
    for common in (False, True):
        logprobs = model(*row, common_gradient=common)
        found.append([logprobs, *torch.autograd.grad(-0.1 * logprobs.sum(), model.parameters())])
    assert all((a - b).abs().max() < 1e-12 for a, b in zip(*found, strict=True))
    weights = torch.arange(float(len(logprobs)), dtype=logprobs.dtype)
    (weights * model(*row)).sum().backward()
    with pytest.raises(RuntimeError, match="common_gradient was promised"):
        (weights * model(*row, common_gradient=True)).sum().backward()


# ---- the cache -----------------------------------------------------------------------------------


def continued(model, cache, pieces, slots):
    """One forward of some tokens per slot: pieces [(ids, first position)] -> (B, V)."""
    ids = torch.cat([piece for piece, _ in pieces])
    positions = torch.cat([start + torch.arange(len(piece)) for piece, start in pieces])
    starts = torch.tensor([0, *(len(piece) for piece, _ in pieces)]).cumsum(0).int()
    slots = None if slots is None else torch.tensor(slots)
    return model(ids, positions, starts, cache=cache, slots=slots)


@torch.no_grad()
def test_prefill_copied_slots_and_decoding_equal_the_uncached_model(model):
    cache = KVCache(model.config, slots=6, max_len=40, dtype=torch.float64)
    cache.reserve(40)
    for kv in cache.kv:
        kv.fill_(1e3)  # what an earlier sequence left there
    held = {4: tokens(9, 1), 0: tokens(3, 2), 2: tokens(21, 3)}

    def check(got, slots):
        for logits, slot in zip(got, slots, strict=True):
            assert (logits - model(*one_row(held[slot]))[-1]).abs().max() < 1e-10

    check(continued(model, cache, [(ids, 0) for ids in held.values()], list(held)), held)
    cache.copy_slot(2, [1, 5])
    held |= {1: held[2], 5: held[2]}
    for step, slots in enumerate(([1, 5, 0], [4, 2, 1, 5, 0], [5, 4], [0])):  # any order, any set
        new = {slot: tokens(1, 10 * step + slot) for slot in slots}
        pieces = [(new[slot], len(held[slot])) for slot in slots]
        held |= {slot: torch.cat([held[slot], new[slot]]) for slot in slots}
        check(continued(model, cache, pieces, slots), slots)
    # several tokens at once behind what is cached, next to a single one and a new sequence
    new = {4: tokens(5, 7), 0: tokens(1, 8), 3: tokens(6, 9)}
    pieces = [(ids, len(held.get(slot, []))) for slot, ids in new.items()]
    held |= {s: torch.cat([held.get(s, tokens(0)), ids]) for s, ids in new.items()}
    check(continued(model, cache, pieces, list(new)), new)


@torch.no_grad()
def test_without_slot_numbers_document_b_continues_sequence_b(model):
    cache = KVCache(model.config, slots=3, max_len=12, dtype=torch.float64)
    prompts = [tokens(4, 1), tokens(7, 2)]
    continued(model, cache, [(p, 0) for p in prompts], None)
    for step in range(4):
        new = [tokens(1, 20 + step), tokens(1, 30 + step)]
        pieces = [(n, len(p)) for n, p in zip(new, prompts, strict=True)]
        prompts = [torch.cat(pair) for pair in zip(prompts, new, strict=True)]
        got = continued(model, cache, pieces, None)
        want = torch.stack([model(*one_row(p))[-1] for p in prompts])
        assert (got - want).abs().max() < 1e-10


@torch.no_grad()
def test_a_full_cache_and_a_cache_with_labels_are_refused(model):
    cache = KVCache(model.config, slots=1, max_len=4, dtype=torch.float64)
    with pytest.raises(ValueError, match="outside a cache of 4 tokens"):
        model(*one_row(tokens(5)), cache=cache)
    with pytest.raises(ValueError, match="neither labels nor parent"):
        model(*one_row(tokens(4)), labels=tokens(4), cache=cache)


# ---- what is not supported -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "key, changes",
    [
        ("attention_bias", {"attention_bias": True}),
        ("mlp_bias", {"mlp_bias": True}),
        ("attention_dropout", {"attention_dropout": 0.1}),
        ("quantization_config", {"quantization_config": {"quant_method": "fp8"}}),
        ("hidden_act", {"hidden_act": "gelu"}),
        ("architectures", {"architectures": ["MistralForCausalLM"]}),
        ("architectures", {"architectures": None, "model_type": "qwen2"}),
        ("rope_type", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
        ("rope_type", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
        ("rope_type", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}),
        ("rope_scaling", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}),
        ("rope_scaling", {"rope_scaling": {"rope_type": "llama3", **LLAMA3, "factor": 0}}),
        ("rope_scaling", {"rope_scaling": {"rope_type": "llama3", **LLAMA3, "factor": "8"}}),
        ("rope_scaling", {"rope_scaling": "llama3"}),
        ("rope_theta", {"rope_theta": "big"}),
        ("rope_theta", {"rope_theta": 0}),
        ("rope_theta", {"rope_parameters": {"rope_type": "default", "rope_theta": "big"}}),
        ("rms_norm_eps", {"rms_norm_eps": "small"}),
        ("partial_rotary_factor", {"partial_rotary_factor": 0.5}),
        ("partial_rotary_factor", {"rope_parameters": {"partial_rotary_factor": 0.5}}),
        ("num_key_value_heads", {"num_key_value_heads": 0}),
        ("num_key_value_heads", {"num_key_value_heads": -2}),
        ("num_key_value_heads", {"num_key_value_heads": "2"}),
        ("head_dim", {"head_dim": 0}),
        ("head_dim", {"head_dim": "8"}),
        ("num_key_value_heads", {"num_key_value_heads": 3}),
        ("num_key_value_heads", {"num_key_value_heads": 8}),
        ("head_dim", {"hidden_size": 30}),
        ("head_dim", {"head_dim": 7}),
        ("num_attention_heads", {"num_attention_heads": 0}),
        ("num_attention_heads", {"num_attention_heads": "4"}),
        ("num_attention_heads", {"num_attention_heads": None}),
        ("vocab_size", {"vocab_size": -1}),
        ("hidden_size", {"hidden_size": 32.5}),
    ],
)
def test_what_is_not_supported_is_an_error_that_names_the_key(key, changes, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(tiny_config(**changes)))
    with pytest.raises(UserError) as e:
        Llama.from_pretrained(tmp_path)
    assert str(e.value).startswith(f"{file}: {key}: ") and "\n" not in str(e.value)


def test_the_meta_device_gives_shapes_without_reading_weights(tmp_path):
    path = write_checkpoint(tmp_path)
    (path / "model.safetensors").unlink()
    model = Llama.from_pretrained(path, device="meta")
    assert all(p.is_meta for p in model.parameters())
    assert model.lm_head.weight is model.model.embed_tokens.weight  # tied
