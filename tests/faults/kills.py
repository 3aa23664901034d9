"""Faults in runs of the train scripts: killed, told to stop, one rank of two in trouble, disks that
are full or cannot be written, states that are damaged.

Where a fault strikes is drawn from what an undisturbed run was seen to do (inject.py), or is a
moment given from outside. After each of them the same command again must end, and end with the
weights and the metrics of the run that nothing disturbed.
"""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import jobs
from jobs import EVERY, HANG, ROOT

SEED = 0
TERMINATED = (128 + signal.SIGTERM, -signal.SIGTERM)
GRACE = 30.0  # seconds that a scheduler leaves between SIGTERM and SIGKILL

# Moments that inject.py names, by what is going on
STATE = r"out/resume/step_\d{8}\S*"
SAVE = rf"^(open|write|mkdir|(before|after) (write|fsync|rename)) {STATE}"
FILE = rf"{STATE}/(?!manifest)\S+"
PURGE = (
    r"^(remove|rmdir) out/resume/step_\d{8}(?!\S*/state\S*\.json)\S*$"
    r"|^(before|after) rename out/resume/step_\d{8}\.\S*tmp$"
)
EXPORT = r"^(?!before rmtree)\D*out/(model|config|generation|tokenizer)\S*$"
DONE = r"^(open|(before|after) rename|before rmtree) out/(done|resume$)"
INSIDE = r"^inside optimizer"
FORWARD = r"^forward without gradient"
TOKENS = r"^\D*tokens/\w+\.\S*PID\S*$|^(before|after) rename tokens/"

# class, stage, ranks, what is done, where (a moment, or a range of lines of metrics.jsonl or of
# seconds), and in which rank: 0 if it is not said, None = whichever comes to it
TRAIN = [
    *(("kill", stage, ranks, "kill all", ("lines", 1, 10))
      for stage, ranks in (("cpt", 1), ("sft", 1), ("dpo", 1), ("cpt", 2), ("dpo", 2))),
    ("kill", "sft", 2, "kill all", ("time", 0.8, 3.5)),
    ("kill", "cpt", 1, "kill all", ("time", 0.5, 2.0)),
    *(("kill", stage, ranks, "kill all", INSIDE)
      for stage, ranks in (("cpt", 1), ("sft", 2), ("dpo", 1))),
    ("kill", "dpo", 2, "kill", INSIDE, 1),
    ("kill", "sft", 1, "kill all", rf"^(before write|open) {FILE}"),
    ("kill", "dpo", 1, "kill all", rf"^(before|after) write {FILE}"),
    ("kill", "sft", 2, "kill all", rf"^before fsync {FILE}"),
    ("kill", "cpt", 1, "kill all", rf"^after fsync {FILE}"),
    ("kill", "sft", 1, "kill all", rf"^open {STATE}/manifest"),
    ("kill", "dpo", 2, "kill all", rf"^after fsync {STATE}/manifest"),
    ("kill", "sft", 1, "kill all", r"^before rename out/resume/step_\d{8}$"),
    ("kill", "cpt", 2, "kill all", r"^after rename out/resume/step_\d{8}$"),
    ("kill", "dpo", 1, "kill all", r"^(before|after) fsync out/resume$"),
    ("kill", "cpt", 2, "kill all", SAVE, 1),
    ("kill", "sft", 1, "kill all", PURGE),
    ("kill", "dpo", 1, "kill all", PURGE),
    ("kill", "cpt", 2, "kill all", PURGE),
    ("kill", "cpt", 1, "kill all", TOKENS),
    ("kill", "sft", 2, "kill all", TOKENS, None),
    ("kill", "dpo", 1, "kill all", TOKENS),
    ("kill", "sft", 1, "kill all", EXPORT),
    ("kill", "dpo", 2, "kill all", EXPORT),
    ("kill", "cpt", 1, "kill all", EXPORT),
    ("kill", "sft", 1, "kill all", DONE),
    ("SIGTERM", "sft", 1, "terminate", ("lines", 2, 10)),
    ("SIGTERM", "cpt", 1, "terminate", r"^(before|after) backward"),
    ("SIGTERM", "cpt", 2, "terminate", r"^before backward", 1),
    ("SIGTERM", "sft", 2, "terminate", ("lines", 2, 10)),
    ("SIGTERM", "dpo", 1, "terminate", FORWARD),
    ("SIGTERM", "cpt", 2, "terminate all", FORWARD, 1),
    ("SIGTERM", "sft", 1, "terminate", SAVE),
    ("SIGTERM", "dpo", 2, "terminate all", SAVE),
    ("SIGTERM", "dpo", 1, "terminate", TOKENS),
    ("rank raises", "sft", 2, "raise", r"^before backward", 1),
    ("rank raises", "cpt", 2, "raise", r"^before optimizer", 0),
    ("rank raises", "dpo", 2, "raise", FORWARD, 1),
    ("rank raises", "sft", 2, "raise", SAVE, 0),
    ("rank raises", "dpo", 2, "raise", TOKENS, None),
    ("rank hangs", "sft", 2, "hang", r"^before backward", 1),
    ("rank hangs", "cpt", 2, "hang", SAVE, 0),
    ("rank killed", "sft", 2, "kill", r"^after backward", 1),
    ("rank killed", "dpo", 2, "kill", SAVE, 0),
    ("rank stopped", "cpt", 2, "stop", r"^after optimizer", 1),
    ("launcher killed", "sft", 2, "kill launcher", r"^before backward", 0),
    ("disk full", "sft", 1, "fill", rf"^(before write|open) {FILE}"),
    ("disk full", "dpo", 1, "fill", r"^(before write|open) out/model"),
    ("disk full", "cpt", 1, "fill", r"^open out/metrics.jsonl 17"),
    ("read-only", "sft", 1, "chmod", "out"),
    *(("damaged", *run, how, None)
      for run, how in zip(
          (("sft", 1), ("dpo", 1), ("cpt", 2)) * 3,
          ("truncated", "bit flipped", "bit flipped", "bit flipped", "truncated", "truncated",
           "manifest deleted", "manifest torn", "all damaged"),
          strict=True)),
]  # fmt: skip


@dataclass
class Undisturbed:
    """A run of a stage that nothing disturbs: what it leaves, and its moments by rank."""

    results: tuple
    moments: dict
    seconds: float


@dataclass
class Bench:
    """Where the cases live, and what they are compared with."""

    root: Path
    data: Path
    whole: dict = field(default_factory=dict)  # (stage, ranks): Undisturbed
    stopped: dict = field(default_factory=dict)  # (stage, ranks): folder of a run that was killed


def cases():
    """The cases of TRAIN as dictionaries with names of their own."""
    found = []
    for kind, stage, ranks, what, where, *rank in TRAIN:
        name = f"{len(found):02d}-{kind}-{stage}-{ranks}".replace(" ", "-")
        found.append({"name": name, "class": kind, "stage": stage, "ranks": ranks, "do": what,
                      "at": where, "rank": (rank or [0])[0]})  # fmt: skip
    return found


def more_steps(case):
    """A longer run where a log is to meet the full disk, as its last page has room for some lines,
    and where two runs are to meet each other."""
    if case["do"] == "fill" and str(case["at"]).startswith("^open out/metrics"):
        return {"epochs": 3.0, "save_every": 16}
    if case["do"] == "kill launcher":
        return {"epochs": 8.0}
    return {}


def undisturbed(bench, stage, ranks, **changes):
    folder = bench.root / f"whole-{stage}-{ranks}-{len(changes)}"
    folder.mkdir()
    command = jobs.train(stage, bench.data, folder, ranks, True, **changes)
    done = jobs.run(command, folder, {"trace": True})
    assert done.code == 0, done.said[-3000:]
    seen = {}
    for rank in range(ranks):
        with open(folder / f"moments.{rank}") as file:
            seen[rank] = [tuple(json.loads(line)) for line in file]
    return Undisturbed(jobs.results(folder / "out"), seen, done.seconds)


def prepared(bench, stage, ranks):
    """The folder of a run that was killed when it had written several states."""
    folder = bench.root / f"stopped-{stage}-{ranks}"
    folder.mkdir()
    enough = jobs.killed_whole(lambda *_: jobs.lines(folder / "out" / "metrics.jsonl") >= 9)
    jobs.run(jobs.train(stage, bench.data, folder, ranks), folder, outside=enough)
    assert len(jobs.states(folder / "out")) >= 2
    return folder


def record_of(case, script=None):
    """The record of a case, to be filled in."""
    shown = {key: case[key] for key in ("name", "class")}
    shown |= {"script": script or f"train_{case['stage']}.py", "ranks": case["ranks"]}
    shown |= {"injected": case["do"], "where": "", "outcome": "", "exit": None, "exit_ranks": []}
    return shown | {"exit_again": None, "message": "", "seconds": 0.0, "steps_lost": 0, "ok": False}


def chosen(bench, case, rng, folder):
    """(fault for inject.py, function for run(outside=...)) of a case, one of them None."""
    at, whole = case["at"], bench.whole[case["stage"], case["ranks"]]
    if isinstance(at, tuple):
        what, low, high = at
        count, pause = rng.randint(low, high) if what == "lines" else 0, rng.uniform(0, 0.15)
        begin, metrics, reached = rng.uniform(low, high), folder / "out" / "metrics.jsonl", []

        def when(pid, seconds):
            if what == "time":
                return seconds >= begin
            if not reached and jobs.lines(metrics) >= count:
                reached.append(seconds)
            return reached and seconds >= reached[0] + pause

        kill = case["do"].startswith("kill")
        words = f"{count} lines" if what == "lines" else f"{begin:.1f} s"
        return None, words, jobs.killed_whole(when) if kill else jobs.signalled(15, when)
    if number := re.search(r" (\d+)$", at):  # this very one
        key = at[1 : number.start()]
        pick = key, int(number[1])
    else:
        some = range(case["ranks"]) if case["rank"] is None else [case["rank"]]
        moments = [m for rank in some for m in whole.moments[rank] if re.search(at, m[0])]
        if not moments:
            return None, f"no such moment: {at}", None
        # Each kind of moment is as likely as the others, however often it comes
        kinds = sorted({re.sub(r"\d{8}", "#", key) for key, _ in moments})
        kind = rng.choice(kinds)
        pick = rng.choice([m for m in moments if re.sub(r"\d{8}", "#", m[0]) == kind])
    fault = {"moment": pick[0], "nth": pick[1], "rank": case["rank"], "do": case["do"]}
    return fault, f"{pick[0]}, time {pick[1]}", None


@contextlib.contextmanager
def small_disk(folder):
    """(words in front of a command, out as seen from here, how): a disk of 8 MB under folder/out in
    a mount namespace of its own; without the rights to it, nothing."""
    (folder / "out").mkdir()
    holder = None
    if os.geteuid() == 0:
        words = 'mount -t tmpfs -o size=8m none "$0" && echo ready && exec sleep 300'
        holder = subprocess.Popen(["unshare", "-m", "sh", "-c", words, folder / "out"],
                                  stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        if holder and holder.stdout.readline() == b"ready\n":
            enter = ["nsenter", "-t", str(holder.pid), "-m", "sh", "-c", 'cd "$0" && exec "$@"']
            yield [*enter, str(ROOT)], Path(f"/proc/{holder.pid}/root{folder}/out"), "tmpfs"
        else:
            yield [], folder / "out", "RLIMIT_FSIZE"
    finally:
        if holder:
            holder.kill()
            holder.wait()


def problem_of(case, first):
    """What is wrong with how a disturbed run ended, or None."""
    kind, hit = case["class"], first.note or case.get("outside")
    if first.code is None:
        return f"hung: not over {HANG:.0f} s after the fault"
    if not hit or (first.code == 0 and kind != "SIGTERM"):
        return "the fault did not strike"
    if first.orphans and kind != "launcher killed":
        return f"{first.orphans} processes left behind"
    if kind == "SIGTERM":
        ended = first.codes or ([first.code] if case["ranks"] == 1 else [])
        if any(code not in TERMINATED for code in ended) or first.code == 0:
            return f"exit code {first.code}, of the ranks {first.codes}"
        if first.since > GRACE:
            return f"took {first.since:.0f} s to end"
    elif kind.startswith("rank ") and first.since > (HANG if kind == "rank stopped" else GRACE):
        return f"took {first.since:.0f} s to end"  # torchrun itself waits 30 s for a stopped one
    elif kind == "rank raises":
        if "Traceback" not in first.said or "InjectedFault: injected" not in first.said:
            return "no traceback of the rank that failed"
    elif kind == "disk full":
        if not re.search(r"^error: .*\b(No space left|File too large)", first.said, re.M):
            return "no line that says what is full"
        if "Traceback" in first.said:
            return "a traceback in place of a line"
    return None


def again(bench, case, record, folder, out, logged, prefix=(), whole=None):
    """The same command once more: fills in the record; what is wrong, or None."""
    command = jobs.train(case["stage"], bench.data, folder, case["ranks"], **more_steps(case))
    done = jobs.run(command, folder, prefix=prefix)
    record["exit_again"], start = done.code, jobs.resumed_at(done.said)
    record["steps_lost"] = logged - start if start is not None else 0
    if done.code == 1 and case["do"] == "kill launcher":  # the ranks may well go on for a while
        record["message"] = jobs.message(done.said)
        time.sleep(3)
        done = jobs.run(command, folder)
    if done.code is None:
        return "the same command again hung"
    if done.code:
        return f"the same command again: {jobs.message(done.said) or done.said[-500:]}"
    whole = whole or bench.whole[case["stage"], case["ranks"]]
    if wrong := jobs.difference(out, whole.results):
        record["silent"] = True
        return f"a silent wrong resume: {wrong}"
    every = more_steps(case).get("save_every", EVERY[case["stage"]])
    if case["class"] != "damaged" and record["steps_lost"] > every:
        return f"{record['steps_lost']} steps lost, a state every {every}"
    return None


def disturbed(bench, case, folder):
    """One case of TRAIN that strikes while the run is on: its record."""
    record, rng = record_of(case), random.Random(f"{SEED}/{case['name']}")
    fault, words, outside = chosen(bench, case, rng, folder)
    record["where"], case = words, case | {"outside": outside}
    changes, whole = more_steps(case), None
    if changes:
        whole = undisturbed(bench, case["stage"], case["ranks"], **changes)
    with contextlib.ExitStack() as stack:
        prefix, out = [], folder / "out"
        if case["do"] == "fill":
            prefix, out, how = stack.enter_context(small_disk(folder))
            record["injected"] = f"disk full ({how})"
        command = jobs.train(case["stage"], bench.data, folder, case["ranks"], True, **changes)
        leave = case["do"] == "kill launcher"
        first = jobs.run(command, folder, fault, outside, prefix=prefix, leave=leave)
        stack.callback(jobs.end, first.word)
        record |= {"exit": first.code, "exit_ranks": first.codes, "seconds": first.since}
        record["message"] = jobs.message(first.said)
        logged = len(jobs.rows(out))
        (out / "filler").unlink(missing_ok=True)
        wrong = [problem_of(case, first), again(bench, case, record, folder, out, logged, prefix,
                                                whole)]  # fmt: skip
    record["outcome"] = "clear message" if case["class"] == "disk full" else "resumed"
    return closed(record, wrong)


def closed(record, wrong):
    """A record with its verdict: wrong holds what is wrong or None."""
    wrong = [words for words in wrong if words]
    record["ok"], record["seconds"] = not wrong, round(record["seconds"], 1)
    if wrong:
        record |= {"outcome": "failed", "why": "; ".join(wrong)}
    return record


def read_only(bench, case, folder):
    """The folder of results may not be written: also not by root, who is given modes to heed."""
    record, out = record_of(case), folder / "out"
    out.mkdir(mode=0o555)
    out.chmod(0o555)
    heed = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    command = jobs.train(case["stage"], bench.data, folder)
    first = jobs.run(command, folder, prefix=heed if os.geteuid() == 0 else ())
    record |= {"exit": first.code, "message": jobs.message(first.said), "seconds": first.seconds}
    record |= {"where": "out", "injected": "mode 0555", "outcome": "clear message"}
    named = re.search(rf"^error: {folder}/out.*Permission denied", first.said, re.M)
    wrong = None if first.code == 1 and named else "no line that names the folder"
    if "Traceback" in first.said:
        wrong = "a traceback in place of a line"
    out.chmod(0o755)
    return closed(record, [wrong, again(bench, case, record, folder, out, 0)])


def damage(folder, how, rng):
    """Damage one state. What was done."""
    manifest = folder / "manifest.json"
    if how == "manifest deleted":
        manifest.unlink()
        return f"{folder.name}/manifest.json deleted"
    if how == "manifest torn":
        os.truncate(manifest, cut := rng.randrange(1, manifest.stat().st_size - 1))
        return f"{folder.name}/manifest.json cut after {cut} bytes"
    files = [p for p in folder.rglob("*") if p.is_file() and "manifest" not in p.name]
    file = rng.choice(sorted(files))
    size = file.stat().st_size
    if how == "truncated":
        os.truncate(file, cut := rng.randrange(size))
        return f"{folder.name}/{file.name} cut after {cut:,} of {size:,} bytes"
    raw, bit = bytearray(file.read_bytes()), rng.randrange(8 * size)
    raw[bit // 8] ^= 1 << bit % 8
    file.write_bytes(raw)
    return f"{folder.name}/{file.name}, bit {bit:,} of {8 * size:,}"


def damaged(bench, case, folder):
    """States that do not hold what was written are passed over, with a line."""
    record, rng = record_of(case), random.Random(f"{SEED}/{case['name']}")
    shutil.copytree(bench.stopped[case["stage"], case["ranks"]] / "out", out := folder / "out")
    states, logged = jobs.states(out), len(jobs.rows(out))
    every = case["do"] == "all damaged"
    bad = states if every else states[-1:]
    how = ["truncated", "bit flipped"] if every else [case["do"]]
    where = [damage(state, how[i % len(how)], rng) for i, state in enumerate(bad)]
    record |= {"where": "; ".join(where), "outcome": "resumed", "exit": -signal.SIGKILL}
    begin = time.time()
    wrong = [again(bench, case, record, folder, out, logged)]
    record["seconds"] = time.time() - begin
    said = (folder / "said.txt").read_text()
    named = [re.search(rf"^.*{state.name}\b.*$", said, re.M) for state in bad]
    record["message"] = named[-1][0] if named[-1] else ""
    start = 0 if every else int(re.search(r"\d+", states[-2].name)[0])
    if not all(named):
        wrong.append("a damaged state is passed over in silence")
    if jobs.resumed_at(said) != start:
        wrong.append(f"resumed at {jobs.resumed_at(said)}, not at {start}")
    return closed(record, wrong)


def run_case(bench, case):
    folder = bench.root / case["name"]
    folder.mkdir()
    function = {"damaged": damaged, "read-only": read_only}.get(case["class"], disturbed)
    return function(bench, case, folder)
