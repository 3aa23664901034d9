"""The findings of recipes/smollm2_study.sh: differences of checkpoints of a real model.

    python benchmarks/smollm2_study.py --out_dir out/smollm2_study

A row is a claim of the paper about two arms and a metric: the mean over the tasks of a kind that
both have a score for, or the share of held-out exercises whose answer a rule finds right. With one
seed its interval is a paired bootstrap over the questions: it says what other questions would give,
not what another seed would, so it decides nothing. With several it is Student's t over the seeds.
Writes OUT/smollm2.json and OUT/smollm2.md.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for scripts
import parallel
import scorers
from benchmarks.over_seeds import FEWEST, mean
from config import UserError, parse, read_json
from jsonl import write_text
from logs import read_trajectories
from metrics import git_commit
from results import difference, mean_difference, points, read_result
from tasks import TASKS

MARGIN = 2.0  # points: a difference within is none
EXERCISES = "held-out exercises"
METRICS = {  # which tasks a mean is over
    "similar tasks": lambda task: task.novelty == "similar",
    "novel finance tasks": lambda task: task.novelty == "novel" and task.kind == "domain",
    "concepts": lambda task: task.capability == "concepts",
    "general knowledge and reasoning": lambda task: task.kind in ("general", "reasoning"),
    "all tasks": lambda task: True,
}


class Row(NamedTuple):
    finding: str
    b: str  # B - A
    a: str
    metric: str
    claim: str  # of the paper about B - A: higher, lower, same


ROWS = [
    Row("CPT alone does not help: instructions are forgotten", "cpt", "base", "all tasks", "lower"),
    Row("IT alone raises similar tasks", "it", "base", "similar tasks", "higher"),
    Row("IT alone leaves novel concepts where they were", "it", "base", "concepts", "same"),
    Row("Joint CPT + IT raises similar tasks", "joint", "base", "similar tasks", "higher"),
    Row("Joint CPT + IT raises novel tasks", "joint", "base", "novel finance tasks", "higher"),
    Row("Joint CPT + IT keeps general knowledge", "joint", "base",
        "general knowledge and reasoning", "same"),
    Row("Joint beats IT alone on novel tasks", "joint", "it", "novel finance tasks", "higher"),
    Row("Joint beats IT alone on concepts", "joint", "it", "concepts", "higher"),
    Row("Joint beats CPT then IT: similar", "joint", "cpt_then_it", "similar tasks", "higher"),
    Row("Joint beats CPT then IT: novel", "joint", "cpt_then_it", "novel finance tasks", "higher"),
    Row("Joint beats CPT then IT: general", "joint", "cpt_then_it",
        "general knowledge and reasoning", "higher"),
    Row("CPT + IT alone leaves exercises where they were", "joint", "base", EXERCISES, "same"),
    Row("Alignment brings the gain in exercises", "aligned", "joint", EXERCISES, "higher"),
    Row("Alignment keeps similar tasks", "aligned", "joint", "similar tasks", "same"),
    Row("Alignment keeps novel tasks", "aligned", "joint", "novel finance tasks", "same"),
    Row("Alignment keeps general knowledge", "aligned", "joint",
        "general knowledge and reasoning", "same"),
]  # fmt: skip
ARMS = ("base", "cpt", "it", "cpt_then_it", "joint", "aligned")


@dataclass
class Config:
    out_dir: str = "out/smollm2_study"  # of recipes/smollm2_study.sh


def place(seed, arm, what):
    """The folder of an arm's evaluation; the base is evaluated once, for all seeds."""
    return (seed.parent if arm == "base" else seed) / f"{what}_{arm}"


def finished(seed, arm):
    return (place(seed, arm, "eval") / "done").exists()


def scored(seed, arm, metric):
    """{task or set of exercises: score in points} of an arm."""
    if metric == EXERCISES:
        marks = {path.parent.name: right(path) for path in held(seed, arm)}
        return {name: 100 * float(np.mean([*found.values()])) for name, found in marks.items()}
    tasks = read_result(place(seed, arm, "eval"))["tasks"]
    return {name: entry["score"] for name, entry in tasks.items()
            if METRICS[metric](TASKS[name]) and entry.get("score") is not None}  # fmt: skip


def held(seed, arm):
    return sorted(place(seed, arm, "held").glob("*/trajectories.jsonl"))


def right(path):
    """{exercise: is its answer right?}"""
    return {name: bool(found["correct"]) for name, found in read_trajectories(path).items()}


def exercise_part(seed, a, b, name):
    """B - A on a set of exercises, as results.difference gives it of a task."""
    sides = [right(place(seed, arm, "held") / name / "trajectories.jsonl") for arm in (a, b)]
    shared = sorted(sides[0].keys() & sides[1].keys())
    marks = [scorers.mean_statistics([side[row] for row in shared]) for side in sides]
    scores = [scorers.point(mark, scorers.mean_score) for mark in marks]
    before, after = (scorers.resample(mark, scorers.mean_score, seed=name) for mark in marks)
    found = points(scores[1] - scores[0], *scorers.interval(after - before))
    found = {"difference": found.pop("score"), **found, "n": len(shared)}
    return found, scores, after - before


def compared(seed, row):
    """{difference, low, high, n} of a row in one seed; None where an arm or its tasks are not."""
    if not (finished(seed, row.a) and finished(seed, row.b)):
        return None
    shared = [name for name in scored(seed, row.a, row.metric)
              if name in scored(seed, row.b, row.metric)]  # fmt: skip
    if not shared:
        return None
    if row.metric == EXERCISES:
        parts = [exercise_part(seed, row.a, row.b, name) for name in shared]
    else:
        folders = place(seed, row.a, "eval"), place(seed, row.b, "eval")
        parts = [difference(*folders, name) for name in shared]
    return mean_difference(parts) | {"tasks": shared}


def verdict(claim, low, high, seeds):
    """What an interval over that many seeds decides."""
    if seeds < FEWEST:
        return "not decided: one seed" if seeds == 1 else f"not decided: {seeds} seeds"
    small = -MARGIN <= low and high <= MARGIN
    if claim == "same":
        if small:
            return "reproduced"
        return "not reproduced" if low > 0 or high < 0 else "not decidable at this size"
    if low > 0 if claim == "higher" else high < 0:
        return "reproduced"
    against = high < 0 if claim == "higher" else low > 0
    return "not reproduced" if against or small else "not decidable at this size"


def decided(row, seeds):
    """The record of a row over the seeds, or None if its arms are not there."""
    found = [result for seed in seeds if (result := compared(seed, row))]
    if not found:
        return None
    record = found[0]
    if len(found) > 1:
        over = mean([result["difference"] for result in found])
        record |= {"difference": over["mean"], "low": over["low"], "high": over["high"]}
    return {
        "finding": row.finding, "b": row.b, "a": row.a, "metric": row.metric, "claim": row.claim,
        **{key: round(record[key], 2) for key in ("difference", "low", "high")}, "n": record["n"],
        "seeds": len(found), "verdict": verdict(row.claim, record["low"], record["high"],
                                                len(found)), "tasks": record["tasks"],
    }  # fmt: skip


def means(seeds):
    """{arm: {metric: mean score over its tasks and the seeds}}, for the picture of each stage."""
    found = {}
    for arm in ARMS:
        for metric in (*METRICS, EXERCISES):
            scores = [list(scored(s, arm, metric).values()) for s in seeds if finished(s, arm)]
            if scores and all(scores):
                found.setdefault(arm, {})[metric] = round(float(np.mean(scores)), 2)
    return found


def markdown(result):
    seeds = max((row["seeds"] for row in result["rows"]), default=0)
    over = "the questions; one seed" if seeds == 1 else f"{seeds} seeds"
    lines = [f"Differences in points, 95% intervals over {over}.", ""]
    lines += ["| finding | arms | metric | difference | n | verdict |", "|---|---|---|---|---|---|"]
    for row in result["rows"]:
        change = f"{row['difference']:+.1f} [{row['low']:+.1f}, {row['high']:+.1f}]"
        lines.append(f"| {row['finding']} | {row['b']} − {row['a']} | {row['metric']} | "
                     f"{change.replace('-', '−')} | {row['n']:,} | {row['verdict']} |")  # fmt: skip
    columns = [m for m in (*METRICS, EXERCISES) if any(m in s for s in result["arms"].values())]
    lines += ["", f"| mean | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for arm, scores in result["arms"].items():
        cells = [f"{scores[m]:.1f}" if m in scores else "" for m in columns]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(cfg):
    out = Path(cfg.out_dir)
    seeds = sorted(out.glob("seed*"))
    if not seeds:
        raise UserError(f"{out}: holds no seed*; run recipes/smollm2_study.sh first")
    result = {
        "rows": [record for row in ROWS if (record := decided(row, seeds))],
        "arms": means(seeds),
        "dropped_from_training": {
            path.name.removesuffix(".counts.json"): read_json(path)["counts"]["dropped"]
            for path in sorted(out.glob("curated/*.counts.json"))
        },
        "commit": git_commit(),
    }
    text = markdown(result)
    write_text(out / "smollm2.json", json.dumps(result, indent=1) + "\n")
    write_text(out / "smollm2.md", text)
    print(f"\n{text}\n{out / 'smollm2.json'}")


if __name__ == "__main__":
    with parallel.clean_exit():
        main(parse(Config))
