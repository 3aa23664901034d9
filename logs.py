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
from jsonl import check_messages, notice, read_jsonl

TRAJECTORY = {"id": str, "prompt": list, "answer?": str, "text?": str, "finish": str}
TRAJECTORY |= {"sample": int, "correct?": bool}
CONTINUATION = {"id": str, "prompt_id": str, "prefix?": str, "text?": str, "finish": str}
CONTINUATION |= {"sample": int, "policy_sha": str, "correct": bool}
VERDICT = {"id": str, "trajectory": str, "request_sha": str, "kind": str, "parsed?": dict}
VERDICT |= {"raw?": str, "finish": str, "attempts": int, "tries": int, "usage?": dict}


def read_trajectories(path):
    """read_log of trajectories: their prompts are conversations that end with the user."""
    records = read_log(path, TRAJECTORY)
    for name, record in records.items():
        check_messages(record["prompt"], f"{path}: {name}", last="user", name="prompt")
    return records


def read_log(path, fields):
    """{id: record}. UserError for a record that does not fit or an id that is there twice."""
    records = {}
    for line, record in read_jsonl(path, fields):
        if record["id"] in records:
            raise UserError(f"{path}:{line}: id: {record['id']!r} is there twice")
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
