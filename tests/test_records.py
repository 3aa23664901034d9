"""records.py: rows of files of any form, from any place on."""

import builtins
import datetime
import decimal
import json

import pytest
from test_corpus import Long, keep_long, read
from tiny import sentences, write_rows

from config import UserError
from records import input_files, read_rows


def test_files_and_folders_are_read_in_a_fixed_order_hidden_ones_not(tmp_path):
    others = "b/.git/x.jsonl", "b/picture.png", "b/README.md", "b/dataset_infos.json"
    for name in ("b/2.jsonl", "b/1.txt", "a.jsonl", *others):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    found = input_files(f"{tmp_path}/b, {tmp_path}/a.jsonl")
    assert [str(p.relative_to(tmp_path)) for p in found] == ["b/1.txt", "b/2.jsonl", "a.jsonl"]
    for data, reason in ((f"{tmp_path}/gone", "no such file or folder"), ("", "name a file"),
                         (f"{tmp_path}/b,{tmp_path}/b/2.jsonl", "2.jsonl is there twice"),
                         (f"{tmp_path}/b/.git/../.git/..", None)):  # fmt: skip
        if reason:
            with pytest.raises(UserError, match=f"--data.*{reason}"):
                input_files(data)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: the folder holds no .jsonl"):
        input_files(f"{tmp_path}/empty")


def test_what_a_folder_holds_beside_rows_is_named_and_results_are_taken_without_their_notes(
    tmp_path, capsys
):
    keep_long(Long(data=write_rows(tmp_path / "a.jsonl", [{"text": t} for t in sentences(9)]),
                   out=str(tmp_path / "in/web.jsonl")))  # fmt: skip
    for name in ("b.jsonl.gz", "C.JSONL", "web2.jsonl"):
        (tmp_path / "in" / name).write_text("{}")
    names = [path.name for path in input_files(f"{tmp_path}/in")]
    assert names == ["C.JSONL", "web.jsonl", "web2.jsonl"]
    assert "passed over: b.jsonl.gz" in capsys.readouterr().err


def parquet(path, columns, group=50):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=group)
    return path


def test_parquet_is_read_by_row_groups_and_from_any_row_on(tmp_path):
    day = datetime.datetime(2020, 1, 2, 3)
    columns = {"text": sentences(170), "n": list(range(170)), "date": [day] * 170,
               "score": [float("nan")] + [0.5] * 169}  # fmt: skip
    path = parquet(tmp_path / "a.parquet", columns)
    found = list(read_rows(path, None))
    assert [row["text"] for _, row, *_ in found] == columns["text"]
    assert found[0][1] == {"text": columns["text"][0], "n": 0, "date": "2020-01-02T03:00:00",
                           "score": None}  # fmt: skip
    assert found[7][0] == f"{path}: row 7" and found[-1][4] == path.stat().st_size
    for i in (0, 49, 50, 120, 168):
        assert list(read_rows(path, found[i][3])) == found[i + 1 :]


def test_dates_decimals_and_nan_within_a_column_become_json(tmp_path):
    inner = {"day": datetime.date(2020, 1, 2), "rate": float("inf"), "all": [float("nan"), 1.5]}
    columns = {"text": ["a"], "meta": [inner], "price": [decimal.Decimal("1.25")]}
    ((_, row, *_),) = read_rows(parquet(tmp_path / "a.parquet", columns), None)
    meta = {"day": "2020-01-02", "rate": None, "all": [None, 1.5]}
    assert row == {"text": "a", "meta": meta, "price": 1.25}


def test_the_cap_of_a_row_is_bytes_as_its_next_reader_counts_them(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"text": "利" * (6 * 2**20)}]))
    ((_, row, reason, *_),) = read_rows(tmp_path / "a.json", None)
    assert row is None and "longer than 16 MB" in reason


def test_a_column_of_bytes_is_unreadable_row_by_row(tmp_path):
    path = parquet(tmp_path / "a.parquet", {"text": ["a", "b"], "raw": [b"\xff", None]})
    (_, row, reason, *_), (_, other, *_) = read_rows(path, None)
    assert row is None and "holds what json cannot" in reason
    assert other == {"text": "b", "raw": None}


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    path = parquet(tmp_path / "a.parquet", {"text": ["a"]})
    importing = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return importing(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="reading parquet needs pyarrow; run: pip install pyarrow"):
        keep_long(Long(data=str(path), out=str(tmp_path / "o.jsonl")))


@pytest.mark.parametrize("place", [None, 1, 2])
def test_lists_and_csv_are_read_from_any_row_on(tmp_path, place):
    rows = [{"text": t} for t in ("one", "two", "three")]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.csv").write_text("text\none\ntwo\nthree\n")
    for name in ("a.json", "a.csv"):
        found = list(read_rows(tmp_path / name, place))
        assert [row for _, row, *_ in found] == rows[place or 0 :]
        assert list(read_rows(tmp_path / name, found[0][3])) == found[1:]


def test_a_text_file_is_one_row_and_a_broken_one_is_dropped(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.txt").write_text("a chapter that is more than twenty letters")
    (tmp_path / "in/b.md").write_bytes(b"caf\xe9 of more than twenty letters")
    (tmp_path / "in/c.txt").write_bytes(b"")
    keep_long(Long(data=str(tmp_path / "in"), out=str(tmp_path / "o.jsonl"), max_bad=0.5))
    (row,) = read(tmp_path / "o.jsonl")
    assert row["text"].startswith("a chapter") and row["source"] == "a.txt"
    (dropped,) = read(tmp_path / "o.dropped.jsonl")
    assert dropped["where"].endswith("b.md") and "not utf-8 at byte 4" in dropped["detail"]


def test_a_cell_that_python_cannot_hold_costs_its_row_and_no_other(tmp_path):
    import pyarrow

    broken = pyarrow.array([b"fine", b"\xff\xfe", b"too"]).cast(pyarrow.binary())
    broken = pyarrow.Array.from_buffers(pyarrow.string(), 3, broken.buffers())
    far = pyarrow.array([0, 2**53, 1], pyarrow.int64()).cast(pyarrow.timestamp("ms"))
    late = pyarrow.array([0, 1, 1001], pyarrow.int64()).cast(pyarrow.timestamp("ns"))
    for name, column in (("text", broken), ("when", far)):
        path = parquet(tmp_path / f"{name}.parquet", {name: column})
        (_, a, *_), (_, b, reason, *_), (_, c, *_) = read_rows(path, None)
        assert a and c and b is None and reason
    path = parquet(tmp_path / "late.parquet", {"when": late})
    rows = [row["when"] for _, row, *_ in read_rows(path, None)]
    assert rows == ["1970-01-01T00:00:00", "1970-01-01T00:00:00", "1970-01-01T00:00:00.000001"]
