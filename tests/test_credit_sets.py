"""credit_sets.py: prompts built of tables, prices, filings and chats in their published forms."""

import json
import lzma

import pytest
from tiny import write_rows

import credit_sets
import paper
from config import UserError
from credit_sets import PREPARE
from rows import load_rows


def prepared(name, source, tmp_path):
    """(test rows, training rows, left out): what is written must pass the evaluation's checks."""
    test, train, skipped = PREPARE[name](source)
    rows, left_out = load_rows(name, write_rows(tmp_path / f"{name}.checked.jsonl", test))
    assert left_out == [] and len(rows) == len(test)
    return test, train, skipped


def test_australian_attributes_become_one_sentence(tmp_path):
    row = {f"A{k}": k / 2 for k in range(1, 15)}
    write_rows(tmp_path / "australian_test.jsonl", [{"id": 0, "answer": "bad"} | row])
    write_rows(tmp_path / "australian_train.jsonl", [{"id": 0, "answer": "good"} | row] * 2)
    test, train, _ = prepared("australian", tmp_path, tmp_path)
    assert test[0]["text"].startswith("The client has attributes: A1: 0.5, A2: 1.0, ")
    assert test[0]["gold"] == 1 and len(train) == 2
    write_rows(tmp_path / "australian_test.jsonl", [{"id": 0, "answer": "fair"} | row])
    with pytest.raises(UserError, match=r"australian_test.jsonl:1: answer: needs"):
        PREPARE["australian"](tmp_path)
    write_rows(tmp_path / "australian_test.jsonl", [{"answer": "good", "A1": 1}])
    with pytest.raises(UserError, match=r"australian_test.jsonl:1: A2: needs A1 to A14"):
        PREPARE["australian"](tmp_path)


def club(tmp_path, rows, header="funded_amnt,emp_length,Class"):
    path = tmp_path / "lending_club.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_a_larger_source_gives_as_many_test_rows_as_the_paper_in_any_order(tmp_path):
    rows = [f"{i},emp_{i % 9},{'good' if i % 3 else 'bad'}" for i in range(3000)]
    test, train, _ = prepared("lendingclub", club(tmp_path, rows), tmp_path)
    assert len(test) == paper.PAPER["lendingclub"].n and len(test) + len(train) == 3000
    again, _, _ = PREPARE["lendingclub"](club(tmp_path, rows[::-1]))
    assert [row["text"] for row in test] == [row["text"] for row in again]
    assert "funded amnt: " in test[0]["text"] and "Class" not in test[0]["text"]


def test_a_column_or_label_that_is_missing_is_named_by_line(tmp_path):
    with pytest.raises(UserError, match=r"lending_club.csv:1: Class: no such column; it has a, b"):
        PREPARE["lendingclub"](club(tmp_path, ["1,2"], "a,b"))
    with pytest.raises(UserError, match=r"lending_club.csv:3: Class: 'ok' is not good or bad"):
        PREPARE["lendingclub"](club(tmp_path, ["1,2,good", "1,2,ok"]))
    with pytest.raises(UserError, match=r"lending_club.csv:2: not 3 columns"):
        PREPARE["lendingclub"](club(tmp_path, ["1,2,good,3"]))


def arff(tmp_path, rows, attributes=64):
    lines = ["@relation 'year'"] + [f"@attribute Attr{k + 1} numeric" for k in range(attributes)]
    lines += ["@attribute class {0,1}", "@data", *rows]
    path = tmp_path / "5year.arff.xz"
    path.write_bytes(lzma.compress("\n".join(lines).encode()))
    return path


def test_ratios_have_names_and_unknown_ones_are_said_to_be(tmp_path):
    path = arff(tmp_path, [",".join([str(k), "?", *["1"] * 62, str(k % 2)]) for k in range(20)])
    test, train, _ = prepared("polish", path, tmp_path)
    assert len(test) == 20 and train == []
    row = next(row for row in test if "net profit / total assets: 7," in row["text"])
    assert "total liabilities / total assets: unknown," in row["text"] and row["answer"] == "yes"
    assert row["text"].endswith("sales / fixed assets: 1.")
    assert len(credit_sets.RATIOS.split(";")) == 64


def test_an_arff_of_another_set_is_refused(tmp_path):
    with pytest.raises(UserError, match="needs Attr1 to Attr64 and class, has 4 columns"):
        PREPARE["polish"](arff(tmp_path, ["1,2,3,0"], 3))
    with pytest.raises(UserError, match=r"class: '2' is not 0 or 1"):
        PREPARE["polish"](arff(tmp_path, [",".join(["1"] * 64 + ["2"])]))


def stocks(tmp_path, day="2015-10-20", label="Rise"):
    header = "ticker,date,movement_pct,open_norm,high_norm,low_norm,close_norm,volume"
    lines = [f"AAPL,2015-10-{d:02},{d / 100},{d},0,0,0,9" for d in range(1, 29)]
    (tmp_path / "prices.csv").write_text("\n".join([header, *lines]) + "\n")
    tweets = [{"ticker": "AAPL", "date": f"2015-10-{d:02}", "tweets": [f"tweet of day {d}"]}
              for d in (18, 19, 20, 21)]  # fmt: skip
    write_rows(tmp_path / "tweets.jsonl", [*tweets, {"ticker": "IBM", "date": "2015-10-19",
                                                     "tweets": ["another firm"]}])  # fmt: skip
    write_rows(tmp_path / "test_samples.jsonl", [{"ticker": "AAPL", "date": day, "label": label}])
    return tmp_path


def test_a_stock_question_shows_nothing_of_its_day_or_later(tmp_path):
    [row], _, _ = prepared("sm_acl", stocks(tmp_path), tmp_path)
    shown = row["text"].splitlines()
    assert shown[0] == "closing price of $aapl at 2015-10-20"
    days = [line.split(",")[0] for line in shown[2:12]]
    assert days == [f"2015-10-{d}" for d in range(10, 20)]
    assert shown[12:] == ["2015-10-19: tweet of day 19", "2015-10-18: tweet of day 18"]
    assert row["answer"] == "Rise" and "2015-10-21" not in row["query"]


def test_a_day_without_enough_prices_before_it_is_counted(tmp_path):
    test, _, skipped = PREPARE["sm_acl"](stocks(tmp_path, "2015-10-05"))
    assert test == [] and list(skipped.values()) == [1]
    with pytest.raises(UserError, match=r"test_samples.jsonl:1: label: 'Up' is not Rise or Fall"):
        PREPARE["sm_acl"](stocks(tmp_path, label="Up"))


def question(kind, answer, scale="", uid="u"):
    return {"uid": uid, "question": "How much?", "answer": answer, "answer_type": kind,
            "scale": scale}  # fmt: skip


@pytest.mark.parametrize(
    "kind, answer, scale, answers, shown",
    [
        ("arithmetic", 12.5, "percent", ["12.5"], "12.5%"),
        ("arithmetic", 3, "million", ["3"], "3 million"),
        ("span", ["the costs"], "", ["the costs"], "the costs"),
        ("multi-span", ["2018", "2017"], "", ["2018", "2017"], "2018; 2017"),
        ("count", "2", "", ["2"], "2"),
    ],
)
def test_tat_qa_keeps_answers_and_scale(tmp_path, kind, answer, scale, answers, shown):
    entry = {"table": {"table": [["", "2019"], ["Sales", "$ 5"]]},
             "paragraphs": [{"order": 2, "text": "second"}, {"order": 1, "text": "first"}],
             "questions": [question(kind, answer, scale)]}  # fmt: skip
    (tmp_path / "tatqa_dataset_dev.json").write_text(json.dumps([entry]))
    [row], _, _ = prepared("tatqa", tmp_path, tmp_path)
    assert (row["answers"], row["scale"], row["answer"]) == (answers, scale, shown)
    assert "Sales | $ 5\nfirst\nsecond" in row["query"] and "How much?" in row["query"]


def test_a_tat_qa_entry_of_another_form_is_named(tmp_path):
    (tmp_path / "tatqa_dataset_dev.json").write_text(json.dumps([{"table": {}}]))
    with pytest.raises(UserError, match=r"entry 0: 'table': not TAT-QA's form"):
        PREPARE["tatqa"](tmp_path)


def test_financebench_shows_its_evidence_and_keeps_it_as_the_text(tmp_path):
    evidence = [{"evidence_text": "Capex \n \n1,577\n"}, {"evidence_text": "Sales"}]
    row = {"financebench_id": "f1", "question": "How much capex?", "answer": "$1577.00"}
    write_rows(tmp_path / "financebench_open_source.jsonl", [row | {"evidence": evidence}])
    [found], _, _ = prepared("financebench", tmp_path, tmp_path)
    assert found["text"] == "Capex\n1,577\nSales" and found["text"] in found["query"]
    write_rows(tmp_path / "financebench_open_source.jsonl", [row | {"evidence": [{}]}])
    with pytest.raises(UserError, match=r"jsonl:1: evidence: needs an evidence_text"):
        PREPARE["financebench"](tmp_path)


def test_mt_bench_takes_references_from_the_question_or_beside_it(tmp_path):
    asked = [{"question_id": k, "category": "math", "turns": ["one?", "two?"]} for k in (1, 2, 3)]
    asked[0]["reference"] = ["a", "b"]
    write_rows(tmp_path / "question.jsonl", asked)
    (tmp_path / "reference_answer").mkdir()
    beside = {"question_id": 2, "choices": [{"turns": ["c", "d"]}]}
    write_rows(tmp_path / "reference_answer" / "gpt-4.jsonl", [beside])
    rows, _, _ = prepared("mt_bench", tmp_path, tmp_path)
    assert [row.get("references") for row in rows] == [["a", "b"], ["c", "d"], None]
    write_rows(tmp_path / "question.jsonl", [asked[2] | {"turns": ["one?"]}])
    with pytest.raises(UserError, match="question.jsonl:1: turns: needs two texts"):
        PREPARE["mt_bench"](tmp_path)
