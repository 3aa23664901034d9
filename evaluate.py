"""FinEval: ask a checkpoint every question of every task, score the answers, say how sure that is.

    rows -> prompts -> generated replies, or log-probs of the choices -> samples_TASK.jsonl
         -> scores with 95% bootstrap intervals -> results.json and a table, all in points (0-100)

    python evaluate.py --init_from out/demo/aligned --out_dir out/demo/eval_aligned
    python evaluate.py --init_from out/smollm2 --tasks fineval --data out/data --out_dir out/eval
    python evaluate.py --list

    python evaluate.py prepare NAME SOURCE [OUT]        public data -> rows; see prepare.py
    python evaluate.py judge --out_dir out/eval         for a judge: MT-Bench and others; judged.py
    python evaluate.py compare DIR_A DIR_B              the same rows, paired; see results.py
    python evaluate.py contamination --train FILES      see contamination.py
    python evaluate.py report NAME=DIR ... --out_dir X  one page of several checkpoints

Under torchrun every rank holds the model and takes its share of the rows. Tasks share nothing:
their order, the batch size, the number of ranks and a kill leave the scores as they are.
"""

import contextlib
import difflib
import hashlib
import importlib
import json
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.distributed as dist

import answers
import metrics
import parallel
import pixiu
import scorers
from ask import ANSWER, Asker, samples_of
from checkpoint import barrier, sha_of_weights
from config import UserError, check_choice, check_range, parse
from jsonl import sha, write_jsonl, write_text
from logs import absorb, append_to, part_of
from model import Llama
from paper import PAPER
from prompts import Way, head, instructions_sha, reasoning
from results import points
from rows import CHOSEN, load_rows
from tasks import FINEVAL, TASKS, WORLD
from tokenizer import Tokenizer

MISSING_WARN = 10.0  # points of replies without an answer above which a score says little
COT_TOKENS, DIRECT_TOKENS = 512, 64  # room for a reply where --style says how a task is asked
SCORERS = {"own": answers, "pixiu": pixiu}


@dataclass
class Config:
    init_from: str = "sample/base"  # checkpoint directory to evaluate
    tasks: str = "world"  # names with commas, see --list; fineval = its 35, world = the demo's
    data: str = "sample/data/eval"  # directory of TASK.jsonl files
    out_dir: str = "out/eval"  # gets results.json, samples_TASK.jsonl, answers.jsonl
    list: bool = False  # print the tasks and leave
    limit: int = 0  # rows per task, a fixed random sample; 0 = all
    mode: str = ""  # loglikelihood or generate; empty = as each task says
    style: str = ""  # of generation: direct or cot (reason first); empty = as each task says
    fewshot: int = 0  # examples before each question, from TASK_shots.jsonl
    chat_template: bool = True  # ask as a user turn; without: plain text, as base models are asked
    system: str = ""  # system message instead of the task's own
    scorer: str = "own"  # own, or pixiu: with the quirks of PIXIU's scores, to compare with those
    max_new_tokens: int = 0  # longest reply; 0 = as each task says
    batch_tokens: int = 4096  # tokens per forward of log-likelihoods
    slots: int = 128  # replies generated together
    base_url: str = ""  # an OpenAI-compatible server that replies in place of init_from
    model: str = ""  # what the server calls the model; key from $OPENAI_API_KEY only
    concurrency: int = 32  # requests in flight at the server
    retries: int = 6  # of a request that fails on its way
    backoff_s: float = 1.0  # pause before the first retry, doubled with each
    timeout_s: float = 600.0  # of one request
    dtype: str = "auto"  # auto = bfloat16 on a GPU, float32 on a CPU
    device: str = "auto"  # auto, cpu or cuda


# What is asked -------------------------------------------------------------------------------


def list_tasks():
    for name, task in TASKS.items():
        size = f"; {PAPER[name].n:,} rows in the paper" if name in PAPER else ""
        print(f"{name:<22} {task.title}\n{'':<22} {task.capability}, {task.kind}, {task.novelty}, "
              f"{task.style}; {task.mode}, {', '.join(task.metrics)}{size}\n"
              f"{'':<22} {task.source}")  # fmt: skip


def task_names(words):
    """Names with commas, groups spelt out. UserError for an unknown one."""
    names = []
    for word in filter(None, map(str.strip, words.split(","))):
        if word not in TASKS and word not in ("fineval", "world"):
            near = difflib.get_close_matches(word, [*TASKS, "fineval", "world"], n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else "see --list"
            raise UserError(f"--tasks: unknown task {word!r}; {hint}")
        names += {"fineval": FINEVAL, "world": WORLD}.get(word, (word,))
    if not names:
        raise UserError("--tasks: is empty")
    return list(dict.fromkeys(names))


def way_of(cfg, task):
    """How a task is asked: as it says, unless the command line says otherwise."""
    mode, style, tokens = cfg.mode or task.mode, task.style, task.max_new_tokens
    if cfg.style and reasoning(task):
        style = cfg.style
        tokens = max(tokens, COT_TOKENS) if style == "cot" else min(tokens, DIRECT_TOKENS)
    if mode == "loglikelihood":
        style, tokens = "direct", 0
    elif cfg.max_new_tokens:
        tokens = cfg.max_new_tokens
    return Way(mode, style, cfg.fewshot, cfg.chat_template, cfg.system, tokens)


def why_not(cfg, name, way):
    """Why a task cannot be run, or None."""
    task, data = TASKS[name], Path(cfg.data)
    if not (data / f"{name}.jsonl").exists():
        return (f"no {data}/{name}.jsonl. Get {task.source}; then "
                f"python evaluate.py prepare {name} SOURCE {cfg.data}")  # fmt: skip
    if way.mode == "loglikelihood" and task.answer not in CHOSEN:
        return "it has no choices, so --mode loglikelihood cannot ask it"
    if way.mode == "loglikelihood" and cfg.base_url:
        return "a server gives no log-probs of choices; --mode generate asks for the letter"
    if way.fewshot and task.answer == "chat":
        return "a conversation is not asked with --fewshot"
    if way.fewshot and way.style == "cot":
        return "its examples hold no reasoning, so --fewshot goes with --style direct only"
    if way.fewshot and not (data / f"{name}_shots.jsonl").exists():
        return f"--fewshot: no {data}/{name}_shots.jsonl; evaluate.py prepare makes it"
    return None


def chosen_tasks(cfg):
    """({name: Way} to run, {name: why not}); UserError if nothing can be run."""
    ways = {name: way_of(cfg, TASKS[name]) for name in task_names(cfg.tasks)}
    skipped = {name: why_not(cfg, name, way) for name, way in ways.items()}
    runnable = {name: way for name, way in ways.items() if not skipped[name]}
    skipped = {name: why for name, why in skipped.items() if why}
    if not runnable:
        raise UserError("; ".join(f"{name}: {why}" for name, why in skipped.items()))
    return runnable, skipped


# Who answers ---------------------------------------------------------------------------------


@contextlib.contextmanager
def open_asker(cfg):
    """The model or the server, with the log of its answers. Each rank writes a log of its own,
    which rank 0 takes over at the beginning and at the end, after a kill too."""
    rank, world, device = parallel.init(cfg.device, parallel.PATIENCE)
    path, asker = Path(cfg.out_dir) / "answers.jsonl", Asker(cfg, {}, {}, None)
    if cfg.base_url:
        if world > 1:
            raise UserError("a server is asked by a single process: python, not torchrun")
        if not cfg.model:
            raise UserError("--base_url needs --model: what the server calls the checkpoint")
        asker.identity = {"server": cfg.base_url, "model": cfg.model}
    else:
        asker.tokenizer, asker.device = Tokenizer(cfg.init_from), device
        dtype = parallel.auto_dtype(cfg.dtype, device)
        asker.model = Llama.from_pretrained(cfg.init_from, device, dtype).eval()
        asker.tokenizer.check_fits(asker.model.config.vocab_size)
        asker.identity = {"weights": parallel.on_rank0(sha_of_weights, cfg.init_from),
                          "tokenizer": asker.tokenizer.sha, "dtype": str(dtype),
                          "stops": sorted(asker.tokenizer.stop_ids)}  # fmt: skip
    with contextlib.ExitStack() as stack:
        own = path if rank == 0 else part_of(path, rank)
        if rank == 0:
            asker.records, asker.add = stack.enter_context(append_to(path, ANSWER))
            absorb(path, ANSWER, asker.records, asker.add)
            for name, record in asker.records.items():
                if not {"logprobs", "finish"} & record.keys():
                    raise UserError(f"{path}: {name}: is no answer; take another --out_dir")
        known = parallel.on_rank0(lambda: asker.records)
        if rank != 0:
            asker.records, asker.add = stack.enter_context(append_to(own, ANSWER))
            asker.records |= known
        yield asker, rank, world
        barrier()
        if rank == 0:
            absorb(path, ANSWER, asker.records, asker.add)


class NotAsked(Exception):
    """A task none of whose rows this model or server can be asked; the others can go on."""


# One task ------------------------------------------------------------------------------------


def fixed_sample(rows, limit):
    """`limit` rows, the same ones every time; not the first: files are often sorted by label."""
    if not 0 < limit < len(rows):
        return rows
    picked = np.random.default_rng(0).permutation(len(rows))[:limit]
    return [rows[i] for i in sorted(picked)]


def run_task(name, way, asker, rank, world):
    """(entry of results.json, samples) of a task; the ranks share its rows."""
    cfg, task = asker.cfg, TASKS[name]
    path = Path(cfg.data) / f"{name}.jsonl"
    rows, left_out = load_rows(name, path)
    place = {row["id"]: number for number, row in enumerate(rows)}
    shots = load_rows(name, path.with_stem(f"{name}_shots"))[0] if way.fewshot else []
    scorer, title = SCORERS[cfg.scorer], name if rank == 0 else None
    mine, asker.left_out = fixed_sample(rows, cfg.limit)[rank::world], []
    try:
        samples = samples_of(asker, task, way, mine, shots, scorer, title) if mine else []
    except UserError as e:
        raise UserError(f"{path}: {e}") from None
    not_asked = [f"{path}: {problem}" for problem in asker.left_out]
    samples = [{"doc_id": place[s["doc"]["id"]]} | s for s in samples]
    if world > 1:
        parts = [None] * world
        dist.all_gather_object(parts, (samples, not_asked))
        samples = sorted((s for part, _ in parts for s in part), key=lambda s: s["doc_id"])
        not_asked = [problem for _, part in parts for problem in part]
    if not samples:
        raise NotAsked(f"no row could be asked; the first: {not_asked[0]}")
    total, left_out = len(rows) + len(left_out), left_out + not_asked
    fields = Counter(re.search(r":(?:\d+| row .*?): (\w+)", problem)[1] for problem in left_out)
    if left_out and rank == 0:
        print(f"{path}: {total:,} rows = {total - len(left_out):,} used + {len(left_out):,} left "
              f"out; the first: {left_out[0]}")  # fmt: skip
    tokenizer = asker.tokenizer
    entry = {
        "title": task.title, "capability": task.capability, "kind": task.kind,
        "novelty": task.novelty,
        **summary(name, samples, scorer),
        "rows": {"in": total, "used": total - len(left_out), "left_out": fields},
        "asked": {
            # two results with other values here are not compared
            "mode": way.mode, "style": way.style, "fewshot": way.fewshot,
            "chat_template_sha": tokenizer.template_sha if tokenizer and way.chat_template
            else None,
            "system_instruction_sha": instructions_sha(task, way),
            "bos": len(head(tokenizer)) if tokenizer else None,
            "max_new_tokens": way.max_new_tokens, "scorer": cfg.scorer, "judge": None,
        },
        "prompts_sha": sha(sorted(s["prompt_hash"] for s in samples)),
        "data_sha": hashlib.sha256(path.read_bytes()).hexdigest(),
    }  # fmt: skip
    return entry, samples


def summary(name, samples, scorer):
    """Score, interval and side figures of a sample log, in points.

    The score is the first of the task's metrics that the samples have: a reply that only a judge
    can mark has none before `evaluate.py judge`.
    """
    task, found = TASKS[name], {}
    for metric, (statistics, score) in scorer.measures(task, samples).items():
        low, high = scorers.interval(scorers.resample(statistics, score, seed=name))
        found[metric] = points(scorers.point(statistics, score), low, high)
    metric = next((m for m in task.metrics if m in found), task.metrics[0])
    return {
        "metric": metric,
        **found.get(metric, {"score": None, "low": None, "high": None}),
        "n": len(samples),
        "metrics": found,
        "baseline": {k: round(100 * v, 4) for k, v in answers.baseline(task, samples).items()},
        "missing": found["missing"]["score"] if "missing" in found else 0.0,
        "truncated": sum(s["truncated"] for s in samples),
        "finish_length": sum(s["finish"] == "length" for s in samples),
    }


# The run -------------------------------------------------------------------------------------


def print_table(result):
    """Scores in points; `majority` is what always giving the most frequent answer would score."""
    heads = ("task", "metric", "score", "95% interval", "n", "majority", "missing")
    line = "{:<24}{:<12}{:>7}{:>17}{:>7}{:>10}{:>9}"
    print("\n" + line.format(*heads))
    for name, e in result["tasks"].items():
        most = e["baseline"].get(e["metric"])
        most, missing = "" if most is None else f"{most:.1f}", f"{e['missing']:.1f}"
        score, interval = "", "not judged yet"
        if e["score"] is not None:
            score, interval = f"{e['score']:.1f}", f"[{e['low']:.1f}, {e['high']:.1f}]"
        print(line.format(name, e["metric"], score, interval, e["n"], most, missing))
    for name, e in result["tasks"].items():
        if e["missing"] > MISSING_WARN:
            print(f"warning: {name}: no answer found in {e['missing']:.1f}% of the replies")
        if e["truncated"] or e["finish_length"]:
            print(f"note: {name}: {e['truncated']} prompts cut to fit the context, "
                  f"{e['finish_length']} replies ended by the length limit")  # fmt: skip
        if TASKS[name].judge and not e["asked"]["judge"]:
            print(f"note: {name} is for a judge: python evaluate.py judge --out_dir DIR")
    for name, why in result["skipped"].items():
        print(f"warning: {name} was not run: {why}")


def main(cfg):
    if cfg.list:
        return list_tasks()
    check_choice(cfg, mode=("", "loglikelihood", "generate"), style=("", "direct", "cot"),
                 scorer=tuple(SCORERS))  # fmt: skip
    check_range(cfg, ("batch_tokens", "slots", "concurrency", "timeout_s"),
                ("limit", "max_new_tokens", "fewshot", "retries", "backoff_s"))  # fmt: skip
    if cfg.base_url and not cfg.chat_template:
        raise UserError("--base_url: a server applies its own chat template")
    ways, skipped = chosen_tasks(cfg)
    out = Path(cfg.out_dir)
    with open_asker(cfg) as (asker, rank, world):
        metrics.describe_run(cfg, __file__)
        result = {"init_from": f"{cfg.base_url} {cfg.model}" if cfg.base_url else cfg.init_from,
                  "unit": "points, 0 to 100 (mcc: -100 to 100)",
                  "tokenizer_sha": asker.tokenizer.sha if asker.tokenizer else None,
                  "limit": cfg.limit, "dtype": asker.identity.get("dtype"),
                  "scorer": cfg.scorer, "tasks": {}, "skipped": skipped}  # fmt: skip
        for name, way in ways.items():
            try:
                result["tasks"][name], samples = run_task(name, way, asker, rank, world)
            except NotAsked as e:  # the same on every rank
                skipped[name] = str(e)
                continue
            if rank == 0:
                write_jsonl(out / f"samples_{name}.jsonl", samples)
                write_text(out / "results.json", json.dumps(result, indent=1) + "\n")
    if not result["tasks"]:
        raise UserError("; ".join(f"{name}: {why}" for name, why in skipped.items()))
    if rank == 0:
        write_text(out / "results.json", json.dumps(result, indent=1) + "\n")
        print_table(result)


def command(words):
    """The first word names a sub-command, whose file is imported only then; else an evaluation."""
    name, rest = (words[0], words[1:]) if words else ("", [])
    files = {"prepare": "prepare", "judge": "judged", "compare": "results",
             "contamination": "contamination", "report": "scoreboard"}  # fmt: skip
    if name in files:
        return importlib.import_module(files[name]).main(rest)
    return main(parse(Config, words))


if __name__ == "__main__":
    with parallel.clean_exit():
        command(sys.argv[1:])
