"""The verdicts of recipes/study.sh: each finding as a difference of two checkpoints over seeds.

    python benchmarks/study.py --out_dir out/study

A seed is one run of everything: its difference is that of two checkpoints with the same data, exam
and start. Over the seeds: mean and 95% interval of Student's t. Verdicts, by the interval alone:

    reproduced                    it lies on the side that the paper claims, or, where the paper
                                  claims no effect, within MARGIN of 0
    not reproduced                it lies on the other side, or within MARGIN of 0, or, where the
                                  paper claims no effect, beyond 0
    not decidable at this size    neither; or both checkpoints are at the ceiling
    (where the paper claims nothing)    higher, lower, no difference, or not decidable

With sixty intervals of 95%, three would miss the truth by chance. Writes STUDY.md, study.json,
pictures and one html page; from another folder than out/study into that folder itself.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for scripts
import study_text
from over_seeds import FEWEST, mean
from study_rows import ARMS, CEILING, MARGIN, METRICS, ROWS

import parallel
from config import UserError, parse, read_json
from jsonl import read_jsonl, write_text
from metrics import read_metrics
from results import read_samples

ROOT = Path(__file__).resolve().parents[1]
TASKS = {"concepts": "concepts", "tasks": "tasks", "exam": "reasoning", "general": "general",
         "if": "instruction_following"}  # fmt: skip
CURVES = ("rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen",
          "logps/rejected")  # fmt: skip
POINTS = 20  # of a curve


@dataclass
class Config:
    out_dir: str = "out/study"  # of recipes/study.sh


# ---- what the runs left --------------------------------------------------------------------------


def scores_of(folder, arm):
    """{metric: value} of one checkpoint of one seed: points, and losses in nats."""
    found, evaluation = {}, folder / f"eval_{arm}"
    tasks = read_json(evaluation / "results.json")["tasks"]
    for name, task in TASKS.items():
        found[name] = tasks[task]["metrics"]["acc"]["score"]
    found["process"] = tasks["reasoning"]["metrics"]["process"]["score"]
    found["finance"] = float(np.mean([found[name] for name in ("concepts", "tasks", "exam")]))
    # Facts are asked about company by company, five each; the last 20 stand in running text only
    facts = read_samples(evaluation, "concepts")
    read = [row for name, row in facts.items() if int(name[-4:]) >= len(facts) // 2]
    found["read"] = 100 * float(np.mean([row["acc"] for row in read]))
    for name, loss in read_json(folder / f"losses_{arm}.json").items():
        name = name.replace("cloze_text", "knows").replace("heldout_", "loss ")
        found[name.replace("_", " ")] = loss
    log = folder / f"sampled_{arm}" / "trajectories.jsonl"
    if log.exists():
        samples = [row["correct"] for _, row in read_jsonl(log, {"correct": bool})]
        found["sampled"] = 100 * float(np.mean(samples))
    return found


def collect(folders):
    """{arm: {metric: {seed: value}}} of all that is evaluated."""
    values = {}
    for folder in folders:
        for path in sorted(folder.glob("losses_*.json")):
            arm = path.stem.removeprefix("losses_")
            for metric, value in scores_of(folder, arm).items():
                values.setdefault(arm, {}).setdefault(metric, {})[folder.name] = value
    return values


def curves(folders, arm):
    """{name: [[value of each seed] for each point]} of an alignment's training log, and "step".

    A point is the mean of some steps, as single ones jump from batch to batch.
    """
    logs = [read_metrics(f / arm) for f in folders if (f / f"losses_{arm}.json").exists()]
    steps = min(map(len, logs), default=0)
    if not steps:
        return {}
    parts = np.array_split(np.arange(steps), min(POINTS, steps))
    return {"step": [float(part.mean()) for part in parts]} | {
        name: [[float(np.mean([log[i][name] for i in part])) for log in logs] for part in parts]
        for name in CURVES
    }


# ---- statistics ----------------------------------------------------------------------------------


def verdict(row, found, ceiling):
    """What a row's interval decides. found: mean() of the differences; ceiling: both are there."""
    low, high, margin = found["low"], found["high"], MARGIN[METRICS[row.metric][1]]
    if found["seeds"] < FEWEST:
        return f"not decidable: fewer than {FEWEST} seeds"
    unclear = "not decidable at this size"
    small = -margin <= low and high <= margin
    if row.claim in ("higher", "lower"):
        side = low > 0 if row.claim == "higher" else high < 0
        other = high < 0 if row.claim == "higher" else low > 0
        if side:
            return "reproduced"
        return unclear if ceiling or not (other or small) else "not reproduced"
    if row.claim == "same":
        return "reproduced" if small else "not reproduced" if low > 0 or high < 0 else unclear
    if small:
        return "no difference"
    return "higher" if low > 0 else "lower" if high < 0 else unclear


def decided(row, values):
    """The record of a row, or None if its arms are not there."""
    a, b = (values.get(arm, {}).get(row.metric, {}) for arm in (row.a, row.b))
    seeds = sorted(a.keys() & b.keys())
    if not seeds:
        return None
    each = {seed: a[seed] - b[seed] for seed in seeds}
    found = mean(list(each.values()))
    lowest = min(min(a[seed], b[seed]) for seed in seeds)
    ceiling = METRICS[row.metric][1] == "points" and lowest >= CEILING
    return {
        "group": row.group, "finding": row.finding, "paper": row.paper, "claim": row.claim,
        "a": row.a, "b": row.b, "metric": row.metric, "difference": found["mean"],
        "low": found["low"], "high": found["high"], "seeds": found["seeds"],
        "verdict": verdict(row, found, ceiling), "ceiling": ceiling, "why": row.why,
        "mean_a": float(np.mean([a[s] for s in seeds])),
        "mean_b": float(np.mean([b[s] for s in seeds])), "each_seed": each,
    }  # fmt: skip


def gains(values):
    """{arm: {metric: mean() and "each_seed"}} in the exam, over what the arm is aligned from."""
    found, aligned = {}, list(ARMS)[list(ARMS).index("policy") + 1 :]
    for arm in aligned:
        start = "mistaken" if arm.startswith("mistaken_") else "policy"
        for metric in ("exam", "process") if arm != "mistaken" else ():
            a, b = (values.get(name, {}).get(metric, {}) for name in (arm, start))
            if each := {seed: a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())}:
                row = mean(list(each.values())) | {"each_seed": each}
                found.setdefault(arm, {})[metric] = row
    return found


def rounded(value):
    """Floats with four digits after the point, so that two runs can be compared by eye."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: rounded(v) for key, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list) else value


def counts(folders):
    """{file of pairs: [their number in each seed]}."""
    found = {}
    for folder in folders:
        for path in sorted((folder / "reward").glob("*.jsonl")):
            if path.stem not in ("trajectories", "verdicts", "continuations", "by_trained"):
                with open(path, "rb") as file:
                    found.setdefault(path.stem, []).append(sum(1 for _ in file))
    return found


def seconds(folders):
    """Mean core seconds a seed, by kind of stage."""
    total = {}
    for folder in folders:
        for _, row in read_jsonl(folder / "times.jsonl", {"stage": str, "seconds": float}):
            total[row["stage"]] = total.get(row["stage"], 0) + row["seconds"] / len(folders)
    return total


def main(cfg):
    out = Path(cfg.out_dir)
    folders = sorted(path for path in out.glob("seed*") if (path / "times.jsonl").exists())
    if not folders:
        raise UserError(f"{out}: holds no seed*; run recipes/study.sh first")
    values = collect(folders)
    result = rounded({
        "about": "recipes/study.sh: differences of checkpoints over seeds, 95% intervals of "
        "Student's t; points of 100, losses in nats",
        "rows": [record for row in ROWS if (record := decided(row, values))],
        "scores": {
            arm: {m: mean(list(by_seed.values())) for m, by_seed in metrics.items()}
            for arm, metrics in values.items()
        },
        "each_seed": values,
        "gains": gains(values),
        "curves": {arm: curves(folders, arm) for arm in ("fap", "scp", "both", "no_nll")},
        "pairs": counts(folders),
        "core_seconds_a_seed": seconds(folders),
    })  # fmt: skip
    own = out.resolve() == (ROOT / "out" / "study").resolve()
    results = ROOT / "benchmarks" / "results" if own else out
    (results / "study").mkdir(parents=True, exist_ok=True)
    write_text(results / "study.json", json.dumps(result, indent=1) + "\n")
    study_text.write(result, results, ROOT / "STUDY.md" if own else out / "STUDY.md", out)


if __name__ == "__main__":
    with parallel.clean_exit():
        main(parse(Config))
