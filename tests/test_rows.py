"""rows.py: what is no question is left out by file, line and field; a wrong file stops the run."""

import json

import pytest
from published import PUBLISHED
from tiny import write_rows

from config import UserError
from rows import load_rows
from tasks import FINEVAL, TASKS

# One good row of each kind of answer, in the published schemas
LABEL = {"query": "Good?\nAnswer:", "answer": "good", "text": "Good?"}
LABEL |= {"choices": ["good", "bad"], "gold": 0}
OPTIONS = "Why?\nA. one\nB. two\nC. three\nD. four\nAnswer:"
LETTER = {"query": OPTIONS, "answer": "B", "text": "Why?", "choices": [*"ABCD"], "gold": 1}
LETTER |= {"subject": "business ethics"}
TEXT = {"query": "Question: Why?\nAnswer:", "answer": "so", "text": "Why?"}
TEXT |= {"choices": ["so", "not so"], "gold": 0}
BLANK = {"query": "The cup fits the box as _ is small.", "answer": "the cup"}
BLANK |= {"text": BLANK["query"], "choices": ["the cup", "the box"], "gold": 0}
ENTITIES = {"query": "Who?", "answer": "Acme, ORG", "text": "Acme pays", "label": ["B-ORG", "O"]}
SUMMARY = {"query": "Sum up.", "answer": "Acme grows", "text": "Sales up.\nHello.", "label": [1, 0]}
NUMBER = {"query": "What is it?", "answer": "-12.5 percent", "text": "Sales fell."}
NUMBER |= {"answers": ["-12.5"], "answer_type": "arithmetic", "scale": "percent"}
SHORT = {"query": "Q: who?\nA:", "answer": "Ann", "text": "who", "answers": ["Ann", "Ann B."]}
FREE = {"query": "Evidence: x\nQuestion: why?\nAnswer:", "answer": "$1577.00", "text": "why?"}
CHAT = {"query": "Hi", "answer": "", "text": "Hi", "turns": ["Hi", "And?"], "category": "writing"}
EXAM = {"query": "What is 1 + 1?", "answer": "2", "text": "..", "solution": "Answer: 2"}
ROWS = {
    "german": LABEL, "mmlu": LETTER, "arc": TEXT, "winogrande": BLANK, "ner": ENTITIES,
    "ectsum": SUMMARY, "tatqa": NUMBER, "nq_open": SHORT, "financebench": FREE, "mt_bench": CHAT,
    "reasoning": EXAM,
}  # fmt: skip


def load(tmp_path, name, rows):
    return load_rows(name, write_rows(tmp_path / f"{name}.jsonl", rows))


@pytest.mark.parametrize("name", ROWS)
def test_good_rows_of_every_kind_are_used_as_they_are(tmp_path, name):
    rows = [ROWS[name] | {"id": "a", "extra": [1]}, ROWS[name] | {"id": "b"}]
    assert load(tmp_path, name, rows) == (rows, [])


def test_every_kind_of_answer_has_a_row_here():
    assert {TASKS[n].answer for n in ROWS} | {"exact"} == {task.answer for task in TASKS.values()}


def test_the_sample_worlds_rows_may_list_choices_or_none(tmp_path):
    rows = [{"id": "0", "query": "q", "answer": "x", "choices": ["x", "y"], "gold": 0},
            {"id": "1", "query": "q", "answer": "x", "choices": [], "gold": -1}]  # fmt: skip
    assert load(tmp_path, "concepts", rows) == (rows, [])


def test_empty_choices_are_none(tmp_path):
    row = FREE | {"id": "0", "choices": [], "gold": -1}
    assert load(tmp_path, "financebench", [row]) == ([row], [])


def test_rows_without_an_id_get_their_place_in_the_file(tmp_path):
    rows = [LABEL, LABEL | {"id": 7}, LABEL | {"gold": 9}, LABEL | {"id": None}]
    used, left_out = load(tmp_path, "german", rows)
    assert [row["id"] for row in used] == ["0", "7", "3"] and len(left_out) == 1


def test_labels_may_differ_in_order_and_case(tmp_path):
    row = LABEL | {"choices": ["Bad", "Good"], "gold": 1, "answer": "GOOD"}
    assert load(tmp_path, "german", [row])[0]


BAD = [
    ("german", {"gold": 2}, "gold: 2 is outside the 2 choices"),
    ("german", {"gold": -1}, "gold: -1 is outside"),
    ("german", {"gold": "0"}, "gold: must be an integer"),
    ("german", {"gold": True}, "gold: must be an integer"),
    ("german", {"gold": None}, "gold: must be an integer"),
    ("german", {"choices": None}, "choices: must be a list"),
    ("german", {"choices": []}, "choices: is empty"),
    ("german", {"choices": ["good"]}, "choices: needs at least two texts"),
    ("german", {"choices": ["good", "good "]}, "choices: two of them are equal"),
    ("german", {"choices": ["good", 3]}, "choices: needs at least two texts"),
    ("german", {"choices": ["good", "fair"]}, "choices: good, fair where the task has good, bad"),
    ("german", {"answer": "bad"}, "answer: 'bad' is not choices[0]"),
    ("german", {"query": "  "}, "query: is empty"),
    ("german", {"query": None}, "query: must be a string"),
    ("german", {"answer": ""}, "answer: is empty"),
    ("german", {"text": 5}, "text: must be a string"),
    ("german", {"id": "b"}, "id: 'b' occurs twice"),
    ("german", {"id": 1.5}, "id: must be a string or an integer"),
    ("mmlu", {"choices": [*"ACBD"]}, "choices: A, C, B, D where the task has letters from A on"),
    ("mmlu", {"subject": ""}, "subject: is empty"),
    ("mmlu", {"gold": 4}, "gold: 4 is outside the 4 choices"),
    ("arc", {"text": ""}, "text: is empty"),
    ("arc", {"choices": ["so", "so"]}, "choices: two of them are equal"),
    ("winogrande", {"query": "It fits _ and _."}, "query: needs one _ to fill, has 2"),
    ("winogrande", {"query": "It fits."}, "query: needs one _ to fill, has 0"),
    ("winogrande", {"gold": 5}, "gold: 5 is outside"),
    ("ner", {"label": ["B-ORG"]}, "label: needs one tag per word of text (1 for 2 words)"),
    ("ner", {"label": ["B-ORG", "ORG"]}, "label: 'ORG' is not O, B-TYPE or I-TYPE"),
    ("ner", {"label": ["B-ORG", 0]}, "label: 0 is not O, B-TYPE or I-TYPE"),
    ("ectsum", {"label": [1, "0"]}, "label: '0' is not 0 or 1"),
    ("ectsum", {"label": [1, True]}, "label: True is not 0 or 1"),
    ("ectsum", {"text": ""}, "text: is empty"),
    ("tatqa", {"answers": []}, "answers: is empty"),
    ("tatqa", {"answers": [12.5]}, "answers: needs a list of texts"),
    ("tatqa", {"answers": ["1", "2"]}, "answers: arithmetic has one answer, not 2"),
    ("tatqa", {"answers": ["twelve"]}, "answers: 'twelve' is no number"),
    ("tatqa", {"answer_type": "sum"}, "answer_type: 'sum' is not one of span"),
    ("tatqa", {"scale": "dozen"}, "scale: 'dozen' is not one of thousand"),
    ("tatqa", {"scale": None}, "scale: None is not one of"),
    ("nq_open", {"answers": ["Ann", " "]}, "answers: needs a list of texts"),
    ("nq_open", {"answer": "Ann B."}, "answer: 'Ann B.' is not answers[0]"),
    ("financebench", {"answer": None}, "answer: must be a string"),
    ("mt_bench", {"turns": ["Hi"]}, "turns: needs two texts"),
    ("mt_bench", {"turns": ["Hi", ""]}, "turns: needs two texts"),
    ("mt_bench", {"query": "Ho"}, "query: is not turns[0]"),
    ("mt_bench", {"category": ""}, "category: is empty"),
    ("mt_bench", {"answer": None}, "answer: must be a text, which may be empty"),
    ("mt_bench", {"references": [None]}, "references: must be texts"),
    ("reasoning", {"solution": ""}, "solution: is empty"),
]


@pytest.mark.parametrize("name, change, message", BAD)
def test_a_bad_row_is_left_out_by_file_line_and_field(tmp_path, name, change, message):
    good = ROWS[name] | {"id": "b"}
    rows = [good, ROWS[name] | {"id": "bad"} | change, ROWS[name] | {"id": "c"}]
    used, left_out = load(tmp_path, name, rows)
    assert [row["id"] for row in used] == ["b", "c"] and len(left_out) == 1
    assert left_out[0].startswith(f"{tmp_path}/{name}.jsonl:2: {message}")


@pytest.mark.parametrize("name", ROWS)
def test_a_missing_field_is_named(tmp_path, name):
    needed = set(ROWS[name]) - {"id"}
    optional = {"ectsum": {"label"}, "mt_bench": {"text"}}.get(name, set())
    if TASKS[name].answer not in ("text", "blank", "entities", "summary"):
        optional = optional | {"text"}
    if name == "mmlu":
        needed.add("subject")
    for field in needed:
        short = {k: v for k, v in ROWS[name].items() if k != field}
        used, left_out = load(tmp_path, name, [ROWS[name], short])
        assert (len(used), len(left_out)) == ((2, 0) if field in optional else (1, 1)), field
        assert field in optional or f":2: {field}: " in left_out[0]


def test_rows_in_are_rows_used_and_rows_left_out(tmp_path):
    changes = [change for name, change, _ in BAD if name == "german" and "id" not in change]
    rows = [LABEL, LABEL, *[LABEL | change for change in changes]] * 2
    used, left_out = load(tmp_path, "german", rows)
    assert len(used) == 4 and len(used) + len(left_out) == len(rows)


# Files ---------------------------------------------------------------------------------------


def test_an_empty_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"german.jsonl: no rows"):
        load(tmp_path, "german", [])


def test_a_file_without_a_usable_row_is_an_error_that_quotes_the_first(tmp_path):
    with pytest.raises(UserError, match=r"none of its 2 rows can be used.*:1: gold: 3 is outside"):
        load(tmp_path, "german", [LABEL | {"gold": 3}, LABEL | {"gold": 4}])


@pytest.mark.parametrize(
    "content, message",
    [
        (json.dumps(LABEL).encode("utf-16"), "UTF-16"),
        (json.dumps(LABEL).replace("Good?", "Gr\xf6\xdfe").encode("latin-1") + b"\n", "not UTF-8"),
        (b"PAR1....", "parquet"),
        (b"label,text\ngood,x\n", "not json"),
        (b"[1, 2]\n", "must be an object"),
    ],
)
def test_a_file_in_another_encoding_or_form_stops_with_its_line(tmp_path, content, message):
    path = tmp_path / "german.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"german.jsonl:1: .*{message}"):
        load_rows("german", path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_rows("german", tmp_path / "german.jsonl")


# Files under a wrong name --------------------------------------------------------------------


def published(name, count=3):
    """Rows as the hub has them: labels for the sets that have them, an answer for the others."""
    labels = list(TASKS[name].labels) or {"letter": [*"ABC"], "label": ["Pay", "Board"]}.get(
        TASKS[name].answer
    )
    row = {"query": PUBLISHED[name], "answer": (labels or ["x"])[0], "text": "x y"}
    if labels:
        row |= {"choices": labels, "gold": 0}
    return [row | {"id": f"{name}{i}"} for i in range(count)]


@pytest.mark.parametrize("right", PUBLISHED)
def test_a_published_file_under_another_tasks_name_is_told_by_its_content(tmp_path, right):
    for wrong in FINEVAL:
        if wrong == right:
            continue
        with pytest.raises(UserError) as error:
            load(tmp_path, wrong, published(right))
        assert f"{wrong}.jsonl: holds rows of {right}, not of {wrong}: " in str(error.value)


@pytest.mark.parametrize("name", [n for n in PUBLISHED if TASKS[n].answer in ("label", "letter")])
def test_a_published_file_under_its_own_name_is_fine(tmp_path, name):
    rows = published(name)
    assert load(tmp_path, name, rows) == (rows, [])


def test_finevals_financebench_holds_lendingclub(tmp_path):
    """The released configuration: FLARE rows with a query, labels good and bad, and no evidence."""
    with pytest.raises(UserError, match="holds rows of lendingclub, not of financebench"):
        load(tmp_path, "financebench", published("lendingclub"))


def test_labels_of_another_task_stop_even_where_no_query_tells_whose(tmp_path):
    rows = [LABEL | {"query": f"Is firm {i} sound?"} for i in range(4)]
    with pytest.raises(UserError, match="choices: good, bad in 4 of 4 rows, but polish has no, ye"):
        load(tmp_path, "polish", rows)
    with pytest.raises(UserError, match="but tatqa has none"):
        load(tmp_path, "tatqa", [LABEL | NUMBER | {"query": "What?"}])
    with pytest.raises(UserError, match="cfa_easy has the letters A, B, C"):
        load(tmp_path, "cfa_easy", [TEXT])


def test_four_options_are_no_question_of_the_exam_with_three(tmp_path):
    with pytest.raises(UserError, match="holds rows of mmlu, not of cfa_easy"):
        load(tmp_path, "cfa_easy", [LETTER | {"id": str(i)} for i in range(3)])
    assert load(tmp_path, "mmlu_finance", [LETTER])[0]  # a part of the same set


def test_a_text_that_quotes_another_task_is_no_wrong_file(tmp_path):
    """One query in three reads like FPB's: most must, and none may read like the task's own."""
    rows = [TEXT | {"id": str(i), "query": q} for i, q in enumerate(["Q", PUBLISHED["fpb"], "Q"])]
    assert len(load(tmp_path, "arc", rows)[0]) == 3
    own = [LABEL | {"id": str(i), "query": PUBLISHED["german"]} for i in range(2)]
    others = [LABEL | {"id": f"x{i}", "query": PUBLISHED["lendingclub"]} for i in range(3)]
    assert len(load(tmp_path, "german", own + others)[0]) == 5


def test_a_few_rows_with_foreign_labels_are_left_out_not_the_file(tmp_path):
    rows = [LABEL, LABEL, LABEL | {"choices": ["no", "yes"], "answer": "no"}]
    used, left_out = load(tmp_path, "german", rows)
    assert len(used) == 2 and ":3: choices: no, yes where the task has good, bad" in left_out[0]
