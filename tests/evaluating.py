"""Rows and runs of evaluations on tiny checkpoints, for several test files."""

from tiny import sentences

import evaluate
import results
from evaluate import Config

CHOICES = [["good", "bad"], ["one", "two", "one two of the year"], ["profit", "cost of the bond"]]


def arc_rows(count):
    rows = []
    for i, text in enumerate(sentences(count, seed=1)):
        choices = CHOICES[i % 3]
        gold = i % len(choices)
        rows.append({"id": f"r{i}", "query": f"Question: {text}\nAnswer:", "text": text,
                     "answer": choices[gold], "choices": choices, "gold": gold})  # fmt: skip
    return rows


def label_rows(count):
    labels = ["positive", "negative", "neutral"]
    return [{"id": f"l{i}", "query": f"{text} ?\nAnswer:", "text": text, "answer": labels[i % 3],
             "choices": labels, "gold": i % 3}
            for i, text in enumerate(sentences(count, seed=2))]  # fmt: skip


def exam_rows(count):
    return [{"id": f"e{i}", "query": text, "answer": str(i), "choices": [], "gold": -1,
             "solution": f"Step 1: a = {i}. Answer: {i}"}
            for i, text in enumerate(sentences(count, seed=3))]  # fmt: skip


CHAT = [
    {"id": "m1", "category": "writing", "query": "one good year ?", "answer": "",
     "turns": ["one good year ?", "and the cost ?"]},
    {"id": "m2", "category": "math", "query": "two bad bond ?", "answer": "",
     "turns": ["two bad bond ?", "the rate ?"], "references": ["good", "bad"]},
]  # fmt: skip


def config(folder, rows_dir, out, **changes):
    settings = {"tasks": "arc,fpb,reasoning", "max_new_tokens": 8, "device": "cpu"} | changes
    return Config(init_from=str(folder), data=str(rows_dir), out_dir=str(out), **settings)


def run(*args, **changes):
    """The tasks of an evaluation's results.json."""
    cfg = config(*args, **changes)
    evaluate.main(cfg)
    return results.read_result(cfg.out_dir)["tasks"]
