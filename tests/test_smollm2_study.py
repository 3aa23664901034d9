"""recipes/smollm2_study.sh: its rows, what its intervals decide, what it says of missing things."""

import csv
import json
import os
import subprocess
from pathlib import Path

import pytest
from evaluating import run
from tiny import write_checkpoint, write_rows

from benchmarks import smollm2_study
from extract import judged_by_rule
from jsonl import read_jsonl
from recipes import smollm2_rows

ROOT = Path(__file__).resolve().parents[1]
FINQA = {
    "question": "what part of it is due?",
    "answer": "25%",
    "gold_inds": {"table_1": "the notes of 2009 is 30 ;", "text_4": "10 more are bonds ."},
    "steps": [
        {"op": "add1-1", "arg1": "30", "arg2": "const_10", "res": "40"},
        {"op": "divide1-2", "arg1": "10", "arg2": "#0", "res": "25%"},
    ],
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """{file: rows} that are made of a few rows of each set."""
    data = tmp_path_factory.mktemp("data")
    for name in ("gsm8k", "dm_mathematics", "finqa_subset", "convfinqa", "headlines"):
        (data / name).mkdir()
    sums = [{"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(60)]
    easy, hard = ([r | {"split": f"train-{x}"} for r in sums] for x in ("easy", "hard"))
    again = [easy[0]] * 10  # a question that is trained on, in every place
    write_rows(data / "dm_mathematics/train.jsonl", [*easy[:40], *again, *hard[40:]])
    for name, count in (("train", 40), ("test", 5)):
        words = []
        for i in range(count):
            worked = f"{i}+{i}=<<{i}+{i}={2 * i}>>{2 * i}.\n#### {2 * i}"
            words.append({"question": f"{name}: {i} clips and {i}?", "answer": worked})
        write_rows(data / f"gsm8k/{name}.jsonl", words)
    other = {"op": "table_max-1", "arg1": "notes", "arg2": "none", "res": "30"}
    tables = [{"qa": FINQA}, {"qa": FINQA | {"steps": [other]}}]
    for name in ("train_100", "dev_200"):
        (data / f"finqa_subset/{name}.json").write_text(json.dumps(tables))
    talk = {"questions": ["in 2009?", "and twice that?"], "programs": ["ans = 2", "ans = 2 * 2"]}
    talk |= {"golden_table": "", "golden_text": "2 in 2009 .", "answer": "4.0"}
    (data / "convfinqa/convfinqa_dev.json").write_text(json.dumps([talk]))
    with open(data / "headlines/headlines.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["News", *smollm2_rows.HEADLINE])
        table.writerows(
            [f"gold is up {i}", *[i % 2] * len(smollm2_rows.HEADLINE)] for i in range(20)
        )
    out = data / "out"
    smollm2_rows.main([str(data), str(out)])
    return {path.stem: [row for _, row in read_jsonl(path, {})] for path in out.glob("*.jsonl")}


def question(row):
    said = row.get("text") or row.get("prompt") or row["messages"][0]["content"]
    return said.split("\n")[0]


def test_no_exercise_is_in_two_files(rows):
    def questions(*kinds):
        return [question(row) for kind in kinds for row in rows[kind]]

    trained = questions("general_text", "general_chat")
    sampled = questions("prompts_arithmetic", "prompts_problems")
    held = questions("held_arithmetic", "held_problems")
    assert not {*held} & {*trained, *sampled} and not {*trained} & {*sampled}
    assert len(sampled) == len({*sampled}) == 8 + 4 and len(held) == len({*held}) == 8 + 5


def test_a_rule_finds_every_answer_of_the_training_rows_right(rows):
    for row in rows["finance_chat"] + rows["general_chat"]:
        reply = row["messages"][1]["content"]
        final = reply.rpartition("Answer: ")[2]
        assert judged_by_rule(reply, final)["correct"], reply
    assert all(
        row["answer"] and row["id"] for row in rows["prompts_reports"] + rows["held_problems"]
    )


def test_finqa_is_told_as_steps_and_what_has_none_is_left_out(rows):
    (row,) = rows["prompts_reports"]
    assert row["answer"] == "25%" and row["prompt"].startswith("the notes of 2009 is 30 ;\n10 more")
    chats = [row["messages"][1]["content"] for row in rows["finance_chat"]]
    assert chats[:2] == ["30 + 10 = 40\n10 / 40 = 25%\nAnswer: 25%", "ans = 2 * 2\nAnswer: 4.0"]
    assert chats[2:] == ["No", "Yes", "No"]


@pytest.mark.parametrize(
    ("claim", "low", "high", "seeds", "said"),
    [
        ("higher", 1, 3, 1, "not decided: one seed"),
        ("higher", 1, 3, 4, "not decided: 4 seeds"),
        ("higher", 1, 3, 5, "reproduced"),
        ("higher", -3, -1, 5, "not reproduced"),
        ("higher", -1, 1, 5, "not reproduced"),
        ("higher", -1, 9, 5, "not decidable at this size"),
        ("lower", -9, -1, 5, "reproduced"),
        ("same", -1, 1, 5, "reproduced"),
        ("same", 1, 5, 5, "not reproduced"),
        ("same", -1, 5, 5, "not decidable at this size"),
    ],
)
def test_what_an_interval_decides(claim, low, high, seeds, said):
    assert smollm2_study.verdict(claim, low, high, seeds) == said


def test_findings_of_one_seed(simple, rows_dir, tmp_path):
    other = write_checkpoint(tmp_path / "ck", seed=5)
    seed = tmp_path / "out" / "seed0"
    for path, checkpoint in ((seed.parent / "eval_base", simple), (seed / "eval_joint", other)):
        run(checkpoint, rows_dir, path, tasks="arc,fpb")
        (path / "done").touch()
    for path, marks in ((seed.parent / "held_base", "01000"), (seed / "held_joint", "01110")):
        turns = [{"role": "user", "content": "one ?"}]
        record = {"prompt": turns, "answer": "1", "text": "1", "finish": "stop", "sample": 0}
        (path / "arithmetic").mkdir(parents=True)
        held = [record | {"id": f"{i}/0", "correct": mark == "1"} for i, mark in enumerate(marks)]
        write_rows(path / "arithmetic" / "trajectories.jsonl", held)
    smollm2_study.main(smollm2_study.Config(str(seed.parent)))
    found = json.loads((seed.parent / "smollm2.json").read_text())
    rows = {row["metric"]: row for row in found["rows"]}
    assert rows.keys() == {"similar tasks", "general knowledge and reasoning", "held-out exercises"}
    exercises = rows["held-out exercises"]
    assert (exercises["difference"], exercises["n"], exercises["seeds"]) == (40, 5, 1)
    assert exercises["low"] <= 40 <= exercises["high"]
    assert {row["verdict"] for row in found["rows"]} == {"not decided: one seed"}
    assert found["arms"]["joint"]["held-out exercises"] == 60
    assert "| +40.0 [" in (seed.parent / "smollm2.md").read_text()


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("model", "error: MODEL: {path}/model is no folder"),
        ("data", "error: DATA: {path}/data is no folder"),
        ("model/tokenizer.json", "error: MODEL: {path}/model has no tokenizer.json"),
        ("model/model.safetensors", "error: MODEL: {path}/model has no *.safetensors"),
    ],
)
def test_what_is_missing_is_one_line(missing, said, tmp_path):
    for folder in ("model", "data"):
        if folder != missing:
            (tmp_path / folder).mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        if missing not in ("model", f"model/{name}"):
            (tmp_path / "model" / name).touch()
    folders = [tmp_path / name for name in ("model", "data", "out")]
    command = [ROOT / "recipes" / "smollm2_study.sh", *folders]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=60)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == said.format(path=tmp_path) + "\n"
