"""Evaluations of the checkpoints of one run -> a table, plots, an html page, and numbers as json.

    python report.py --out_dir out/demo
    python report.py --out_dir out/x --base out/x/eval_base --cpt_it out/x/eval_cpt_it

Reads what evaluate.py left (DIR/eval_base, eval_cpt_it, eval_aligned, eval_sft_control unless told
otherwise), the training logs of the checkpoints and the preference data; writes into --out_dir:

    report.json   scores[capability][checkpoint] = {score, low, high, n} in points (0 to 100)
                  comparisons["reasoning: aligned - cpt_it"] = {difference, low, high, n}, paired
    report.html   everything to read, images inlined      report.md, figures/*.png

Intervals are 95% bootstrap intervals over the questions: they say what another set of questions
would give, not what another training seed would.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import figures
import page
import parallel
import scorers
from answers import measures
from config import UserError, parse
from jsonl import read_jsonl
from results import difference, mean_difference, points, read_result, read_samples
from tasks import CAPABILITIES, TASKS

CHECKPOINTS = ("base", "cpt_it", "aligned", "sft_control")
# (minuend, subtrahend): what each stage adds, the control, and the whole way
QUESTIONS = (
    ("cpt_it", "base"),
    ("aligned", "cpt_it"),
    ("sft_control", "cpt_it"),
    ("aligned", "sft_control"),
    ("aligned", "base"),
)
PROCESS = "reasoning process"  # the exam again, a point only if every step is right too


@dataclass
class Config:
    out_dir: str = "out/demo"  # gets report.html, report.md, report.json and figures/
    base: str = ""  # evaluation directory of the base; empty = OUT_DIR/eval_base
    cpt_it: str = ""  # of the model after joint CPT + IT; empty = OUT_DIR/eval_cpt_it
    aligned: str = ""  # of the model after DPO; empty = OUT_DIR/eval_aligned
    sft_control: str = ""  # of the control, SFT on the chosen texts; empty = OUT_DIR/eval_...
    reward: str = ""  # directory of trajectories, verdicts, pairs; empty = OUT_DIR/reward


def find_evaluations(cfg):
    """{checkpoint: evaluation directory} of those that exist. UserError for a named one that does
    not, and if there is none."""
    found = {}
    for name in CHECKPOINTS:
        named = getattr(cfg, name)
        folder = Path(named or f"{cfg.out_dir}/eval_{name}")
        if (folder / "results.json").exists():
            found[name] = folder
        elif named:
            raise UserError(f"--{name} {named}: no results.json in it; run evaluate.py first")
    if not found:
        raise UserError(f"{cfg.out_dir}: no eval_*/results.json in it; run evaluate.py first")
    return found


# Numbers -------------------------------------------------------------------------------------


def capability_tasks(folders):
    """{capability: [tasks]} that every checkpoint was asked; development sets are left out."""
    asked = [set(read_result(folder)["tasks"]) for folder in folders.values()]
    shared = [n for n in TASKS if all(n in names for names in asked) and not n.endswith("_dev")]
    found = {c: [n for n in shared if TASKS[n].capability == c] for c in CAPABILITIES}
    return {c: names for c, names in found.items() if names}


def capability_score(folder, names, metric=None):
    """{score, low, high, n} of one checkpoint: the mean over the tasks of a capability."""
    scores, draws, n = [], [], 0
    for name in names:
        task, samples = TASKS[name], list(read_samples(folder, name).values())
        statistics, score = measures(task, samples)[metric or task.metrics[0]]
        scores.append(scorers.point(statistics, score))
        # Tasks are drawn independently (the seed is the name), so the mean's interval is right
        draws.append(scorers.resample(statistics, score, seed=name))
        n += len(samples)
    return points(np.mean(scores), *scorers.interval(np.mean(draws, axis=0))) | {"n": n}


def capability_difference(a, b, names, metric=None):
    """{difference, low, high, n} of B - A on the same rows: the mean over the tasks."""
    return mean_difference([difference(a, b, name, metric) for name in names])


def collect(folders):
    """The whole of report.json from the evaluation directories."""
    capabilities = capability_tasks(folders)
    views = []
    for capability, names in capabilities.items():
        views.append((capability, names, None))
        stepwise = [name for name in names if "process" in TASKS[name].metrics]
        if stepwise:
            views.append((PROCESS, stepwise, "process"))
    scores, comparisons = {}, {}
    for view, names, metric in views:
        scores[view] = {
            checkpoint: capability_score(folder, names, metric)
            for checkpoint, folder in folders.items()
        }
        for new, old in QUESTIONS:
            if new in folders and old in folders:
                comparisons[f"{view}: {new} - {old}"] = capability_difference(
                    folders[old], folders[new], names, metric
                )
    process = scores.pop(PROCESS, {})
    return {
        "unit": "points, 0 to 100; 95% bootstrap intervals over the questions",
        "scores": scores,
        "process": process,  # exam questions with every step and the answer right
        "comparisons": comparisons,
        "tasks": capabilities,
        "checkpoints": {c: read_result(folder)["init_from"] for c, folder in folders.items()},
    }


def findings(report):
    """What the numbers say, in sentences that do not say more: [str]."""
    found, sentences = report["comparisons"], []

    def tell(key, text):
        if key not in found:
            return
        d = found[key]
        sentence = text.format(f"{d['difference']:+.1f} points [{d['low']:+.1f}, {d['high']:+.1f}]")
        if d["low"] <= 0 <= d["high"]:
            sentence += ", which the interval cannot tell from 0"
        sentences.append(f"{sentence}.")

    tell("concepts: cpt_it - base", "Joint CPT + IT changes knowledge of the new domain by {}")
    tell("reasoning: cpt_it - base", "It changes the exam by {}")
    tell("reasoning: aligned - cpt_it", "Preference alignment then changes the exam by {}")
    tell(f"{PROCESS}: aligned - cpt_it", "Exams with every step right change by {}")
    tell(
        "reasoning: aligned - sft_control",
        "Against plain SFT on the same chosen texts, preference alignment makes a difference of {}",
    )
    tell(
        "instruction_following: aligned - base",
        "From base to aligned, instruction following changes by {}",
    )
    tell("general: aligned - base", "What the base knew before (general) changes by {}")
    return sentences


# Text forms ----------------------------------------------------------------------------------


def shown(entry):
    """ "64.2 [60.0, 68.4]"."""
    return f"{entry['score']:.1f} [{entry['low']:.1f}, {entry['high']:.1f}]"


def score_rows(report):
    """Rows of the main table: [name, n, one cell per checkpoint]."""
    rows = []
    for view, cells in report["scores"].items():
        n = str(next(iter(cells.values()))["n"])
        rows.append([view.replace("_", " "), n, *map(shown, cells.values())])
        if view == "reasoning" and report["process"]:
            rows.append(["  every step right", n, *map(shown, report["process"].values())])
    return rows


def comparison_rows(report):
    """Rows of the table of differences: [name, points, interval, n]."""
    return [
        [key, f"{d['difference']:+.1f}", f"[{d['low']:+.1f}, {d['high']:+.1f}]", str(d["n"])]
        for key, d in report["comparisons"].items()
    ]


def print_table(report):
    """The main table and what it says, for the terminal."""
    heads = ["points (95% interval)", "n", *report["checkpoints"]]
    rows = score_rows(report)
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    for row in [heads, *rows]:
        first, *rest = (f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True))
        print("  ".join([first, *rest]).rstrip())
    print()
    for text in findings(report):
        print(text)


def markdown(report, drawn):
    """report.md: the tables and figures without the page around them."""
    lines = ["# Report", "", "All scores in points (0 to 100) with 95% bootstrap intervals.", ""]
    for heads, rows in (
        (["capability", "n", *report["checkpoints"]], score_rows(report)),
        (["paired difference", "points", "95% interval", "n"], comparison_rows(report)),
    ):
        lines += ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
        lines += ["| " + " | ".join(cell.strip() for cell in row) + " |" for row in rows] + [""]
    lines += [f"- {text}" for text in findings(report)] + [""]
    lines += [f"![{name}](figures/{path.name})" for name, path in drawn.items()]
    return "\n".join(lines) + "\n"


# What else a reader wants to see --------------------------------------------------------------


def telling_answers(folders, name="reasoning"):
    """Rows that show what alignment changed: [(title, sample per checkpoint)].

    One that only the aligned model gets right, and one that it still gets wrong.
    """
    if "aligned" not in folders or "cpt_it" not in folders:
        return []
    if any(name not in read_result(folder)["tasks"] for folder in folders.values()):
        return []
    logs = {checkpoint: read_samples(folder, name) for checkpoint, folder in folders.items()}
    wanted = {
        "Alignment repaired it": lambda before, after: not before["acc"] and after["process"],
        "Still wrong": lambda before, after: not before["acc"] and not after["acc"],
    }
    found = []
    for title, fits in wanted.items():
        for row in logs["aligned"]:
            if all(row in log for log in logs.values()) and fits(
                logs["cpt_it"][row], logs["aligned"][row]
            ):
                found.append((title, {c: log[row] for c, log in logs.items()}))
                break
    return found


def preference_data(folder):
    """Counts of the preference data, and one pair of each kind; {} if there is none."""
    if not (folder / "pairs.jsonl").exists():
        return {}
    pairs = [row for _, row in read_jsonl(folder / "pairs.jsonl", {"kind": str, "chosen": str})]
    counts = {}
    if (folder / "trajectories.jsonl").exists():
        rows = [r for _, r in read_jsonl(folder / "trajectories.jsonl", {"correct?": bool})]
        counts["sampled solutions"] = len(rows)
        counts["of them with a right answer"] = sum(bool(row.get("correct")) for row in rows)
    if (folder / "verdicts.jsonl").exists():
        rows = [row for _, row in read_jsonl(folder / "verdicts.jsonl", {"kind": str})]
        counts["verdicts"] = len(rows)
        counts["of them unusable, kept and not used"] = sum(not row.get("parsed") for row in rows)
    examples = {}
    for kind, title in (("fap", "pairs by outcome (FAP)"), ("scp", "pairs by process (SCP)")):
        members = [pair for pair in pairs if pair["kind"] == kind]
        counts[title] = len(members)
        if members:
            examples[kind] = members[len(members) // 2]
    return {"counts": counts, "examples": examples}


def run_descriptions(report):
    """{checkpoint: run.json and environment.json of its training}, as far as they exist."""
    found = {}
    for checkpoint, folder in report["checkpoints"].items():
        parts = {}
        for name in ("run", "environment"):
            path = Path(folder) / f"{name}.json"
            if path.exists():
                parts[name] = json.loads(path.read_text(encoding="utf-8"))
        found[checkpoint] = parts
    return found


def main(cfg):
    folders, out = find_evaluations(cfg), Path(cfg.out_dir)
    report = collect(folders)
    out.mkdir(parents=True, exist_ok=True)
    print_table(report)
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    drawn = figures.draw(report, out / "figures")
    (out / "report.md").write_text(markdown(report, drawn))
    parts = page.Parts(
        report=report,
        findings=findings(report),
        scores=score_rows(report),
        comparisons=comparison_rows(report),
        figures=drawn,
        answers=telling_answers(folders),
        preference=preference_data(Path(cfg.reward or f"{cfg.out_dir}/reward")),
        runs=run_descriptions(report),
    )
    (out / "report.html").write_text(page.html(parts), encoding="utf-8")
    print(f"\n{out}/report.html, report.md, report.json")


if __name__ == "__main__":
    with parallel.clean_exit():
        main(parse(Config))
