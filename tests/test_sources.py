"""sources.py: every form is read by what is in the file; each error names file and line."""

import bz2
import gzip
import json
import lzma
import sys

import pyarrow.parquet
import pytest

import sources
from config import UserError

ROWS = [{"query": "a, \"b\"", "answer": "x"}, {"query": "ü", "answer": "y"}]  # fmt: skip


def records(path):
    return [record for _, record in sources.read_records(path)]


def test_json_lines_a_json_list_and_csv_hold_the_same_records_whatever_their_name(tmp_path):
    (tmp_path / "a").write_text("".join(json.dumps(row) + "\r\n" for row in ROWS))
    (tmp_path / "b").write_text(json.dumps(ROWS, indent=1))
    (tmp_path / "c").write_text('query,answer\n"a, ""b""",x\nü,y\n')
    assert records(tmp_path / "a") == records(tmp_path / "b") == records(tmp_path / "c") == ROWS
    assert [where.rpartition("/")[2] for where, _ in sources.read_records(tmp_path / "a")] == [
        "a:1", "a:2",
    ]  # fmt: skip
    assert sources.read_records(tmp_path / "b")[1][0].endswith("b: row 1")
    assert sources.read_records(tmp_path / "c")[1][0].endswith("c:3")


def test_parquet_is_read_with_pyarrow_and_named_without(tmp_path, monkeypatch):
    (tmp_path / "p").write_bytes(b"PAR1 and no more")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pyarrow", None)  # as if it were not installed
        with pytest.raises(UserError, match="p: reading parquet needs pyarrow; run: pip install"):
            sources.read_records(tmp_path / "p")
    rows = [row | {"choices": ["x", "y"], "gold": 1} for row in ROWS]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "q")
    assert records(tmp_path / "q") == rows
    with pytest.raises(UserError, match="p: not readable as parquet"):
        sources.read_records(tmp_path / "p")


def test_labels_beside_a_file_join_its_rows_or_are_refused(tmp_path):
    (tmp_path / "dev.jsonl").write_text('{"a": 1}\n{"a": 2}\n')
    (tmp_path / "dev-labels.lst").write_text("2\n1\n")
    assert [row["label"] for row in records(tmp_path / "dev.jsonl")] == ["2", "1"]
    (tmp_path / "dev-labels.lst").write_text("2\n")
    with pytest.raises(UserError, match=r"dev.jsonl: 2 rows, but 1 labels in dev-labels.lst"):
        records(tmp_path / "dev.jsonl")


@pytest.mark.parametrize("pack", [bytes, bz2.compress, lzma.compress, gzip.compress])
def test_packed_text_is_unpacked_whatever_its_name(tmp_path, pack):
    (tmp_path / "t").write_bytes(pack(b"one\n\ntwo\r\n"))
    assert sources.numbered_lines(tmp_path / "t") == [(1, "one"), (3, "two")]


def test_a_packed_file_may_not_unfold_beyond_the_cap(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "UNPACKED_CAP", 2**20)
    (tmp_path / "t").write_bytes(bz2.compress(bytes(2**21)))
    with pytest.raises(UserError, match="t: unpacks to more than 1 MB"):
        sources.read_text(tmp_path / "t")


def test_arff_has_names_and_cells(tmp_path):
    text = "% a comment\n@relation r\n@attribute 'A 1' numeric\n@ATTRIBUTE class {0,1}\n@DATA\n"
    (tmp_path / "a").write_text(text + "% no row\n1.5, 0\n?,1\n")
    names, rows = sources.read_arff(tmp_path / "a")
    assert names == ["A 1", "class"]
    assert [(where[-3:], cells) for where, cells in rows] == [("a:7", ["1.5", "0"]),
                                                              ("a:8", ["?", "1"])]  # fmt: skip


def test_conll_sentences_end_at_empty_lines_and_document_marks(tmp_path):
    (tmp_path / "c").write_text("-DOCSTART- -X- O\n\nA N I-ORG\nb V O\n\n\nC N B-PER\n")
    assert sources.conll_sentences(tmp_path / "c") == [
        (3, ["A", "b"], ["I-ORG", "O"]), (7, ["C"], ["B-PER"]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "read, content, message",
    [
        ("read_records", b'{"a": 1}\n{"a": \n{"a": 2}\n', "f:2: not json"),
        ("read_records", b'[{"a": 1},\n{"a" 2}]', "f:2: not valid json"),
        ("read_records", b'[1, 2]', "f: must hold a list of objects"),
        ("read_records", b'[{"a": 1, "a": 2}]', "a: the key is there twice"),
        ("read_records", b'\xef\xbb\xbf{"a": 1}\n', "f:1: the file starts with a byte order mark"),
        ("read_records", b"a,b\n1,2\n1,2,3\n", "f:3: 3 cells, but the first line names 2 columns"),
        ("read_records", b'a,b\n1,"2\n', "not valid csv"),
        ("read_records", b"", "f: no rows"),
        ("read_records", b"a,b\n1,\xe9\n", "f:2: is not utf-8 at byte 7; save it as utf-8"),
        ("conll_sentences", b"Acme NNP ORG\n", "f:1: tag: 'ORG' is not O, B-TYPE or I-TYPE"),
        ("read_arff", b"@attribute a\n@data\n1,2\n", "f:3: 2 values for 1 attributes"),
        ("read_arff", b"a,b\n", "f: no @data line"),
        ("read_text", b"BZh91AY&SY", "f: "),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_line_with_file_and_line(tmp_path, read, content, message):
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(UserError) as error:
        getattr(sources, read)(tmp_path / "f")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_is_named():
    with pytest.raises(UserError, match="no/such: no such file"):
        sources.read_records("no/such")


def test_the_halves_of_a_snapshot_are_told_by_the_last_word_of_their_path(tmp_path):
    names = ["test_set/train-00000-of-00001.parquet", "data/test-0.parquet",
             "data/valid-0.parquet", "x_dev.jsonl", "contest.jsonl", "README.md",
             ".cache/test.json", "test.csv"]  # fmt: skip
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    found = sources.find_splits(tmp_path)
    told = {split: [str(p.relative_to(tmp_path)) for p in ps] for split, ps in found.items()}
    assert told == {"train": [names[0]], "test": [names[1]], "validation": [names[2]],
                    "dev": [names[3]]}  # fmt: skip
    assert sources.find_splits(tmp_path / names[0])["test"] == [tmp_path / names[0]]
