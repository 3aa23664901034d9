"""Evaluations of any number of checkpoints -> one page: capabilities, tasks, differences, replies.

    python evaluate.py report base=out/eval_base tuned=out/eval_tuned --out_dir out/board

Reads the results.json and samples_TASK.jsonl of each directory, writes into --out_dir:

    board.json   means[VIEW], tasks[NAME], outside[NAME]: scores and differences in points
    board.html   everything to read, pictures inlined      board.md, figures/*.png

A mean holds the tasks that every checkpoint has a score for, in the same metric; all others stand
in `outside` with the reason. Differences are to the first checkpoint, on the same rows, and only
between results that were asked in the same way. Intervals are 95% bootstrap intervals over the
questions: they say what other questions would give, not what another training seed would.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import board_figures
import board_page
import board_text
import scorers
from config import UserError, parse
from jsonl import write_text
from paper import PAPER
from report import run_descriptions
from results import difference, mean_difference, points, read_result, read_samples, scorer_of
from tasks import CAPABILITIES, FINEVAL, TASKS, WORLD

USAGE = "python evaluate.py report NAME=DIR [NAME=DIR ...] --out_dir out/board"
WAYS = {"d": "direct", "c": "cot"}  # paper.py's letters
STALE = 0.01  # points between a logged score and the same samples scored again


@dataclass
class Config:
    out_dir: str = "out/board"  # gets board.html, board.md, board.json and figures/


# What there is -------------------------------------------------------------------------------


def split_words(words):
    """Command line -> ({checkpoint: evaluation directory} in order, Config)."""
    folders, flags, words = {}, [], list(words)
    while words:
        word = words.pop(0)
        if word.startswith("-"):
            flags.append(word)
            if "=" not in word and words:
                flags.append(words.pop(0))
            continue
        name, equals, folder = word.partition("=")
        if not (name and equals and folder):
            raise UserError(f"{word!r}: is not NAME=DIR; usage: {USAGE}")
        if name in folders:
            raise UserError(f"{word!r}: {name} names {folders[name]} already; take another name")
        if not (Path(folder) / "results.json").exists():
            raise UserError(f"{word!r}: no results.json in {folder}; run evaluate.py first")
        folders[name] = folder
    cfg = parse(Config, flags)
    if not folders:
        raise UserError(f"no NAME=DIR is given; usage: {USAGE}")
    return folders, cfg


def why_outside(name, results):
    """Why a task is in no mean, or None if every checkpoint has a score in the same metric."""
    reasons, metrics = {}, {}
    for checkpoint, result in results.items():
        entry = result["tasks"].get(name)
        if entry is None:
            reasons[checkpoint] = (result.get("skipped") or {}).get(name, "was not asked")
        elif entry.get("score") is None:
            reasons[checkpoint] = "is not judged yet: python evaluate.py judge --out_dir DIR"
        else:
            metrics[checkpoint] = entry["metric"]
    if len(reasons) == len(results) and len(set(reasons.values())) == 1:
        return next(iter(reasons.values()))
    if reasons:
        return "; ".join(f"{checkpoint}: {reason}" for checkpoint, reason in reasons.items())
    if len(set(metrics.values())) > 1:
        return "scored by " + ", ".join(f"{m} in {c}" for c, m in metrics.items())
    # Another template or BOS is another model's; these are other questions
    for key in ("mode", "style", "fewshot", "scorer", "judge"):
        ways = {c: result["tasks"][name]["asked"].get(key) for c, result in results.items()}
        if len(set(ways.values())) > 1:
            return f"asked in different ways: {key} is " + ", ".join(
                f"{way} in {c}" for c, way in ways.items()
            )
    return None


def way_of(entry):
    """How a task was asked, in words."""
    asked = entry["asked"]
    style = asked.get("style") or entry.get("style", "")
    if asked.get("mode") == "loglikelihood":
        style = "log-likelihood"
    return f"{style}, {asked.get('fewshot', 0)}-shot"


def beside_paper(name, entries):
    """The paper's figures for a task and in what they are of another kind; None without any."""
    if name not in PAPER:
        return None
    reference = PAPER[name]
    other = []
    if any(entry["metric"] != reference.metric for entry in entries):
        other.append("metric")
    styles = [e["asked"].get("style") or e.get("style") for e in entries]
    modes = [e["asked"].get("mode") for e in entries]
    if "loglikelihood" in modes or any(style != WAYS[reference.way] for style in styles):
        other.append("way")
    return reference._asdict() | {"way": WAYS[reference.way], "other": other}


# Numbers -------------------------------------------------------------------------------------


def task_entry(name, folders, results):
    """(entry of board.json, {checkpoint: draws (R,)}, {checkpoint: part of `mean_difference`},
    {checkpoint: {row id: sample}}) of a task that every checkpoint has a score for."""
    entries = {c: result["tasks"][name] for c, result in results.items()}
    logs = {c: read_samples(folder, name) for c, folder in folders.items()}
    metric = next(iter(entries.values()))["metric"]
    scores, draws, parts, differences = {}, {}, {}, {}
    for checkpoint, entry in entries.items():
        found = scorer_of(results[checkpoint]).measures(TASKS[name], [*logs[checkpoint].values()])
        if metric not in found:
            raise UserError(f"{folders[checkpoint]}/samples_{name}.jsonl: metrics: no {metric}, "
                            "which results.json has; run evaluate.py again")  # fmt: skip
        draws[checkpoint] = scorers.resample(*found[metric], seed=name)
        interval = scorers.interval(draws[checkpoint])
        rows = entry.get("rows") or {}
        scores[checkpoint] = points(scorers.point(*found[metric]), *interval) | {
            "n": len(logs[checkpoint]), "logged": entry["score"], "way": way_of(entry),
            "missing": entry.get("missing", 0.0), "truncated": entry.get("truncated", 0),
            "finish_length": entry.get("finish_length", 0),
            "left_out": rows.get("left_out") or {}, "data_sha": entry.get("data_sha"),
            "metrics": entry.get("metrics") or {},
        }  # fmt: skip
    first, *others = folders
    for checkpoint in others:
        try:
            parts[checkpoint] = difference(folders[first], folders[checkpoint], name)
            differences[checkpoint] = parts[checkpoint][0]
        except UserError as e:
            reason = str(e).removeprefix(f"{name}: ").removeprefix("cannot be compared: ")
            differences[checkpoint] = {"reason": reason}
    task, baseline = TASKS[name], next(iter(entries.values())).get("baseline") or {}
    made = {
        "title": task.title, "capability": task.capability, "kind": task.kind,
        "novelty": task.novelty, "metric": metric, "majority": baseline.get(metric),
        "baseline": baseline,
        "scores": scores, "differences": differences,
        "paper": beside_paper(name, entries.values()),
    }  # fmt: skip
    return made, draws, parts, logs


def mean_entry(names, of, tasks, draws, parts):
    """One view of board.json: the mean over the tasks `names`, of `of` that the suite has."""
    first, *others = tasks[names[0]]["scores"]
    scores, differences = {}, {}
    for checkpoint in (first, *others):
        cells = [tasks[name]["scores"][checkpoint] for name in names]
        spread = scorers.interval(np.mean([draws[name][checkpoint] for name in names], axis=0))
        mean = np.mean([cell["score"] for cell in cells]) / 100
        # Tasks are drawn independently (the seed is the name), so the mean's interval is right
        scores[checkpoint] = points(mean, *spread) | {"n": sum(cell["n"] for cell in cells)}
    for checkpoint in others:
        found = {name: parts[name][checkpoint] for name in names if checkpoint in parts[name]}
        reason = "no task was asked in the same way"
        differences[checkpoint] = (
            mean_difference([*found.values()]) | {"tasks": list(found)}
            if found
            else {"reason": reason}
        )
    return {"tasks": names, "of": of, "scores": scores, "differences": differences}


def views_of(suite):
    """{view: its tasks}: the capabilities, what is similar to training tasks or novel, all."""
    views = {c: [n for n in suite if TASKS[n].capability == c] for c in CAPABILITIES}
    views |= {n: [name for name in suite if TASKS[name].novelty == n] for n in ("similar", "novel")}
    return {view: names for view, names in (views | {"all tasks": suite}).items() if names}


def examples_of(name, entry, logs):
    """Up to three rows of a task that show replies: {title: {checkpoint: sample}}.

    Where marks are 0 or 1 a right and a wrong one, else the best and the worst, and one without an
    answer. Each is the first such row of the first checkpoint that has one.
    """
    found = {}
    for log in logs.values():
        marks = {row: mark_of(entry["metric"], sample) for row, sample in log.items()}
        answered = {r: m for r, m in marks.items() if m is not None and not unanswered(log[r])}
        if set(answered.values()) <= {0, 1}:
            picks = {
                "right": next((row for row, mark in answered.items() if mark == 1), None),
                "wrong": next((row for row, mark in answered.items() if mark == 0), None),
            }
        else:
            ranked = sorted(answered, key=answered.get)
            picks = {"best": ranked[-1], "worst": ranked[0] if len(ranked) > 1 else None}
        picks["no answer"] = next((row for row in log if unanswered(log[row])), None)
        for title, row in picks.items():
            if row is not None and title not in found and len(found) < 3:
                found[title] = {c: other[row] for c, other in logs.items() if row in other}
    return found


def mark_of(metric, sample):
    """A sample's share of the score; of scores that are no means (F1, MCC) its accuracy."""
    return sample.get(metric, sample.get("acc"))


def unanswered(sample):
    return bool(sample.get("missing")) or sample.get("prediction") is None


def collect(folders):
    """(board.json, {task: its examples}) of evaluation directories."""
    results = {checkpoint: read_result(folder) for checkpoint, folder in folders.items()}
    asked = dict.fromkeys(name for result in results.values() for name in result["tasks"])
    fineval = any(name in FINEVAL for name in asked)
    order = {capability: i for i, capability in enumerate(CAPABILITIES)}
    suite = sorted(FINEVAL if fineval else WORLD, key=lambda name: order[TASKS[name].capability])
    outside, tasks, draws, parts, examples = {}, {}, {}, {}, {}
    for name in suite:
        if reason := why_outside(name, results):
            outside[name] = reason
    names = [name for name in suite if name not in outside]
    if not names:
        common = "no task" if len(folders) == 1 else "no task in common"
        raise UserError(f"{', '.join(folders.values())}: {common} that has a score")
    for name in names:
        tasks[name], draws[name], parts[name], logs = task_entry(name, folders, results)
        examples[name] = examples_of(name, tasks[name], logs)
    for name in asked:
        if name not in suite:
            title = "FinEval" if fineval else "the sample world's suite"
            outside[name] = f"is not of {title}" if name in TASKS else "no task of this name"
    means, notes = {}, notes_of(tasks)
    for view, members in views_of(suite).items():
        shared = [name for name in members if name in tasks]
        if shared:
            means[view] = mean_entry(shared, len(members), tasks, draws, parts)
        else:
            notes.append(f"no mean of {view.replace('_', ' ')}: 0 of {len(members)} tasks")
    runs = run_descriptions({"checkpoints": folders})
    return {
        "unit": "points, 0 to 100 (mcc: -100 to 100); 95% bootstrap intervals over the questions",
        "suite": "FinEval" if fineval else "sample world",
        "checkpoints": {
            c: {"folder": str(folder)}
            | {k: results[c].get(k) for k in ("init_from", "dtype", "limit", "scorer",
                                              "tokenizer_sha")} | runs[c]
            for c, folder in folders.items()
        },
        "means": means, "tasks": tasks, "outside": outside, "notes": notes,
    }, examples  # fmt: skip


def notes_of(tasks):
    """What a reader of the tables must know: [str]."""
    notes = []
    for name, entry in tasks.items():
        cells = entry["scores"]
        if len({cell["n"] for cell in cells.values()}) > 1:
            sizes = ", ".join(f"{cell['n']} in {c}" for c, cell in cells.items())
            notes.append(f"{name}: different numbers of rows: {sizes}")
        elif len({cell["data_sha"] for cell in cells.values()}) > 1:
            notes.append(f"{name}: the files of rows were not the same")
        for checkpoint, cell in cells.items():
            logged = cell.pop("logged")
            if abs(logged - cell["score"]) > STALE:
                notes.append(f"{name}: {checkpoint}'s results.json says {logged:.2f}, its samples "
                             f"give {cell['score']:.2f}, which is shown")  # fmt: skip
    different = [
        n for n, e in tasks.items() if any("reason" in d for d in e["differences"].values())
    ]
    if different:
        notes.append("no difference to the first checkpoint, though in the means of scores: "
                     + ", ".join(different))  # fmt: skip
    return notes


def main(words):
    folders, cfg = split_words(words)
    board, examples = collect(folders)
    out = Path(cfg.out_dir)
    out.mkdir(parents=True, exist_ok=True)
    board_text.print_table(board)
    write_text(out / "board.json", json.dumps(board, indent=1) + "\n")
    drawn = board_figures.draw(board, out / "figures")
    write_text(out / "board.md", board_text.markdown(board, drawn))
    write_text(out / "board.html", board_page.html(board, drawn, examples))
    print(f"\n{out}/board.html, board.md, board.json")
