"""What evaluate.py leaves behind, read again: differences between checkpoints, row by row.

    DIR/results.json         scores, intervals, and how every task was asked
    DIR/samples_TASK.jsonl   one line per row, in lm-evaluation-harness's names

Two results are compared on the rows they share, and only if those were asked in the same way.
Everything is in points: 0 to 100, differences too.
"""

from pathlib import Path

import numpy as np

import answers
import pixiu
import scorers
from config import UserError, read_json
from jsonl import check_fields, read_jsonl
from tasks import CAPABILITIES, TASKS


def points(score, low, high):
    """Fractions -> {"score", "low", "high"} in points."""
    names = ("score", "low", "high")
    return {k: round(100 * float(v), 4) for k, v in zip(names, (score, low, high), strict=True)}


def read_result(folder):
    """The results.json of an evaluation directory."""
    path = f"{folder}/results.json"
    result = read_json(path)
    check_fields(result, {"init_from": str, "tasks": dict}, path)
    for name, entry in result["tasks"].items():
        entry = entry if isinstance(entry, dict) else {}
        check_fields(entry, {"asked": dict}, f"{path}: tasks: {name}")
    return result


def read_samples(folder, name):
    """{row id: its line of samples_TASK.jsonl}."""
    fields = {"doc": dict, "prompt_hash": str, "target_hash": str, "metrics": list}
    path = Path(folder) / f"samples_{name}.jsonl"
    found = {}
    for line, sample in read_jsonl(path, fields):
        check_fields(sample["doc"], {"id": str}, f"{path}:{line}: doc")
        found[sample["doc"]["id"]] = sample
    return found


def scorer_of(result):
    """The module whose `measures` gave these scores."""
    return pixiu if result.get("scorer") == "pixiu" else answers


def paired(a, b, name):
    """The samples of two directories on the rows they share: ([sample], [sample]).

    UserError if they were asked differently: such scores say nothing about the checkpoints.
    """
    asked = [read_result(folder)["tasks"].get(name) for folder in (a, b)]
    for folder, entry in zip((a, b), asked, strict=True):
        if entry is None:
            raise UserError(f"{folder}/results.json: tasks: no {name}")
    for key in sorted(asked[0]["asked"].keys() | asked[1]["asked"].keys()):
        value, other = (entry["asked"].get(key) for entry in asked)
        if value != other:
            raise UserError(f"{name}: cannot be compared: {key} is {value} in {a}, {other} in {b}")
    left, right = read_samples(a, name), read_samples(b, name)
    shared = sorted(left.keys() & right.keys())
    if not shared:
        raise UserError(f"{name}: {a} and {b} have no row in common")
    for row in shared:
        for key in ("prompt_hash", "target_hash"):
            if left[row][key] != right[row][key]:
                raise UserError(f"{name}: cannot be compared: {key} of row {row} differs "
                                f"between {a} and {b}")  # fmt: skip
    return [left[row] for row in shared], [right[row] for row in shared]


def difference(a, b, name, metric=None):
    """B - A of a task on the same rows, with a paired bootstrap interval.

    metric: the one that is the task's score unless named. Returns {difference, low, high, n} and
    (score of A, score of B) in points, and the resampled differences (R,) as fractions.
    """
    task, result = TASKS[name], read_result(a)
    sides = paired(a, b, name)
    metric = metric or result["tasks"][name].get("metric") or task.metrics[0]
    marked = [[metric in sample["metrics"] for sample in samples] for samples in sides]
    if any(map(any, marked)):  # a value per row: only rows that have it on both sides are a pair
        both = [x and y for x, y in zip(*marked, strict=True)]
        sides = [[s for s, ok in zip(samples, both, strict=True) if ok] for samples in sides]
    scores, draws = [], []
    for folder, samples in zip((a, b), sides, strict=True):
        found = scorer_of(result).measures(task, samples)
        if metric not in found:
            raise UserError(f"{name}: cannot be compared: {folder} has no {metric}")
        statistics, score = found[metric]
        scores.append(scorers.point(statistics, score))
        draws.append(scorers.resample(statistics, score, seed=name))
    draws = draws[1] - draws[0]
    found = points(scores[1] - scores[0], *scorers.interval(draws))
    found = {"difference": found.pop("score"), **found, "n": len(sides[0])}
    return found, [round(100 * score, 4) for score in scores], draws


def mean_difference(parts):
    """{difference, low, high, n} of the mean of several tasks' differences, each as from
    `difference`. Tasks are drawn independently, so the mean of their draws has the right spread."""
    scores = np.mean([found["difference"] for found, _, _ in parts]) / 100
    found = points(scores, *scorers.interval(np.mean([draws for *_, draws in parts], axis=0)))
    n = sum(found["n"] for found, _, _ in parts)
    return {"difference": found.pop("score"), **found, "n": n}


def compare(a, b):
    """Print B - A for every task that the two directories share, the means over the tasks of a
    capability, and over all. A task without a score in either is named and left out."""
    tasks = [read_result(folder)["tasks"] for folder in (a, b)]
    shared = [name for name in tasks[0] if name in tasks[1] and name in TASKS]
    if not shared:
        raise UserError(f"{a} and {b} have no task in common")
    unscored = [n for n in shared if any(side[n].get("score", 0) is None for side in tasks)]
    parts = {name: difference(a, b, name) for name in shared if name not in unscored}
    line = "{:<26}{:<13}{:>8}{:>8}{:>8}{:>17}{:>7}"

    def row(title, metric, shown, found):
        change, low, high = (f"{found[key]:+.1f}" for key in ("difference", "low", "high"))
        print(line.format(title, metric, *shown, change, f"[{low}, {high}]", found["n"]))

    print(f"A = {a}\nB = {b}\n")
    print(line.format("task", "metric", "A", "B", "B - A", "95% paired", "n"))
    for name, (found, scores, _) in parts.items():
        metric = tasks[0][name].get("metric") or TASKS[name].metrics[0]
        row(name, metric, [f"{score:.1f}" for score in scores], found)
    for capability in CAPABILITIES:
        members = [part for name, part in parts.items() if TASKS[name].capability == capability]
        if 1 < len(members) < len(parts):
            row(f"{capability}, {len(members)} tasks", "mean", ["", ""], mean_difference(members))
    if len(parts) > 1:
        row(f"mean of the {len(parts)} tasks", "", ["", ""], mean_difference(parts.values()))
    for name in unscored:
        print(f"note: {name} is not judged yet and in no mean: python evaluate.py judge")
    for name in sorted(tasks[0].keys() ^ tasks[1].keys()):
        print(f"note: {name} is in one of the two only")


def main(words):
    """python evaluate.py compare DIR_A DIR_B"""
    if len(words) != 2:
        raise UserError("usage: python evaluate.py compare DIR_A DIR_B")
    compare(*words)
