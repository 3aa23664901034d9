"""Append-only logs of json lines, one record a line with its own id: what makes a stage resumable.

    with append_to(path, fields) as (records, add):
        for item in work:
            if item.id not in records:
                add({"id": item.id, ...})

A stage that was stopped, by whatever, finds its records again and goes on; the half line that a
kill may leave is removed. Two runs cannot write to one log.
"""

import contextlib
import fcntl
import json

from config import UserError
from jsonl import TYPES, check_messages, notice, read_jsonl

TRAJECTORY = {"id": str, "prompt": list, "answer?": str, "text?": str, "finish": str}
TRAJECTORY |= {"sample": int, "correct?": bool, "source?": str, "solution?": str, "kinds?": list}
CONTINUATION = {"id": str, "prompt_id": str, "prefix?": str, "text?": str, "finish": str}
CONTINUATION |= {"sample": int, "policy_sha": str, "correct": bool}
VERDICT = {"id": str, "trajectory": str, "request_sha": str, "kind": str, "parsed?": dict}
VERDICT |= {"raw?": str, "finish": str, "attempts": int, "tries": int, "usage?": dict}
# What the finding of each kind of verdict holds
FOUND = {
    "outcome": {"Correctness": str},
    "stepwise": dict.fromkeys(
        ("First incorrect step", "Reasoning up to incorrect", "Step correction"), str
    ),
    "rating": {"Rating": float},
    "quality": {"Score": int},
    "exercises": dict.fromkeys(
        ("Questions", "Scenario", "Exhibit", "Answer Choices", "Answer"), list
    ),
}


def read_trajectories(path):
    """read_log of trajectories: their prompts are conversations that end with the user."""
    records = read_log(path, TRAJECTORY)
    for name, record in records.items():
        check_messages(record["prompt"], f"{path}: {name}", last="user", name="prompt")
        if odd := [kind for kind in record.get("kinds") or () if kind not in [*FOUND]]:
            raise UserError(f"{path}: {name}: kinds: {odd[0]!r} is no kind of verdict")
    return records


def check_verdict(record, where):
    """UserError for a verdict that says nothing: its log is of something else, or was edited."""
    kind, parsed = record["kind"], record.setdefault("parsed", None)
    if kind not in FOUND:
        raise UserError(f"{where}: kind: {kind!r} is not one of {', '.join(FOUND)}")
    if type(record.get("raw")) is not str:
        raise UserError(f"{where}: raw: must be the reply as it came, a string")
    for name, wanted in FOUND[kind].items() if parsed else ():
        if name not in parsed:
            raise UserError(f"{where}: parsed: {name}: missing")
        if type(parsed[name]) not in ((int, float) if wanted is float else (wanted,)):
            raise UserError(f"{where}: parsed: {name}: must be {TYPES[wanted]}")
    if parsed and kind == "outcome" and parsed["Correctness"] not in ("correct", "wrong"):
        raise UserError(f"{where}: parsed: Correctness: is neither correct nor wrong")
    if parsed and kind == "stepwise" and type(record.get("first_error")) is not int:
        raise UserError(f"{where}: first_error: must be the number of a step, or -1")
    record["usage"] = record.get("usage") or {}
    record.setdefault("reason", None if parsed else "unknown")


def read_log(path, fields):
    """{id: record}. UserError for a record that does not fit or an id that is there twice."""
    records = {}
    for line, record in read_jsonl(path, fields):
        if record["id"] in records:
            raise UserError(f"{path}:{line}: id: {record['id']!r} is there twice")
        if fields is VERDICT:
            check_verdict(record, f"{path}:{line}")
        records[record["id"]] = record
    return records


@contextlib.contextmanager
def append_to(path, fields):
    """The records of a log, and a function that adds one. A last line cut short is removed.

    UserError while another run has the log open: two would do everything twice.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{path}: another run is writing to it") from None
        file.seek(0)
        whole = 0  # bytes up to the end of the last complete line
        for line in file:
            whole += len(line) if line.endswith(b"\n") else 0
        if whole < file.tell():
            notice(f"{path}: incomplete last line removed (a run was stopped)")
            file.truncate(whole)
        records = read_log(path, fields)

        def add(record):
            records[record["id"]] = record
            file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            file.flush()  # a killed run loses at most the line it was writing

        yield records, add


def part_of(path, rank):
    """Where another rank than 0 writes: one file has one writer."""
    return path.with_name(f"{path.stem}.rank{rank}{path.suffix}")


def absorb(path, fields, records, add):
    """Take over what the other ranks wrote, in this run or in one that was stopped."""
    for part in sorted(path.parent.glob(f"{path.stem}.rank*{path.suffix}")):
        for name, record in read_log(part, fields).items():
            if name not in records:
                add(record)
        part.unlink()


def tally(what, counts, used):
    """Print `total what = n used + n skipped [by reason]`."""
    lost = {reason: n for reason, n in counts.items() if reason not in used and n}
    parts = " + ".join(f"{counts[name]:,} {name}" for name in used)
    text = f"{counts.total():,} {what} = {parts} + {sum(lost.values()):,} skipped"
    listed = ", ".join(f"{n:,} {reason}" for reason, n in sorted(lost.items()))
    print(text + (f" [{listed}]" if lost else ""), flush=True)
