"""How good is a judge? Its verdicts on solutions whose first wrong step is known.

    python reward.py eval --cases processbench.jsonl --judge local --judge_from out/judge

cases: ProcessBench rows (arXiv:2412.06559), {"id", "generator"?, "problem", "steps": [str],
"final_answer_correct": bool, "label": int}, label = index of the first wrong step, -1 = none. Ours
may add "answer" and "solution", the reference that the judge is given. A case is judged as
`reward.py judge --stepwise all` judges a solution: by outcome, then by process.

    found             the step that is quoted; without one -1 if the outcome is right, else the last
    first-error F1    harmonic mean of the share found among wrong and among right solutions

An invalid verdict finds nothing. In brackets 95% bootstrap intervals over the cases.
"""

import json
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import scorers
from config import UserError
from extract import judged_by_rule
from jsonl import read_jsonl, write_jsonl, write_text
from judge import decided, unusable, wrong_span
from logs import TRAJECTORY, VERDICT, read_log
from verdicts import Judge, judge

FIELDS = {"id": str, "generator?": str, "problem": str, "steps": list, "label": int}
FIELDS |= {"final_answer_correct": bool, "answer?": str, "solution?": str}
BETWEEN = "\n\n"  # steps of a case, one paragraph each


@dataclass
class Eval(Judge):
    cases: str = ""  # ProcessBench rows
    out_dir: str = "out/judge_eval"  # gets the cases as trajectories, the verdicts, and eval.json


def read_cases(path):
    """ProcessBench rows as trajectories that carry their truth. UserError for a bad row."""
    rows = {}
    for line, case in read_jsonl(path, FIELDS):
        steps, label, where = case["steps"], case["label"], f"{path}:{line}"
        if not all(isinstance(step, str) and step.strip() for step in steps):
            raise UserError(f"{where}: steps: every step must be text")
        if not -1 <= label < len(steps):
            raise UserError(f"{where}: label: {label} is no step of 0 to {len(steps) - 1}, nor -1")
        if case["id"] in rows:
            raise UserError(f"{where}: id: {case['id']!r} is there twice")
        text, answer = BETWEEN.join(steps), (case.get("answer") or "").strip()
        row = {"id": case["id"], "source": case.get("generator") or "", "sample": 0, "text": text}
        row |= {"prompt": [{"role": "user", "content": case["problem"]}], "answer": answer}
        row |= {"solution": case["solution"]} if case.get("solution") else {}
        row |= judged_by_rule(text, answer)
        row |= {"finish": "stop", "steps": steps, "label": label}
        rows[case["id"]] = row | {"final_answer_correct": case["final_answer_correct"]}
    if not rows:
        raise UserError(f"{path}: holds no case")
    return rows


def found_step(record, verdicts):
    """Index of the step that the judge holds for the first wrong one, -1 = none; None = invalid."""
    outcome, steps = (verdicts.get((record["id"], kind)) for kind in ("outcome", "stepwise"))
    if not outcome or not outcome["parsed"] or not steps or not steps["parsed"]:
        return None
    if steps["first_error"] < 0:  # no step on the way: the last one holds the final answer
        return -1 if outcome["parsed"]["Correctness"] == "correct" else len(record["steps"]) - 1
    start, _ = wrong_span(record["text"], steps["parsed"])
    starts = np.cumsum([0] + [len(step) + len(BETWEEN) for step in record["steps"]])
    return bisect_right(starts.tolist(), start) - 1


def f1_score(sums):
    """(..., 4) sums of [wrong and found, wrong, right and found, right] -> harmonic mean."""
    wrong = scorers.ratio(sums[..., 0], sums[..., 1])
    right = scorers.ratio(sums[..., 2], sums[..., 3])
    return scorers.ratio(2 * wrong * right, wrong + right)


WRONG, RIGHT = "first error found, wrong solutions", "no error found, right solutions"


def marks(case, verdicts):
    """{share: (is the case a hit, does it count)}, and why a verdict on it is invalid, or None."""
    found = [verdicts.get((case["id"], kind)) for kind in ("outcome", "stepwise")]
    unasked = unusable(case) or "not judged"
    reasons = [v["reason"] if v else unasked for v in found if not v or not v["parsed"]]
    judged = bool(found[0] and found[0]["parsed"])
    says = judged and found[0]["parsed"]["Correctness"] == "correct"
    hit, wrong = found_step(case, verdicts) == case["label"], case["label"] >= 0
    by_rule = judged and case["correct"] is not None
    return {
        "outcome accuracy": (judged and says == case["final_answer_correct"], True),
        WRONG: (wrong and hit, wrong),
        RIGHT: (not wrong and hit, not wrong),
        "invalid": (bool(reasons), True),
        "agreement with the rule": (by_rule and says == case["correct"], by_rule),
    }, next(iter(reasons), None)


def measure(cases, verdicts):
    """{name: {score, low, high, n}} in points, and {why verdicts are invalid: how many}."""
    rows, reasons = zip(*(marks(case, verdicts) for case in cases.values()), strict=True)
    tables = {
        name: np.array([row[name] for row in rows], dtype=float) for name in rows[0]
    }  # (n, 2)
    tables["first-error F1"] = np.hstack([tables[WRONG], tables[RIGHT]])  # (n, 4)
    scores = {}
    for name, table in tables.items():
        score = f1_score if "F1" in name else scorers.mean_score
        low, high = scorers.interval(scorers.resample(table, score, seed=name))
        values = {"score": scorers.point(table, score), "low": low, "high": high}
        counted = table[:, 1::2].sum(0)  # one number, of F1 the wrong and the right solutions
        # Without a case there is no score, least of all 0
        values = {k: round(100 * v, 2) if counted.all() else None for k, v in values.items()}
        scores[name] = values | {"n": int(counted.sum())}
    return scores, Counter(filter(None, reasons))


def evaluate(cfg):
    """Judge the cases, print the figures and keep them in eval.json."""
    if not cfg.cases:
        raise UserError("--cases: name a file of ProcessBench rows")
    if cfg.judge == "exact":
        raise UserError("--judge exact compares final answers only: it finds no wrong step")
    if cfg.stepwise != "all":
        raise UserError("--stepwise: every case is judged by its steps, too; leave it out")
    out = Path(cfg.out_dir)
    cases, path = read_cases(cfg.cases), out / "trajectories.jsonl"
    out.mkdir(parents=True, exist_ok=True)
    if path.exists() and read_log(path, TRAJECTORY) != cases:
        raise UserError(f"{path}: holds other cases: take another --out_dir")
    write_jsonl(path, cases.values())
    judge(cfg)
    log = read_log(out / cfg.verdicts, VERDICT)
    scores, invalid = measure(cases, decided(log))
    for name, row in scores.items():
        low, high = row["low"], row["high"]
        if low is None:
            print(f"{name:<36}     - (no such case)")
        else:
            print(f"{name:<36}{row['score']:6.1f} [{low:.1f}, {high:.1f}]  n {row['n']:,}")
    for reason, n in invalid.items():
        print(f"  {n:,} invalid: {reason}")
    judges = sorted({verdict["judge"] for verdict in log.values()})
    result = {"cases": cfg.cases, "judge": judges, "scores": scores, "invalid": dict(invalid)}
    write_text(out / "eval.json", json.dumps(result, indent=2) + "\n")
