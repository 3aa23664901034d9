"""prepare.py: what is written, counted and left out, for any source."""

import json
import shutil

import pyarrow.parquet
import pytest
from preparing import flare, lines, run
from published import PUBLISHED

import prepare
from config import UserError
from rows import load_rows
from tasks import FINEVAL, TASKS

SENTIMENT = ("positive", "negative", "neutral")


def sentiment(texts, first=0):
    """FLARE rows of FPB."""
    return [{"id": f"fpb{first + i}", "query": PUBLISHED["fpb"].replace("Sales rose .", text),
             "answer": SENTIMENT[i % 3], "text": text, "choices": [*SENTIMENT], "gold": i % 3}
            for i, text in enumerate(texts)]  # fmt: skip


def test_rows_in_are_used_or_left_out_by_reason_and_listed(tmp_path, capsys):
    rows = sentiment([f"text {i}" for i in range(7)])
    rows[1]["gold"], rows[2]["gold"] = 5, 6
    rows[3]["choices"] = ["positive", "positive", "neutral"]
    rows[4]["query"] = " "
    rows[5]["answer"] = "positive"
    rows.append(rows[0])
    test, _, _ = run("fpb", lines(tmp_path / "x.jsonl", rows), tmp_path / "out")
    assert [row["id"] for row in test] == ["fpb0", "fpb6"]
    said = capsys.readouterr().out
    assert "fpb: 8 rows in = 2 used" in said
    assert "+ 2 left out (gold: # is outside the # choices)" in said
    listed = (tmp_path / "out" / "fpb_left_out.txt").read_text().splitlines()
    assert sorted(line.split("x.jsonl")[1].split(":")[1] for line in listed) == list("234568")
    assert any("x.jsonl:8: id: 'fpb0' occurs twice" in line for line in listed)
    run("fpb", lines(tmp_path / "x.jsonl", rows[:1]), tmp_path / "out")
    assert not (tmp_path / "out" / "fpb_left_out.txt").exists()


def test_a_source_without_a_usable_row_names_the_first_flaw(tmp_path):
    rows = [row | {"gold": 9} for row in sentiment(["a", "b"])]
    with pytest.raises(UserError, match=r"none of its 2 rows.*first: .*x.jsonl:1: gold: 9 is out"):
        run("fpb", lines(tmp_path / "x.jsonl", rows), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_examples_and_training_rows_hold_no_text_of_the_test_rows(tmp_path, capsys):
    texts = [f"text {i}" for i in range(30)]
    lines(tmp_path / "test.jsonl", sentiment(["Text 3!", "new"]))
    lines(tmp_path / "train.jsonl", sentiment(texts))
    test, shots, chats = run("fpb", tmp_path, tmp_path / "out")
    assert len(test) == 2 and len(chats) == 29
    assert [row["text"] for row in shots] == [t for t in texts if t != "text 3"][: prepare.SHOTS]
    assert chats[0]["messages"] == [{"role": "user", "content": shots[0]["query"]},
                                    {"role": "assistant", "content": "positive"}]  # fmt: skip
    assert "32 rows in = 31 used + 1 left out (text is in the test rows)" in capsys.readouterr().out
    assert load_rows("fpb", tmp_path / "out" / "fpb_shots.jsonl")[1] == []


def test_without_a_training_half_the_validation_half_gives_the_examples(tmp_path, capsys):
    lines(tmp_path / "test.jsonl", sentiment(["a", "b"]))
    lines(tmp_path / "valid.jsonl", sentiment([f"v{i}" for i in range(20)]))
    _, shots, chats = run("fpb", tmp_path, tmp_path / "out")
    assert len(shots) == prepare.SHOTS and chats == []
    assert "22 rows in = 18 used + 4 left out (examples not needed)" in capsys.readouterr().out


def test_files_of_an_earlier_run_do_not_pass_for_this_one(tmp_path):
    lines(tmp_path / "a" / "test.jsonl", sentiment(["a", "b"]))
    lines(tmp_path / "a" / "train.jsonl", sentiment(["c", "d"]))
    run("fpb", tmp_path / "a", tmp_path / "out")
    _, shots, chats = run("fpb", tmp_path / "a" / "train.jsonl", tmp_path / "out")
    assert shots == [] and chats == []


def test_the_hubs_parquet_gives_the_same_rows_as_json_lines(tmp_path):
    rows = sentiment(["a", "b", "c"])
    (tmp_path / "data").mkdir()
    for half, part in (("test", rows[:2]), ("train", rows[2:])):
        path = tmp_path / "data" / f"{half}-00000-of-00001.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(part), path)
    test, shots, _ = run("fpb", tmp_path, tmp_path / "out")
    assert test == rows[:2] and shots == rows[2:]


def test_two_files_of_one_half_keep_all_their_rows(tmp_path):
    for part in (0, 1):
        lines(tmp_path / f"test-0000{part}-of-00002.jsonl", sentiment([f"{part}a", f"{part}b"]))
    test, _, _ = run("fpb", tmp_path, tmp_path / "out")
    assert [row["text"] for row in test] == ["0a", "0b", "1a", "1b"]


def snapshot(folder):
    """A made-up snapshot of Salesforce/FinEval, wrong names and all."""
    good, yes = ("good", "bad"), ("yes", "no")
    club = flare("lc", PUBLISHED["lendingclub"] + "#", good, good)
    lines(folder / "FinanceBench" / "test-0.jsonl", club)
    lines(folder / "CRA-LendingClub" / "test-0.jsonl", club)
    lines(folder / "CRA-ProtoSeguro" / "test-0.jsonl",
          flare("ps", PUBLISHED["portoseguro"] + "#", yes, yes))  # fmt: skip
    lines(folder / "FPB" / "test.jsonl", sentiment(["a", "b"]))
    lines(folder / "FPB" / "train.jsonl", sentiment(["c"]))
    lines(folder / "MT" / "q.jsonl", [{"question_id": 81, "category": "math", "turns": ["a", "b"]}])
    lines(folder / "PIQA" / "validation-0.jsonl", [{"goal": "g", "sol1": "a", "sol2": "b",
                                                    "label": 1}])  # fmt: skip
    lines(folder / "Odd" / "test.jsonl", [{"what": 1}])
    (folder / "Broken").mkdir()
    (folder / "Broken" / "test.jsonl").write_text('{"query": \n{}\n')
    return folder


def test_a_snapshot_is_written_task_by_task_with_a_line_for_every_file(tmp_path, capsys):
    folder = snapshot(tmp_path / "hub")
    prepare.main(["fineval", str(folder), str(tmp_path / "out")])
    said = capsys.readouterr().out
    written = {path.stem for path in (tmp_path / "out").glob("*.jsonl")}
    assert written == {"lendingclub", "portoseguro", "fpb", "fpb_shots", "fpb_train", "mt_bench",
                       "piqa"}  # fmt: skip
    for line in (
        "FinanceBench/test-0.jsonl: lendingclub, the same 2 rows as ",
        "CRA-LendingClub/test-0.jsonl: 2 rows of lendingclub",
        "CRA-ProtoSeguro/test-0.jsonl: 2 rows of portoseguro",
        "FPB/train.jsonl: 1 rows of fpb",
        "Odd/test.jsonl: not recognised (columns what)",
        "Broken/test.jsonl: not read: ",
        "5 tasks written",
    ):
        assert line in said
    assert len(load_rows("lendingclub", tmp_path / "out" / "lendingclub.jsonl")[0]) == 2


def test_a_task_that_cannot_be_written_does_not_stop_the_others(tmp_path, capsys):
    folder = snapshot(tmp_path / "hub")
    shutil.rmtree(folder / "CRA-ProtoSeguro")
    rows = flare("ps", PUBLISHED["portoseguro"] + "#", ["yes"], ("yes", "no"), gold=7)
    lines(folder / "CRA-ProtoSeguro" / "test-0.jsonl", [rows[0] | {"gold": 7}])
    prepare.main(["fineval", str(folder), str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "portoseguro: not written: " in said and "4 tasks written" in said


def test_another_tasks_choices_are_refused_though_no_query_tells(tmp_path):
    rows = flare("x", "Is it? #\nAnswer:", ["yes", "no"], ("yes", "no"))
    with pytest.raises(UserError, match="not of fpb: choices: yes, no"):
        run("fpb", lines(tmp_path / "x.jsonl", rows), tmp_path / "out")


@pytest.mark.parametrize("name", FINEVAL)
def test_a_source_that_holds_nothing_says_what_is_needed(tmp_path, name):
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(UserError) as error:
        run(name, tmp_path, tmp_path / "out")
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
    with pytest.raises(UserError) as error:
        run(name, tmp_path / "none", tmp_path / "out")
    assert TASKS[name].source in str(error.value)


def test_wrong_words_get_the_usage():
    for words in (["fbp", "x"], ["fpb"], [], ["fpb", "a", "b", "c"], ["concepts", "x"]):
        with pytest.raises(UserError, match="usage: python evaluate.py prepare NAME SOURCE"):
            prepare.main(words)


def test_windows_encodings_are_refused_by_line(tmp_path):
    path = tmp_path / "x.jsonl"
    rows = "\n".join(json.dumps(row, ensure_ascii=False) for row in sentiment(["a", "£3"]))
    path.write_bytes(rows.encode("latin-1") + b"\n")
    with pytest.raises(UserError, match="x.jsonl:2: not UTF-8"):
        run("fpb", path, tmp_path / "out")
