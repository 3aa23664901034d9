"""answers.py: replies are read, and a sample log alone gives the scores."""

import pytest

import answers
import scorers
import tasks

ROW = {"id": "a", "query": "Good?\nAnswer:", "answer": "good", "text": "Good?"}
ROW |= {"choices": ["good", "bad"], "gold": 0}
ENTITY = {"query": "q", "answer": "Acme, ORG", "text": "Acme pays", "label": ["B-ORG", "O"]}


def test_replies_are_read_strictly_and_with_goodwill():
    read = answers.read_reply
    assert read(tasks.TASKS["fpb"], ROW, "It is Good.") == (None, "good")
    exam = ROW | {"choices": ["A", "B", "C"]}
    assert read(tasks.TASKS["cfa"], exam, "Selection: [[B]]") == ("B", "B")
    assert read(tasks.TASKS["cfa"], exam, "a bond") == (None, None)
    assert read(tasks.TASKS["ner"], ENTITY, "none found") == (None, None)
    assert read(tasks.TASKS["ner"], ENTITY, "here:\nAcme, ORG") == (None, "here:\nAcme, ORG")
    assert read(tasks.TASKS["concepts"], {}, " Oslo ") == ("Oslo", "Oslo")
    assert read(tasks.TASKS["concepts"], {}, " ") == (None, None)


def test_a_reply_is_right_or_missing_or_wrong():
    task = tasks.TASKS["fpb"]
    assert answers.judge_reply(task, ROW, "good")[1] == {"missing": 0, "acc": 1, "acc_strict": 1}
    assert answers.judge_reply(task, ROW, "so good")[1] == {"missing": 0, "acc": 1, "acc_strict": 0}
    assert answers.judge_reply(task, ROW, "bad")[1] == {"missing": 0, "acc": 0, "acc_strict": 0}
    assert answers.judge_reply(task, ROW, "?")[1] == {"missing": 1, "acc": 0, "acc_strict": 0}


def test_the_exam_scores_answer_and_process_apart():
    task = tasks.TASKS["reasoning"]
    row = {"answer": "4", "solution": "Step 1: a = 2 + 2 = 4. Answer: 4"}
    values = answers.judge_reply(task, row, "Step 1: a = 2 + 2 = 5. Answer: 4")[1]
    assert (values["acc"], values["process"]) == (1, 0)
    assert answers.judge_reply(task, row, row["solution"])[1]["process"] == 1


def test_choices_by_sum_by_characters_and_by_bytes():
    row = {"choices": ["no", "maybe", "né"], "gold": 1}
    # sums: no wins. per character -2, -1.2, -1.5: maybe. per byte -2, -1.2, -1: né (3 bytes)
    prediction, values = answers.judge_choices(tasks.TASKS["arc"], row, [-2.9, -6.0, -3.0])
    assert prediction == "no" and values == {"acc": 0, "acc_norm": 1, "acc_bytes": 0}
    assert (
        answers.judge_choices(tasks.TASKS["arc"], row, [-3.0, -3.0, -3.0])[0] == "no"
    )  # first wins


def logged(task, rows, replies):
    out = []
    for row, reply in zip(rows, replies, strict=True):
        prediction, values = answers.judge_reply(task, row, reply)
        out.append({"doc": row, "target": row["answer"], "prediction": prediction,
                    "metrics": list(values)} | values)  # fmt: skip
    return out


def test_measures_of_a_log_equal_a_count_by_hand():
    rows = [ROW, ROW, ROW | {"answer": "bad", "gold": 1}, ROW | {"answer": "bad", "gold": 1}]
    log = logged(tasks.TASKS["fpb"], rows, ["Good", "dunno", "bad", "good"])
    found = answers.measures(tasks.TASKS["fpb"], log)
    scores = {name: scorers.point(*measure) for name, measure in found.items()}
    assert scores["acc"] == 0.5 and scores["missing"] == 0.25 and scores["balanced_acc"] == 0.5
    # good: 1 right of 2 gold, 2 given -> 1/2; bad: 1 right of 2 gold, 1 given -> 2/3
    assert scores["macro_f1"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert answers.baseline(tasks.TASKS["fpb"], log)["acc"] == 0.5


def test_entity_measures_are_pooled_over_rows():
    log = logged(tasks.TASKS["ner"], [ENTITY, ENTITY], ["Acme, ORG", "pays, PER"])
    found = answers.measures(tasks.TASKS["ner"], log)
    assert scorers.point(*found["entity_f1"]) == pytest.approx(0.5)
    assert scorers.point(*found["rouge1"]) == pytest.approx(0.5)
    assert answers.baseline(tasks.TASKS["ner"], log) == {}
