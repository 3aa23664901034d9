"""tasks.py: rows are checked, replies are read, and a sample log alone gives the scores."""

import pytest
from tiny import write_rows

import scorers
import tasks
from config import UserError

ROW = {"id": "a", "query": "Good?\nAnswer:", "answer": "good", "text": "Good?"}
ROW |= {"choices": ["good", "bad"], "gold": 0}
ENTITY = {"query": "q", "answer": "Acme, ORG", "text": "Acme pays", "label": ["B-ORG", "O"]}


def test_every_task_is_described_in_full():
    for name, task in tasks.TASKS.items():
        assert task.capability in tasks.CAPABILITIES, name
        assert task.kind in ("general", "domain", "reasoning"), name
        assert task.novelty in ("similar", "novel") and task.style in ("direct", "cot"), name
        assert task.mode in ("generate", "loglikelihood") and task.source and task.title, name
        assert task.metrics and 0 < task.max_new_tokens, name


def test_rows_without_an_id_get_their_number(tmp_path):
    rows = [{k: v for k, v in ROW.items() if k != "id"}, ROW | {"id": 7}]
    assert [r["id"] for r in tasks.load_rows("fpb", write_rows(tmp_path / "r", rows))] == ["0", "7"]


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
        tasks.load_rows("fpb", path)
    assert f"{path}:2: {message}" in str(error.value)


def test_entity_rows_need_a_tag_per_word(tmp_path):
    assert tasks.load_rows("ner", write_rows(tmp_path / "a", [ENTITY]))
    with pytest.raises(UserError, match="one tag per word"):
        tasks.load_rows("ner", write_rows(tmp_path / "b", [ENTITY | {"label": ["B-ORG"]}]))


def test_an_empty_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no rows"):
        tasks.load_rows("fpb", write_rows(tmp_path / "fpb.jsonl", []))


def test_replies_are_read_strictly_and_with_goodwill():
    read = tasks.read_reply
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
    assert tasks.judge_reply(task, ROW, "good")[1] == {"missing": 0, "acc": 1, "acc_strict": 1}
    assert tasks.judge_reply(task, ROW, "so good")[1] == {"missing": 0, "acc": 1, "acc_strict": 0}
    assert tasks.judge_reply(task, ROW, "bad")[1] == {"missing": 0, "acc": 0, "acc_strict": 0}
    assert tasks.judge_reply(task, ROW, "?")[1] == {"missing": 1, "acc": 0, "acc_strict": 0}


def test_the_exam_scores_answer_and_process_apart():
    task = tasks.TASKS["reasoning"]
    row = {"answer": "4", "solution": "Step 1: a = 2 + 2 = 4. Answer: 4"}
    values = tasks.judge_reply(task, row, "Step 1: a = 2 + 2 = 5. Answer: 4")[1]
    assert (values["acc"], values["process"]) == (1, 0)
    assert tasks.judge_reply(task, row, row["solution"])[1]["process"] == 1


def test_choices_by_sum_by_characters_and_by_bytes():
    row = {"choices": ["no", "maybe", "né"], "gold": 1}
    # sums: no wins. per character -2, -1.2, -1.5: maybe. per byte -2, -1.2, -1: né (3 bytes)
    prediction, values = tasks.judge_choices(tasks.TASKS["arc"], row, [-2.9, -6.0, -3.0])
    assert prediction == "no" and values == {"acc": 0, "acc_norm": 1, "acc_bytes": 0}
    assert tasks.judge_choices(tasks.TASKS["arc"], row, [-3.0, -3.0, -3.0])[0] == "no"  # first wins


def logged(task, rows, replies):
    out = []
    for row, reply in zip(rows, replies, strict=True):
        prediction, values = tasks.judge_reply(task, row, reply)
        out.append({"doc": row, "target": row["answer"], "prediction": prediction,
                    "metrics": list(values)} | values)  # fmt: skip
    return out


def test_measures_of_a_log_equal_a_count_by_hand():
    rows = [ROW, ROW, ROW | {"answer": "bad", "gold": 1}, ROW | {"answer": "bad", "gold": 1}]
    log = logged(tasks.TASKS["fpb"], rows, ["Good", "dunno", "bad", "good"])
    found = tasks.measures(tasks.TASKS["fpb"], log)
    scores = {name: scorers.point(*measure) for name, measure in found.items()}
    assert scores["acc"] == 0.5 and scores["missing"] == 0.25 and scores["balanced_acc"] == 0.5
    # good: 1 right of 2 gold, 2 given -> 1/2; bad: 1 right of 2 gold, 1 given -> 2/3
    assert scores["macro_f1"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert tasks.baseline(tasks.TASKS["fpb"], log)["acc"] == 0.5


def test_entity_measures_are_pooled_over_rows():
    log = logged(tasks.TASKS["ner"], [ENTITY, ENTITY], ["Acme, ORG", "pays, PER"])
    found = tasks.measures(tasks.TASKS["ner"], log)
    assert scorers.point(*found["entity_f1"]) == pytest.approx(0.5)
    assert scorers.point(*found["rouge1"]) == pytest.approx(0.5)
    assert tasks.baseline(tasks.TASKS["ner"], log) == {}
