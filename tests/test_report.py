"""report.py: the numbers of report.json, and a page that stands alone."""

import json
import re

import pytest
from tiny import write_rows

import answers
import ask
import evaluate
import report
from config import UserError
from results import difference
from tasks import TASKS

CAPABILITIES = ["concepts", "tasks", "reasoning", "instruction_following", "general"]
# Share of questions that each checkpoint gets right
SKILL = {
    "base": {"concepts": 0, "tasks": 0, "reasoning": 0.1, "general": 1},
    "cpt_it": {"concepts": 0.9, "tasks": 0.8, "reasoning": 0.5, "general": 0.9},
    "aligned": {"concepts": 0.9, "tasks": 0.8, "reasoning": 0.8, "general": 0.9},
    "sft_control": {"concepts": 0.9, "tasks": 0.8, "reasoning": 0.8, "general": 0.6},
}


def row_of(name, i):
    if name.startswith("reasoning"):
        solution = f"Step 1: a = {i} + 1 = {i + 1}. Answer: {i + 1}"
        return {"id": f"e{i}", "query": f"a <b>{i}</b>?", "answer": str(i + 1),
                "solution": solution}  # fmt: skip
    return {"id": f"{name}{i}", "query": f"What is {i}?", "answer": f"word{i}"}


def write_evaluation(folder, skill, init_from, n=40):
    """An evaluation directory with made-up replies: the first skill * n questions are right."""
    folder.mkdir(parents=True)
    result = {"init_from": str(init_from), "tasks": {}, "skipped": {}}
    for name in [*CAPABILITIES, "reasoning_dev"]:
        right, samples = skill.get(name, 0.95) * n, []
        for i in range(n):
            row = row_of(name, i)
            reply = row.get("solution", row["answer"]) if i < right else "Step 1: no. Answer: 0"
            if name == "reasoning" and i == 0:
                reply = reply.replace("Step 1: a =", "Step 1: b =")  # right by a wrong step
            prediction, _, values = answers.judge_reply(TASKS[name], row, reply, TASKS[name].style)
            made = ask.sample(row, [[row["query"]]], [[reply]], [prediction], prediction, values)
            samples.append(made | {"truncated": False, "finish": "stop"})
        asked = {"mode": "generate", "bos": 1}
        result["tasks"][name] = evaluate.summary(name, samples, answers) | {
            "asked": asked,
            "metric": "acc",
        }
        write_rows(folder / f"samples_{name}.jsonl", samples)
    (folder / "results.json").write_text(json.dumps(result))


@pytest.fixture
def demo(tmp_path):
    out = tmp_path / "demo"
    for name, skill in SKILL.items():
        write_evaluation(out / f"eval_{name}", skill, out / name)
        (out / name).mkdir()
        keys = "loss loss/text loss/chat rewards/chosen rewards/rejected rewards/accuracies".split()
        rows = [{"step": i} | dict.fromkeys(keys, 1 / (i + 1)) for i in range(30)]
        write_rows(out / name / "metrics.jsonl", rows)
    (out / "reward").mkdir()
    pair = {"kind": "fap", "prompt": [{"role": "user", "content": "q?"}], "prefix": "",
            "chosen": "chosen <text>", "rejected": "rejected text"}  # fmt: skip
    write_rows(out / "reward" / "pairs.jsonl", [pair, pair | {"kind": "scp", "prefix": "Step 1"}])
    tried = [{"correct": True}, {"correct": False}, {"correct": None}]
    write_rows(out / "reward" / "trajectories.jsonl", tried)
    return out


def made(out, **flags):
    report.main(report.Config(out_dir=str(out), **flags))
    return json.loads((out / "report.json").read_text())


def test_report_json_has_a_score_for_every_capability_and_checkpoint(demo):
    found = made(demo)
    assert list(found["scores"]) == CAPABILITIES
    for capability, cells in found["scores"].items():
        assert list(cells) == ["base", "cpt_it", "aligned", "sft_control"]
        for checkpoint, cell in cells.items():
            assert set(cell) == {"score", "low", "high", "n"} and cell["n"] == 40
            assert cell["low"] <= cell["score"] <= cell["high"]
            assert cell["score"] == pytest.approx(100 * SKILL[checkpoint].get(capability, 0.95))


def test_comparisons_are_paired_and_named_by_both_checkpoints(demo):
    found = made(demo)["comparisons"]
    gain = found["reasoning: aligned - cpt_it"]
    assert set(gain) == {"difference", "low", "high", "n"} and gain["n"] == 40
    assert gain["difference"] == pytest.approx(30) and gain["low"] > 0
    assert gain == difference(demo / "eval_cpt_it", demo / "eval_aligned", "reasoning")[0]
    same = found["reasoning: aligned - sft_control"]
    assert (same["difference"], same["low"], same["high"]) == (0, 0, 0)
    for capability in CAPABILITIES:
        for pair in ("cpt_it - base", "aligned - cpt_it", "aligned - sft_control"):
            assert f"{capability}: {pair}" in found


def test_the_process_stands_beside_the_answer(demo):
    found = made(demo)
    answer, process = found["scores"]["reasoning"]["aligned"], found["process"]["aligned"]
    assert process["score"] == pytest.approx(answer["score"] - 100 / 40)  # one lucky answer
    assert "reasoning process: aligned - cpt_it" in found["comparisons"]


def test_development_questions_are_left_out(demo):
    assert made(demo)["tasks"]["reasoning"] == ["reasoning"]


def test_findings_claim_nothing_that_the_interval_does_not(demo):
    said = report.findings(made(demo))
    equal = [text for text in said if "plain SFT" in text]
    assert len(equal) == 1 and "cannot tell from 0" in equal[0]
    gain = [text for text in said if "then changes the exam" in text]
    assert "+30.0 points" in gain[0] and "cannot" not in gain[0]


def test_the_page_stands_alone_and_shows_data_as_text(demo, capsys):
    made(demo)
    page = (demo / "report.html").read_text()
    assert page.startswith("<!doctype html>") and "<script" not in page
    assert page.count("data:image/png;base64,") == 3
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert "a &lt;b&gt;" in page and "<b>2</b>?" not in page  # questions are escaped
    assert "chosen &lt;text&gt;" in page and "of them with a right answer" in page
    assert "right answer, wrong step" in page or "Alignment repaired it" in page
    shown = capsys.readouterr().out
    assert "every step right" in shown and "instruction following" in shown
    assert "| reasoning |" in (demo / "report.md").read_text()
    assert (demo / "figures" / "capabilities.png").stat().st_size > 10_000


def test_a_report_of_some_checkpoints_is_a_report(demo, tmp_path):
    found = made(tmp_path / "two", base=str(demo / "eval_base"), cpt_it=str(demo / "eval_cpt_it"))
    assert list(found["scores"]["general"]) == ["base", "cpt_it"]
    assert list(found["comparisons"])[0] == "concepts: cpt_it - base"


def test_nothing_to_report_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no eval_"):
        report.main(report.Config(out_dir=str(tmp_path)))
    with pytest.raises(UserError, match="--aligned .*no results.json"):
        report.main(report.Config(out_dir=str(tmp_path), aligned=str(tmp_path / "x")))


def test_checkpoints_that_were_asked_differently_are_not_reported(demo):
    path = demo / "eval_aligned" / "results.json"
    result = json.loads(path.read_text())
    result["tasks"]["concepts"]["asked"]["bos"] = 0
    path.write_text(json.dumps(result))
    with pytest.raises(UserError, match="concepts: cannot be compared: bos"):
        report.main(report.Config(out_dir=str(demo)))
