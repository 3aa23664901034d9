"""The judge reads every solution: trajectories.jsonl -> verdicts.jsonl.

One log of requests and replies, keyed by the content of the request: equal solutions are asked
about once, a run that was stopped never asks again, and every reply is kept as it came, valid or
not. Beside the judge the rule (extract.py) compares final answers, and their agreement is printed.
"""

import contextlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from checkpoint import sha_of_weights
from config import UserError, check_choice, check_range
from endpoint import Unanswered, ask_http, check_endpoint
from generate import load
from jsonl import sha
from judge import ask_exact, ask_local, decided, next_request, read_verdict, unusable
from logs import VERDICT, append_to, read_trajectories, tally

COPIED = {"tries": 0, "latency_s": 0.0, "usage": {}}  # of a reply that cost nothing again


@dataclass
class Asking:
    """Who judges, how often, how patiently."""

    judge: str = "http"  # http, local, or exact: final answers compared by rule, no wrong steps
    base_url: str = "http://127.0.0.1:8377/v1"  # OpenAI-compatible; key from $OPENAI_API_KEY only
    model: str = "world"  # what the endpoint calls the judge
    judge_from: str = ""  # checkpoint directory of --judge local
    votes: int = 1  # valid replies per question; the most frequent finding counts
    asks: int = 3  # replies asked for per vote, with other seeds, until one is valid
    max_tokens: int = 1024  # longest reply
    token_budget: int = 0  # of --judge http: tokens read + written by all runs of this log; 0 = any
    seed: int = 0  # of the first request; the next ones count up
    concurrency: int = 8  # requests in flight
    retries: int = 6  # of a request that fails on its way
    backoff_s: float = 1.0  # pause before the first retry, doubled with each
    timeout_s: float = 120.0  # of one request
    dtype: str = "auto"  # float32, bfloat16, or auto: bfloat16 on a GPU
    device: str = "auto"  # auto, cpu or cuda


@dataclass
class Judge(Asking):
    out_dir: str = "out/reward"  # holds trajectories.jsonl
    verdicts: str = "verdicts.jsonl"  # log in out_dir; each judge needs its own
    stepwise: str = "all"  # solutions whose steps are judged, too: all, wrong (FinDAP's) or none


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
        return name, name, lambda bodies, _: ask_local(list(bodies), model, tokenizer)
    raise UserError(f"--judge {cfg.judge}: must be http, exact, or local with --judge_from DIR")


def spent(verdict):
    """Tokens that a request and its reply cost; by their letters, four a token, where the endpoint
    does not say."""
    if not verdict["tries"]:
        return 0
    counted = [verdict["usage"].get(name) for name in ("prompt_tokens", "completion_tokens")]
    letters = verdict.get("letters", 0), len(verdict["raw"])
    return sum(n if type(n) is int else m // 4 for n, m in zip(counted, letters, strict=True))


def next_wave(cfg, model, trajectories, logged, lost):
    """{hash: requests}: the next one of every solution. Equal solutions make equal requests."""
    wave = {}
    for record in trajectories.values():
        if record["id"] not in lost and not unusable(record):
            if request := next_request(cfg, model, record, logged):
                wave.setdefault(sha(request.body), []).append(request)
    return wave


def check_judge(cfg):
    """UserError for settings that cannot be."""
    check_range(
        cfg,
        ("asks", "votes", "max_tokens", "concurrency", "timeout_s"),
        ("retries", "backoff_s", "token_budget"),
    )
    if cfg.token_budget and cfg.judge != "http":
        raise UserError("--token_budget is for --judge http: the others cost no tokens")


def judge(cfg):
    """Verdicts on every trajectory -> verdicts.jsonl; what is there already is not asked again."""
    check_judge(cfg)
    check_choice(cfg, stepwise=("all", "wrong", "none"))
    if cfg.judge == "exact":
        cfg.stepwise = "none"  # no rule finds wrong steps
    out = Path(cfg.out_dir)
    trajectories = read_trajectories(out / "trajectories.jsonl")
    logged, lost, refused, tries = collect(cfg, trajectories, out / cfg.verdicts)
    report(trajectories, logged, lost, refused, tries)
    complain(cfg, logged, lost, refused)


@contextlib.contextmanager
def asking(cfg, path, leave=True):
    """(the judge's name, the whole log `path`, complete): the log is open as long as this is.

    complete(trajectories) asks until every one has its verdicts in the log, or cannot have them
    -> ({trajectory id: why it got no reply}, those of them that never will, number of retries).
    leave: whether a bar that is full stays on the screen.
    """
    name, model, ask = choose_judge(cfg)
    with append_to(path, VERDICT) as (logged, add):
        known = {verdict["request_sha"]: verdict for verdict in logged.values()}
        cost = sum(map(spent, logged.values()))

        def affordable(todo):  # an endpoint takes them one by one, while there are tokens left
            for requests in todo:
                if cfg.token_budget and cost >= cfg.token_budget:
                    return
                yield requests[0].body

        def complete(trajectories):
            nonlocal cost
            lost, refused, tries = {}, {}, 0
            while wave := next_wave(cfg, model, trajectories, logged, lost):
                todo = [requests for key, requests in wave.items() if key not in known]
                for key, requests in wave.items():
                    for request in requests if key in known else ():
                        add(read_verdict(request, name, known[key] | COPIED))
                unsent = dict(enumerate(todo))
                replies = ask(affordable(todo), [requests[0].trajectory for requests in todo])
                for i, reply in tqdm(replies, "judging", len(todo), leave, unit=" requests"):
                    del unsent[i]
                    if isinstance(reply, Unanswered):
                        reasons = {request.trajectory["id"]: str(reply) for request in todo[i]}
                        lost |= reasons
                        refused |= reasons if reply.refused else {}
                        continue
                    tries += reply["tries"] - 1
                    for request in todo[i]:
                        add(verdict := read_verdict(request, name, reply))
                        cost += spent(verdict)
                        reply = reply | COPIED
                    known[verdict["request_sha"]] = verdict
                if unsent:  # the endpoint is beyond hope, or the budget used up
                    done = cfg.token_budget and cost >= cfg.token_budget
                    budget = f"the budget of {cfg.token_budget:,} tokens is used up: raise it"
                    why = budget if done else "not asked"
                    left = next_wave(cfg, model, trajectories, logged, lost).values()
                    lost |= {request.trajectory["id"]: why for some in left for request in some}
                    break
            return lost, refused, tries

        yield name, logged, complete


def collect(cfg, trajectories, path):
    """Verdicts on all of some trajectories at once: the whole log, and what complete() says."""
    with asking(cfg, path) as (_, logged, complete):
        return logged, *complete(trajectories)


def complain(cfg, logged, lost, refused, what="solutions"):
    """UserError for solutions that should get a reply another time. One that is refused is itself
    at fault: a line says so, and the others can be used."""
    place = f" at {cfg.base_url}" if cfg.judge == "http" else ""
    if later := [reason for name, reason in lost.items() if name not in refused]:
        raise UserError(
            f"the judge{place} left {len(later):,} {what} without a reply, the first with: "
            f"{later[0]}. All replies are kept: the same command goes on"
        )
    if refused:
        words = f"the judge{place} refuses {len(refused):,} {what}, the first with: "
        words += next(iter(refused.values()))
        if not any(verdict["parsed"] for verdict in logged.values()):
            raise UserError(words)
        print(words)


def report(trajectories, logged, lost, refused, tries):
    """Print what became of every trajectory, and how often the judge and the rule agree."""
    verdicts, agreed = decided(logged), []
    outcome, steps = Counter(), {"correct": Counter(), "wrong": Counter()}
    for name, record in trajectories.items():
        verdict = verdicts.get((name, "outcome"))
        if reason := unusable(record):
            outcome[reason] += 1
        elif verdict is None or name in lost and not verdict["parsed"]:
            outcome["refused" if name in refused else "unanswered"] += 1
        elif not verdict["parsed"]:
            outcome[f"invalid: {verdict['reason']}"] += 1
        else:
            outcome[correctness := verdict["parsed"]["Correctness"]] += 1
            if record.get("correct") is not None:
                agreed.append((correctness == "correct") == record["correct"])
            verdict = verdicts.get((name, "stepwise"))
            if name in lost:
                word = "refused" if name in refused else "unanswered"
            elif verdict is None:
                word = "not asked"
            elif not verdict["parsed"]:
                word = f"invalid: {verdict['reason']}"
            else:
                word = "without a wrong step" if verdict["first_error"] < 0 else "with a wrong step"
            steps[correctness][word] += 1
    tally("solutions", outcome, ["correct", "wrong"])
    for correctness, counts in steps.items():
        if counts.total() > counts["not asked"]:
            tally(f"{correctness} solutions", counts, ["with a wrong step", "without a wrong step"])
    usages = [verdict["usage"] for verdict in logged.values()]
    read, written = (
        sum(u[name] for u in usages if type(u.get(name)) is int)
        for name in ("prompt_tokens", "completion_tokens")
    )
    print(f"the judge and the rule agree on {sum(agreed):,} of {len(agreed):,}; {tries:,} retries, "
          f"{read:,} tokens read, {written:,} written")  # fmt: skip
