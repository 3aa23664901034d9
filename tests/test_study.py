"""The study: what its intervals decide, that no arm is missing, and its pages."""

import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from tiny import write_rows

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))  # its scripts import each other

import study  # noqa: E402
import study_rows  # noqa: E402
from study_rows import ARMS, CEILING, METRICS, ROWS, STAGES, Row  # noqa: E402

from config import UserError  # noqa: E402

# ---- statistics ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 5, 10, 14])
def test_the_interval_is_students(n):
    values = list(np.random.default_rng(n).normal(3, 2, n))
    found, middle = study.mean(values), np.mean(values)
    half = stats.t.ppf(0.975, n - 1) * stats.sem(values)
    assert found["seeds"] == n and found["mean"] == pytest.approx(middle)
    # Beyond ten seeds the quantile is an approximation
    near = {"rel": 1e-3} if n <= 10 else {"rel": 0.01}
    assert found["high"] - middle == pytest.approx(half, **near)
    assert middle - found["low"] == pytest.approx(half, **near)


def test_one_seed_has_no_interval():
    assert study.mean([4.0]) == {"mean": 4.0, "low": None, "high": None, "seeds": 1}


UNCLEAR = "not decidable at this size"


@pytest.mark.parametrize(
    "claim, low, high, ceiling, wanted",
    [
        ("higher", 0.5, 3, False, "reproduced"),
        ("higher", 0.1, 0.9, True, "reproduced"),
        ("higher", -3, -0.5, False, "not reproduced"),  # the other side
        ("higher", -1, 1.5, False, "not reproduced"),  # none worth the name
        ("higher", -1, 1.5, True, UNCLEAR),  # at the ceiling no method can show more
        ("higher", -3, -0.5, True, UNCLEAR),
        ("higher", -1, 4, False, UNCLEAR),
        ("lower", -3, -0.5, False, "reproduced"),
        ("lower", 0.5, 3, False, "not reproduced"),
        ("lower", -1.9, 1.9, False, "not reproduced"),
        ("lower", -4, 1, False, UNCLEAR),
        ("same", -1, 1.9, False, "reproduced"),
        ("same", 0.5, 1.9, False, "reproduced"),
        ("same", 0.5, 3, False, "not reproduced"),
        ("same", -3, -0.5, False, "not reproduced"),
        ("same", -3, 1, False, UNCLEAR),
        ("", -1, 1.9, False, "no difference"),
        ("", 0.5, 3, False, "higher"),
        ("", -3, -0.5, False, "lower"),
        ("", -3, 1, False, UNCLEAR),
    ],
)
def test_verdicts(claim, low, high, ceiling, wanted):
    row = Row("group", "finding", "paper", "both", "policy", "exam", claim)
    found = {"low": low, "high": high, "seeds": 5}
    assert study.verdict(row, found, ceiling) == wanted
    few = study.verdict(row, found | {"seeds": 4}, ceiling)
    assert few == "not decidable: fewer than 5 seeds"


def test_nats_have_a_margin_of_their_own():
    row = Row("group", "finding", "paper", "both", "policy", "loss general text", "same")
    assert study.verdict(row, {"low": -0.01, "high": 0.02, "seeds": 5}, False) == "reproduced"
    assert study.verdict(row, {"low": 0.5, "high": 0.6, "seeds": 5}, False) == "not reproduced"


def seeds(*values, first=0):
    return {f"seed{first + i}": value for i, value in enumerate(values)}


def test_a_row_is_paired_by_seed():
    row = Row("group", "finding", "paper", "both", "policy", "exam")
    values = {"both": {"exam": seeds(90.0, 80.0, 70.0)},
              "policy": {"exam": seeds(70.0, 60.0, 50.0, first=1)}}  # fmt: skip
    found = study.decided(row, values)
    assert found["each_seed"] == {"seed1": 10.0, "seed2": 10.0}  # 0 and 3 have one side only
    assert (found["difference"], found["low"], found["high"], found["seeds"]) == (10, 10, 10, 2)
    assert (found["mean_a"], found["mean_b"]) == (75, 65)
    assert study.decided(row, {"both": values["both"]}) is None


@pytest.mark.parametrize("score, ceiling", [(CEILING, True), (CEILING - 0.1, False)])
def test_a_ceiling_is_both_checkpoints_in_every_seed(score, ceiling):
    row = Row("group", "finding", "paper", "both", "policy", "exam", "higher")
    values = {"both": {"exam": seeds(*[100.0] * 5)}, "policy": {"exam": seeds(*[100.0] * 4, score)}}
    # A seed that is not compared says nothing
    values["policy"]["exam"]["seed9"] = 0.0
    assert study.decided(row, values)["ceiling"] == ceiling


def test_gains_are_over_what_an_arm_is_aligned_from():
    exams = {"policy": 60.0, "both": 90.0, "mistaken": 20.0, "mistaken_sft": 50.0}
    values = {arm: {"exam": seeds(x, x), "process": seeds(x, x)} for arm, x in exams.items()}
    found = study.gains(values)
    assert {arm: rows["exam"]["mean"] for arm, rows in found.items()} == {
        "both": 30, "mistaken_sft": 30
    }  # fmt: skip


# ---- rows and recipe -----------------------------------------------------------------------------


def test_every_name_in_a_row_is_explained():
    for row in ROWS:
        assert {row.a, row.b} <= set(ARMS) and row.a != row.b, row
        assert row.metric in METRICS and row.claim in ("higher", "lower", "same", ""), row
        assert bool(row.claim) != row.paper.startswith("open"), row
    assert set(STAGES) <= set(ARMS)
    assert {unit for _, unit in METRICS.values()} == set(study_rows.MARGIN)


def test_the_recipe_makes_every_arm(tmp_path):
    """The recipe's own functions run, and only `once`, which starts programs, does nothing."""
    script = (ROOT / "recipes" / "study.sh").read_text(encoding="utf-8")
    functions = script[script.index("once() {") : script.index('if [ "${1:-}" = --one ]')]
    nothing = 'once() { echo "$2"; }\nhead() { :; }'
    script = f"set -euo pipefail\n{functions}\n{nothing}\nprepared; stages; alignment"
    for world in ("data", "mistaken_data"):
        (tmp_path / "seed0" / world).mkdir(parents=True)
    values = {"out": str(tmp_path), "seed": "0", "judge_url": "http://nowhere"}
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, env=os.environ | values,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    scored = re.findall(r"/seed0/losses_(\S+)\.json", done.stdout)
    assert len(scored) == len(set(scored)) and set(scored) == set(ARMS)
    asked = {arm for row in ROWS if row.metric == "sampled" for arm in (row.a, row.b)}
    assert asked <= set(re.findall(r"/sampled_(\S+)/sampled", done.stdout)) <= set(ARMS)


# ---- the pages -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """What five seeds leave, with made-up scores."""
    out, rng = tmp_path_factory.mktemp("study"), np.random.default_rng(0)
    for number in range(5):
        folder = out / f"seed{number}"
        for arm in ARMS:
            evaluation = folder / f"eval_{arm}"
            evaluation.mkdir(parents=True)
            names = {name: {"acc": {"score": rng.uniform(20, 90)}} for name in study.TASKS.values()}
            names["reasoning"]["process"] = {"score": rng.uniform(20, 90)}
            tasks = {name: {"metrics": metrics} for name, metrics in names.items()}
            (evaluation / "results.json").write_text(json.dumps({"tasks": tasks}))
            write_rows(evaluation / "samples_concepts.jsonl", [
                {"doc": {"id": f"founded-{i:04d}"}, "prompt_hash": "a", "target_hash": "b",
                 "metrics": ["acc"], "acc": float(i >= 10)} for i in range(20)
            ])  # fmt: skip
            (folder / f"sampled_{arm}").mkdir()
            write_rows(folder / f"sampled_{arm}" / "trajectories.jsonl",
                       [{"correct": i < number} for i in range(10)])  # fmt: skip
            names = [m for m in METRICS if m.startswith("loss")]
            found = {m.replace("loss", "heldout").replace(" ", "_"): rng.uniform() for m in names}
            (folder / f"losses_{arm}.json").write_text(json.dumps(found | {"cloze_text": 90.0}))
        for arm in ("fap", "both"):
            (folder / arm).mkdir()
            write_rows(folder / arm / "metrics.jsonl", [
                {"step": i} | {name: -0.01 * i * len(name) for name in study.CURVES}
                for i in range(100 + number)
            ])  # fmt: skip
        (folder / "reward").mkdir()
        write_rows(folder / "reward" / "both.jsonl", [{}] * (30 + number))
        write_rows(folder / "times.jsonl", [{"stage": "cpt", "seconds": 90.0}])
    real = {"finding": "Real finding", "metric": "all tasks", "difference": -1.0, "low": -2.0,
            "high": 0.5, "n": 1234, "seeds": 1, "verdict": "not decided: one seed"}  # fmt: skip
    (out / "smollm2_study.json").write_text(json.dumps({"rows": [real], "about": "Two *arms*."}))
    return out


def written(out):
    study.main(study.Config(str(out)))
    paths = [out / "study.json", out / "STUDY.md", out / "study.html", *out.glob("study/*.png")]
    return {path.name: path.read_bytes() for path in paths}


def test_a_second_run_gives_the_same_bytes_and_pages_that_say_it_all(out):
    first = written(out)
    assert written(out) == first
    result = json.loads(first["study.json"])
    assert len(result["rows"]) == len(ROWS)
    assert {row["seeds"] for row in result["rows"]} == {5}
    assert result["scores"]["both"]["read"]["mean"] == 100  # the second half of the facts
    assert result["scores"]["both"]["knows"]["mean"] == 90
    assert result["each_seed"]["both"]["sampled"] == {f"seed{i}": 10.0 * i for i in range(5)}
    assert len(result["curves"]["fap"]["step"]) == study.POINTS and not result["curves"]["scp"]
    assert result["pairs"] == {"both": [30, 31, 32, 33, 34]}
    assert all(len(content) < 120_000 for name, content in first.items() if name.endswith("png"))
    markdown, page = first["STUDY.md"].decode(), first["study.html"].decode()
    for row in result["rows"]:
        assert row["finding"] in markdown and html.escape(row["finding"]) in page
        assert not row["why"] or row["why"] in markdown
    assert "Real finding" in markdown and "Real finding" in page
    for picture in re.findall(r"\]\((study/\S+\.png)\)", markdown):
        assert (out / picture).exists()
    assert len(re.findall(r"\]\(study/", markdown)) == len(list(out.glob("study/*.png")))
    assert "<script" not in page and 'src="http' not in page


def test_pictures_are_left_out_while_their_arms_are_missing(out, tmp_path):
    for arm in ("base", "text"):
        for number in (0, 1):
            seed = tmp_path / f"seed{number}"
            seed.mkdir(exist_ok=True)
            for name in (f"eval_{arm}", f"losses_{arm}.json", "times.jsonl"):
                if not (seed / name).exists():
                    (seed / name).symlink_to(out / f"seed{number}" / name)
    names = set(written(tmp_path))
    assert "profile.png" in names and not names & {"rewards.png", "gains.png", "rejected.png"}
    assert "not decidable: fewer than 5 seeds" in (tmp_path / "STUDY.md").read_text()


def test_without_seeds_one_line_says_what_to_run(tmp_path):
    (tmp_path / "seed0").mkdir()
    with pytest.raises(UserError, match="holds no seed.*; run recipes/study.sh first"):
        study.main(study.Config(str(tmp_path)))
