import io
import sys

import pytest
import torch
from tiny import sentences, write_checkpoint

import generate as module
import parallel
from config import UserError
from generate import Config, choose, generate, load, main, stream
from model import Llama
from tokenizer import Tokenizer

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def model(path):
    return Llama.from_pretrained(path).eval()


@pytest.fixture(scope="module")
def tokenizer(path):
    return Tokenizer(path)


@pytest.fixture(scope="module")
def prompts(tokenizer):
    return [tokenizer.prompt(text) for text in sentences(12)]


def texts(results):
    return [[(c.ids, c.finish) for c in samples] for samples in results]


def count_forwards(model, monkeypatch):
    """[(tokens, documents)] of every prefill and of every step that follows."""
    seen, forward, step = [], model.forward, module.decode_step

    def counted(input_ids, position_ids, cu_seqlens, **kw):
        seen.append((len(input_ids), len(cu_seqlens) - 1))
        return forward(input_ids, position_ids, cu_seqlens, **kw)

    def counted_step(model, blocks, cache, tokens, positions):
        seen.append((len(tokens), len(tokens)))
        return step(model, blocks, cache, tokens, positions)

    monkeypatch.setattr(model, "forward", counted)
    monkeypatch.setattr(module, "decode_step", counted_step)
    return seen


@pytest.mark.parametrize(
    "template, changes",
    [
        ("llama3", {}),
        ("chatml", {"tie_word_embeddings": False, "num_key_value_heads": 4}),
        ("llama3", {"rope_scaling": LLAMA3_ROPE, "head_dim": 16}),
    ],
)
def test_greedy_equals_transformers_token_for_token(tmp_path, template, changes):
    from transformers import LlamaForCausalLM

    path = write_checkpoint(tmp_path, template, seed=3, **changes)
    tokenizer, model = Tokenizer(path), Llama.from_pretrained(path).eval()
    theirs = LlamaForCausalLM.from_pretrained(path).eval()
    prompts = [tokenizer.prompt(text) for text in sentences(6, seed=1)]
    for ids, (ours,) in zip(prompts, generate(model, prompts, tokenizer.stop_ids, 50), strict=True):
        out = theirs.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids)),
            do_sample=False,
            max_new_tokens=50,
            eos_token_id=sorted(tokenizer.stop_ids),
            pad_token_id=0,
        )[0, len(ids) :].tolist()
        assert ours.ids == [i for i in out if i not in tokenizer.stop_ids]
        assert ours.finish == ("stop" if out[-1] in tokenizer.stop_ids else "length")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_batch_of_1_equals_batch_of_8(model, tokenizer, prompts, temperature):
    together = generate(model, prompts[:8], tokenizer.stop_ids, 40, temperature)
    for i, ids in enumerate(prompts[:8]):
        alone = generate(model, [ids], tokenizer.stop_ids, 40, temperature, seeds=[i])
        assert texts(alone)[0] == texts(together)[i]
        for a, b in zip(alone[0][0].logprobs, together[i][0].logprobs, strict=True):
            assert abs(a - b) < 1e-5


def test_neither_slots_nor_order_change_a_sample(model, tokenizer, prompts):
    def sample(ids, seeds, slots):
        return texts(generate(model, ids, tokenizer.stop_ids, 30, 0.9, 0.95, 3, seeds, slots))

    seeds = list(range(100, 112))
    reference = sample(prompts, seeds, 64)
    assert len({str(c) for samples in reference for c in samples}) == 36  # all differ
    for slots in (1, 2, 5, 36):
        assert sample(prompts, seeds, slots) == reference
    assert sample(prompts[::-1], seeds[::-1], 4)[::-1] == reference


def test_a_bound_on_the_cache_changes_no_sample(model, tokenizer, prompts, monkeypatch):
    sizes, cache = [], module.KVCache

    def made(config, slots, max_len, *rest):
        sizes.append((slots, slots * max_len))
        return cache(config, slots, max_len, *rest)

    monkeypatch.setattr(module, "KVCache", made)
    want = generate(model, prompts, tokenizer.stop_ids, 20, 1.0, n=2)
    monkeypatch.setattr(module, "CACHE_TOKENS", sizes[0][1] // 5)
    assert texts(generate(model, prompts, tokenizer.stop_ids, 20, 1.0, n=2)) == texts(want)
    assert sizes[0][0] == 25 and sizes[1] == (5, sizes[0][1] // 5)
    monkeypatch.setattr(module, "CACHE_TOKENS", 1)  # less than one sequence: one after the other
    assert texts(generate(model, prompts[:2], tokenizer.stop_ids, 20, 1.0)) == [
        samples[:1] for samples in texts(want[:2])
    ]


def test_another_seed_is_another_sample_and_n_only_adds_samples(model, tokenizer, prompts):
    def sample(n, seed):
        return texts(generate(model, prompts[:1], tokenizer.stop_ids, 30, 1.0, n=n, seeds=[seed]))[
            0
        ]

    assert sample(4, 7)[:2] == sample(2, 7)
    assert sample(1, 7) != sample(1, 8)
    assert sample(1, -1) == sample(1, 2**64 - 1)  # any int is a seed


def test_each_token_of_the_stop_set_stops(model, prompts):
    free = generate(model, prompts[:1], frozenset(), 12)[0][0]
    assert free.finish == "length" and len(free.ids) == len(free.logprobs) == 12
    for stop in set(free.ids):
        first = free.ids.index(stop)
        for stops in ({stop}, {stop, 383}):
            done = generate(model, prompts[:1], frozenset(stops), 12)[0][0]
            assert (done.ids, done.finish) == (free.ids[:first], "stop")
            assert len(done.logprobs) == first + 1  # the stop token's too


def test_almost_no_top_p_equals_greedy(model, tokenizer, prompts):
    greedy = generate(model, prompts, tokenizer.stop_ids, 30)
    assert texts(generate(model, prompts, tokenizer.stop_ids, 30, 1.5, 1e-9)) == texts(greedy)
    assert texts(generate(model, prompts, tokenizer.stop_ids, 30, 1e-5)) == texts(greedy)


def test_tokens_are_drawn_in_proportion_to_their_probability():
    probs = torch.tensor([0.5, 0.0, 0.3, 0.15, 0.05])
    uniforms = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    rows = probs.log().repeat(1000, 1)

    def shares(temperature, top_p):
        tokens, logprobs = choose(rows, uniforms, temperature, top_p)
        torch.testing.assert_close(logprobs, probs.log()[tokens])  # untempered
        return torch.bincount(tokens, minlength=5) / 1000

    torch.testing.assert_close(shares(1.0, 1.0), probs, atol=2e-3, rtol=0)
    # mass 0.7 needs the first two; they share it in proportion
    torch.testing.assert_close(
        shares(1.0, 0.7), torch.tensor([0.625, 0, 0.375, 0, 0]), atol=2e-3, rtol=0
    )
    squared = probs**2 / (probs**2).sum()
    torch.testing.assert_close(shares(0.5, 1.0), squared, atol=2e-3, rtol=0)


def test_returned_logprobs_are_the_models_own(model, tokenizer, prompts):
    for ids, samples in zip(
        prompts, generate(model, prompts, tokenizer.stop_ids, 40, 0.8, 0.9, 2), strict=True
    ):
        for sample in samples:
            # the stop token is not recorded, so only the written tokens are scored again
            row = torch.tensor(ids + sample.ids)
            labels = torch.full((len(row) - 1,), -100)
            labels[len(ids) - 1 :] = row[len(ids) :]
            n = len(row) - 1
            scored = model(row[:-1], torch.arange(n), torch.tensor([0, n]), labels=labels)
            ours = torch.tensor(sample.logprobs[: len(sample.ids)])
            torch.testing.assert_close(ours, scored[len(ids) - 1 :].detach(), atol=2e-5, rtol=1e-5)
            assert len(sample.logprobs) == len(sample.ids) + (sample.finish == "stop")


@pytest.mark.parametrize("slots", [3, 64])
def test_samples_of_a_prompt_share_its_prefill(model, prompts, monkeypatch, slots):
    seen = count_forwards(model, monkeypatch)
    generate(model, prompts, frozenset(), 5, 1.0, n=4, slots=slots)
    written = len(prompts) * 4 * (5 - 1)  # a sample's last token never enters the model
    assert sum(tokens for tokens, _ in seen) == sum(map(len, prompts)) + written


def test_prompts_are_prefilled_together_within_the_token_limit(model, prompts, monkeypatch):
    together = generate(model, prompts, frozenset(), 3)
    monkeypatch.setattr(module, "PREFILL_TOKENS", 60)
    seen = count_forwards(model, monkeypatch)
    assert texts(generate(model, prompts, frozenset(), 3)) == texts(together)
    prefills = [s for s in seen if s[0] > s[1]]
    assert 1 < len(prefills) < len(prompts)
    assert all(tokens <= 60 or documents == 1 for tokens, documents in prefills)


def test_finished_sequences_make_room_for_waiting_ones(model, tokenizer, prompts, monkeypatch):
    seen = count_forwards(model, monkeypatch)
    done = generate(model, prompts, tokenizer.stop_ids, 60, 1.0, n=6, slots=8)
    steps = [documents for tokens, documents in seen if tokens == documents]
    lengths = [len(c.ids) for samples in done for c in samples]
    assert min(lengths) < 20 and max(lengths) == 60  # a long tail: static batching would wait
    full = [i for i, active in enumerate(steps) if active == 8]
    assert len(full) == full[-1] + 1  # no slot empty until none is waiting
    assert len(steps) < 60 * len(lengths) / 8


def test_stream_yields_every_token(model, tokenizer, prompts):
    grown = {}
    for i, k, out in stream(model, prompts[:3], tokenizer.stop_ids, 8, 1.0, n=2):
        grown.setdefault((i, k), []).append(len(out.logprobs))
    assert len(grown) == 6
    for lengths in grown.values():
        assert lengths == list(range(1, len(lengths) + 1))


@pytest.mark.parametrize("slots", [2, 64])
def test_wanted_samples_are_those_of_a_whole_run_from_one_prefill(
    model, tokenizer, prompts, monkeypatch, slots
):
    whole = generate(model, prompts, tokenizer.stop_ids, 20, 1.0, n=4)
    seen = count_forwards(model, monkeypatch)
    wanted = [(7, 3), (2, 0), (2, 2), (7, 1), (7, 0), (11, 3)]
    events = stream(model, prompts, tokenizer.stop_ids, 20, 1.0, slots=slots, wanted=wanted)
    done = {(i, k): (out.ids, out.finish) for i, k, out in events if out.finish}
    assert done == {(i, k): (whole[i][k].ids, whole[i][k].finish) for i, k in wanted}
    steps = sum(tokens for tokens, documents in seen if tokens == documents)
    prefilled = sum(tokens for tokens, documents in seen) - steps
    assert prefilled == sum(len(prompts[i]) for i in (2, 7, 11))
    assert list(stream(model, prompts, tokenizer.stop_ids, 20, wanted=[])) == []


def test_each_prompt_may_have_its_own_longest_answer(model, prompts):
    limits = [3, 9, 1, 6]
    done = generate(model, prompts[:4], frozenset(), limits)
    assert [len(c.ids) for (c,) in done] == limits
    free = generate(model, prompts[:4], frozenset(), 9)
    assert [c.ids for (c,) in done] == [c.ids[:m] for (c,), m in zip(free, limits, strict=True)]
    with pytest.raises(UserError, match="max_new_tokens 0"):
        generate(model, prompts[:2], frozenset(), [5, 0])


def test_only_a_caller_that_shares_the_work_may_load_on_many_ranks(path, model, monkeypatch):
    monkeypatch.setattr(parallel, "init", lambda device: (1, 2, torch.device("cpu")))
    with pytest.raises(UserError, match="single process"):
        load(path)
    loaded, _ = load(path, ranks=True)
    for mine, p in zip(loaded.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, p)  # the whole model, not a part


def test_the_answer_ends_where_the_context_ends(model):
    done = generate(model, [[5] * 250], frozenset(), 100)[0][0]
    assert (len(done.ids), done.finish) == (6, "length")  # context 256


@pytest.mark.parametrize(
    "prompt, changes, message",
    [
        ([5] * 256, {}, "the prompt has 256 tokens, but the model's context is 256"),
        ([], {}, "the prompt has 0 tokens"),
        ([5], {"temperature": -1.0}, "temperature -1.0"),
        ([5], {"temperature": float("nan")}, "temperature nan"),
        ([5], {"top_p": 0.0}, "top_p 0.0"),
        ([5], {"n": 0}, "n 0"),
        ([5], {"slots": 0}, "slots 0"),
        ([5], {"max_new_tokens": 0}, "max_new_tokens 0"),
    ],
)
def test_what_cannot_be_sampled_is_an_error(model, prompt, changes, message):
    with pytest.raises(UserError, match=message):
        generate(model, [prompt], frozenset(), **{"max_new_tokens": 5} | changes)


def test_a_diverged_model_is_an_error(path):
    model = Llama.from_pretrained(path)
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))
    with pytest.raises(UserError, match="not finite"):
        generate(model, [[5, 6]], frozenset(), 3, 1.0)


def test_no_prompts_no_samples(model):
    assert generate(model, [], frozenset(), 5) == []


def test_command_line_prints_the_answer(path, model, tokenizer, capsys):
    main(Config(init_from=str(path), prompt="the profit", max_new_tokens=12, device="cpu"))
    ids = generate(model, [tokenizer.prompt("the profit")], tokenizer.stop_ids, 12)[0][0].ids
    assert capsys.readouterr().out == tokenizer.decode(ids) + "\n"
    with pytest.raises(UserError, match="--prompt"):
        main(Config(init_from=str(path), device="cpu"))


def test_chat_remembers_the_turns_and_ends_at_end_of_file(
    path, model, tokenizer, monkeypatch, capsys
):
    typed = b"the bond\n\ncaf\xe9\ngood year\n" + b"cost " * 300 + b"\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed), encoding="utf-8"))
    main(Config(init_from=str(path), chat=True, max_new_tokens=8, device="cpu"))
    out, err = capsys.readouterr()
    messages, answers = [], []
    for turn in ("the bond", "good year"):
        messages.append({"role": "user", "content": turn})
        ids = generate(model, [tokenizer.prompt(messages)], tokenizer.stop_ids, 8)[0][0].ids
        answers.append(tokenizer.decode(ids))
        messages.append({"role": "assistant", "content": answers[-1]})
    assert out == f"> {answers[0]}\n> > > {answers[1]}\n> > \n"
    assert "error: the text is not valid UTF-8" in err
    assert "the model's context is 256" in err  # the last message is too long: said, not fatal
