"""The arms of recipes/alignment.sh over their seeds: exam accuracy, gains, and speed of the stages.

    python benchmarks/alignment.py --out_dir out/alignment

A seed is one run of everything from the tuning on. Mean and 95% interval of Student's t over the
seeds; gains are paired, arm - none (or - another arm) within each seed. The 500 questions of the
exam are the same for all. Prints markdown, writes OUT_DIR/alignment.json and .png.
"""

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for scripts
import parallel
from config import UserError, parse, read_json
from jsonl import read_jsonl, write_text
from metrics import git_commit

LABELS = {
    "none": "no alignment",
    "fap": "FAP",
    "scp": "SCP",
    "both": "FAP + SCP",
    "sft": "SFT on their chosen texts",
    "scp_self": "SCP, own corrections",
    "both_self": "FAP + SCP, own corrections",
    "trained": "FAP + SCP, trained judge",
}
AGAINST = [("both", "sft"), ("both", "fap"), ("both", "scp"), ("scp_self", "scp"),
           ("both_self", "both"), ("trained", "both")]  # fmt: skip
# Two-sided 95% quantiles of Student's t for 1 to 9 degrees of freedom
T = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]
METRICS = {"answer": "acc", "every step": "process"}


@dataclass
class Config:
    out_dir: str = "out/alignment"  # of recipes/alignment.sh


def mean(values):
    """{"mean", "low", "high", "seeds"} of numbers, one a seed."""
    n, middle = len(values), float(np.mean(values))
    t = T[n - 2] if 1 < n < len(T) + 2 else 1.96 + 2.4 / max(1, n - 1)
    half = t * float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    low, high = (None, None) if n < 2 else (round(middle - half, 2), round(middle + half, 2))
    return {"mean": round(middle, 2), "low": low, "high": high, "seeds": n}


def show(row, sign=""):
    bounds = "" if row["low"] is None else f" [{row['low']:{sign}.1f}, {row['high']:{sign}.1f}]"
    return f"{row['mean']:{sign}.1f}{bounds}"


def lines(path):
    return sum(1 for _ in open(path, "rb")) if path.exists() else 0


def rates(folder):
    """{stage: things a second} of one seed."""
    reward = folder / "reward"
    counts = {
        "sample": lines(reward / "trajectories.jsonl"),
        "judge": lines(reward / "verdicts.jsonl"),
        "judge, trained": lines(reward / "by_trained.jsonl"),
        "correct": lines(reward / "continuations.jsonl"),
        "pairs": sum(map(lines, map(reward.joinpath, ("fap.jsonl", "scp.jsonl", "both.jsonl")))),
        "dpo both": lines(reward / "both.jsonl"),
        "sft": lines(reward / "both.jsonl"),
    }
    seconds, times = {}, folder / "times.jsonl"
    fields = {"stage": str, "seconds": float}
    for _, row in read_jsonl(times, fields) if times.exists() else ():
        seconds.setdefault(row["stage"], []).append(row["seconds"])
    seconds["pairs"] = seconds.get("pairs", [])[:3]  # fap, scp, both: in this order
    return {k: n / sum(seconds[k]) for k, n in counts.items() if n and sum(seconds.get(k, [0]))}


def draw(result, path):
    """One line an arm: every seed as a dot, their mean and interval; answer and every step."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    arms = list(result["scores"])[::-1]
    figure, axes = pyplot.subplots(1, 2, figsize=(9.6, 0.5 + 0.42 * len(arms)), sharey=True)
    for axis, what in zip(axes, METRICS, strict=True):
        for y, arm in enumerate(arms):
            row, color = result["scores"][arm][what], "#a3acb8" if arm == "none" else "#d9572b"
            axis.plot(list(result["each_seed"][f"{arm}, {what}"].values()),
                      [y] * row["seeds"], "o", color=color, alpha=0.35, markersize=5)  # fmt: skip
            if row["low"] is not None:
                axis.plot([row["low"], row["high"]], [y, y], color="#1f2933", linewidth=1.2)
            axis.plot(row["mean"], y, "o", color=color, markeredgecolor="#1f2933", markersize=7)
        axis.set_title(f"exam: {what} right, points", fontsize=10)
        axis.grid(axis="x", color="#d5dbe1", linewidth=0.6)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
    axes[0].set_yticks(range(len(arms)), [LABELS[arm] for arm in arms])
    figure.tight_layout()
    figure.savefig(path, dpi=160)
    pyplot.close(figure)


def main(cfg):
    folders = sorted(Path(cfg.out_dir).glob("seed*"))
    if not folders:
        raise UserError(f"{cfg.out_dir}: holds no seed*; run recipes/alignment.sh first")
    scores = {}  # (arm, what): {seed's folder: points}
    for folder in folders:
        for arm in LABELS:
            path = folder / f"eval_{arm}" / "results.json"
            if path.exists():
                found = read_json(path)["tasks"]["reasoning"]["metrics"]
                for what, metric in METRICS.items():
                    scores.setdefault((arm, what), {})[folder.name] = found[metric]["score"]
    arms = [arm for arm in LABELS if (arm, "answer") in scores]

    def difference(a, b, what):
        both = scores[a, what].keys() & scores[b, what].keys()
        return mean([scores[a, what][seed] - scores[b, what][seed] for seed in sorted(both)])

    pairs = {arm: [lines(f / "reward" / f"{arm}.jsonl") for f in folders] for arm in arms}
    speed = [rates(folder) for folder in folders]
    result = {
        "scores": {a: {w: mean(list(scores[a, w].values())) for w in METRICS} for a in arms},
        "gains": {
            f"{a} - {b}": {w: difference(a, b, w) for w in METRICS}
            for a, b in [(a, "none") for a in arms[1:]] + AGAINST
            if a in arms and b in arms
        },
        "each_seed": {f"{a}, {w}": values for (a, w), values in scores.items()},
        "pairs": {arm: counts for arm, counts in pairs.items() if any(counts)},
        "per_second": {
            stage: sorted(round(rate[stage], 1) for rate in speed if stage in rate)
            for stage in dict.fromkeys(stage for rate in speed for stage in rate)
        },
        "commit": git_commit(),
    }
    print("| arm | answer | every step | gain, answer | gain, every step |\n|---|---|---|---|---|")
    for arm in arms:
        row = [show(result["scores"][arm][w]) for w in METRICS]
        gain = result["gains"].get(f"{arm} - none")
        row += [show(gain[w], "+") for w in METRICS] if gain else ["", ""]
        print(f"| {arm} | {' | '.join(row)} |")
    print("\n| difference | answer | every step |\n|---|---|---|")
    for name, gain in result["gains"].items():
        if not name.endswith("none"):
            print(f"| {name} | {' | '.join(show(gain[w], '+') for w in METRICS)} |")
    print(f"\nper second: {result['per_second']}")
    write_text(Path(cfg.out_dir) / "alignment.json", json.dumps(result, indent=2) + "\n")
    draw(result, Path(cfg.out_dir) / "alignment.png")


if __name__ == "__main__":
    with parallel.clean_exit():
        main(parse(Config))
