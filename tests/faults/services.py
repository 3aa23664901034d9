"""Faults in what asks and samples: a judge that fails in every way and one that is killed,
solutions and evaluations that are told to stop.

The judge is a server in this process, which writes down what it was asked. A request counts as
judged twice if it is sent again after its reply stood in the log, or after a good reply of the same
run; a pair is lost if pairs.jsonl of a good day has it and this one does not.
"""

import contextlib
import json
import random
import socket
import threading
import time
from pathlib import Path

import jobs
from evaluating import arc_rows, exam_rows, label_rows
from judging import Handler, Server, completion, trajectory
from kills import GRACE, SEED, TERMINATED, closed
from tiny import sentences, write_rows

from jsonl import sha

PATIENCE = 0.5  # seconds that the client waits for a judge that takes longer
WAYS = {"down": {"retries": 2}, "429": {}, "timeouts": {"timeout_s": PATIENCE}, "garbage": {},
        "half JSON": {}, "dies and comes back": {}, "kill -9": {}, "SIGTERM": {}}  # fmt: skip


# ---- a judge -------------------------------------------------------------------------------------


class Watching(Handler):
    """Notes a good reply only if the client has read it: one that left before resets."""

    def do_POST(self):
        super().do_POST()
        judge = self.server.misbehave
        name = judge.sent.pop(self.number, None)
        if name and self.connection.recv(1) == b"":
            judge.good.append(name)


class Judge:
    """Answers, or fails in its way the first time it is asked something; notes both."""

    def __init__(self, way):
        self.way, self.seen, self.sent, self.good = way, set(), {}, []
        self.server, self.port, self.lock, self.asked = None, 0, threading.Lock(), []

    def __call__(self, number, body, good):
        name, reply = sha(body), completion(good)
        with self.lock:
            first = name not in self.seen
            self.seen.add(name)
        if first and int(name[:4], 16) % 3 == 0 and body["seed"] == 0:
            if self.way == "429":
                return 429, {"Retry-After": "0.05"}, b"slow down"
            if self.way == "timeouts" and int(name[4:8], 16) % 8 == 0:
                time.sleep(PATIENCE + 0.3)
                return reply
            if self.way == "garbage":
                return 200, {}, random.randbytes(200)
            if self.way == "half JSON":
                return completion(good[: len(good) // 2])
        time.sleep(0.02)
        self.sent[number] = name
        return reply

    def open(self):
        self.server = Server(("127.0.0.1", self.port), Watching)
        self.port = self.server.server_port
        self.server.seen, self.server.misbehave, self.server.lock = self.asked, self, self.lock
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def close(self):
        if self.server:
            self.server.shutdown()
            self.server.server_close()
            self.server = None


@contextlib.contextmanager
def judging(way):
    """A judge that is there, or, if it is down, one whose port only is taken."""
    judge = Judge(way)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if way == "down":
            taken.bind(("127.0.0.1", 0))
            judge.port = taken.getsockname()[1]
        else:
            judge.open()
        try:
            yield judge
        finally:
            judge.close()


def breaks_off(judge):
    """For run(outside=...): the server is gone for a while when it has answered some requests."""
    gone = []

    def outside(pid, seconds):
        if not gone and len(judge.good) >= 60:
            judge.close()
            gone.append(seconds)
        if gone and seconds > gone[0] + 0.6:
            judge.open()
            return True
        return False

    return outside


def solutions(folder):
    """50 prompts of three solutions, two of them wrong at a known step."""
    rows = []
    for i in range(50):
        texts = [f"Step 1: fine {i}. Step 2: fine too. Answer: 40",
                 f"Step 1: fine {i}. Step 2: BAD . Answer: 41",
                 f"Step 1: BAD really {i}. Step 2: so so. Answer: 42"]  # fmt: skip
        rows += [trajectory(f"q{i}", k, text) for k, text in enumerate(texts)]
    (folder / "out").mkdir()
    write_rows(folder / "out" / "trajectories.jsonl", rows)


def judge_command(folder, port, **changes):
    flags = {"out_dir": folder / "out", "base_url": f"http://127.0.0.1:{port}/v1", "retries": 8,
             "backoff_s": 0.05, "timeout_s": 20, "stepwise": "wrong"} | changes  # fmt: skip
    return jobs.script("reward.py judge", flags)


def log_of(path):
    """The whole lines of a log as rows."""
    raw = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
    return [json.loads(line) for line in raw.splitlines()]


def pairs_of(folder):
    """Rows of pairs.jsonl, made now from the verdicts of a folder; None if that fails. Without the
    ids of the verdicts, which tell at which attempt the judge could be understood."""
    made = jobs.run(jobs.script("reward.py pairs", {"out_dir": folder / "out"}), folder)
    if made.code:
        return None
    rows = log_of(folder / "out" / "pairs.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith("verdict")} for row in rows]


def findings(folder):
    """What the judge found in each solution, without how it was got: of valid replies."""
    keys = "parsed", "first_error", "correction"
    return {(row["trajectory"], row["kind"]): [row[key] for key in keys]
            for row in log_of(folder / "out" / "verdicts.jsonl") if row["parsed"]}  # fmt: skip


def good_day(root):
    """(findings, pairs) of a run of the judge in which nothing fails."""
    folder = root / "good-day"
    folder.mkdir()
    solutions(folder)
    with judging("well") as judge:
        done = jobs.run(judge_command(folder, judge.port), folder)
    assert done.code == 0, done.said[-2000:]
    found, pairs = findings(folder), pairs_of(folder)
    assert pairs
    return found, pairs


def judged(root, way, good):
    """The record of a judging run with one kind of trouble, and of the same command after it."""
    folder, rng = root / f"judge-{way}".replace(" ", "-"), random.Random(f"{SEED}/judge {way}")
    folder.mkdir()
    solutions(folder)
    log, count = folder / "out" / "verdicts.jsonl", rng.randint(30, 90)
    record = {"name": f"judge {way}", "class": "judge", "script": "reward.py judge", "ranks": 1,
              "injected": way, "where": "every third request" if way in (
                  "429", "garbage", "half JSON") else "", "outcome": "resumed"}  # fmt: skip
    with judging(way) as judge:
        outside, enough = None, lambda *_: jobs.lines(log) >= count
        if way == "kill -9":
            outside = jobs.killed_whole(enough)
        elif way == "SIGTERM":
            outside = jobs.signalled(15, enough)
        elif way == "dies and comes back":
            outside = breaks_off(judge)
        command = judge_command(folder, judge.port, **WAYS[way])
        first = jobs.run(command, folder, outside=outside)
        known, before = {row["request_sha"] for row in log_of(log)}, list(judge.good)
        judge.way, judge.good = "well", []
        if way == "down":
            judge.open()
        done = jobs.run(command, folder)
        after = list(judge.good)
    pairs = pairs_of(folder) or []
    twice = len(before) - len(set(before)) + len(after) - len(set(after)) + len(known & set(after))
    lost = sum(pair not in pairs for pair in good[1])
    record |= {"exit": first.code, "exit_ranks": [], "exit_again": done.code,
               "message": jobs.message(first.said), "steps_lost": 0, "seconds": first.since,
               "lost_pairs": lost, "judged_twice": twice, "logged_first": len(known),
               "asked_after": len(after)}  # fmt: skip
    wrong = []
    if first.code is None or done.code is None:
        wrong.append("hung")
    expected = {"down": (1,), "kill -9": (-9,), "SIGTERM": TERMINATED}.get(way, (0,))
    if first.code not in expected:
        wrong.append(f"exit code {first.code}: {first.said[-300:]}")
    if way == "down":
        record["outcome"] = "clear message"
        if not record["message"].startswith("error: ") or "Traceback" in first.said:
            wrong.append("no clear line")
    if way == "SIGTERM" and first.since > GRACE:
        wrong.append(f"took {first.since:.0f} s to end")
    if done.code:
        wrong.append(f"the same command again: {done.said[-300:]}")
    if lost or twice or pairs != good[1] or findings(folder) != good[0]:
        wrong.append(f"{lost} pairs lost, {twice} judged twice, or other verdicts")
    return closed(record, wrong)


# ---- solutions and evaluations that are told to stop ---------------------------------------------

ASKING = [("sample", 1), ("sample", 2), ("evaluate", 1), ("evaluate", 2)]


def asking_command(what, data, folder, ranks):
    common = {"init_from": data / "base", "out_dir": folder / "out", "device": "cpu"}
    if what == "sample":
        flags = {"prompts": data / "prompts.jsonl", "samples": 4, "max_new_tokens": 48, "slots": 4}
        return jobs.script("reward.py sample", common | flags, ranks)
    flags = {"tasks": "arc,fpb,reasoning", "data": data / "rows", "mode": "generate"}
    return jobs.script("evaluate.py", common | flags | {"max_new_tokens": 24, "slots": 4}, ranks)


def write_questions(data):
    data = Path(data)
    prompts = enumerate(sentences(80, 9))
    write_rows(data / "prompts.jsonl", [{"id": f"p{i}", "prompt": t, "answer": "1"}
                                        for i, t in prompts])  # fmt: skip
    (data / "rows").mkdir()
    for name, some in (
        ("arc", arc_rows(80)),
        ("fpb", label_rows(80)),
        ("reasoning", exam_rows(40)),
    ):
        write_rows(data / "rows" / f"{name}.jsonl", some)


def outcome_of(what, out):
    """What a run of sample or evaluate leaves: {id or task: (record, log-probs)}."""
    if what == "sample":
        rows = log_of(out / "trajectories.jsonl")
        return {row["id"]: (row, row.pop("logprobs")) for row in rows}
    tasks = json.loads((out / "results.json").read_text())["tasks"]
    return {name: (entry, []) for name, entry in tasks.items()}


def same(found, want):
    """Whether two outcomes are equal; log-probs may round apart: not every batch was as large."""
    return found.keys() == want.keys() and all(
        found[key][0] == want[key][0]
        and len(found[key][1]) == len(want[key][1])
        and all(abs(a - b) < 5e-5 for a, b in zip(found[key][1], want[key][1], strict=True))
        for key in want
    )


def asked_whole(root, data, what):
    folder = root / f"whole-{what}"
    folder.mkdir()
    done = jobs.run(asking_command(what, data, folder, 1), folder)
    assert done.code == 0, done.said[-2000:]
    return outcome_of(what, folder / "out")


def asked(root, data, what, ranks, whole):
    """The record of a run of sample or evaluate that gets SIGTERM, and then is begun again."""
    folder = root / f"SIGTERM-{what}-{ranks}"
    folder.mkdir()
    out, rng = folder / "out", random.Random(f"{SEED}/{what} {ranks}")
    name, count = {"sample": "trajectories", "evaluate": "answers"}[what], rng.randint(20, 80)
    logs = [out / f"{name}.jsonl", *(out / f"{name}.rank{r}.jsonl" for r in range(1, ranks))]
    enough = jobs.signalled(15, lambda *_: sum(map(jobs.lines, logs)) >= count)
    command = asking_command(what, data, folder, ranks)
    first = jobs.run(command, folder, outside=enough)
    before = {row["id"] for path in logs for row in log_of(path)}
    done = jobs.run(command, folder)
    record = {"name": f"SIGTERM {what} {ranks}", "class": "SIGTERM", "ranks": ranks,
              "script": {"sample": "reward.py sample"}.get(what, "evaluate.py"),
              "injected": "terminate", "where": f"{count} lines in the log", "outcome": "resumed",
              "exit": first.code, "exit_ranks": [], "exit_again": done.code, "steps_lost": 0,
              "message": jobs.message(first.said), "seconds": first.since}  # fmt: skip
    wrong = []
    if first.code is None or done.code is None:
        wrong.append("hung")
    if first.code == 0 or ranks == 1 and first.code not in TERMINATED:
        wrong.append(f"exit code {first.code}")
    if first.since > GRACE:
        wrong.append(f"took {first.since:.0f} s to end")
    if first.orphans:
        wrong.append(f"{first.orphans} processes left behind")
    if done.code:
        wrong.append(f"the same command again: {done.said[-300:]}")
    elif not same(outcome_of(what, out), whole):
        record["silent"] = True
        wrong.append("other results than undisturbed")
    elif len(log_of(logs[0])) != len({row["id"] for row in log_of(logs[0])}) or not before:
        wrong.append("something was written twice")
    return closed(record, wrong)
