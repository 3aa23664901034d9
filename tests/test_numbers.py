"""Losses and gradients that are not finite, losses far off, the best held-out loss."""

import importlib
import json
import math
from unittest import mock

import pytest
import torch
from runs import run, series, weights, write_data
from tiny import tiny_config

from config import UserError
from metrics import History, Metrics, is_finite, is_spike, read_metrics
from model import LlamaConfig

LOSS = {"cpt": "token_losses", "sft": "loss_sum", "dpo": "step_sums"}
CONFIG = LlamaConfig.from_dict(tiny_config())
CALM = [2.0, 2.1] * 10  # mean 2.05, standard deviation 0.05


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def broken(stage, steps, what="loss"):
    """Patch of a train script, one micro-batch a step: in these steps, counted over all runs under
    it, the loss or its gradient alone is not finite."""
    module, seen = importlib.import_module(f"train_{stage}"), []
    function = getattr(module, LOSS[stage])

    def forward(*args):
        found = function(*args)
        seen.append(None)
        if len(seen) - 1 in steps and what == "loss":
            return (found[0] + math.nan, found[1]) if stage == "dpo" else found + math.nan
        if len(seen) - 1 in steps:
            (found[0] if stage == "dpo" else found).register_hook(lambda grad: grad * math.inf)
        return found

    return mock.patch.object(module, LOSS[stage], forward)


def train(stage, data, out, **changes):
    return run(stage, data, out, micro_batch_tokens=6 * 96, epochs=1.5, **changes)


@pytest.mark.parametrize(
    ("stage", "what"), [("cpt", "loss"), ("sft", "loss"), ("sft", "gradient"), ("dpo", "loss")]
)
def test_an_update_that_is_not_finite_is_left_out_and_counted(stage, what, data, tmp_path, capsys):
    with broken(stage, {2, 4}, what):
        rows = train(stage, data, tmp_path)
    assert len(rows) > 6
    assert [row.get("skipped") for row in rows[:6]] == [None, None, 1, None, 2, None]
    bad, missing = rows[2], {"loss": "loss", "gradient": "grad_norm"}[what]
    assert missing not in bad and ("loss" in bad) == (what == "gradient")
    assert all("loss" in row and "grad_norm" in row for row in rows if "skipped" not in row)
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)  # NaN is no JSON
    said = capsys.readouterr().out
    assert said.count("no update") == 2 and "step 4: loss" in said and "no update, 2 so far" in said


def test_the_weights_stay_as_they_were_over_a_step_that_is_left_out(data, tmp_path):
    """Three steps, the last left out, end with the weights of two under the same rates."""
    values = {"schedule": "constant", "warmup": 0.0, "micro_batch_tokens": 6 * 96}
    two = run("sft", data, tmp_path / "two", epochs=0.3, **values)
    assert len(two) == 2
    with broken("sft", {2}):
        three = run("sft", data, tmp_path / "three", epochs=0.45, **values)
    assert len(three) == 3 and three[2]["skipped"] == 1
    assert weights(tmp_path / "two") == weights(tmp_path / "three")


def test_a_run_with_steps_left_out_resumes_bit_for_bit(data, tmp_path):
    with broken("sft", {2, 5}):
        want = train("sft", data, tmp_path / "whole")
    with broken("sft", {2, 5}):  # stopped before step 4, and again before step 7
        train("sft", data, tmp_path / "parts", stop_at=3)
        train("sft", data, tmp_path / "parts", stop_at=6)
        again = train("sft", data, tmp_path / "parts")
    assert [row.get("skipped") for row in again] == [row.get("skipped") for row in want]
    for old, new in zip(want, again, strict=True):
        assert [old.get(k) for k in ("loss", "grad_norm")] == [
            new.get(k) for k in ("loss", "grad_norm")
        ]
    assert weights(tmp_path / "whole") == weights(tmp_path / "parts")


def test_too_many_in_a_row_end_the_run_with_what_to_do_even_over_a_resume(data, tmp_path):
    with broken("sft", {1, 2, 4, 5, 6}):
        train("sft", data, tmp_path, stop_at=5)
        assert len(read_metrics(tmp_path)) == 6  # two, a good one, two more: not three in a row
        with pytest.raises(UserError) as e:
            train("sft", data, tmp_path)
    assert "for 3 steps in a row: take a lower --lr" in str(e.value) and "\n" not in str(e.value)
    assert [row.get("skipped") for row in read_metrics(tmp_path)] == [None, 1, 2, None, 3, 4, 5]
    assert not (tmp_path / "model.safetensors").exists()
    with pytest.raises(UserError, match="--max_bad_steps must be above 0"):
        train("sft", data, tmp_path / "other", max_bad_steps=0)


# ---- spikes --------------------------------------------------------------------------------------


def test_a_spike_is_more_than_six_deviations_above_the_last_fifty():
    assert not is_spike(CALM, 2.349) and is_spike(CALM, 2.351)
    assert not is_spike(CALM, 0.1)  # far below is none
    assert not is_spike(CALM[:19], 100.0)  # too few to tell
    assert is_spike([100.0, -100.0] * 30 + [2.0, 2.1] * 25, 2.36)  # only the last fifty count
    assert is_spike([2.0] * 20, 2.01) and not is_spike([2.0] * 20, 2.0)


def test_a_spike_is_flagged_in_its_line_and_a_resumed_run_flags_the_same(tmp_path, capsys):
    losses = [*CALM, 3.0, 2.0, math.nan, 2.1, 9.0]

    def flags(folder, stops):
        for start, stop in zip([0, *stops], [*stops, len(losses)], strict=True):
            log = Metrics(folder, start, torch.device("cpu"), CONFIG)
            for step in range(start, stop):
                log.log(step, loss=losses[step], grad_norm=1.0)
        return [(row.get("spike"), row.get("skipped")) for row in read_metrics(folder)]

    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    whole = flags(tmp_path / "a", [])
    assert whole[20:] == [(True, None), (None, None), (None, 1), (None, None), (True, None)]
    assert not any(any(flag) for flag in whole[:20])
    said = capsys.readouterr().out
    assert said.count("far above the mean") == 2 and "step 20: loss 3 is far above" in said
    assert flags(tmp_path / "b", [15, 21, 22, 23, 24]) == whole


def test_what_is_not_finite_is_no_loss_to_compare_with():
    history = History()
    for step, loss in enumerate([2.0, 3.0]):
        history.add({"step": step, "loss": loss})
    history.add({"step": 2, "skipped": 1})
    assert list(history.losses) == [2.0, 3.0] and (history.skipped, history.bad) == (1, 1)
    assert is_finite({"loss": 1.0, "grad_norm": 2.0})
    for values in ((math.nan, 1.0), (1.0, math.inf), (-math.inf, 1.0)):
        assert not is_finite(dict(zip(("loss", "grad_norm"), values, strict=True)))


# ---- remarks -------------------------------------------------------------------------------------


def test_replies_that_fade_are_flagged_in_their_line(data, tmp_path, capsys):
    """A rate far too high costs them 90 to 230 nats."""
    rows = run("dpo", data, tmp_path, nll_coef=0.0, lr=1.0, warmup=0.0, warn_nats=100.0)
    fading = [row["step"] for row in rows if row.get("fading")]
    lost = [row["step"] for row in rows if -row["rewards/chosen"] / 0.1 > 100.0]
    assert fading == lost and 0 < len(fading) < len(rows)
    assert capsys.readouterr().out.count("chosen replies lost") == len(fading)


def test_the_lowest_held_out_loss_is_named_and_survives_a_resume(data, tmp_path, capsys):
    few = tmp_path / "few.jsonl"
    few.write_text("".join((data / "chat.jsonl").read_text().splitlines(True)[:6]))
    values = {"chat": str(few), "heldout_chat": f"{data}/held_chat.jsonl", "eval_every": 1,
              "lr": 0.03, "epochs": 12.0, "schedule": "constant"}  # fmt: skip
    rows = run("sft", data, tmp_path / "a", **values)
    said = capsys.readouterr()
    best = min(rows, key=lambda row: row["heldout/chat"])
    assert 0 < best["step"] < len(rows) - 1  # it overfits: the last is not the lowest
    words = f"chat {best['heldout/chat']:.4f} at step {best['step']}"
    assert f"done; lowest held-out loss: {words}\n" in said.out and f"best={words}" in said.err
    run("sft", data, tmp_path / "b", stop_at=len(rows) - 2, **values)
    capsys.readouterr()
    again = run("sft", data, tmp_path / "b", **values)
    assert series(again) == series(rows)
    assert f"done; lowest held-out loss: {words}\n" in capsys.readouterr().out
    run("sft", data, tmp_path / "c", epochs=0.1)
    assert "lowest held-out loss: not measured" in capsys.readouterr().out
