"""rows.py: what is no question is named by file, line and field."""

import pytest
from tiny import write_rows

from config import UserError
from rows import load_rows

ROW = {"id": "a", "query": "Good?\nAnswer:", "answer": "good", "text": "Good?"}
ROW |= {"choices": ["good", "bad"], "gold": 0}
ENTITY = {"query": "q", "answer": "Acme, ORG", "text": "Acme pays", "label": ["B-ORG", "O"]}


def test_rows_without_an_id_get_their_number(tmp_path):
    rows = [{k: v for k, v in ROW.items() if k != "id"}, ROW | {"id": 7}]
    assert [r["id"] for r in load_rows("fpb", write_rows(tmp_path / "r", rows))] == ["0", "7"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"gold": 2}, "gold: 2 is outside the 2 choices"),
        ({"gold": -1}, "gold: -1 is outside"),
        ({"gold": "0"}, "gold: must be an integer"),
        ({"choices": ["good"]}, "choices: needs at least two texts"),
        ({"choices": ["good", "good"]}, "choices: two of them are equal"),
        ({"choices": ["good", 3]}, "choices: needs at least two texts"),
        ({"answer": "bad"}, "answer: 'bad' is not choices[0]"),
        ({"query": "  "}, "query: is empty"),
        ({"id": "b"}, "id: 'b' occurs twice"),
    ],
)
def test_a_bad_row_stops_with_file_line_and_field(tmp_path, change, message):
    path = write_rows(tmp_path / "fpb.jsonl", [ROW | {"id": "b"}, ROW | change])
    with pytest.raises(UserError) as error:
        load_rows("fpb", path)
    assert f"{path}:2: {message}" in str(error.value)


def test_entity_rows_need_a_tag_per_word(tmp_path):
    assert load_rows("ner", write_rows(tmp_path / "a", [ENTITY]))
    with pytest.raises(UserError, match="one tag per word"):
        load_rows("ner", write_rows(tmp_path / "b", [ENTITY | {"label": ["B-ORG"]}]))


def test_an_empty_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no rows"):
        load_rows("fpb", write_rows(tmp_path / "fpb.jsonl", []))
