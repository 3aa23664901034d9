"""scoreboard.py: what may be compared is, what may not says why, and the page stands alone."""

import json
import re

import numpy as np
import pytest
from tiny import write_rows

import ask
import evaluate
import pixiu
import scoreboard
import scorers
from board_text import changed, direction, metric_rows
from config import UserError
from results import difference
from tasks import FINEVAL, TASKS

LABELS = {"fpb": ("positive", "negative", "neutral"), "polish": ("no", "yes")}


def row_of(name, i):
    task = TASKS[name]
    if task.answer == "label":
        choices = list(LABELS.get(name) or task.labels or ("Board", "Pay"))
    else:
        choices = {"letter": ["A", "B", "C", "D"], "text": ["one", "two"]}.get(task.answer, [])
    gold = int(i % 4 == 0) if choices else -1  # the first choice is the majority
    answer = choices[gold] if choices else f"word {i}"
    return {"id": f"{name}-{i}", "query": f"Is <b>{i}</b> so? <script>no()</script>\nAnswer:",
            "text": f"{i}", "answer": answer, "choices": choices, "gold": gold,
            "subject": "x"}  # fmt: skip


def sample_of(name, i, right, missing, mode, say="reply"):
    """A made-up line of a sample log: values as the task's metrics need them."""
    task, row = TASKS[name], row_of(name, i)
    values = {"missing": float(missing)}
    earned = float(right and not missing)
    for metric in task.metrics[:1]:
        if metric in ("acc", "mcc"):
            values["acc"] = earned
        elif metric.startswith("rouge"):
            values |= {"rouge1": 0.2 + 0.5 * earned + 0.01 * (i % 7)}
        elif metric == "judge":
            values |= {} if task.judge == "rating" else {"em": earned}
        else:
            values[metric] = earned
    if task.answer == "entities":
        values["spans"] = [int(earned), 1, 1]
    wrong = row["choices"][row["gold"] - 1] if row["choices"] else "other"
    prediction = None if missing else row["answer"] if right else wrong
    if mode == "loglikelihood":
        resps = [[[-1.5 - k, None]] for k in range(len(row["choices"]))]
        values.pop("missing")
    else:
        resps = [[f"The <i>{say}</i>: {prediction}"]]
    made = ask.sample(row, [[row["query"]]], resps, [prediction], prediction, values)
    return made | {"doc_id": i, "truncated": False, "finish": "stop"}


def write_evaluation(folder, skills, n=40, asked=None, scorer="own", skipped=None, missing=0):
    """An evaluation directory: of every task the first skill * n rows are right, the last
    `missing` of them have no answer."""
    folder.mkdir(parents=True)
    result = {"init_from": f"ck/{folder.name}", "unit": "points", "tokenizer_sha": "f" * 64,
              "limit": 0, "dtype": "torch.bfloat16", "scorer": scorer, "tasks": {},
              "skipped": skipped or {}}  # fmt: skip
    for name, skill in skills.items():
        task, rng = TASKS[name], np.random.default_rng(list(name.encode()))
        order = rng.permutation(n)  # the better a checkpoint, the more of the same rows are right
        samples = [sample_of(name, i, order[i] < skill * n, order[i] >= n - missing, task.mode)
                   for i in range(n)]  # fmt: skip
        summary = evaluate.summary(name, samples, evaluate.SCORERS[scorer])
        way = {"mode": task.mode, "style": task.style, "fewshot": 0, "chat_template_sha": "c",
               "scorer": scorer, "judge": None} | (asked or {}).get(name, {})  # fmt: skip
        result["tasks"][name] = {"title": task.title, "asked": way, "data_sha": "d" * 64,
                                 "rows": {"in": n + 2, "used": n, "left_out": {"gold": 2}},
                                 **summary}  # fmt: skip
        write_rows(folder / f"samples_{name}.jsonl", samples)
    (folder / "results.json").write_text(json.dumps(result))
    (folder / "environment.json").write_text('{"command": ["evaluate.py"], "git_commit": "abc"}')
    return folder


BASE = {"fpb": 0.4, "arc": 0.5, "cfa_easy": 0.3, "polish": 0.9, "edtsum": 0.5}
BETTER = {"fpb": 0.9, "arc": 0.5, "cfa_easy": 0.1, "polish": 0.95, "edtsum": 0.5}


def change_result(folder, change):
    result = json.loads((folder / "results.json").read_text())
    change(result)
    (folder / "results.json").write_text(json.dumps(result))


def made(out, **folders):
    words = [f"{name}={folder}" for name, folder in folders.items()]
    scoreboard.main([*words, "--out_dir", str(out / "board")])
    return json.loads((out / "board" / "board.json").read_text())


@pytest.fixture
def pair(tmp_path):
    return {"base": write_evaluation(tmp_path / "a", BASE),
            "better": write_evaluation(tmp_path / "b", BETTER)}  # fmt: skip


def test_scores_are_those_of_the_evaluation(pair, tmp_path):
    board = made(tmp_path, **pair)
    for checkpoint, folder in pair.items():
        logged = json.loads((folder / "results.json").read_text())["tasks"]
        for name, entry in board["tasks"].items():
            cell = entry["scores"][checkpoint]
            assert [cell[k] for k in ("score", "low", "high", "n")] == pytest.approx(
                [logged[name][k] for k in ("score", "low", "high", "n")]
            )
            assert entry["metric"] == logged[name]["metric"]
    assert board["tasks"]["polish"]["metric"] == "mcc"
    assert board["notes"] == ["no mean of instruction following: 0 of 1 tasks"]


def test_differences_are_those_of_compare_and_run_from_the_first_checkpoint(pair, tmp_path):
    board = made(tmp_path, **pair)
    for name, entry in board["tasks"].items():
        assert entry["differences"] == {"better": difference(*pair.values(), name)[0]}
    assert board["tasks"]["fpb"]["differences"]["better"]["low"] > 0
    assert board["tasks"]["cfa_easy"]["differences"]["better"]["high"] < 0
    assert board["tasks"]["arc"]["differences"]["better"]["difference"] == 0


def test_a_mean_weighs_tasks_equally_and_says_how_many_of_how_many(pair, tmp_path):
    board = made(tmp_path, **pair)
    means, tasks = board["means"], board["tasks"]
    assert {view: (set(m["tasks"]), m["of"]) for view, m in means.items()} == {
        "concepts": ({"arc"}, 4), "tasks": ({"fpb", "polish", "edtsum"}, 22),
        "reasoning": ({"cfa_easy"}, 8), "similar": ({"fpb", "edtsum"}, 5),
        "novel": ({"arc", "cfa_easy", "polish"}, 30), "all tasks": (set(BASE), 35),
    }  # fmt: skip
    for view in means.values():
        for checkpoint in pair:
            scores = [tasks[name]["scores"][checkpoint]["score"] for name in view["tasks"]]
            cell = view["scores"][checkpoint]
            assert cell["score"] == pytest.approx(np.mean(scores), abs=1e-3)
            assert cell["low"] < cell["score"] < cell["high"]
            assert cell["n"] == 40 * len(scores)
    # A mean of several tasks is surer than one of them
    width = {v: m["scores"]["base"]["high"] - m["scores"]["base"]["low"] for v, m in means.items()}
    assert width["all tasks"] < width["reasoning"] * 0.8


def test_what_one_checkpoint_lacks_is_outside_the_means_with_its_reason(tmp_path):
    scores = dict.fromkeys(("fpb", "arc", "mt_bench"), 0.5)
    skipped = {"ner": "no out/data/ner.jsonl. Get it"}
    base = write_evaluation(tmp_path / "a", scores | {"german": 0.5}, skipped=skipped)
    other = write_evaluation(tmp_path / "b", scores, skipped=skipped)
    board = made(tmp_path, base=base, other=other)
    assert set(board["tasks"]) == {"fpb", "arc"} and board["means"]["all tasks"]["of"] == 35
    outside = board["outside"]
    assert set(outside) == set(FINEVAL) - {"fpb", "arc"}
    assert outside["ner"] == "no out/data/ner.jsonl. Get it"
    assert outside["german"] == "other: was not asked"
    assert "not judged yet" in outside["mt_bench"] and outside["taiwan"] == "was not asked"
    page = (tmp_path / "board" / "board.html").read_text()
    part = page[page.index("<h2>Outside the means") : page.index("<h2>What the scores hide")]
    assert "<td>ner</td>" in part and "other: was not asked" in part and "<td>fpb" not in part


def test_scores_in_different_metrics_share_no_mean(pair, tmp_path):
    change_result(pair["better"], lambda r: r["tasks"]["fpb"].update(metric="weighted_f1"))
    board = made(tmp_path, **pair)
    assert board["outside"]["fpb"] == "scored by acc in base, weighted_f1 in better"
    assert "fpb" not in board["means"]["all tasks"]["tasks"]


def test_results_asked_differently_show_the_reason_in_place_of_a_difference(tmp_path):
    base = write_evaluation(tmp_path / "a", BASE)
    other = write_evaluation(tmp_path / "b", BETTER, asked={"fpb": {"bos": 0}})
    board = made(tmp_path, base=base, other=other)
    reason = board["tasks"]["fpb"]["differences"]["other"]["reason"]
    assert reason == f"bos is None in {base}, 0 in {other}"
    # Its score stays in the means of scores, and its difference in none
    assert "fpb" in board["means"]["tasks"]["tasks"]
    assert board["means"]["tasks"]["differences"]["other"]["tasks"] == ["edtsum", "polish"]
    assert any("fpb" in note for note in board["notes"])
    page = (tmp_path / "board" / "board.html").read_text()
    assert f'<td class="why">not compared: {reason}</td>' in page and "over 2 tasks" in page


def test_means_without_a_comparable_task_have_no_difference(tmp_path):
    other = {name: {"bos": 0} for name in BASE}
    folders = {"a": write_evaluation(tmp_path / "a", BASE),
               "b": write_evaluation(tmp_path / "b", BETTER, asked=other)}  # fmt: skip
    for view in made(tmp_path, **folders)["means"].values():
        assert view["differences"]["b"] == {"reason": "no task was asked in the same way"}


def test_mcc_and_balanced_accuracy_stand_beside_every_classification_score(pair, tmp_path):
    board = made(tmp_path, **pair)
    found = board["tasks"]["fpb"]["scores"]["better"]["metrics"]
    mcc, balanced = (f"{found[metric]['score']:.1f}" for metric in ("mcc", "balanced_acc"))
    assert 0 < float(mcc) < float(balanced) < 100
    page = (tmp_path / "board" / "board.html").read_text()
    assert f"<br><small>mcc {mcc}, balanced {balanced}</small></td>" in page
    # One column of them per score: fpb's two, and polish, whose score is its mcc
    assert page.count("<br><small>mcc ") == 2 and page.count("<br><small>balanced ") == 2


def test_every_metric_is_shown_with_what_the_majority_scores(pair, tmp_path):
    board = made(tmp_path, **pair)
    baseline = f"{board['tasks']['polish']['baseline']['acc']:.1f}"
    rows = {(name, metric): cells for name, metric, *cells in metric_rows(board)}
    assert rows["polish", "acc"][0] == baseline == "75.0" and rows["polish", "mcc"][0] == "0.0"
    assert [name for name, _ in rows if name == "fpb"] == ["fpb"] * 5
    assert next(iter(rows)) == ("arc", "acc") and ("edtsum", "rouge1") in rows
    assert not any(metric == "missing" for _, metric in rows)
    cells = " | ".join(rows["polish", "acc"])
    assert f"| polish | acc | {cells} |" in (tmp_path / "board" / "board.md").read_text()
    assert (
        '<td>polish</td><td class="left">acc</td><td>75.0</td>'
        in (tmp_path / "board" / "board.html").read_text()
    )


def test_only_intervals_that_exclude_0_are_coloured():
    found = {"difference": 1.0, "low": 0.0, "high": 2.0}
    assert direction(found) == "none" and changed(found) == "+1.0 [+0.0, +2.0]"
    assert direction(found | {"low": -1.0}) == "none"
    assert direction(found | {"low": 0.1}) == "up"
    assert direction({"difference": -1.0, "low": -2.0, "high": -0.1}) == "down"


def test_the_papers_columns_say_where_metric_or_way_is_another(tmp_path):
    skills = dict.fromkeys(("fpb", "arc", "tatqa", "german"), 0.5)
    board = made(tmp_path, one=write_evaluation(tmp_path / "a", skills))
    other = {name: entry["paper"]["other"] for name, entry in board["tasks"].items()}
    assert other == {"fpb": [], "arc": ["way"], "tatqa": ["metric"], "german": []}
    assert board["tasks"]["fpb"]["paper"]["llama_fin"] == 91.13
    for name in ("board.html", "board.md"):
        shown = (tmp_path / "board" / name).read_text()
        assert "prompts, splits and ways of asking differ" in shown
        assert "another metric" in shown and "another way" in shown


def test_many_replies_without_an_answer_are_highlighted(tmp_path, capsys):
    folders = {"few": write_evaluation(tmp_path / "a", {"fpb": 0.5}, missing=4),
               "many": write_evaluation(tmp_path / "b", {"fpb": 0.5}, missing=5)}  # fmt: skip
    made(tmp_path, **folders)
    page = (tmp_path / "board" / "board.html").read_text()
    assert "<td>10.0% / 0 / 0</td>" in page and '<td class="bad">12.5% / 0 / 0</td>' in page
    shown = capsys.readouterr().out
    assert "warning: many: replies without an answer: fpb 12.5%" in shown
    assert "warning: few" not in shown


def test_rows_left_out_and_cut_prompts_are_shown(tmp_path):
    folder = write_evaluation(tmp_path / "a", {"fpb": 0.5})
    change_result(folder, lambda r: r["tasks"]["fpb"].update(truncated=3, finish_length=7))
    made(tmp_path, one=folder)
    page = (tmp_path / "board" / "board.html").read_text()
    assert "<td>0.0% / 3 / 7</td>" in page and "2 by gold" in page


def test_the_page_stands_alone_and_shows_replies_as_text(pair, tmp_path):
    made(tmp_path, **{"<b>base</b>": pair["base"], "better": pair["better"]})
    page = (tmp_path / "board" / "board.html").read_text()
    assert page.startswith("<!doctype html>") and page.count("data:image/png;base64,") == 3
    assert "<script" not in page and "<i>reply" not in page and "<b>base" not in page
    assert "&lt;script&gt;" in page and "The &lt;i&gt;reply&lt;/i&gt;" in page
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert "ck/a" in page and "torch.bfloat16" in page and "python evaluate.py" in page
    for name in ("means", "tasks", "differences"):
        assert (tmp_path / "board" / "figures" / f"{name}.png").stat().st_size > 10_000


def test_examples_are_a_right_a_wrong_and_an_unanswered_reply_of_every_checkpoint(tmp_path):
    a = write_evaluation(tmp_path / "a", {"fpb": 1.0, "edtsum": 0.5})
    b = write_evaluation(tmp_path / "b", {"fpb": 0.5, "edtsum": 0.5}, missing=2)
    folders = {"a": a, "b": b}
    _, examples = scoreboard.collect(folders)
    found = examples["fpb"]
    assert set(found) == {"right", "wrong", "no answer"}
    assert found["right"]["a"]["acc"] == 1 and found["wrong"]["b"]["acc"] == 0
    assert found["wrong"]["b"]["prediction"] and found["no answer"]["b"]["prediction"] is None
    for samples in found.values():
        assert len({sample["doc"]["id"] for sample in samples.values()}) == 1
        assert list(samples) == ["a", "b"]
    silent = write_evaluation(tmp_path / "c", {"fpb": 0.5}, missing=40)
    assert set(scoreboard.collect({"c": silent})[1]["fpb"]) == {"no answer"}
    graded = examples["edtsum"]
    assert set(graded) == {"best", "worst", "no answer"}
    assert graded["best"]["a"]["rouge1"] > graded["worst"]["a"]["rouge1"]


def test_scores_that_the_samples_do_not_give_are_noted(pair, tmp_path):
    change_result(pair["base"], lambda r: r["tasks"]["fpb"].update(score=99.0))
    board = made(tmp_path, **pair)
    assert board["tasks"]["fpb"]["scores"]["base"]["score"] == pytest.approx(40)
    assert any("says 99.00, its samples give 40.00" in note for note in board["notes"])


def test_scores_come_from_the_scorer_of_the_evaluation(tmp_path, monkeypatch):
    def always_right(task, samples):
        return {"mcc": (scorers.mean_statistics([1] * len(samples)), scorers.mean_score)}

    monkeypatch.setattr(pixiu, "measures", always_right)
    folder = write_evaluation(tmp_path / "pixiu", {"polish": 0.6}, scorer="pixiu")
    assert made(tmp_path, x=folder)["tasks"]["polish"]["scores"]["x"]["score"] == 100


@pytest.mark.parametrize("key, way", [("mode", "loglikelihood"), ("style", "cot"), ("fewshot", 5)])
def test_tasks_asked_in_another_way_are_in_no_mean(tmp_path, key, way):
    base = write_evaluation(tmp_path / "a", BASE)
    other = write_evaluation(tmp_path / "b", BETTER, asked={"fpb": {key: way}})
    board = made(tmp_path, base=base, other=other)
    assert "fpb" not in board["tasks"] and f"{key} is " in board["outside"]["fpb"]
    assert all("fpb" not in view["tasks"] for view in board["means"].values())


def test_samples_without_the_logged_metric_are_refused(pair, tmp_path):
    change_result(pair["base"], lambda r: r["tasks"]["fpb"].update(metric="rouge1"))
    change_result(pair["better"], lambda r: r["tasks"]["fpb"].update(metric="rouge1"))
    with pytest.raises(UserError, match="samples_fpb.jsonl: metrics: no rouge1"):
        made(tmp_path, **pair)


def test_other_numbers_of_rows_are_noted_and_only_shared_rows_compared(tmp_path):
    folders = {"a": write_evaluation(tmp_path / "a", {"arc": 0.5}),
               "b": write_evaluation(tmp_path / "b", {"arc": 0.5}, n=20)}  # fmt: skip
    board = made(tmp_path, **folders)
    assert board["notes"][0] == "arc: different numbers of rows: 40 in a, 20 in b"
    assert board["tasks"]["arc"]["differences"]["b"]["n"] == 20


def test_one_checkpoint_or_ten_make_a_board(tmp_path):
    folder = write_evaluation(tmp_path / "a", {"fpb": 0.5, "arc": 0.7})
    board = made(tmp_path, only=folder)
    assert all(entry["differences"] == {} for entry in board["tasks"].values())
    assert (tmp_path / "board" / "board.html").read_text().count("<figure>") == 2
    board = made(tmp_path, **{f"c{i}": folder for i in range(10)})
    assert len(board["means"]["all tasks"]["differences"]) == 9


def test_the_sample_world_is_a_suite_of_its_own(tmp_path):
    folder = write_evaluation(tmp_path / "a", {"concepts": 0.5, "general": 0.5, "reasoning_dev": 1})
    board = made(tmp_path, one=folder)
    assert board["suite"] == "sample world" and board["means"]["all tasks"]["of"] == 5
    assert set(board["tasks"]) == {"concepts", "general"}
    assert board["outside"]["reasoning_dev"] == "is not of the sample world's suite"


def test_the_terminal_gets_a_compact_table(pair, tmp_path, capsys):
    made(tmp_path, **pair)
    shown = capsys.readouterr().out
    assert re.search(r"^all tasks, 5 of 35 tasks +200 +mean +\d", shown, re.M)
    assert re.search(r"^fpb +40 +acc +40\.0 \[.*90\.0 \[.*\+50\.0 \[", shown, re.M)
    assert "note: outside the means: mmlu, " in shown
    shown = (tmp_path / "board" / "board.md").read_text()
    assert "| fpb | 40 | acc | direct, 0-shot |" in shown and "| ner | was not asked |" in shown


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "no NAME=DIR"),
        (["{a}"], "is not NAME=DIR"),
        (["={a}"], "is not NAME=DIR"),
        (["x={a}/none"], "no results.json in .*none"),
        (["x={a}", "x={b}"], "x names .* already"),
        (["x={a}", "y={b}", "--out", "z"], "out"),
        (["x={a}", "y={c}"], "no task in common that has a score"),
    ],
)
def test_bad_words_are_one_line(pair, tmp_path, words, message):
    write_evaluation(tmp_path / "c", {"german": 0.5})
    words = [word.format(a=pair["base"], b=pair["better"], c=tmp_path / "c") for word in words]
    with pytest.raises(UserError, match=message) as found:
        scoreboard.main([*words, "--out_dir", str(tmp_path / "board")])
    assert "\n" not in str(found.value) and not (tmp_path / "board").exists()
