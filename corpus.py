"""One pass over files of rows that no kill can harm: rows in = rows used + dropped by reason.

    todo = Pass(cfg)                       cfg.data: what is read, cfg.out: OUT.jsonl
    for block in todo.blocks():
        for where, row in block:
            todo.drop(where, "too short") if short(row) else todo.keep(row)

OUT.jsonl           the rows that were kept, in the order of the input
OUT.dropped.jsonl   {"where", "reason", ...} of every other row
OUT.counts.json     rows, used, written, dropped by reason, and what the result was made from

Until the end they are called OUT.jsonl.partial and so on, and OUT.progress.json says up to where
they belong to which place of the input. The same command goes on from there: what was written
behind it is cut off and written again, so the result has the bytes of a run that was left alone.
"""

import fcntl
import json
import math
import os
import time
from collections import Counter
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

from tqdm import tqdm

from config import UserError, check_range, read_json
from jsonl import write_text
from logs import tally
from records import input_files, read_rows

BLOCK_ROWS, BLOCK_BYTES = 256, 2**20  # of a block, whichever is reached first
EVERY = 1.0  # seconds between two notes of the progress
# Settings that change no row of the result: where it goes, and how patiently a judge is asked
NEUTRAL = ("out", "max_bad", "base_url", "judge_from", "token_budget", "concurrency", "retries",
           "backoff_s", "timeout_s", "device")  # fmt: skip


@dataclass
class Rows:
    data: str = ""  # files or folders with commas: json lines or lists, parquet, csv, plain text
    out: str = ""  # FILE.jsonl to write; FILE.dropped.jsonl, FILE.counts.json say what is not in it
    max_bad: float = 0.05  # share of rows that cannot be read above which nothing is published


def beside(out, ending):
    """FILE.jsonl -> FILE.ending"""
    return out.with_name(out.stem + ending)


def locked(path, out):
    """The lock of a result, held as long as it is open. UserError if another run holds it."""
    while True:
        lock = open(path, "ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{out}: another run is writing it") from None
        # A run that just ended has removed the file: then this is the lock of nothing
        if path.exists() and os.stat(path).st_ino == os.fstat(lock.fileno()).st_ino:
            return lock
        lock.close()


class Pass:
    """Rows of cfg.data in blocks; what becomes of each is said by keep or drop.

    reads: further files that the result depends on. UserError where cfg.out holds the result of
    other settings or files, or another run is writing it.
    """

    def __init__(self, cfg, reads=()):
        self.cfg, self.out, self.files = cfg, Path(cfg.out), input_files(cfg.data)
        check_range(cfg, (), ("max_bad",))
        if self.out.suffix != ".jsonl":
            raise UserError(f"--out {cfg.out!r}: name the FILE.jsonl to write")
        if self.out.resolve() in {path.resolve() for path in self.files}:
            raise UserError(f"--out {cfg.out} is read as well: it would be written over")
        for folder in map(Path, map(str.strip, cfg.data.split(","))):
            if folder.is_dir() and folder.resolve() in self.out.resolve().parents:
                raise UserError(
                    f"--out {cfg.out}: lies in {folder}, which is read; take another folder"
                )
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.dropped = beside(self.out, ".dropped.jsonl")
        self.counts_file = beside(self.out, ".counts.json")
        self.progress = beside(self.out, ".progress.json")
        inputs = {str(p): [(s := os.stat(p)).st_size, s.st_mtime_ns] for p in [*self.files, *reads]}
        settings = {k: v for k, v in asdict(cfg).items() if k not in NEUTRAL}
        self.made_from = {"settings": settings, "size and time of files": inputs}
        self.counts = {"rows": 0, "used": 0, "written": 0, "dropped": {}}
        self.bad, self.noted = [], -math.inf
        self.at, self.sizes = [0, None], [0, 0]  # place behind what is done, bytes written by then
        self.block_bytes = BLOCK_BYTES
        self.lock_file, self.lock = beside(self.out, ".lock"), None
        if not self.counts_file.exists():
            self.lock = locked(self.lock_file, self.out)
        self.done = self.counts_file.exists()
        if self.done:
            self.restore(self.counts_file)
        elif self.progress.exists():
            was = self.restore(self.progress)
            self.at, self.sizes = was["at"], was["bytes"]

    def restore(self, path):
        """Take over the counts of a finished or stopped run. UserError if it was another one."""
        was = read_json(path)
        kinds = {"made_from": dict, "counts": dict, "unreadable": list}
        if any(not isinstance(was.get(name), kind) for name, kind in kinds.items()) or any(
            not isinstance(was["made_from"].get(what), dict) for what in self.made_from
        ):
            raise UserError(f"{path}: is not what curate.py writes here; delete it")
        for what, now in self.made_from.items():
            then = was["made_from"][what]
            changed = sorted(k for k in now.keys() | then.keys() if now.get(k) != then.get(k))
            if changed:
                raise UserError(f"{path}: belongs to a run with other {what} ({', '.join(changed)})"
                                "; delete it, or take another --out")  # fmt: skip
        self.counts, self.bad = was["counts"], was["unreadable"]
        return was

    def blocks(self):
        """Lists of (where, row), then the result is published. A row that cannot be read is dropped
        here; what a list holds must be kept or dropped before the next one is asked for."""
        try:
            if self.done and not self.out.exists():
                raise UserError(f"{self.out} is gone; delete {self.counts_file} to make it again")
            if self.done:
                print(f"{self.out} is there already")
            elif self.at[0] < len(self.files):
                yield from self.rest()
            if not self.done:
                self.publish()
            self.forget()
            self.report()
        finally:
            if self.lock:
                self.lock.close()

    def rest(self):
        """The blocks from where a stopped run was."""
        names = [f"{path}.partial" for path in (self.out, self.dropped)]
        with open(names[0], "ab") as kept, open(names[1], "ab") as dropped:
            self.handles = kept, dropped
            self.take_up()
            before = [0, *accumulate(path.stat().st_size for path in self.files)]
            shown = {"unit": "B", "unit_scale": True, "mininterval": 1, "delay": 2}
            with tqdm(total=before[-1], desc=self.out.name, **shown) as bar:
                first, place = self.at
                for number in range(first, len(self.files)):
                    place = place if number == first else None
                    yield from self.blocks_of(number, place, bar, before[number])
                    self.note([number + 1, None])
                    bar.update(before[number + 1] - bar.n)
            self.check_bad()
            if not self.counts["rows"]:
                raise UserError(f"--data {self.cfg.data}: holds no rows")
            self.note([len(self.files), None], now=True)

    def blocks_of(self, number, place, bar, before):
        """The blocks of one file, from a place on; `before`: bytes of the files before it."""
        start, block = None, []
        for where, row, reason, behind, done in read_rows(self.files[number], place):
            self.counts["rows"] += 1
            start = done if start is None else start
            if row is None:
                self.unreadable(where, reason)
            else:
                block.append((where, row))
            if len(block) >= BLOCK_ROWS or done - start >= self.block_bytes:
                if block:
                    yield block
                self.note([number, behind])
                bar.update(before + done - bar.n)
                start, block = None, []
        if block:
            yield block

    def keep(self, *rows):
        """One row of the input is used: what it became is written."""
        self.counts["used"] += 1
        self.counts["written"] += len(rows)
        for row in rows:
            self.handles[0].write(json.dumps(row, ensure_ascii=False).encode() + b"\n")

    def drop(self, where, reason, **more):
        """One row of the input is not used. reason: a fixed phrase, by which it is counted."""
        dropped = self.counts["dropped"]
        dropped[reason] = dropped.get(reason, 0) + 1
        record = {"where": where, "reason": reason, **more}
        self.handles[1].write(json.dumps(record, ensure_ascii=False).encode() + b"\n")

    def unreadable(self, where, why):
        """One row of the input is none: dropped, and too many of these stop the run (max_bad)."""
        why = str(why).removeprefix(f"{where}: ")
        self.bad = (self.bad + [f"{where}: {why}"])[:3]
        self.drop(where, "unreadable", detail=why)

    def take_up(self):
        """Go on where a stopped run was: both files cut back to what its last note knew of."""
        if self.counts["rows"]:
            print(f"{self.out}: goes on behind row {self.counts['rows']:,}", flush=True)
        for handle, size in zip(self.handles, self.sizes, strict=True):
            if os.fstat(handle.fileno()).st_size < size:
                raise UserError(f"{handle.name}: is shorter than {self.progress} says; delete both")
            handle.truncate(size)
            handle.seek(size)

    def note(self, at, now=False):
        """Every second: what is written so far is on the disk, and belongs to this place."""
        counts = self.counts
        lost = sum(counts["dropped"].values())
        assert counts["rows"] == counts["used"] + lost, (counts, at)
        if not now and time.monotonic() - self.noted < EVERY:
            return
        self.check_bad(least=1000)
        for handle in self.handles:
            handle.flush()
            os.fsync(handle.fileno())
        sizes = [handle.tell() for handle in self.handles]
        write_text(self.progress, json.dumps({"at": at, "bytes": sizes, **self.summary()}))
        self.noted = time.monotonic()

    def summary(self):
        return {"counts": self.counts, "unreadable": self.bad, "made_from": self.made_from}

    def check_bad(self, least=1):
        """UserError if too many of at least so many rows cannot be read."""
        rows, bad = self.counts["rows"], self.counts["dropped"].get("unreadable", 0)
        if rows >= least and bad > self.cfg.max_bad * rows:
            raise UserError(f"{bad:,} of {rows:,} rows cannot be read, the first: {self.bad[0]} "
                            "(--max_bad lets more pass)")  # fmt: skip

    def publish(self):
        """The finished files under their names, the counts last: a kill in between loses nothing,
        since the next run finds the progress at its end and does the rest."""
        for path in (self.dropped, self.out):
            if (partial := Path(f"{path}.partial")).exists():
                partial.replace(path)
        write_text(self.counts_file, json.dumps(self.summary(), indent=1) + "\n")

    def forget(self):
        """The notes of progress are of no use behind the end, nor is the lock."""
        for path in (self.progress, Path(f"{self.progress}.tmp"), self.lock_file):
            path.unlink(missing_ok=True)

    def report(self):
        counts = self.counts
        print(f"{self.out}:", end=" ")
        tally("rows", Counter(kept=counts["used"]) + Counter(counts["dropped"]), ["kept"])
        if counts["written"] != counts["used"]:
            print(f"  {counts['written']:,} rows made of them")
        if not counts["written"]:
            print(f"  nothing is left; {self.dropped} says why")
        for line in self.bad:
            print(f"  unreadable: {line}")
