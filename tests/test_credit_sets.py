"""credit_sets.py: tables in words, so that examples and training rows read like the test rows."""

import lzma

import pytest
from preparing import lines, run

import credit_sets
from config import UserError
from tasks import TASKS

SYMBOLS = {f"A{k}": k / 2 for k in range(1, 15)}


def test_australian_attributes_become_one_sentence(tmp_path):
    rows = [{"answer": "bad"} | SYMBOLS, {"answer": "fair"} | SYMBOLS, {"answer": "good", "A1": 1}]
    lines(tmp_path / "australian_test.jsonl", rows)
    lines(tmp_path / "australian_train.jsonl", [{"answer": "good"} | SYMBOLS | {"A1": 9}] * 2)
    test, shots, train = run("australian", tmp_path, tmp_path / "out")
    assert test[0]["text"].startswith("The client has attributes: A1: 0.5, A2: 1.0, ")
    assert test[0]["gold"] == 1 and len(train) == 2 and len(test) == 1
    listed = (tmp_path / "out" / "australian_left_out.txt").read_text()
    assert "test.jsonl:2: answer: 'fair' is not one of good, bad" in listed
    assert "test.jsonl:3: A2: missing" in listed


CODES = "A11,48,A34,A41,6143,A61,A75,4,A92,A101,4,A124,58,A142,A153,2,A172,1,A191,A201,2"


def test_german_codes_read_like_the_published_test_rows(tmp_path):
    said = "".join(f"The state of {name} is 5. " for name in credit_sets.GERMAN)
    asked = TASKS["german"].prompt.format(text=f"'{said}'")
    lines(tmp_path / "german_test.jsonl", [{"id": 0, "query": asked, "answer": "good"}])
    odd = "\n".join([CODES, CODES.replace("A34", "A39"), CODES + ",1", CODES[:-1] + "3", CODES])
    (tmp_path / "german_train.csv").write_text(odd)
    test, shots, train = run("german", tmp_path, tmp_path / "out")
    asked = train[0]["messages"][0]["content"]
    names = [part.split(" is ")[0] for part in asked.split("The state of ")[1:]]
    assert names == [*credit_sets.GERMAN] and len(train) == 2
    assert names == [p.split(" is ")[0] for p in test[0]["query"].split("The state of ")[1:]]
    assert "checking account is smaller than 0 DM. The state of Duration in month is 48." in asked
    assert train[0]["messages"][1]["content"] == "bad"
    listed = (tmp_path / "out" / "german_left_out.txt").read_text()
    for reason in ("csv:2: 'A39' is no code", "csv:3: 22 cells", "csv:4: '3' is no code"):
        assert reason in listed


def test_ccfraud_codes_read_like_the_published_test_rows(tmp_path):
    text = "'The client is a female, the state number is 3, the number of cards is 1, the credit "
    text += "balance is 4, the number of transactions is 5, the number of international "
    text += "transactions is 6, the credit limit is 7.'"
    asked = TASKS["cra_ccfraud"].prompt.format(text=text)
    lines(tmp_path / "ccfraud_test.jsonl", [{"id": 0, "query": asked, "answer": "good"}])
    (tmp_path / "ccfraud_train.csv").write_text("2,3,1,4,5,6,8,1\n1,3,1,4,5,6,7,0\n1,2,x\n")
    _, shots, _ = run("cra_ccfraud", tmp_path, tmp_path / "out")
    assert [shot["query"] for shot in shots] == [asked.replace("limit is 7", "limit is 8")]
    assert shots[0]["answer"] == "bad"
    assert "csv:3: needs 8 numbers" in (tmp_path / "out/cra_ccfraud_left_out.txt").read_text()


def club(tmp_path, rows, header="funded_amnt,emp_length,Class"):
    path = tmp_path / "lending_club.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_a_larger_source_gives_the_same_sample_in_any_order_and_says_so(tmp_path, capsys):
    rows = [f"{i},emp_{i % 9},{'good' if i % 3 else 'bad'}" for i in range(3000)]
    test, _, train = run("lendingclub", club(tmp_path, rows), tmp_path / "a")
    assert len(test) == credit_sets.LENDINGCLUB_TEST and len(test) + len(train) == 3000
    assert "of 3000 rows a fixed sample of 2690" in capsys.readouterr().out
    again, _, _ = run("lendingclub", club(tmp_path, rows[::-1]), tmp_path / "b")
    assert [row["text"] for row in test] == [row["text"] for row in again]
    assert "funded amnt: " in test[0]["text"] and "Class" not in test[0]["text"]


def test_a_column_or_label_that_is_missing_is_named_by_line(tmp_path):
    with pytest.raises(UserError, match=r"lending_club.csv:1: Class: no such column; it has a, b"):
        run("lendingclub", club(tmp_path, ["1,2"], "a,b"), tmp_path / "out")
    run("lendingclub", club(tmp_path, ["1,2,good", "1,2,ok"]), tmp_path / "out")
    listed = (tmp_path / "out" / "lendingclub_left_out.txt").read_text()
    assert "lending_club.csv:3: answer: 'ok' is not one of good, bad" in listed
    with pytest.raises(UserError, match=r"lending_club.csv:2: 4 cells, but .* 3 columns"):
        run("lendingclub", club(tmp_path, ["1,2,good,3"]), tmp_path / "out")


def arff(tmp_path, rows, attributes=64):
    said = ["@relation 'year'"] + [f"@attribute Attr{k + 1} numeric" for k in range(attributes)]
    said += ["@attribute class {0,1}", "@data", *rows]
    path = tmp_path / "5year.arff.xz"
    path.write_bytes(lzma.compress("\n".join(said).encode()))
    return path


def test_ratios_have_names_and_unknown_ones_are_said_to_be(tmp_path):
    said = [",".join([str(k), "?", *["1"] * 62, str(k % 2)]) for k in range(20)]
    path = arff(tmp_path, [*said, ",".join(["1"] * 64 + ["2"])])
    test, _, train = run("polish", path, tmp_path / "out")
    assert len(test) == 20 and train == []
    row = next(row for row in test if "net profit / total assets: 7," in row["text"])
    assert "total liabilities / total assets: unknown," in row["text"] and row["answer"] == "yes"
    assert row["text"].endswith("sales / fixed assets: 1.")
    assert len(set(credit_sets.RATIOS.split(";"))) == 64
    assert "class: '2' is not 0 or 1" in (tmp_path / "out/polish_left_out.txt").read_text()


def test_an_arff_of_another_set_is_refused(tmp_path):
    with pytest.raises(UserError, match="needs Attr1 to Attr64 and class, has 4 columns"):
        run("polish", arff(tmp_path, ["1,2,3,0"], 3), tmp_path / "out")
