"""Replies that no rule can mark: reward.py's judge reads MT-Bench's, TAT-QA's and FinanceBench's.

    python evaluate.py judge --out_dir out/eval --base_url https://HOST/v1 --model NAME

samples_TASK.jsonl -> OUT_DIR/judge/verdicts.jsonl -> a value "judge" in every sample, scores anew

TAT-QA and FinanceBench: does the reply agree with the reference (FAP's question)? MT-Bench: each of
the two replies is rated from 1 to 10. An empty reply is wrong, or rated 1, without a question. A
reply whose verdicts all break the rules has no value: it is counted, and left out of the mean. The
log of verdicts is append-only, so a stopped run goes on, and nothing is asked twice.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import answers
from config import UserError, parse
from evaluate import print_table, summary
from jsonl import sha, write_jsonl, write_text
from judge import BROKEN, PROMPTS, decided
from logs import tally
from results import read_result, read_samples
from tasks import TASKS
from verdicts import Asking, check_judge, collect, complain


@dataclass
class Config(Asking):
    out_dir: str = "out/eval"  # an evaluation's directory
    verdicts: str = "verdicts.jsonl"  # log in out_dir/judge; each judge needs its own


def readable(text):
    """A reply that the judge can be shown: what is no text becomes a question mark."""
    return BROKEN.sub("?", text).replace("<|", "< |")


def reply_id(name, row, k, reply):
    """Of reply k to a row; another reply, as of another checkpoint, has another one."""
    return f"{name}/{row}/{k}/{sha(reply)[:8]}"


def trajectories_of(name, samples):
    """{id: what the judge is to read} of a task's samples; empty replies are not shown to it."""
    found, rating = {}, TASKS[name].judge == "rating"
    for row, sample in samples.items():
        doc, replies = sample["doc"], [reply for [reply] in sample["resps"]]
        turns = doc["turns"] if rating else [doc["query"]]
        references = doc.get("references") or []
        said = []
        for k, (turn, reply) in enumerate(zip(turns, replies, strict=True)):
            said.append({"role": "user", "content": turn})
            reference = references[k] if k < len(references) else ""
            if reply.strip():
                key = reply_id(name, row, k, reply)
                found[key] = {
                    "id": key, "prompt": list(said), "text": readable(reply),
                    "answer": reference if rating else doc["answer"], "finish": "stop",
                    "kinds": ["rating" if rating else "outcome"],
                }  # fmt: skip
            said.append({"role": "assistant", "content": readable(reply)})
    return found


def value_of(name, row, sample, verdicts, counts):
    """Share that a sample earns, 0 to 1, None where a verdict is missing; `counts` gets a word."""
    kind = TASKS[name].judge
    marks = []
    for k, [reply] in enumerate(sample["resps"]):
        verdict = verdicts.get((reply_id(name, row, k, reply), kind))
        if not reply.strip():
            word, mark = "empty", 0.1 if kind == "rating" else 0.0
        elif verdict is None:
            word, mark = "without a reply", None
        elif not verdict["parsed"]:
            word, mark = f"invalid: {verdict['reason']}", None
        elif kind == "rating":
            word, mark = "judged", verdict["parsed"]["Rating"] / 10
        else:
            word, mark = "judged", float(verdict["parsed"]["Correctness"] == "correct")
        counts[word] += 1
        marks.append(mark)
    return None if None in marks else sum(marks) / len(marks)


def judge_name(cfg, kind, verdicts):
    """What stands in a result: scores by another judge, or asked otherwise, are not compared."""
    asked = [PROMPTS[kind], cfg.votes, cfg.asks, cfg.max_tokens, cfg.seed]
    name = next((verdict["judge"] for verdict in verdicts.values()), cfg.judge)
    return f"{name} {sha(asked)[:8]}"


def main(words):
    cfg = parse(Config, words)
    check_judge(cfg)
    result, out = read_result(cfg.out_dir), Path(cfg.out_dir)
    names = [name for name in result["tasks"] if name in TASKS and TASKS[name].judge]
    if cfg.judge == "exact":
        names = [name for name in names if TASKS[name].judge == "outcome"]
    if not names:
        raise UserError(f"{cfg.out_dir}/results.json: tasks: none of them is for this judge")
    if result.get("scorer", "own") != "own":
        raise UserError(f"{cfg.out_dir}: was scored by {result['scorer']}, which has no judge")
    logs = {name: read_samples(cfg.out_dir, name) for name in names}
    trajectories = {}
    for name in names:
        trajectories |= trajectories_of(name, logs[name])
    path = out / "judge" / cfg.verdicts
    logged, lost, refused, _ = collect(cfg, trajectories, path)
    verdicts = decided(logged)
    for name, samples in logs.items():
        counts = Counter()
        for row, sample in samples.items():
            sample.pop("judge", None)
            sample["metrics"] = [metric for metric in sample["metrics"] if metric != "judge"]
            value = value_of(name, row, sample, verdicts, counts)
            if value is not None:
                sample["judge"] = value
                sample["metrics"].append("judge")
        tally(f"{name} replies", counts, ["judged"])
        samples = list(samples.values())
        write_jsonl(out / f"samples_{name}.jsonl", samples)
        entry = result["tasks"][name]
        entry |= summary(name, samples, answers)
        entry["asked"]["judge"] = judge_name(cfg, TASKS[name].judge, verdicts)
        entry["judged"] = counts
    write_text(out / "results.json", json.dumps(result, indent=1) + "\n")
    print_table(result | {"tasks": {name: result["tasks"][name] for name in names}, "skipped": {}})
    complain(cfg, logged, lost, refused)
