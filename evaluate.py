"""FinEval: ask a checkpoint every question of every task, score the answers, say how sure that is.

    rows -> prompts -> generated replies, or log-probs of the choices -> samples_TASK.jsonl
         -> scores with 95% bootstrap intervals -> results.json and a table, all in points (0-100)

    python evaluate.py --init_from out/demo/aligned --out_dir out/demo/eval_aligned
    python evaluate.py --init_from out/smollm2 --tasks fpb,arc --data out/data --mode loglikelihood
    python evaluate.py --compare out/demo/eval_cpt_it out/demo/eval_aligned

`--compare A B` pairs the same rows of two results and refuses rows that were asked differently.
Under torchrun every rank holds the model and takes its share of the rows. Tasks share nothing:
their order, the batch size and the number of ranks leave the scores as they are.
"""

import difflib
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.distributed as dist

import metrics
import parallel
import scorers
from answers import baseline, measures
from ask import ask_choices, ask_replies, head
from config import UserError, check_range, parse
from jsonl import sha, write_jsonl, write_text
from model import Llama
from results import compare, points
from rows import load_rows
from tasks import TASKS
from tokenizer import Tokenizer

MISSING_WARN = 10.0  # points of replies without an answer above which a score says little


@dataclass
class Config:
    init_from: str = "sample/base"  # checkpoint directory to evaluate
    tasks: str = "concepts,tasks,reasoning,instruction_following,general"  # see --list
    data: str = "sample/data/eval"  # directory of TASK.jsonl files
    out_dir: str = "out/eval"  # gets results.json and samples_TASK.jsonl
    list: bool = False  # print the tasks and leave
    limit: int = 0  # rows per task, a fixed random sample; 0 = all
    mode: str = ""  # loglikelihood or generate; empty = as each task says
    chat_template: bool = True  # ask as a user turn; without: plain text, as base models are asked
    system: str = ""  # system message instead of the task's own
    max_new_tokens: int = 0  # longest reply; 0 = as each task says
    batch_tokens: int = 4096  # tokens per forward of log-likelihoods
    slots: int = 128  # replies generated together
    dtype: str = "auto"  # auto = bfloat16 on a GPU, float32 on a CPU
    device: str = "auto"  # auto, cpu or cuda


# One task ------------------------------------------------------------------------------------


def run_task(name, model, tokenizer, cfg, device, rank, world):
    """(entry of results.json, samples) of a task; the ranks share its rows."""
    task, path = TASKS[name], Path(cfg.data) / f"{name}.jsonl"
    rows = load_rows(name, path)
    place = {row["id"]: number for number, row in enumerate(rows)}
    if 0 < cfg.limit < len(rows):
        # Not the first rows: files are often sorted by label or subject
        picked = np.random.default_rng(0).permutation(len(rows))[: cfg.limit]
        rows = [rows[i] for i in sorted(picked)]
    mode = cfg.mode or task.mode
    if mode == "loglikelihood" and not all(row.get("choices") for row in rows):
        raise UserError(f"{path}: choices: some rows have none, so --mode loglikelihood cannot ask")
    ask = ask_choices if mode == "loglikelihood" else ask_replies
    title = name if rank == 0 else None
    mine = rows[rank::world]
    try:
        samples = ask(model, tokenizer, cfg, task, mine, device, title) if mine else []
    except UserError as e:
        raise UserError(f"{path}: {e}") from None
    samples = [{"doc_id": place[s["doc"]["id"]]} | s for s in samples]
    if world > 1:
        parts = [None] * world
        dist.all_gather_object(parts, samples)
        samples = sorted((s for part in parts for s in part), key=lambda s: s["doc_id"])
    entry = {
        "title": task.title, "capability": task.capability, "kind": task.kind,
        "novelty": task.novelty, "style": task.style, "metric": task.metrics[0],
        **summary(name, samples),
        "asked": {
            # two results with other values here are not compared
            "mode": mode, "fewshot": 0,
            "chat_template_sha": tokenizer.template_sha if cfg.chat_template else None,
            "system_instruction_sha": sha(cfg.system or task.system),
            "bos": len(head(tokenizer)),
            "max_new_tokens": 0 if mode == "loglikelihood"
            else cfg.max_new_tokens or task.max_new_tokens,
        },
        "prompts_sha": sha(sorted(s["prompt_hash"] for s in samples)),
        "data_sha": hashlib.sha256(path.read_bytes()).hexdigest(),
    }  # fmt: skip
    return entry, samples


def summary(name, samples):
    """Score, interval and side figures of a sample log, in points."""
    task, found = TASKS[name], {}
    for metric, (statistics, score) in measures(task, samples).items():
        low, high = scorers.interval(scorers.resample(statistics, score, seed=name))
        found[metric] = points(scorers.point(statistics, score), low, high)
    return {
        **found[task.metrics[0]],
        "n": len(samples),
        "metrics": found,
        "baseline": {k: round(100 * v, 4) for k, v in baseline(task, samples).items()},
        "missing": found["missing"]["score"] if "missing" in found else 0.0,
        "truncated": sum(s["truncated"] for s in samples),
        "finish_length": sum(s["finish"] == "length" for s in samples),
    }


# The run -------------------------------------------------------------------------------------


def list_tasks():
    for name, task in TASKS.items():
        print(f"{name:<22} {task.title}\n{'':<22} {task.capability}, {task.kind}, {task.novelty}, "
              f"{task.style}; {task.mode}, {', '.join(task.metrics)}; {task.source}")  # fmt: skip


def chosen_tasks(cfg):
    """(names to run, {name: why not}); UserError for an unknown name or if nothing can be run."""
    names = [name.strip() for name in cfg.tasks.split(",") if name.strip()]
    skipped = {}
    for name in names:
        if name not in TASKS:
            near = difflib.get_close_matches(name, TASKS, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else "see --list"
            raise UserError(f"--tasks: unknown task {name!r}; {hint}")
        if not (Path(cfg.data) / f"{name}.jsonl").exists():
            skipped[name] = (f"no {cfg.data}/{name}.jsonl. Get {TASKS[name].source}; public sets: "
                             f"python prepare.py {name} SOURCE {cfg.data}")  # fmt: skip
    runnable = list(dict.fromkeys(name for name in names if name not in skipped))
    if not runnable:
        raise UserError("; ".join(f"{k}: {v}" for k, v in skipped.items()) or "--tasks: is empty")
    return runnable, skipped


def print_table(result):
    """Scores in points; `majority` is what always giving the most frequent answer would score."""
    heads = ("task", "metric", "score", "95% interval", "n", "majority", "missing")
    line = "{:<24}{:<9}{:>7}{:>17}{:>7}{:>10}{:>9}"
    print("\n" + line.format(*heads))
    for name, e in result["tasks"].items():
        interval = f"[{e['low']:.1f}, {e['high']:.1f}]"
        most = e["baseline"].get(e["metric"])
        most = "" if most is None else f"{most:.1f}"
        score, missing = f"{e['score']:.1f}", f"{e['missing']:.1f}"
        print(line.format(name, e["metric"], score, interval, e["n"], most, missing))
    for name, e in result["tasks"].items():
        if e["missing"] > MISSING_WARN:
            print(f"warning: {name}: no answer found in {e['missing']:.1f}% of the replies")
        if e["truncated"] or e["finish_length"]:
            print(f"note: {name}: {e['truncated']} prompts cut to fit the context, "
                  f"{e['finish_length']} replies ended by the length limit")  # fmt: skip
    for name, why in result["skipped"].items():
        print(f"warning: {name} was not run: {why}")


def main(cfg):
    if cfg.list:
        return list_tasks()
    if cfg.mode not in ("", "loglikelihood", "generate"):
        raise UserError(f"--mode {cfg.mode}: must be loglikelihood or generate")
    check_range(cfg, ("batch_tokens", "slots"), ("limit", "max_new_tokens"))
    names, skipped = chosen_tasks(cfg)
    rank, world, device = parallel.init(cfg.device)
    tokenizer = Tokenizer(cfg.init_from)
    dtype = parallel.auto_dtype(cfg.dtype, device)
    model = Llama.from_pretrained(cfg.init_from, device, dtype).eval()
    tokenizer.check_fits(model.config.vocab_size)
    metrics.describe_run(cfg, __file__)
    out = Path(cfg.out_dir)
    result = {"init_from": cfg.init_from, "unit": "points, 0 to 100 (mcc: -100 to 100)",
              "tokenizer_sha": tokenizer.sha, "limit": cfg.limit, "dtype": str(dtype),
              "tasks": {}, "skipped": skipped}  # fmt: skip
    for name in names:
        entry, samples = run_task(name, model, tokenizer, cfg, device, rank, world)
        result["tasks"][name] = entry
        if rank == 0:
            write_jsonl(out / f"samples_{name}.jsonl", samples)
    if rank == 0:
        write_text(out / "results.json", json.dumps(result, indent=1) + "\n")
        print_table(result)


if __name__ == "__main__":
    with parallel.clean_exit():
        if sys.argv[1:2] == ["--compare"]:
            if len(sys.argv) != 4:
                raise UserError("usage: python evaluate.py --compare DIR_A DIR_B")
            compare(*sys.argv[2:])
        else:
            main(parse(Config))
