"""One judging run against an endpoint that misbehaves hundreds of times, killed and resumed.

    python tests/test_faults.py [SEED]      # prints how often each fault came

Every fault comes A_RUN times a run, in random order, between good replies; the process that judges
is killed (SIGKILL) while requests are in flight. What the endpoint wrote down on its side decides
whether anything was asked twice.
"""

import contextlib
import json
import multiprocessing
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the script
import pytest
from judging import Handler, completion, numbers, rows_of, serving, trajectory, url
from tiny import write_rows
from tqdm import tqdm

from jsonl import sha
from judge import decided
from logs import VERDICT, read_log
from verdicts import Judge, judge

A_RUN = 3
TIMEOUT, CONCURRENCY = 0.5, 16
KILLS = (120, 300, 480, 640)  # lines of the log at which the run is killed


# ---- what goes wrong: kind -> (good content) -> what the endpoint sends --------------------------


def cut(value, headers=None):
    """The first two thirds of a reply's bytes."""
    raw = json.dumps(value).encode()
    return 200, headers or {}, raw[: len(raw) * 2 // 3]


def with_choice(good, **changes):
    reply = completion(good)
    reply["choices"][0] |= changes
    return reply


# The request is sent again: nothing of this is a reply
ON_THE_WAY = {
    "times out": lambda good: (time.sleep(TIMEOUT + 0.2), completion(good))[1],
    "closes half-way through the body": lambda good: cut(
        completion(good), {"Content-Length": "9999"}
    ),
    "closes without a word": lambda good: (None, {}, b""),
    "closes within a chunk": lambda good: (
        503,
        {"Transfer-Encoding": "chunked", "Content-Length": ""},
        b"40\r\nabc",
    ),
    "no HTTP": lambda good: (None, {}, bytes(range(128, 256)) + b"\r\n\r\n"),
    "429 with Retry-After": lambda good: (429, {"Retry-After": "0.01"}, b"slow down"),
    "429 with a Retry-After of no calendar": lambda good: (
        429,
        {"Retry-After": "Mon, 01 Jan 99999999999 00:00:00 GMT"},
        b"",
    ),
    "429 without Retry-After": lambda good: (429, {}, {"error": {"message": "slow down"}}),
    "500": lambda good: (500, {}, b"inside"),
    "503": lambda good: (503, {}, b""),
    "a body of garbage": lambda good: (200, {}, random.randbytes(200)),
    "a body of cut JSON": lambda good: cut(completion(good)),
    "no choices": lambda good: completion(good) | {"choices": []},
    "a log-prob of NaN": lambda good: with_choice(
        good, logprobs={"content": [{"logprob": float("nan")}]}
    ),
    "a log-prob of 400 digits": lambda good: with_choice(
        good, logprobs={"content": [{"logprob": -(10**400)}]}
    ),
    "a finish reason of NUL": lambda good: with_choice(good, finish_reason="\0"),
}


def lie(good):
    """The contrary of a good reply: whoever believes one of the next faults is found out."""
    false = {"correct": "wrong", "wrong": "correct"}
    parsed = json.loads(good)
    changed = {key: false.get(text, text).replace("mended", "lied") for key, text in parsed.items()}
    return json.dumps(changed)


# The reply is kept as an invalid one, and another is asked for
REPLIES = {
    "a verdict of cut JSON": lambda good: completion(good[: len(good) // 2]),
    "a verdict with a key twice": lambda good: completion('{"Justification": "", ' + lie(good)[1:]),
    "a verdict of NaN": lambda good: completion(lie(good).replace('"j"', "NaN")),
    "half a surrogate within": lambda good: completion(lie(good).replace('"j"', '"\\ud800"')),
    "half a surrogate behind it": lambda good: completion(lie(good) + "\ud800"),
    "stopped by length": lambda good: completion(lie(good), "length"),
    "no content": lambda good: completion(None),
    "quotes that are not there": lambda good: completion(good.replace("BAD", "bad")),
}
# The reply is good, what comes with it is not
HARMLESS = {
    "a usage of NaN": lambda good: completion(good) | {"usage": {"prompt_tokens": float("nan")}},
    "a usage too deep": lambda good: completion(good) | {"usage": json.loads("[" * 50 + "]" * 50)},
}
FAULTS = ON_THE_WAY | REPLIES | HARMLESS


@dataclass
class Event:
    run: str  # "/0" is the first: the runs ask under different paths
    name: str  # sha of the request, as in the log
    kind: str | None  # the fault, None = a good reply
    arrived: bool = False  # the client read the reply to its end


class Watching(Handler):
    """Notes whether a reply arrived: a client that leaves without reading it resets."""

    def do_POST(self):
        super().do_POST()
        event = self.server.misbehave.record[self.number]
        if event.kind not in ON_THE_WAY:
            event.arrived = self.connection.recv(1) == b""  # it closes

    def finish(self):
        super().finish()
        with self.server.lock:
            self.server.misbehave.finished += 1


class Endpoint:
    """Draws the faults and writes down every request."""

    def __init__(self, seed):
        self.rng, self.record, self.finished = random.Random(seed), {}, 0
        self.plan, self.runs = [], set()

    def draw(self, run, body):
        if run not in self.runs:
            self.runs.add(run)
            self.plan += [kind for kind in FAULTS for _ in range(A_RUN)]
            self.rng.shuffle(self.plan)
        stepwise = "First incorrect step" in body["messages"][0]["content"]
        fits = (kind for kind in self.plan if stepwise or kind != "quotes that are not there")
        kind = next(fits, None) if self.rng.random() < 0.5 else None
        if kind:
            self.plan.remove(kind)
        return kind

    def __call__(self, number, body, good):
        with self.server.lock:
            run = self.server.seen[number][0]
            event = Event(run, sha(body), self.draw(run, body))
            self.record[number] = event
        return FAULTS[event.kind](good) if event.kind else completion(good)

    def events(self):
        """All requests in their order, once every thread has seen its client leave."""
        while self.finished < len(self.record):
            time.sleep(0.001)
        return [self.record[number] for number in sorted(self.record)]


# ---- the run -------------------------------------------------------------------------------------


def run_once(out, address, verdicts):
    """In a process of its own: what it prints goes to a file."""
    tqdm.set_lock(threading.RLock())  # the usual one is a semaphore that a kill leaves behind
    with open(Path(out) / "printed.txt", "w") as printed:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            judge(
                Judge(
                    out_dir=out, base_url=address, verdicts=verdicts, stepwise="wrong", asks=12,
                    concurrency=CONCURRENCY, timeout_s=TIMEOUT, retries=40, backoff_s=0.001,
                )
            )  # fmt: skip


def start(*words):
    """A fork of a process that has imported everything and runs no threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["verdicts"])
    process = context.Process(target=run_once, args=[str(word) for word in words], daemon=True)
    process.start()
    return process


def whole_lines(path):
    return path.read_bytes().rpartition(b"\n")[0].splitlines() if path.exists() else []


def write_many(folder):
    """120 prompts of four solutions, the last one word for word the second."""
    rows = []
    for i in range(120):
        texts = [f"Step 1: fine {i}. Step 2: fine too. Answer: 40",
                 f"Step 1: fine {i}. Step 2: BAD . Answer: 41",
                 f"Step 1: BAD really {i}. Step 2: so so. Answer: 42"]  # fmt: skip
        rows += [trajectory(f"q{i}", k, text) for k, text in enumerate([*texts, texts[1]])]
    write_rows(folder / "trajectories.jsonl", rows)


def torture(out, seed):
    """(requests as the endpoint saw them, shas in the log at each kill, kills, exit code)."""
    write_many(out)
    log, endpoint, logged, killed = out / "verdicts.jsonl", Endpoint(seed), [], 0
    with serving(endpoint, Watching) as endpoint.server:
        for run, limit in enumerate((*KILLS, None)):
            process = start(out, f"{url(endpoint.server)}/{run}", log.name)
            while limit and process.is_alive() and len(whole_lines(log)) < limit:
                time.sleep(0.005)
            if limit:
                process.kill()
            process.join()
            if limit:
                killed += process.exitcode == -9
                with open(log, "ab") as file:  # as if it had been killed while writing
                    file.write(b'{"id": "half a li')
                logged.append({json.loads(line)["request_sha"] for line in whole_lines(log)})
        return endpoint.events(), logged, killed, process.exitcode


def asked_again(events):
    """(in the same run, in a later one): requests that had got a reply before."""
    answered, same, later = {}, 0, 0
    for event in events:
        if event.name in answered:
            same += answered[event.name] == event.run
            later += answered[event.name] != event.run
        if event.arrived:
            answered[event.name] = event.run
    return same, later


def table(events):
    counts = Counter(event.kind or "good replies" for event in events)
    same, later = asked_again(events)
    lines = [f"{counts[kind]:>6,}  {kind}" for kind in (*FAULTS, "good replies")]
    lines += [f"{sum(counts[kind] for kind in FAULTS):>6,}  faults in {len(events):,} requests"]
    lines += [f"{same:>6,}  requests asked again in the run in which they were answered"]
    lines += [f"{later:>6,}  answered, but killed before the reply was in the log: asked once more"]
    return "\n".join(lines)


def meaning(log):
    """What was found out: {(trajectory, kind): verdict without how it was got}."""
    keys = "parsed", "first_error", "correction"
    found = decided(read_log(log, VERDICT))
    return {key: [verdict[k] for k in keys] for key, verdict in found.items()}


@pytest.fixture(scope="module")
def tortured(tmp_path_factory):
    out = tmp_path_factory.mktemp("tortured")
    return out, *torture(out, seed=0)


def test_hundreds_of_faults_and_four_kills_lose_nothing_and_judge_nothing_twice(tortured):
    out, events, _, killed, code = tortured
    print(table(events))
    printed = (out / "printed.txt").read_text()
    assert killed == len(KILLS) and code == 0, printed[-2000:]
    kinds = Counter(event.kind for event in events)
    many = A_RUN * (len(KILLS) + 1)
    assert all(kinds[kind] == many for kind in FAULTS) and len(FAULTS) * many >= 300
    assert numbers(printed) == {"solutions": (480, 480, 0), "wrong solutions": (360, 360, 0)}
    verdicts = {}
    for row in rows_of(out / "verdicts.jsonl"):
        verdicts.setdefault((row["trajectory"], row["kind"]), []).append(row)
    assert len(verdicts) == 480 + 360
    for rows in verdicts.values():  # one valid reply, and it is the last
        assert [row["attempts"] for row in rows] == list(range(1, len(rows) + 1))
        assert [bool(row["parsed"]) for row in rows] == [False] * (len(rows) - 1) + [True]


def test_what_was_answered_is_asked_again_only_if_it_was_in_flight_at_a_kill(tortured):
    _, events, logged, _, _ = tortured
    same, later = asked_again(events)
    assert same == 0 and later <= len(KILLS) * CONCURRENCY
    for run, known in enumerate(logged):
        assert known and not known & {e.name for e in events if int(e.run.split("/")[2]) > run}
    arrived = {event.name for event in events if event.arrived}
    assert logged[-1] <= arrived  # what the endpoint wrote down is no less than the log


def test_after_all_faults_the_verdicts_are_those_of_a_run_without_any(tortured):
    out, *_ = tortured
    with serving() as server:
        process = start(out, url(server), "faultless.jsonl")
        process.join()
    assert process.exitcode == 0
    assert meaning(out / "verdicts.jsonl") == meaning(out / "faultless.jsonl")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        seen, _, kills, exit_code = torture(Path(folder), int(*sys.argv[1:2]))
        print(f"{table(seen)}\n{kills:>6,}  kills; the last run's exit code is {exit_code}")
        print(Path(folder, "printed.txt").read_text().rpartition("\r")[2].strip())
