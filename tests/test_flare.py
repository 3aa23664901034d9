"""flare.py: published rows become a task's, and are told by what they say."""

import pytest
from preparing import flare, lines, run
from published import PUBLISHED

import flare as flare_rows
from config import UserError
from tasks import TASKS


def numbered(rows):
    return [(f"f:{i}", row) for i, row in enumerate(rows)]


@pytest.mark.parametrize("name", PUBLISHED)
def test_rows_are_told_by_their_queries(name):
    rows = numbered([{"id": i, "query": PUBLISHED[name], "answer": "x"} for i in range(3)])
    assert flare_rows.task_of(rows) == name


@pytest.mark.parametrize(
    "row, name",
    [
        ({"goal": "g", "sol1": "a", "sol2": "b"}, "piqa"),
        ({"ctx_a": "c", "endings": ["a"]}, "hellaswag"),
        ({"sentence": "_", "option1": "a", "option2": "b"}, "winogrande"),
        ({"context": "c", "answerA": "a", "answerB": "b", "answerC": "c"}, "social_iqa"),
        ({"Problem": "p", "options": "o", "correct": "a"}, "mathqa"),
        ({"question_stem": "q", "choices": {}}, "openbookqa"),
        ({"question": "q", "choices": {}, "answerKey": "A"}, "arc"),
        ({"id": "Mercury_1", "question": {"stem": "q"}, "answerKey": "A"}, "arc"),
        ({"id": "8-376", "question": {"stem": "q"}, "answerKey": "A"}, "openbookqa"),
        ({"question": "q", "answer": ["a"]}, "nq_open"),
        ({"question": "q", "choices": [], "answer": 1, "subject": "marketing"}, "mmlu_finance"),
        ({"question": "q", "choices": [], "answer": 1, "subject": "anatomy"}, "mmlu"),
        ({"financebench_id": "f", "evidence": []}, "financebench"),
        ({"table": {}, "questions": []}, "tatqa"),
        ({"turns": [], "category": "math"}, "mt_bench"),
        ({"anything": 1}, ""),
    ],
)
def test_original_forms_are_told_by_their_columns(row, name):
    assert flare_rows.task_of(numbered([row])) == name


def test_lendingclub_rows_under_financebench_are_named_with_what_to_run(tmp_path):
    rows = flare("x", PUBLISHED["lendingclub"] + "#", ["good", "bad"], ("good", "bad"))
    path = lines(tmp_path / "FinanceBench" / "test.jsonl", rows)
    for source in (path, path.parent):
        with pytest.raises(UserError) as error:
            run("financebench", source, tmp_path / "out")
        assert str(error.value) == (
            f"{source}: these are lendingclub rows (the released FinEval has them under "
            f"FinanceBench), not financebench's; run: evaluate.py prepare lendingclub {source}"
        )
    assert len(run("lendingclub", path.parent, tmp_path / "out")[0]) == 2


@pytest.mark.parametrize("name, folder", [("sm_bigdata", "CRA-Bigdata"),
                                          ("portoseguro", "CRA-ProtoSeguro")])  # fmt: skip
def test_a_misnamed_folder_is_taken_by_its_content(tmp_path, name, folder):
    labels = TASKS[name].labels
    rows = flare(name, PUBLISHED[name].replace("Answer:", "# Answer:"), labels, labels)
    lines(tmp_path / folder / "data.json", rows)
    (tmp_path / folder / "info.json").write_text('{"rows": 2}')
    assert [row["answer"] for row in run(name, tmp_path / folder, tmp_path / "o")[0]] == [*labels]


def test_rows_with_query_and_answer_alone_get_choices_gold_and_text(tmp_path):
    rows = [{"id": 7, "query": "Evaluate. Text: 'rich' \nAnswer:", "answer": "Good"},
            {"query": "Evaluate. Text: 'poor' \nAnswer:", "answer": "bad"}]  # fmt: skip
    test, _, _ = run("german", lines(tmp_path / "g.jsonl", rows), tmp_path / "out")
    assert [row["id"] for row in test] == ["7", "german_2"]
    assert [(row["gold"], row["choices"], row["text"]) for row in test] == [
        (0, ["good", "bad"], "'rich'"), (1, ["good", "bad"], "'poor'"),
    ]  # fmt: skip


def test_cfa_challenge_has_neither_id_nor_choices(tmp_path):
    rows = [{"query": "Carefully read the scenario", "answer": "C", "source": "s"}]
    test, _, _ = run("cfa_challenge", lines(tmp_path / "c.json", rows), tmp_path / "out")
    assert test[0]["id"] and test[0]["choices"] == ["A", "B", "C"] and test[0]["gold"] == 2


def test_mmlu_rows_lose_the_sentence_that_the_task_says_itself(tmp_path):
    query = "The following are multiple choice questions (with answers) about market ing.\n\nQ{}\n"
    query += "A. a\nB. b\nC. c\nD. d\nAnswer:"
    rows = [{"query": query.format(i), "answer": "D"} for i in range(2)]
    test, _, _ = run("mmlu_finance", lines(tmp_path / "train.json", rows), tmp_path / "out")
    assert test[1]["query"] == "Q1\nA. a\nB. b\nC. c\nD. d\nAnswer:"
    assert test[1]["subject"] == "market ing" and test[1]["choices"] == ["A", "B", "C", "D"]


def test_an_ectsum_row_is_asked_for_the_summary_that_is_scored(tmp_path):
    asked = "Given the following article, please produce a list of 0 and 1.\nText: a\nb\nAnswer:"
    rows = [
        {"id": "1", "query": asked, "answer": "1\n0", "label": [1, 0], "text": "a\nb",
         "summary": "short"},
        {"id": "2", "query": asked, "answer": "1\n0", "label": [0, 1], "text": "a\nb"},
        {"id": "3", "query": asked, "answer": "0\n0", "text": "a\nb"},
    ]  # fmt: skip
    test, _, _ = run("ectsum", lines(tmp_path / "e.jsonl", rows), tmp_path / "out")
    assert [row["answer"] for row in test] == ["short", "b"]
    assert "list of 0 and 1" not in test[0]["query"] and test[0]["label"] == [1, 0]
    assert "e.jsonl:3: summary: missing" in (tmp_path / "out" / "ectsum_left_out.txt").read_text()


def test_a_tat_qa_answer_of_flare_is_a_number_or_a_span(tmp_path):
    rows = flare("tatqa", PUBLISHED["tatqa"] + "#", ["-12.6", "the costs"])
    test, _, _ = run("tatqa", lines(tmp_path / "t.jsonl", rows), tmp_path / "out")
    assert [row["answer_type"] for row in test] == ["arithmetic", "span"]
    assert test[1]["answers"] == ["the costs"] and test[1]["scale"] == ""


def test_a_letter_that_stands_for_a_text_becomes_the_text(tmp_path):
    rows = [{"query": "Question: q#\nAnswer:", "answer": "B", "choices": ["x", "y"], "gold": 1}]
    test, _, _ = run("arc", lines(tmp_path / "a.jsonl", rows), tmp_path / "out")
    assert test[0]["answer"] == "y"


def test_edtsum_and_ner_rows_pass_as_they_are(tmp_path):
    rows = flare("edtsum", PUBLISHED["edtsum"], ["Acme grows"], text="Acme said.")
    assert run("edtsum", lines(tmp_path / "e.jsonl", rows), tmp_path / "o")[0] == rows
    rows = flare("ner", PUBLISHED["ner"], ["Acme, ORG"], text="Acme pays", label=["B-ORG", "O"])
    assert run("ner", lines(tmp_path / "n.jsonl", rows), tmp_path / "o")[0] == rows
