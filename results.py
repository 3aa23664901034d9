"""What evaluate.py leaves behind, read again: differences between checkpoints, row by row.

    DIR/results.json         scores, intervals, and how every task was asked
    DIR/samples_TASK.jsonl   one line per row, in lm-evaluation-harness's names

Two results are compared on the rows they share, and only if those were asked in the same way.
Everything is in points: 0 to 100, differences too.
"""

from pathlib import Path

import numpy as np

import scorers
from answers import measures
from config import UserError, read_json
from jsonl import check_fields, read_jsonl
from tasks import TASKS


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
    return {sample["doc"]["id"]: sample for _, sample in read_jsonl(path, fields)}


def paired(a, b, name):
    """The samples of two directories on the rows they share: ([sample], [sample]).

    UserError if they were asked differently: such scores say nothing about the checkpoints.
    """
    asked = [read_result(folder)["tasks"].get(name) for folder in (a, b)]
    for folder, entry in zip((a, b), asked, strict=True):
        if entry is None:
            raise UserError(f"{folder}/results.json: tasks: no {name}")
    for key, value in asked[0]["asked"].items():
        other = asked[1]["asked"].get(key)
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

    Returns {difference, low, high, n} and (score of A, score of B) in points, and the resampled
    differences (R,) as fractions.
    """
    task = TASKS[name]
    sides = paired(a, b, name)
    scores, draws = [], []
    for samples in sides:
        statistics, score = measures(task, samples)[metric or task.metrics[0]]
        scores.append(scorers.point(statistics, score))
        draws.append(scorers.resample(statistics, score, seed=name))
    draws = draws[1] - draws[0]
    found = points(scores[1] - scores[0], *scorers.interval(draws))
    found = {"difference": found.pop("score"), **found, "n": len(sides[0])}
    return found, [round(100 * score, 4) for score in scores], draws


def compare(a, b):
    """Print B - A for every task that the two directories share, and the mean over the tasks."""
    tasks = [read_result(folder)["tasks"] for folder in (a, b)]
    shared = [name for name in tasks[0] if name in tasks[1] and name in TASKS]
    if not shared:
        raise UserError(f"{a} and {b} have no task in common")
    rows = [(name, *difference(a, b, name)) for name in shared]
    line = "{:<24}{:<9}{:>8}{:>8}{:>8}{:>17}{:>7}"
    print(f"A = {a}\nB = {b}\n")
    print(line.format("task", "metric", "A", "B", "B - A", "95% paired", "n"))
    for name, found, scores, _ in rows:
        metric, shown = TASKS[name].metrics[0], [f"{score:.1f}" for score in scores]
        change, low, high = (f"{found[key]:+.1f}" for key in ("difference", "low", "high"))
        print(line.format(name, metric, *shown, change, f"[{low}, {high}]", found["n"]))
    if len(rows) > 1:
        mean = np.mean([found["difference"] for _, found, _, _ in rows])
        low, high = scorers.interval(100 * np.mean([draws for *_, draws in rows], axis=0))
        interval = f"[{low:+.1f}, {high:+.1f}]"
        print(line.format("mean of the tasks", "", "", "", f"{mean:+.1f}", interval, ""))
