"""Preference distillation: the model's own solutions, judged, become preference pairs (FinDAP).

    prompts -> sample -> trajectories.jsonl -> judge -> verdicts.jsonl -> pairs -> pairs.jsonl

Two signals (arXiv:2501.04961 section 5.3). FAP, by outcome: a correct solution against an incorrect
one of the same prompt. SCP, by process: in a wrong solution, the judge's correction of the first
wrong step against that step. Each stage only adds to its log, so a run that was stopped goes on
where it was when the same command is given again: nothing is sampled or judged twice.

    python reward.py sample --init_from out/cpt --prompts sample/data/exam_train.jsonl --n 4
    python reward.py judge --judge exact       # or http with --base_url and --model, or local
    python reward.py pairs --layout continuation
"""

import hashlib
import os
import random
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

import parallel
from config import UserError, check_choice, check_range, parse
from endpoint import Unanswered, ask_http, check_endpoint
from extract import final_answer, same_answer
from generate import load, stream
from jsonl import check_messages, read_jsonl, sha, write_jsonl
from judge import ask_exact, ask_local, next_request, read_verdict, unusable
from logs import TRAJECTORY, VERDICT, append_to, read_log, tally
from pairs import by_solution, fap_pairs, scp_pairs


@dataclass
class Sample:
    init_from: str = "out/cpt"  # checkpoint whose solutions are sampled
    prompts: str = "sample/data/exam_train.jsonl"  # rows {"id", "source", "prompt", "answer"}
    out_dir: str = "out/reward"  # gets trajectories.jsonl
    n: int = 4  # solutions per prompt
    temperature: float = 1.0  # 1 = the model's own distribution
    top_p: float = 1.0  # keep the likeliest tokens up to this probability mass
    max_new_tokens: int = 512  # a longer solution is cut off and makes no pair
    slots: int = 64  # sequences decoded together
    seed: int = 0  # another seed, other solutions
    dtype: str = "auto"  # float32, bfloat16, or auto: bfloat16 on a GPU
    device: str = "auto"  # auto, cpu or cuda


@dataclass
class Judge:
    out_dir: str = "out/reward"  # holds trajectories.jsonl
    verdicts: str = "verdicts.jsonl"  # log in out_dir; each judge needs its own
    judge: str = "http"  # http, local, or exact: final answers compared by rule, no wrong steps
    base_url: str = "http://127.0.0.1:8377/v1"  # OpenAI-compatible; key from $OPENAI_API_KEY only
    model: str = "world"  # what the endpoint calls the judge
    judge_from: str = ""  # checkpoint directory of --judge local
    stepwise: bool = True  # ask for the first wrong step of wrong solutions (SCP)
    asks: int = 3  # replies asked for, with other seeds, until one is valid
    max_tokens: int = 1024  # longest reply
    seed: int = 0  # of the first request; the next ones count up
    concurrency: int = 8  # requests in flight
    retries: int = 6  # of a request that fails on its way
    backoff_s: float = 1.0  # pause before the first retry, doubled with each
    timeout_s: float = 120.0  # of one request
    dtype: str = "auto"  # float32, bfloat16, or auto: bfloat16 on a GPU
    device: str = "auto"  # auto, cpu or cuda


@dataclass
class Pairs:
    out_dir: str = "out/reward"  # holds trajectories.jsonl and the verdicts; gets the pairs
    verdicts: str = "verdicts.jsonl"  # log in out_dir to build on
    pairs: str = "pairs.jsonl"  # written in out_dir: rows for train_dpo.py and train_sft.py --pairs
    fap_per_prompt: int = 2  # pairs by outcome, at most
    scp_per_prompt: int = 2  # pairs by process, at most
    layout: str = "paper"  # of SCP: paper asks for the next step, continuation goes on mid-turn
    seed: int = 0  # chooses among the possible pairs


# ---- sample -------------------------------------------------------------------------------------


def sha_of_weights(path):
    """Sixteen hex digits of a checkpoint's config and weights."""
    digest = hashlib.sha256()
    for file in [Path(path) / "config.json", *sorted(Path(path).glob("*.safetensors"))]:
        with open(file, "rb") as f:
            digest.update(hashlib.file_digest(f, "sha256").digest())
    return digest.hexdigest()[:16]


def read_prompts(path):
    """({id: row with prompt as messages}, number of rows without a reference answer)."""
    rows, skipped = {}, 0
    fields = {"id": str, "source?": str, "prompt": (str, list), "answer?": str, "solution?": str}
    for line, row in read_jsonl(path, fields):
        if isinstance(row["prompt"], str):
            row["prompt"] = [{"role": "user", "content": row["prompt"]}]
        check_messages(row["prompt"], f"{path}:{line}", last="user", name="prompt")
        if row["id"] in rows:
            raise UserError(f"{path}:{line}: id: {row['id']!r} is there twice")
        if (row.get("answer") or "").strip():
            rows[row["id"]] = row
        else:
            skipped += 1
    return rows, skipped


def trajectory(row, k, completion, tokenizer, settings):
    """The record of one solution; `final` and `correct` come from the comparison by rule."""
    # The strict reader refuses NUL; the mark in its place keeps the text out of the pairs.
    text = tokenizer.decode(completion.ids).replace("\0", "\ufffd")
    final = final_answer(text)
    record = {"id": f"{row['id']}/{k}", "source": row.get("source") or "", "prompt": row["prompt"]}
    record |= {"answer": row["answer"], "sample": k, "text": text, "final": final}
    record |= {"correct": final is not None and same_answer(final, row["answer"])}
    record |= {"finish": completion.finish} | settings
    return record | ({"solution": row["solution"]} if row.get("solution") else {})


def sample(cfg):
    """Solutions of every prompt -> trajectories.jsonl; those already there are kept."""
    check_range(cfg, ("n", "max_new_tokens", "slots"), ("temperature",))
    model, tokenizer = load(cfg.init_from, cfg.device, cfg.dtype)
    rows, without = read_prompts(cfg.prompts)
    settings = {"seed": cfg.seed, "temperature": cfg.temperature, "top_p": cfg.top_p}
    settings |= {"max_new_tokens": cfg.max_new_tokens, "policy_sha": sha_of_weights(cfg.init_from)}
    settings |= {"template_sha": tokenizer.template_sha}
    path = Path(cfg.out_dir) / "trajectories.jsonl"
    ids = {name: tokenizer.prompt(row["prompt"]) for name, row in rows.items()}
    room = model.config.max_position_embeddings - 1
    fitting = {name: row for name, row in rows.items() if len(ids[name]) <= room}
    counts = Counter({"sampled": len(fitting), "without reference answer": without})
    counts["longer than the context"] = len(rows) - len(fitting)
    if not fitting:
        tally("prompts", counts, ["sampled"])
        raise UserError(f"{cfg.prompts}: holds no prompt that can be sampled")
    with append_to(path, TRAJECTORY) as (records, add):
        for record in records.values():
            for name, value in settings.items():
                if record.get(name) != value:
                    raise UserError(f"{path}: {record['id']}: {name} is {record.get(name)!r}, this "
                                    f"run has {value!r}: take another --out_dir")  # fmt: skip
            row = rows.get(record["id"].rpartition("/")[0])
            if row and any(record.get(f) != row.get(f) for f in ("prompt", "answer", "solution")):
                raise UserError(f"{path}: {record['id']}: {cfg.prompts} has another prompt, answer "
                                "or solution of this id: take another --out_dir")  # fmt: skip
        # A prompt with some samples missing is sampled whole: its seed brings the same ones again.
        todo = [
            row
            for name, row in fitting.items()
            if any(f"{name}/{k}" not in records for k in range(cfg.n))
        ]
        seeds = [hashlib.sha256(f"{cfg.seed}/{row['id']}".encode()).digest()[:8] for row in todo]
        events = stream(
            model, [ids[row["id"]] for row in todo], tokenizer.stop_ids, cfg.max_new_tokens,
            cfg.temperature, cfg.top_p, cfg.n, [int.from_bytes(s) for s in seeds], cfg.slots,
        )  # fmt: skip
        with tqdm(total=len(todo) * cfg.n, desc="sampling", unit=" solutions") as bar:
            for i, k, completion in events:
                if completion.finish and f"{todo[i]['id']}/{k}" not in records:
                    add(trajectory(todo[i], k, completion, tokenizer, settings))
                bar.update(bool(completion.finish))
        tally("prompts", counts, ["sampled"])
        solutions = [records[f"{name}/{k}"] for name in fitting for k in range(cfg.n)]
    right = sum(record["correct"] for record in solutions)
    cut = sum(record["finish"] != "stop" for record in solutions)
    print(f"{path}: {len(solutions):,} solutions, {right:,} with the reference's final answer by "
          f"rule, {cut:,} cut off")  # fmt: skip


# ---- judge --------------------------------------------------------------------------------------


def choose_judge(cfg):
    """(name in the log, name in the requests, ask(bodies, trajectories) -> (index, reply) ...)."""
    if cfg.judge == "exact":
        return "exact", "exact", ask_exact
    if cfg.judge == "http":
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        check_endpoint(cfg.base_url, key)
        return f"http:{cfg.model}", cfg.model, lambda bodies, _: ask_http(bodies, cfg, key)
    if cfg.judge == "local" and cfg.judge_from:
        model, tokenizer = load(cfg.judge_from, cfg.device, cfg.dtype)
        name = f"local:{sha_of_weights(cfg.judge_from)}"
        return name, name, lambda bodies, _: ask_local(bodies, model, tokenizer)
    raise UserError(f"--judge {cfg.judge}: must be http, exact, or local with --judge_from DIR")


def judge(cfg):
    """Verdicts on every trajectory -> verdicts.jsonl; what is there already is not asked again."""
    check_range(cfg, ("asks", "max_tokens", "concurrency", "timeout_s"), ("retries", "backoff_s"))
    out = Path(cfg.out_dir)
    trajectories = read_log(out / "trajectories.jsonl", TRAJECTORY)
    cfg.stepwise = cfg.stepwise and cfg.judge != "exact"
    name, model, ask = choose_judge(cfg)
    copied = {"tries": 0, "latency_s": 0.0, "usage": {}}  # a reply that cost nothing again
    lost, tries = {}, 0  # lost: trajectory id -> why its request has no reply
    with append_to(out / cfg.verdicts, VERDICT) as (logged, add):
        known = {verdict["request_sha"]: verdict for verdict in logged.values()}
        while True:
            # One wave: the next request of each trajectory. Equal solutions make equal requests.
            wave = {}
            for record in trajectories.values():
                if record["id"] not in lost and not unusable(record):
                    if request := next_request(cfg, model, record, logged):
                        wave.setdefault(sha(request[3]), []).append(request)
            if not wave:
                break
            todo = []
            for key, requests in wave.items():
                if key not in known:
                    todo.append(requests)
                for request in requests if key in known else ():
                    add(read_verdict(request, name, known[key] | copied))
            bodies, firsts = [r[0][3] for r in todo], [r[0][4] for r in todo]
            unsent = dict(enumerate(todo))
            for i, reply in tqdm(ask(bodies, firsts), "judging", len(todo), unit=" requests"):
                del unsent[i]
                if isinstance(reply, Unanswered):
                    lost |= {request[4]["id"]: str(reply) for request in todo[i]}
                    continue
                tries += reply["tries"] - 1
                for request in todo[i]:
                    add(verdict := read_verdict(request, name, reply))
                    reply = reply | copied
                known[verdict["request_sha"]] = verdict
            if unsent:  # the endpoint is beyond hope
                lost |= {r[4]["id"]: "not asked" for requests in unsent.values() for r in requests}
                break
    report(trajectories, logged, lost, tries)
    if lost:
        reason = next(iter(lost.values()))
        place = f" at {cfg.base_url}" if cfg.judge == "http" else ""
        raise UserError(
            f"the judge{place} left {len(lost):,} solutions without a reply, the first with: "
            f"{reason}. All replies are kept: the same command goes on"
        )


def report(trajectories, logged, lost, tries):
    """Print what became of every trajectory, and how often the judge and the rule agree."""
    verdicts, outcome, stepwise, agreed = by_solution(logged), Counter(), Counter(), []
    for name, record in trajectories.items():
        verdict = verdicts.get((name, "outcome"))
        if reason := unusable(record):
            outcome[reason] += 1
        elif verdict is None or name in lost and not verdict["parsed"]:
            outcome["unanswered"] += 1
        elif not verdict["parsed"]:
            outcome[f"invalid: {verdict['reason']}"] += 1
        else:
            outcome[correctness := verdict["parsed"]["Correctness"]] += 1
            if record.get("correct") is not None:
                agreed.append((correctness == "correct") == record["correct"])
            if correctness == "wrong":
                verdict = verdicts.get((name, "stepwise"))
                if name in lost:
                    stepwise["unanswered"] += 1
                elif verdict is None:
                    stepwise["not asked"] += 1
                elif not verdict["parsed"]:
                    stepwise[f"invalid: {verdict['reason']}"] += 1
                else:
                    right = verdict["first_error"] < 0
                    stepwise["without a wrong step" if right else "located"] += 1
    tally("solutions", outcome, ["correct", "wrong"])
    if stepwise.total() > stepwise["not asked"]:
        tally("wrong solutions", stepwise, ["located", "without a wrong step"])
    usages = [verdict["usage"] for verdict in logged.values()]
    read, written = (
        sum(u[name] for u in usages if type(u.get(name)) is int)
        for name in ("prompt_tokens", "completion_tokens")
    )
    print(f"the judge and the rule agree on {sum(agreed):,} of {len(agreed):,}; {tries:,} retries, "
          f"{read:,} tokens read, {written:,} written")  # fmt: skip


# ---- pairs --------------------------------------------------------------------------------------


def pairs(cfg):
    """Trajectories and verdicts -> pairs.jsonl, the same bytes for the same seed."""
    check_choice(cfg, layout=("paper", "continuation"))
    check_range(cfg, not_negative=("fap_per_prompt", "scp_per_prompt"))
    out, prompts, rows = Path(cfg.out_dir), {}, []
    for record in read_log(out / "trajectories.jsonl", TRAJECTORY).values():
        prompts.setdefault(record["id"].rpartition("/")[0], []).append(record)
    verdicts = by_solution(read_log(out / cfg.verdicts, VERDICT))
    fap, scp = Counter(), Counter()
    for name, members in sorted(prompts.items()):
        members.sort(key=lambda record: record["sample"])
        rng = random.Random(f"{cfg.seed}/{name}")
        made, word = fap_pairs(name, members, verdicts, cfg, rng)
        fap[word] += 1
        rows += made + scp_pairs(name, members, verdicts, cfg, rng, scp)
    tally("prompts for pairs by outcome (FAP)", fap, ["paired"])
    tally("wrong solutions for pairs by process (SCP)", scp, ["paired"])
    if not rows:
        raise UserError("no pair can be made of these verdicts: see the reasons above")
    write_jsonl(out / cfg.pairs, rows)
    kinds = Counter(pair["kind"] for pair in rows)
    print(f"{out / cfg.pairs}: {len(rows):,} pairs = {kinds['fap']:,} FAP + {kinds['scp']:,} SCP")


def main(words):
    stages = {"sample": (Sample, sample), "judge": (Judge, judge), "pairs": (Pairs, pairs)}
    usage = "usage: python reward.py sample|judge|pairs [--help] [flags]"
    if words[:1] in (["-h"], ["--help"]):
        return print(f"{__doc__}\n{usage}")
    if not words or words[0] not in stages:
        raise UserError(usage)
    config, run = stages[words[0]]
    run(parse(config, words[1:]))


if __name__ == "__main__":
    with parallel.clean_exit():
        main(sys.argv[1:])
