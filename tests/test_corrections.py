"""Pairs whose chosen step is the policy's own (`reward.py correct`, `pairs --corrections self`)."""

import pytest
from judging import (
    adds_up,
    completion,
    rows_of,
    run_judge,
    serving,
    stepwise,
    trajectory,
    write_solutions,
)
from tiny import write_checkpoint, write_rows

import reward
from config import UserError
from pairs import prefix_id


def continuation(prompt, prefix, k, text, **changes):
    record = {"id": f"{prefix_id(prompt, prefix)}/{k}", "prompt_id": prompt, "prefix": prefix}
    record |= {"sample": k, "text": text, "finish": "stop", "policy_sha": "p"}
    return record | {"correct": "40" in text} | changes


TRIED = [
    continuation("q0", "Step 1: fine.", 0, " Step 2: no. Answer: 41"),
    continuation("q0", "Step 1: fine.", 1, " Step 2:  BAD . Step 3: but so. Answer: 40"),
    continuation("q0", "Step 1: fine.", 2, " Step 2: cut. Answer: 40", finish="length"),
    continuation("q0", "Step 1: fine.", 3, " Answer: 40 Step 2: it is. Answer: 50", correct=False),
    continuation("q0", "Step 1: fine.", 4, " Step 2: own way. Step 3: on. Answer: 40"),
    continuation("q0", "Step 1: fine.", 5, " Step 2: later. Answer: 40"),
    continuation("q0", "", 0, "Answer: 40"),
    continuation("q1", "Step 1: fine.", 0, " Step 2: no. Answer: 41"),
]


@pytest.fixture
def out(tmp_path):
    write_solutions(tmp_path)
    with serving() as server:
        run_judge(tmp_path, server)
    return tmp_path


@pytest.fixture
def own(out):
    """Judged solutions, and what the policy makes of the beginnings of q0 and one of q1."""
    write_rows(out / "continuations.jsonl", TRIED[::-1])  # the order of the log is of no matter
    return out


@pytest.mark.parametrize("layout", ["paper", "continuation"])
def test_the_first_own_way_to_the_answer_that_differs_corrects_a_step(own, layout, capsys):
    reward.pairs(reward.Pairs(out_dir=str(own), corrections="self", layout=layout))
    found = adds_up(capsys.readouterr().out)
    assert found["wrong solutions for pairs by process (SCP)"] == (15, 2, 13)
    rows = [row for row in rows_of(own / "pairs.jsonl") if row["kind"] == "scp"]
    second, first = sorted(rows, key=lambda row: row["correction"] == TRIED[6]["id"])
    assert second["correction"] == TRIED[4]["id"] and second["from"][0] in ("q0/1", "q0/3")
    assert second["verdict"] == f"{second['from'][0]}/stepwise/1"
    space = " " if layout == "continuation" else ""
    assert second["chosen"] == f"{space}Step 2: own way."
    assert second["rejected"] == f"{space}Step 2: BAD . Answer: 41"  # what the judge quotes
    assert second["prefix"] == ("Step 1: fine." if layout == "continuation" else "")
    asked = "Question q0?" if space else "Question q0? Step 1: fine. What is the next step?"
    assert second["prompt"][-1]["content"] == asked
    # the first step may be the last: then it ends the turn, and an earlier one does not
    assert (first["from"], first["chosen"]) == (["q0/2"], "Answer: 40")
    ends = [row["ends_turn"] for row in (second, first)]
    if layout == "paper":
        assert ends == [{"chosen": True, "rejected": True}] * 2
    else:
        assert ends == [
            {"chosen": False, "rejected": True},
            {"chosen": True, "rejected": False},
        ]


def test_without_an_own_way_there_is_no_pair_and_it_is_counted(own, capsys):
    reward.pairs(reward.Pairs(out_dir=str(own), corrections="self"))
    text = capsys.readouterr().out
    assert "2 without an own way to the answer" in text  # q1/1 and q1/3
    assert "10 not continued" in text  # q1/2 and those of q2, q3, q4
    assert "1 with a step that another pair has" in text  # q0/1 and q0/3


def test_an_own_step_that_repeats_the_wrong_one_is_none_though_the_judge_quoted_half(tmp_path):
    text = "Step 1: fine. Step 2: BAD and more. Answer: 41"
    write_rows(tmp_path / "trajectories.jsonl", [trajectory("q0", 0, text)])
    half = stepwise("Step 1: fine.", "Step 2: BAD", "Step 2: good")

    def quotes_half(number, body, good):
        return completion(half if "First incorrect" in body["messages"][0]["content"] else good)

    with serving(quotes_half) as server:
        run_judge(tmp_path, server)
    ways = [" Step 2:  BAD and more. Answer: 40", " Step 2: own. Answer: 40"]
    tried = [continuation("q0", "Step 1: fine.", k, way) for k, way in enumerate(ways)]
    write_rows(tmp_path / "continuations.jsonl", tried)
    reward.pairs(reward.Pairs(out_dir=str(tmp_path), corrections="self"))
    assert [row["chosen"] for row in rows_of(tmp_path / "pairs.jsonl")] == ["Step 2: own."]


def test_own_corrections_need_their_log(out):
    with pytest.raises(UserError, match="continuations.jsonl: no such file"):
        reward.pairs(reward.Pairs(out_dir=str(out), corrections="self"))


def test_an_unknown_author_of_corrections_is_refused(out):
    with pytest.raises(UserError, match="--corrections must be one of judge, self, not 'me'"):
        reward.pairs(reward.Pairs(out_dir=str(out), corrections="me"))


def test_one_seed_makes_the_same_bytes_with_every_switch_on(own, tmp_path):
    path = str(write_checkpoint(tmp_path / "model"))
    settings = {"corrections": "self", "layout": "continuation", "agreed": True, "flawed": True}
    settings |= {"length_ratio": 9.0, "max_length": 200, "tokenizer": path, "balance": True}
    made = set()
    for _ in range(2):
        reward.pairs(reward.Pairs(out_dir=str(own), seed=3, **settings))
        made.add((own / "pairs.jsonl").read_bytes())
    assert len(made) == 1 and len(rows_of(own / "pairs.jsonl")) == 4
