import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import VOCAB, by_hand, run, write_data
from safetensors.torch import load_file
from tiny import write_rows
from torch.utils._python_dispatch import TorchDispatchMode

from config import UserError
from model import Llama
from packing import IGNORE, collate, family
from reference import pair_logps
from tokenizer import Tokenizer
from train_dpo import Config, check_values, dpo_loss, ipo_loss, step_counts, step_sums, step_values

LN2 = math.log(2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def base(data):
    return Llama.from_pretrained(data / "base").eval()


def pair_ids(data, name="pairs"):
    """[(prompt, chosen, rejected)] as ids, each sequence put together here."""
    tokenizer = Tokenizer(data / "base")
    for line in Path(data / f"{name}.jsonl").read_text().splitlines():
        row = json.loads(line)
        replies = (tokenizer.encode(row[side]) for side in ("chosen", "rejected"))
        yield tokenizer.prompt(row["prompt"]), *([*r, tokenizer.turn_end_id] for r in replies)


def log1p_exp(x):
    return np.log1p(np.exp(x))


# ---- numbers by hand -----------------------------------------------------------------------------


POLICY_AND_REFERENCE = [[-10.0, -3.0], [-12.0, -5.0], [-11.0, -2.0], [-11.5, -9.0]]


def test_dpo_loss_against_numbers_worked_out_by_hand():
    losses = dpo_loss(*torch.tensor(POLICY_AND_REFERENCE), 0.1)
    # margins 0.1 * (1 - -0.5) and 0.1 * (-1 - 4): -log(sigmoid(0.15)) and -log(sigmoid(-0.5))
    assert losses.tolist() == pytest.approx([0.6209570, 0.9740770], abs=1e-6)


def test_ipo_loss_against_numbers_worked_out_by_hand():
    losses = ipo_loss(*torch.tensor(POLICY_AND_REFERENCE), 0.2)
    assert losses.tolist() == pytest.approx([(1.5 - 2.5) ** 2, (-5 - 2.5) ** 2])
    at_start = ipo_loss(*torch.tensor([[-10.0], [-12.0]] * 2), 0.2)
    assert at_start.tolist() == pytest.approx([1 / (2 * 0.2) ** 2])


def test_dpo_loss_stays_finite_far_out():
    far = torch.tensor([1e4, -1e4])
    assert dpo_loss(far, -far, torch.zeros(2), torch.zeros(2), 1.0).tolist() == [0.0, 2e4]


def batch_of(pairs):
    families = [family(prompt, [chosen, rejected]) for prompt, chosen, rejected in pairs]
    return collate(families, range(len(families)))


def preference(cfg, margins):
    """Loss of a margin (policy - reference, chosen - rejected), written once more."""
    return (margins - 0.5 / cfg.beta) ** 2 if cfg.loss == "ipo" else log1p_exp(-cfg.beta * margins)


VARIANTS = [("sigmoid", False), ("sigmoid", True), ("ipo", False)]


@pytest.mark.parametrize(("loss", "length_norm"), VARIANTS)
@pytest.mark.parametrize("nll_norm", ["tokens", "sequence"])
def test_the_sums_of_a_micro_batch_against_numpy(data, base, loss, length_norm, nll_norm):
    pairs = list(pair_ids(data))[:5]
    reference = torch.tensor(np.random.default_rng(0).normal(-40, 6, (5, 2)), dtype=torch.float32)
    cfg = Config(loss=loss, beta=0.3, length_norm=length_norm, nll_norm=nll_norm)
    losses, shown = step_sums(base, batch_of(pairs), reference, cfg)
    want, nll, ratios = 0.0, 0.0, []
    for (prompt, *replies), ref in zip(pairs, reference.double().numpy(), strict=True):
        logps = [by_hand(base, prompt, reply) for reply in replies]
        n = [len(reply) if length_norm or loss == "ipo" else 1 for reply in replies]
        ratios.append([logps[i].sum() - ref[i] for i in (0, 1)])
        want += preference(cfg, ratios[-1][0] / n[0] - ratios[-1][1] / n[1])
        nll -= logps[0].mean() if nll_norm == "sequence" else logps[0].sum()
    assert losses.tolist() == pytest.approx([want, nll], rel=1e-5)
    rewards = 0.3 * np.array(ratios)  # of whole replies in every variant, as TRL logs them
    assert shown[:2].tolist() == pytest.approx(rewards.sum(0).tolist(), rel=1e-4)
    assert shown[2] == (rewards[:, 0] > rewards[:, 1]).sum()
    assert 0 < shown[2] < 5  # the case tells right from wrong


def test_a_prompt_shared_by_two_replies_equals_two_separate_sequences(data, base):
    pairs = list(pair_ids(data))[:7]
    logps, tokens = pair_logps(base, batch_of(pairs))
    want = [[by_hand(base, p, reply).sum() for reply in replies] for p, *replies in pairs]
    assert (logps - torch.tensor(want)).abs().max() < 1e-3
    assert tokens.tolist() == [[len(c), len(r)] for _, c, r in pairs]


def test_shared_prompts_give_the_log_probs_and_gradients_of_separate_sequences_in_fp64(data):
    pairs, model = list(pair_ids(data))[:7], Llama.from_pretrained(data / "base").double()
    weights = torch.linspace(-1, 2, 14, dtype=torch.float64).view(7, 2)  # of every reply another
    shared, _ = pair_logps(model, batch_of(pairs))
    (weights * shared).sum().backward()
    got = [p.grad for p in model.parameters()]
    model.zero_grad()
    separate = [[logp_with_gradient(model, p, reply) for reply in both] for p, *both in pairs]
    separate = torch.stack([torch.stack(both) for both in separate])
    (weights * separate).sum().backward()
    assert (shared - separate).abs().max() <= 1e-10
    for g, p in zip(got, model.parameters(), strict=True):
        assert (g - p.grad).abs().max() <= 1e-10


class ProductsWithTheVocabulary(TorchDispatchMode):
    """Sizes of the matrix products that have VOCAB on one side: (rows, columns, depth)."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function._schema.name in ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm"):
            a, b = [x for x in args if torch.is_tensor(x)][-2:]
            if VOCAB in (*a.shape, *b.shape):
                self.seen.append((a.shape[-2], b.shape[-1], a.shape[-1]))
        return function(*args, **(kwargs or {}))


def test_the_head_works_for_completion_tokens_only(data, base):
    """Logits, their second making and the gradients of hidden states and weight: four products."""
    batch = batch_of(list(pair_ids(data))[:5])
    trained, width = int((batch.labels != IGNORE).sum()), base.config.hidden_size
    assert trained < 0.8 * len(batch.labels)
    with ProductsWithTheVocabulary() as products:
        losses, _ = step_sums(base, batch, torch.zeros(5, 2), Config())
        losses.sum().backward()
    base.zero_grad()
    assert len(products.seen) == 4
    assert {tuple(sorted(sizes)) for sizes in products.seen} == {
        tuple(sorted((trained, VOCAB, width)))
    }


def test_token_zero_counts_in_the_nll(data, base):
    """It is "!" in Llama 3: an ignore index of 0 has dropped it elsewhere."""
    pairs = [([7, 8, 9], [0, 5, 0, 0], [6, 0]), ([7, 8], [0], [4, 4])]
    batch = batch_of(pairs)
    assert step_counts(batch).tolist() == [2, 5]  # pairs, chosen tokens
    losses, _ = step_sums(base, batch, torch.zeros(2, 2), Config())
    want = -sum(by_hand(base, prompt, chosen).sum() for prompt, chosen, _ in pairs)
    assert losses[1].item() == pytest.approx(want, rel=1e-5)


def test_a_micro_batch_without_pairs_adds_nothing_but_takes_part(data, base):
    cfg = Config()
    empty = collate([[family([1, 2], [[3]])[0]]], [-1])  # one prompt token, no reply
    losses, shown = step_sums(base, empty, torch.zeros(3, 2), cfg)
    assert losses.tolist() == [0, 0] and not shown.any() and losses.requires_grad
    assert step_counts(empty).tolist() == [0, 0]
    losses.sum().backward()  # FSDP's reduction waits for every rank
    assert all(p.grad is not None for p in base.parameters())
    base.zero_grad()


# ---- whole runs ----------------------------------------------------------------------------------

WHOLE = {"max_length": 128, "batch_tokens": 100 * 128, "micro_batch_tokens": 4 * 128}


@pytest.mark.parametrize("nll_norm", ["tokens", "sequence"])
def test_dpo_starts_at_ln_2_and_adds_the_weighted_nll_of_the_chosen(data, base, tmp_path, nll_norm):
    held = f"{data}/held_pairs.jsonl"
    (row,) = run("dpo", data, tmp_path, nll_norm=nll_norm, nll_coef=0.7, lr=1e-12,
                 heldout_pairs=held, **WHOLE)  # fmt: skip
    for prefix, name in (("", "pairs"), ("heldout/", "held_pairs")):
        pairs = list(pair_ids(data, name))
        chosen = [by_hand(base, prompt, chosen) for prompt, chosen, _ in pairs]
        nll = -np.mean([c.mean() for c in chosen] if nll_norm == "sequence" else
                       np.concatenate(chosen))  # fmt: skip
        split = "/" if not prefix else "_"
        assert row[f"{prefix}loss{split}dpo"] == pytest.approx(LN2, abs=1e-5)
        assert row[f"{prefix}loss{split}nll"] == pytest.approx(nll, rel=1e-5)
        assert row[f"{prefix}loss"] == pytest.approx(LN2 + 0.7 * nll, rel=1e-5)
        want = np.mean([c.sum() for c in chosen])
        assert row[f"{prefix}logps{split}chosen"] == pytest.approx(want, rel=1e-5)
        want = np.mean([by_hand(base, prompt, bad).sum() for prompt, _, bad in pairs])
        assert row[f"{prefix}logps{split}rejected"] == pytest.approx(want, rel=1e-5)


def logp_with_gradient(model, prompt, reply):
    """Summed log-prob of a reply from plain logits: no packing, no families, no chunked head."""
    ids = torch.tensor(prompt + reply)
    scores = model(ids, torch.arange(len(ids)), torch.tensor([0, len(ids)])).log_softmax(-1)
    return scores[len(prompt) - 1 : -1].gather(1, ids[len(prompt) :, None]).sum()


@pytest.mark.parametrize("nll_norm", ["tokens", "sequence"])
@pytest.mark.parametrize(("loss", "length_norm"), VARIANTS)
def test_the_gradient_is_that_of_the_formula(data, base, tmp_path, nll_norm, loss, length_norm):
    """Of 50 pairs, at the reference, in one step; kept in the optimizer's order."""
    file = tmp_path / "gradients.safetensors"
    run("dpo", data, tmp_path / "out", gradients=file, grad_clip=1e9, beta=2.0, nll_coef=0.3,
        nll_norm=nll_norm, loss=loss, length_norm=length_norm, **WHOLE)  # fmt: skip
    pairs, base = list(pair_ids(data)), base.double()
    chosen_tokens = sum(len(chosen) for _, chosen, _ in pairs)
    for prompt, chosen, rejected in pairs:
        means = length_norm or loss == "ipo"
        n, m = (len(chosen), len(rejected)) if means else (1, 1)
        good, bad = (logp_with_gradient(base, prompt, reply) for reply in (chosen, rejected))
        margin = (good - good.detach()) / n - (bad - bad.detach()) / m
        nll = -good / (len(chosen) * 50 if nll_norm == "sequence" else chosen_tokens)
        away = (margin - 0.25) ** 2 if loss == "ipo" else torch.log1p(torch.exp(-2.0 * margin))
        (away / 50 + 0.3 * nll).backward()
    want = [p.grad for p in sorted(base.parameters(), key=lambda p: p.ndim < 2)]
    base.float().zero_grad()
    got = load_file(file).values()
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        assert (g - w).norm() <= 1e-4 * w.norm()


def test_ipo_starts_at_its_square_and_draws_the_margin_to_half_of_1_by_beta(data, tmp_path):
    """Of mean log-probs, over all pairs: 1 / (2 beta) = 1 nat a token."""
    rows = run("dpo", data, tmp_path, loss="ipo", beta=0.5, nll_coef=0.0, epochs=20.0, lr=3e-3,
               heldout_pairs=f"{data}/held_pairs.jsonl", **WHOLE)  # fmt: skip
    assert rows[0]["loss/ipo"] == pytest.approx(1.0, abs=1e-4) and "loss/dpo" not in rows[0]
    assert rows[-1]["loss/ipo"] < 0.1 and "heldout/loss_ipo" in rows[-1]
    model, base = (Llama.from_pretrained(folder) for folder in (tmp_path, data / "base"))
    margins = []
    for prompt, *replies in pair_ids(data):
        gain = [np.mean(by_hand(model, prompt, r) - by_hand(base, prompt, r)) for r in replies]
        margins.append(gain[0] - gain[1])
    assert np.mean(margins) == pytest.approx(1.0, abs=0.25)


def test_preferences_are_learnt(data, tmp_path):
    rows = run("dpo", data, tmp_path, epochs=4.0, lr=3e-3, heldout_pairs=f"{data}/held_pairs.jsonl")
    assert rows[-1]["loss/dpo"] < 0.5 * LN2 and rows[-1]["rewards/accuracies"] == 1
    assert rows[-1]["heldout/rewards_accuracies"] == 1  # good and bad are words of theirs too
    margin = rows[-1]["rewards/chosen"] - rows[-1]["rewards/rejected"]
    assert rows[-1]["rewards/margins"] == pytest.approx(margin, abs=1e-6) and margin > 0


def test_without_the_nll_term_only_the_preference_is_trained(data, tmp_path):
    rows = run("dpo", data, tmp_path, nll_coef=0.0, epochs=0.2)
    assert rows[0]["loss"] == rows[0]["loss/dpo"] != rows[0]["loss/nll"]


@pytest.mark.parametrize(("loss", "name", "start"), [("sigmoid", "dpo", LN2), ("ipo", "ipo", 25.0)])
def test_a_policy_that_does_not_begin_at_the_reference_is_an_error(loss, name, start):
    cpu, cfg, name = torch.device("cpu"), Config(loss=loss), f"loss/{name}"
    good = {"gap": 1e-5, name: start, "logps/chosen": -30.0, "rewards/chosen": 0.0}
    check_values(0, dict(good), cfg, cpu)
    for odd in ({"gap": 0.01}, {name: start + 0.02}, {name: start - 0.02}):
        with pytest.raises(UserError, match="does not begin at the reference"):
            check_values(0, good | odd, cfg, cpu)
    check_values(1, good | {"gap": 3.0, name: 0.5}, cfg, cpu)  # later it may differ


@pytest.mark.parametrize(("loss", "length_norm"), VARIANTS)
def test_chosen_replies_that_fade_are_warned_about_by_the_nats_of_whole_replies(
    data, base, capsys, loss, length_norm
):
    """Whatever the loss divides by: 15 tokens that lost 2 nats each are 30 lost, not 2."""
    prompt, chosen, rejected = next(pair for pair in pair_ids(data) if len(pair[1]) >= 12)
    logp = by_hand(base, prompt, chosen).sum()
    cfg, cpu = Config(loss=loss, beta=0.1, length_norm=length_norm), torch.device("cpu")
    for lost, warned in ((19.9, False), (20.2, True)):
        reference = torch.tensor([[logp + lost, 0.0]])
        losses, shown = step_sums(base, batch_of([(prompt, chosen, rejected)]), reference, cfg)
        total = torch.cat([losses, shown]).detach()
        values = step_values(total, 1, torch.tensor([1.0, 1.0]), cfg)
        check_values(5, values, cfg, cpu)
        said = capsys.readouterr().out
        assert warned == ("step 5: chosen replies lost 20.2 nats" in said) == bool(said)


def test_a_small_beta_is_noted_where_lengths_are_normalised(data, tmp_path, capsys):
    run("dpo", data, tmp_path / "a", length_norm=True, epochs=0.1)
    assert "note: beta 0.1 is small for length-normalised" in capsys.readouterr().out
    for change in ({}, {"loss": "ipo"}, {"length_norm": True, "beta": 2.0}):
        run("dpo", data, tmp_path / str(change), epochs=0.1, **change)
        assert "note: beta" not in capsys.readouterr().out


def test_a_longer_reply_does_not_win_by_its_length_when_lengths_are_normalised(data, base):
    """The same mean advantage over the reference: no margin with length_norm, one without."""
    prompt, chosen, _ = next(pair_ids(data))
    long, short = chosen * 3, chosen[:2]
    logps = [by_hand(base, prompt, reply).sum() for reply in (long, short)]
    reference = torch.tensor([[logps[0] - 2.0 * len(long), logps[1] - 2.0 * len(short)]])
    for norm, margin in ((True, 0.0), (False, 2.0 * (len(long) - len(short)))):
        cfg = Config(beta=0.1, length_norm=norm)
        losses, _ = step_sums(base, batch_of([(prompt, long, short)]), reference, cfg)
        assert losses[0].item() == pytest.approx(log1p_exp(-0.1 * margin), abs=1e-4)


def test_pairs_that_are_broken_stop_the_run_and_useless_ones_are_counted(data, tmp_path, capsys):
    rows = [json.loads(line) for line in (data / "pairs.jsonl").read_text().splitlines()]

    def changed(**change):
        return write_rows(tmp_path / "pairs.jsonl", [*rows[:2], rows[2] | change, *rows[3:]])

    for change, complaint in (
        ({"chosen": ""}, ":3: chosen: is empty"),
        ({"prompt": None}, ":3: prompt: must be a string or a list"),
    ):
        with pytest.raises(UserError, match=complaint):
            run("dpo", data, tmp_path / "out", pairs=changed(**change))
    with pytest.raises(UserError, match="50 of 50 rows cannot be used"):
        run("dpo", data, tmp_path / "out", max_length=5)
    capsys.readouterr()
    run("dpo", data, tmp_path / "out", pairs=changed(chosen=rows[2]["rejected"]), epochs=0.1)
    said = capsys.readouterr().out
    assert "50 rows = 49 used + 1 skipped [1 with chosen and rejected of the same" in said
    assert f"{tmp_path}/pairs.jsonl:3]" in said
