"""The replies about texts that are taken, and those that are none."""

import json

import pytest

from judge import parse_reply

NAMES = "Questions", "Scenario", "Exhibit", "Answer Choices", "Answer"
EMPTY = {"Justification": "j"} | {name: [] for name in NAMES}
INVALID = {
    "lists of unequal length": [EMPTY | {"Questions": ["a"]}, EMPTY | {"Answer": ["b", "c"]}],
    "reply has other keys than asked for": [
        EMPTY | {"x": []}, {k: v for k, v in EMPTY.items() if k != "Exhibit"}, [], 3],
    "a list holds something else than text": [
        dict.fromkeys(NAMES, ["a"]) | {"Justification": "", name: [value]}
        for name in NAMES for value in (1, None, {}, [1], [["a"]], ["a"])
        if (name, value) != ("Answer Choices", ["a"])],
    "reply has something else where a list is due": [
        EMPTY | {"Answer": ""}, EMPTY | {"Exhibit": {}}],
    "reply has a value that is not plain text": [
        EMPTY | {"Justification": []},
        dict.fromkeys(NAMES, ["a\u0000"]) | {"Justification": ""},
        dict.fromkeys(NAMES, ["a"]) | {"Justification": "", "Answer Choices": [["a", "\ud800"]]}],
    "reply is not one JSON object": ["hm", '{"Questions": [], "Questions": []}', "[" * 9000],
}  # fmt: skip


DEEP = "[" * 900 + "]" * 900


@pytest.mark.parametrize("reason", INVALID)
def test_a_reply_of_another_form_than_asked_for_is_invalid(reason):
    for reply in INVALID[reason]:
        raw = reply if isinstance(reply, str) else json.dumps(reply)
        assert parse_reply(raw, "stop", "exercises") == (None, reason), raw


@pytest.mark.parametrize("name", NAMES)
def test_lists_nested_beyond_measure_are_an_invalid_reply(name):
    raw = json.dumps(dict.fromkeys(NAMES, ["a"]) | {"Justification": ""})
    parsed, reason = parse_reply(raw.replace(f'"{name}": ["a"]', f'"{name}": [{DEEP}]'), "stop",
                                 "exercises")  # fmt: skip
    assert parsed is None and reason
    assert parse_reply(f'{{"Justification": "", "Score": {DEEP}}}', "stop", "quality")[0] is None


@pytest.mark.parametrize("choices", ["A. 5% B. 6%", ["A. 5%", "B. 6%"], [], ""])
def test_choices_are_a_list_or_one_text(choices):
    reply = dict.fromkeys(NAMES, ["a"]) | {"Justification": "", "Answer Choices": [choices]}
    assert parse_reply(json.dumps(reply), "stop", "exercises") == (reply, None)
    fenced = f"<think>hm</think>\n```json\n{json.dumps(reply)}\n```"
    assert parse_reply(fenced, "stop", "exercises") == (reply, None)
    assert parse_reply(json.dumps(reply), "length", "exercises")[0] is None


@pytest.mark.parametrize("score", range(6))
def test_every_score_from_0_to_5_is_taken(score):
    reply = {"Justification": "j", "Score": score}
    assert parse_reply(json.dumps(reply), "stop", "quality") == (reply, None)
