"""choice_sets.py: each published form of a set gives the row that lm-evaluation-harness asks."""

import bz2
import csv
import json

import pytest
from preparing import lines, run

import choice_sets
from config import UserError
from flare import FINANCE_SUBJECTS

ADAPTERS = "Please choose the correct {0} to {1}: {2}\n\n{3}\n\nAnswer format: {4}"


def adapters(word, ask, question, choices, answer):
    """A row as LLM-Adapters writes it: options named answer1, answer2 .. in one text."""
    names = [f"{word}{i + 1}" for i in range(len(choices))]
    options = " ".join(f"{n.title()}: {c}" for n, c in zip(names, choices, strict=True))
    kind = {"option": "answer"}.get(word, word)
    text = ADAPTERS.format(kind, ask, question, options, "/".join(names))
    return {"instruction": text, "input": "", "output": "", "answer": names[answer]}


SCHOOL = {"text": ["x", "Y y"], "label": ["A", "B"]}
STEM = {"stem": "Why?", "choices": [{"text": "x", "label": "1"}, {"text": "Y y", "label": "2"}]}
SOCIAL = {"context": "C went.", "question": "Why?", "answerA": "a", "answerB": "b", "answerC": "c"}
STORY = {"activity_label": "Roof", "ctx_a": "A man [sub] sits. [title] Next.", "ctx_b": "he IS",
         "endings": ["a [x] b", "c", "d", "e"], "label": 2}  # fmt: skip


@pytest.mark.parametrize(
    "name, record, query, choices, gold",
    [
        ("arc", adapters("answer", "the question", "Why?", ["x", "Y y"], 1),
         "Question: Why?\nAnswer:", ["x", "Y y"], 1),
        ("arc", {"id": "M_1", "question": "Why?", "choices": SCHOOL, "answerKey": "B"},
         "Question: Why?\nAnswer:", ["x", "Y y"], 1),
        ("arc", {"id": "M_1", "question": STEM, "answerKey": "1"},
         "Question: Why?\nAnswer:", ["x", "Y y"], 0),
        ("openbookqa", adapters("answer", "the question", "Why is", ["x", "Y y"], 0),
         "Why is", ["x", "Y y"], 0),
        ("openbookqa", {"id": "8-1", "question_stem": "Why is", "choices": SCHOOL,
                        "answerKey": "B"}, "Why is", ["x", "Y y"], 1),
        ("openbookqa", {"id": "8-1", "question": STEM, "answerKey": "2"}, "Why?", ["x", "Y y"], 1),
        ("piqa", {"goal": "Do", "sol1": "a ", "sol2": "b", "label": 1},
         "Question: Do\nAnswer:", ["a ", "b"], 1),
        ("piqa", adapters("solution", "the question", "Do", ["a", "b"], 1),
         "Question: Do\nAnswer:", ["a", "b"], 1),
        ("social_iqa", SOCIAL | {"label": "3"}, "Q: C went. Why?\nA:", ["a", "b", "c"], 2),
        ("social_iqa", adapters("answer", "the question", "C went. Why?", ["a", "b"], 0),
         "Q: C went. Why?\nA:", ["a", "b"], 0),
        ("winogrande", {"sentence": "A hit B so _ ran.", "option1": "A", "option2": "B",
                        "answer": "2"}, "A hit B so _ ran.", ["A", "B"], 1),
        ("winogrande", adapters("option", "fill in the blank to complete the given sentence",
                                "A hit B so _ ran.", ["A", "B"], 1),
         "A hit B so _ ran.", ["A", "B"], 1),
        ("hellaswag", STORY, "Roof: A man sits.. Next. He is", ["a b", "c", "d", "e"], 2),
        ("mathqa", {"Problem": "sum ?", "correct": "b",
                    "options": "a ) 1 , 200 , b ) 27.5 , c ) 30 , d ) 4 ) , e ) none of these"},
         "Question: sum ?\nAnswer:", ["1 , 200", "27.5", "30", "4 )", "none of these"], 1),
        ("mathqa", {"Problem": "sum ?", "correct": "e",
                    "options": "['a ) a ) 1', 'b ) 2', 'c ) 3', 'd ) 4', \"e ) five ' s\"]"},
         "Question: sum ?\nAnswer:", ["1", "2", "3", "4", "five ' s"], 4),
        ("mathqa", {"instruction": "sum ? The options: A ) 1 , B ) bAd , C ) 3 , D ) 4 , E ) 5",
                    "answer": "B"}, "Question: sum ?\nAnswer:", ["1", "bad", "3", "4", "5"], 1),
        ("mmlu", {"question": " Why? ", "choices": ["w", "x", "y", "z"], "answer": 3,
                  "subject": "college_biology"},
         "Why?\nA. w\nB. x\nC. y\nD. z\nAnswer:", ["A", "B", "C", "D"], 3),
    ],
)  # fmt: skip
def test_a_record_of_any_form_is_asked_as_the_harness_asks_it(tmp_path, name, record, query,
                                                              choices, gold):  # fmt: skip
    [row], _, _ = run(name, lines(tmp_path / "x.jsonl", [record]), tmp_path / "out")
    assert (row["query"], row["choices"], row["gold"]) == (query, choices, gold)
    assert row["answer"] == choices[gold]


@pytest.mark.parametrize(
    "name, record, reason",
    [
        ("arc", {"id": "M", "question": "q", "choices": SCHOOL, "answerKey": "E"},
         "answerKey: 'E' is not one of A, B"),
        ("arc", {"instruction": "What?", "answer": "answer1"}, "instruction: not LLM-Adapters'"),
        ("piqa", {"goal": "g", "sol1": "a", "sol2": "b", "label": -1}, "label: '-1' is not one"),
        ("piqa", {"goal": "g", "sol1": "a", "sol2": "b"}, "label: missing"),
        ("social_iqa", SOCIAL | {"label": "0"}, "label: '0' is not one of 1, 2, 3"),
        ("winogrande", {"sentence": "A", "option1": "A", "option2": "B", "answer": "1"},
         "query: needs one _"),
        ("winogrande", {"sentence": "A _", "option1": "A", "option2": "B", "answer": ""},
         "answer: '' is not one of 1, 2"),
        ("mathqa", {"Problem": "p", "options": "a ) 38", "correct": "a"}, "options: not the five"),
        ("mathqa", {"Problem": "p", "options": "a ) 1 , b ) 1 , c ) 3 , d ) 4 , e ) 5",
                    "correct": "a"}, "choices: two of them are equal"),
        ("hellaswag", STORY | {"label": ""}, "label: is empty"),
        ("mmlu", {"question": "q", "choices": ["w", "x"], "answer": 1, "subject": "s"},
         "choices: 2 options, not 4"),
    ],
)  # fmt: skip
def test_a_record_that_is_no_question_is_left_out_by_line_and_field(tmp_path, name, record, reason):
    with pytest.raises(UserError) as error:
        run(name, lines(tmp_path / "x.jsonl", [record]), tmp_path / "out")
    assert f"the first: {tmp_path}/x.jsonl:1: {reason}" in str(error.value)


def test_sets_without_public_test_labels_are_measured_on_validation(tmp_path):
    row = {"goal": "g", "sol1": "a", "sol2": "b"}
    lines(tmp_path / "test.jsonl", [row])
    lines(tmp_path / "valid.jsonl", [row | {"goal": "v"}, row | {"goal": "w"}])
    lines(tmp_path / "train.jsonl", [row | {"goal": "t"}])
    (tmp_path / "valid-labels.lst").write_text("0\n1\n")
    (tmp_path / "train-labels.lst").write_text("1\n")
    test, shots, _ = run("piqa", tmp_path, tmp_path / "out")
    assert [(row["text"], row["gold"]) for row in test] == [("v", 0), ("w", 1)]
    assert [row["answer"] for row in shots] == ["b"]


def test_arc_is_easy_then_challenge_with_both_training_halves(tmp_path):
    for level in ("Challenge", "Easy"):
        for half in ("test", "train"):
            row = adapters("answer", "the question", f"{level} {half}?", ["BB", "Bb"], 1)
            (tmp_path / f"ARC-{level}_{half}.json").write_text(json.dumps([row]))
    test, shots, train = run("arc", tmp_path, tmp_path / "out")
    assert [row["text"] for row in test] == ["Easy test?", "Challenge test?"]
    assert [row["text"] for row in shots] == ["Easy train?", "Challenge train?"]
    assert len(train) == 2 and len({row["id"] for row in test}) == 2


def test_klosax_six_lines_give_the_same_row_as_the_authors_json(tmp_path):
    plain = STORY | {"ctx_a": "A man [sub] sits.", "ctx_b": "he runs"}
    [row], _, _ = run("hellaswag", lines(tmp_path / "val.jsonl", [plain]), tmp_path / "a")
    text = ["Roof: A man [sub] sits. he runs", "2", *plain["endings"]]
    path = tmp_path / "k" / "hellaswag_val_full.txt.bz2"
    path.parent.mkdir()
    path.write_bytes(bz2.compress("\n".join(text + ["Lawn: It ends."] + text[1:]).encode()))
    test, _, _ = run("hellaswag", path.parent, tmp_path / "b")
    assert {k: test[0][k] for k in row if k != "id"} == {k: row[k] for k in row if k != "id"}
    assert test[1]["query"] == "Lawn: It ends."
    path.write_bytes(bz2.compress("\n".join(text[:5]).encode()))
    with pytest.raises(UserError, match="5 lines, not six per question"):
        run("hellaswag", path.parent, tmp_path / "b")


def mmlu_folder(folder, subjects, question="What, then?"):
    for half in ("test", "dev"):
        (folder / half).mkdir(parents=True, exist_ok=True)
        for subject in subjects:
            with open(folder / half / f"{subject}_{half}.csv", "w", newline="") as f:
                writer = csv.writer(f)
                for i in range(1 if half == "test" else 5):
                    asked = f"{question}\n{subject}, {half} {i}"
                    writer.writerow([asked, "one", "two", "three", "four", "C"])
    return folder


def test_mmlu_has_the_harness_prompt_and_five_examples_of_every_subject(tmp_path):
    folder = mmlu_folder(tmp_path / "mmlu", ["college_biology", *FINANCE_SUBJECTS])
    test, shots, train = run("mmlu", folder, tmp_path / "out")
    assert len(test) == 8 and len(shots) == 40 and train == []
    row = next(row for row in test if row["subject"] == "college biology")
    assert row["query"] == (
        "What, then?\ncollege_biology, test 0\nA. one\nB. two\nC. three\nD. four\nAnswer:"
    )
    assert row["gold"] == 2 and row["answer"] == "C"
    fitting = [shot["text"][-1] for shot in shots if shot["subject"] == "college biology"]
    assert fitting == list("01234")
    test, shots, _ = run("mmlu_finance", folder, tmp_path / "out")
    assert len(test) == 7 and len(shots) == 35 and "college biology" not in str(test)


def test_mmlu_examples_are_none_of_their_own_subjects_questions(tmp_path):
    folder = mmlu_folder(tmp_path / "m", ["a", "b"])
    rows = (folder / "dev" / "a_dev.csv").read_text()
    (folder / "dev" / "b_dev.csv").write_text(rows)  # b has the same examples
    (folder / "test" / "a_test.csv").write_text(rows.split("C\n")[0] + "C\n")  # one is asked in a
    _, shots, _ = run("mmlu", folder, tmp_path / "out")
    assert [sum(shot["subject"] == s for shot in shots) for s in "ab"] == [4, 5]


def test_mmlu_finance_takes_its_subjects_out_of_the_hubs_whole_set(tmp_path, capsys):
    row = {"question": "q", "choices": list("wxyz"), "answer": 0}
    rows = [row | {"subject": s, "question": f"q {s}"} for s in ("anatomy", "marketing")]
    test, _, _ = run("mmlu_finance", lines(tmp_path / "test.jsonl", rows), tmp_path / "out")
    assert [row["subject"] for row in test] == ["marketing"]
    assert "1 rows of other subjects passed over" in capsys.readouterr().out


def test_a_missing_subject_and_a_short_line_are_named(tmp_path):
    folder = mmlu_folder(tmp_path / "m", FINANCE_SUBJECTS[1:])
    with pytest.raises(UserError, match="no test/business_ethics_test.csv in it"):
        run("mmlu_finance", folder, tmp_path / "out")
    (tmp_path / "x_test.csv").write_text("q,a,b,c,d\n")
    with pytest.raises(UserError, match="x_test.csv:1: needs question, 4 options, letter; has 5"):
        run("mmlu", tmp_path / "x_test.csv", tmp_path / "out")


def test_brackets_and_double_spaces_go_as_in_the_harness():
    assert choice_sets.unmarked(" a [title] b [c d] e ") == "a. b e"
