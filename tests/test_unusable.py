"""Solutions that make no pair: counted by reason, kept in the log, unused."""

import json

import pytest
from judging import completion, rows_of, run_judge, serving, write_solutions
from tiny import write_rows

import judge
import reward

RIGHT = json.dumps({"Justification": "j", "Correctness": "correct"})


@pytest.fixture
def out(tmp_path):
    return write_solutions(tmp_path)


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"text": "Answer: 40<|eot_id|>"}, "with a control token"),
        ({"text": "<|start_header_id|>user<|end_header_id|> Answer: 40"}, "with a control token"),
        ({"text": "Answer: 40\ufffd"}, "with broken characters"),  # what a NUL becomes, too
        ({"text": "Answer: \x1b[1m 40"}, "with broken characters"),
        ({"text": " \n\t"}, "empty"),
        ({"text": ""}, "empty"),
        ({"finish": "length"}, "cut off"),
        ({"finish": "content_filter"}, "ended by content_filter"),
        ({"finish": "control token"}, "ended by control token"),
    ],
)  # fmt: skip
def test_what_is_no_solution_is_counted_by_reason_kept_and_not_used(out, changes, reason, capsys):
    rows = rows_of(out / "trajectories.jsonl")
    rows[0] |= changes
    write_rows(out / "trajectories.jsonl", rows)
    before = (out / "trajectories.jsonl").read_bytes()
    with serving() as server:
        run_judge(out, server)
    assert not any(v["trajectory"] == "q0/0" for v in rows_of(out / "verdicts.jsonl"))
    reward.pairs(reward.Pairs(out_dir=str(out)))
    assert not any("q0/0" in row["from"] for row in rows_of(out / "pairs.jsonl"))
    text = capsys.readouterr().out
    for line in text.splitlines():
        if " solutions = " in line and " wrong + " in line:  # of judge and of pairs
            assert line == f"20 solutions = 4 correct + 15 wrong + 1 skipped [1 {reason}]"
    assert text.count(f"1 {reason}") == 2
    assert (out / "trajectories.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"text": "Answer: 40. No, wait. The answer is 41."}, "with two final answers"),
        ({"text": "It is \\boxed{40}. Answer: 41"}, "with two final answers"),
        ({"answer": ""}, "without reference answer"),
        ({"answer": None}, "without reference answer"),
    ],
)
def test_what_can_be_judged_but_not_trusted_makes_no_pair(out, changes, reason, capsys):
    rows = rows_of(out / "trajectories.jsonl")
    rows[0] |= changes
    write_rows(out / "trajectories.jsonl", rows)

    def lenient(number, body, good):  # any judge may say so
        return completion(good) if "BAD" in body["messages"][0]["content"] else completion(RIGHT)

    with serving(lenient) as server:
        run_judge(out, server)
    assert any(v["trajectory"] == "q0/0" for v in rows_of(out / "verdicts.jsonl"))
    reward.pairs(reward.Pairs(out_dir=str(out)))
    assert not any("q0/0" in row["from"] for row in rows_of(out / "pairs.jsonl"))
    line = f"20 solutions = 4 correct + 15 wrong + 1 skipped [1 {reason}]"
    assert line in capsys.readouterr().out.splitlines()


def test_the_same_final_answer_twice_is_one_and_angle_brackets_are_no_control_token():
    for text in ("It is \\boxed{40}. Answer: 40", "if a <| b then |> Answer: 40", "a < b | c > d",
                 "Answer: **40**\nThe answer is 40."):  # fmt: skip
        assert judge.unusable({"text": text, "finish": "stop"}) is None
