import gzip
import json

import pytest

import jsonl
from config import UserError
from jsonl import check_messages, read_jsonl

GOOD = b'{"text": "a"}\n'


def rows(tmp_path, content, fields=None):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    return list(read_jsonl(path, {"text": str} if fields is None else fields))


@pytest.mark.parametrize(
    "line, reason",
    [
        (b'{"text": "a"', "not json"),
        (b'{"text": "a"} {"text": "b"}', "not json"),
        (b"text", "not json"),
        (b'["a"]', "must be an object, not a list"),
        (b'"a"', "must be an object, not a string"),
        (b"null", "must be an object, not null"),
        (b'{"text": "caf\xe9"}', "not UTF-8 at byte 14"),
        (b'{"text": "\xed\xa0\x80"}', "not UTF-8"),
        (b'{"text": "a", "text": "b"}', "text: the key is there twice"),
        (b'{"text": "a", "meta": {"k": 1, "k": 2}}', "k: the key is there twice"),
        (b'{"text": "a", "score": NaN}', "NaN is not a number"),
        (b'{"text": "a", "score": -Infinity}', "-Infinity is not a number"),
        (b'{"text": "a", "score": 1e999}', "1e999 is not a number"),
        (b'{"text": "a", "score": ' + b"9" * 5000 + b"}", "limit"),
        (b'{"text": "\\ud83d"}', "text: holds a lone surrogate"),
        (b'{"text": "a", "meta": [{"k": "\\udc00"}]}', "meta: holds a lone surrogate"),
        (b'{"text": "a", "\\ud83d": 1}', "ud83d: holds a lone surrogate"),
        (b'{"text": "a", "meta": {"\\ud83d": 1}}', "meta: holds a lone surrogate"),
        (b'{"text": "a\\u0000"}', "text: holds a NUL"),
        (b'{"text": "a\x00"}', "not json"),
        (b'{"text": "a", "meta": ' + b"[" * 40 + b"]" * 40 + b"}", "meta: nested deeper than 32"),
        (b'{"text": "a", "meta": ' + b"[" * 90_000 + b"]" * 90_000 + b"}", "nested too deep"),
        (b'{"words": "a"}', "text: missing; the row has words"),
        (b"{}", "text: missing; the row has no keys"),
        (b'{"text": null}', "text: must be a string, not null"),
        (b'{"text": 5}', "text: must be a string, not an integer"),
        (b'{"text": ["a"]}', "text: must be a string, not a list"),
        (b'{"text": ""}', "text: is empty"),
        (b'{"text": " \\n\\t"}', "text: is empty"),
    ],
)
def test_a_bad_row_is_one_error_with_file_line_and_reason(tmp_path, line, reason):
    with pytest.raises(UserError) as e:
        rows(tmp_path, GOOD + line + b"\n" + GOOD)
    assert str(e.value).startswith(f"{tmp_path}/rows.jsonl:2: ") and reason in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"\xef\xbb\xbf" + GOOD, "byte order mark"),
        ('{"text": "a"}\n'.encode("utf-16"), "UTF-16"),
        (gzip.compress(GOOD), "compressed"),
        (b"PAR1....", "parquet"),
    ],
)
def test_a_file_that_is_not_plain_utf8_lines_is_refused_by_its_first_bytes(
    tmp_path, content, reason
):
    with pytest.raises(UserError, match=reason):
        rows(tmp_path, content)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(UserError, match="none.jsonl: no such file"):
        list(read_jsonl(tmp_path / "none.jsonl", {}))
    with pytest.raises(UserError, match="is a directory"):
        list(read_jsonl(tmp_path, {}))


def test_windows_line_ends_and_blank_lines_keep_the_line_numbers(tmp_path):
    found = rows(tmp_path, b'{"text": "a"}\r\n\r\n\n{"text": "b\xc2\xa0"}\r\n')
    assert found == [(1, {"text": "a"}), (4, {"text": "b\xa0"})]


@pytest.mark.parametrize("rest", [b'{"text": "b', b'{"text": "\xe2\x82', b"{"])
def test_an_incomplete_last_line_is_dropped_with_a_notice(tmp_path, capfd, rest):
    assert rows(tmp_path, GOOD + rest) == [(1, {"text": "a"})]
    assert f"{tmp_path}/rows.jsonl:2: incomplete last line, dropped" in capfd.readouterr().err
    with pytest.raises(UserError, match="rows.jsonl:2"):  # complete, so it is simply wrong
        rows(tmp_path, GOOD + rest + b"\n")


def test_a_whole_last_row_without_newline_is_used(tmp_path):
    assert len(rows(tmp_path, GOOD + GOOD.strip())) == 2
    with pytest.raises(UserError, match="2: text: is empty"):
        rows(tmp_path, GOOD + b'{"text": ""}')


def test_a_line_over_the_cap_is_refused_before_it_is_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "LINE_CAP", 64)
    assert len(rows(tmp_path, b'{"text": "%s"}\n' % (b"a" * 50))) == 1
    with pytest.raises(UserError, match="rows.jsonl:1: longer than"):
        rows(tmp_path, b'{"text": "%s"}\n' % (b"a" * 53))


def test_types_are_exact_and_optional_fields_may_be_missing_null_or_empty(tmp_path):
    fields = {"n": int, "x": float, "p": (str, list), "ok?": bool, "note?": str}

    def read(**row):
        return rows(tmp_path, json.dumps({"n": 1, "x": 2, "p": "p"} | row).encode(), fields)

    for row in ({}, {"ok": None, "note": ""}, {"ok": False}, {"p": ["m"]}, {"n": 0, "x": 0.0}):
        assert len(read(**row)) == 1
    for row, reason in [
        ({"n": True}, "n: must be an integer, not true or false"),
        ({"n": 1.0}, "n: must be an integer, not a number"),
        ({"x": "2"}, "x: must be a number, not a string"),
        ({"p": {}}, "p: must be a string or a list, not an object"),
        ({"p": []}, "p: is empty"),
        ({"ok": 1}, "ok: must be true or false, not an integer"),
        ({"note": 3}, "note: must be a string, not an integer"),
    ]:
        with pytest.raises(UserError, match=reason):
            read(**row)


def said(*roles, **last):
    messages = [{"role": role, "content": "x"} for role in roles]
    messages[-1] |= last
    return messages


def test_roles_alternate_with_the_system_first_and_the_asked_for_end():
    check_messages(said("user", "assistant"), "f:1", "assistant")
    check_messages(said("system", "user", "assistant", "user", "assistant"), "f:1", "assistant")
    check_messages(said("system", "user"), "f:1", "user")
    check_messages(said("user", "assistant", weight=0), "f:1", "assistant")
    for messages, reason in [
        (said("assistant"), r"messages\[0\]: role: 'assistant' where 'user' is due"),
        (said("system", "assistant"), r"messages\[1\]: role: 'assistant' where 'user' is due"),
        (said("user", "system", "assistant"), r"messages\[1\]: role: 'system'"),
        (said("user", "user", "assistant"), r"messages\[1\]: role: 'user' where 'assistant'"),
        (said("user", "tool"), r"messages\[1\]: role: 'tool' where 'assistant'"),
        (said("user", "assistant", "user"), "messages: must end with a turn of the assistant"),
        (said("system"), "messages: must end with a turn of the assistant"),
        ([], "messages: must end with a turn of the assistant"),
        (["hi"], r"messages\[0\]: must be an object, not a string"),
        ([None, *said("user")], r"messages\[0\]: must be an object, not null"),
        (said("user", "assistant", content=""), r"messages\[1\]: content: is empty"),
        (said("user", "assistant", content=[]), r"messages\[1\]: content: must be a string"),
        ([{"from": "human", "value": "x"}], r"messages\[0\]: role: missing; the row has from, v"),
        (said("user", "assistant", weight=2), r"messages\[1\]: weight: 0 or 1"),
        (said("user", weight=1), r"messages\[0\]: weight: .* assistant turns only"),
        (said("user", "assistant", tool_calls=[]), r"messages\[1\]: tool_calls: not supported"),
    ]:
        with pytest.raises(UserError, match="^f:1: " + reason):
            check_messages(messages, "f:1", "assistant")


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.jsonl"
    jsonl.write_jsonl(path, [{"a": "é"}, {"a": 2}])
    assert [row for _, row in jsonl.read_jsonl(path, {})] == [{"a": "é"}, {"a": 2}]
    with pytest.raises(TypeError):
        jsonl.write_jsonl(path, [{"a": 3}, {"a": object()}])
    assert path.read_text(encoding="utf-8") == '{"a": "é"}\n{"a": 2}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]
