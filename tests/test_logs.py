"""Logs that hold something else than they should are refused by line and field."""

import json

import pytest
from judging import trajectory
from tiny import write_rows

from config import UserError
from logs import VERDICT, read_log, read_trajectories

KEYS = "Justification", "First incorrect step", "Reasoning up to incorrect", "Step correction"


def verdict(kind, parsed, **changes):
    record = {"id": "a", "trajectory": "t", "request_sha": "s", "kind": kind, "finish": "stop"}
    record |= {"raw": json.dumps(parsed), "parsed": parsed, "attempts": 1, "tries": 1}
    return record | changes


def test_a_verdict_without_a_finding_is_read_and_gets_what_is_asked_of_it(tmp_path):
    path = write_rows(tmp_path / "v.jsonl", [verdict("outcome", None, usage=None)])
    found = read_log(path, VERDICT)["a"]
    assert found["parsed"] is None and found["usage"] == {} and found["reason"]


@pytest.mark.parametrize(
    "record, reason",
    [
        (verdict("truth", None), "kind: 'truth' is not one of outcome, stepwise"),
        (verdict("outcome", None, raw=None), "raw: must be the reply"),
        (verdict("outcome", {"verdict": "good"}), "parsed: Correctness: missing"),
        (verdict("outcome", {"Correctness": True}), "parsed: Correctness: must be a string"),
        (verdict("outcome", {"Correctness": "maybe"}), "parsed: Correctness: is neither"),
        (verdict("rating", {"Rating": "5"}), "parsed: Rating: must be a number"),
        (verdict("quality", {"Score": 2.5}), "parsed: Score: must be an integer"),
        (verdict("exercises", {"Questions": "a"}), "parsed: Questions: must be a list"),
        (verdict("stepwise", dict.fromkeys(KEYS[:3], "")), "parsed: Step correction: missing"),
        (verdict("stepwise", dict.fromkeys(KEYS, "")), "first_error: must be the number"),
    ],
)
def test_a_verdict_that_says_nothing_is_named_by_line_and_field(tmp_path, record, reason):
    path = write_rows(tmp_path / "v.jsonl", [verdict("rating", {"Rating": 5}, id="b"), record])
    with pytest.raises(UserError, match=f"v.jsonl:2: {reason}"):
        read_log(path, VERDICT)


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"solution": 40}, ":1: solution: must be a string"),
        ({"kinds": ["x"]}, ": q/0: kinds: "),
    ],
)
def test_a_trajectory_with_other_types_is_refused(tmp_path, changes, reason):
    path = write_rows(tmp_path / "t.jsonl", [trajectory("q", 0, "Answer: 40", **changes)])
    with pytest.raises(UserError, match=f"t.jsonl{reason}"):
        read_trajectories(path)
