"""Runs of the scripts as processes, for the injected faults: started, watched, cleaned away.

A process carries a word of its own in its environment, by which whatever it started is found again
and ended, orphans and stopped ones included.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from runs import settings, weights, write_data  # noqa: E402, F401

INJECT = str(Path(__file__).with_name("inject.py"))
HANG = 60.0  # seconds after which a run that should have ended counts as hung
TIMED = ("tokens_per_second", "memory_gb", "mfu")  # what two equal runs may log differently
EVERY = {"cpt": 3, "sft": 2, "dpo": 3}  # save_every


def script(name, flags, ranks=1, first=()):
    """The command of a run. name: script and sub-command; first: words in front of them."""
    words = [*first, *name.split()]
    if ranks > 1:
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
        words = [*launch, *words]
    flags = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    return [sys.executable, *words, *flags]


def train(stage, data, folder, ranks=1, injected=False, **changes):
    """The command of a small run: 12 to 20 steps of several micro-batches, held-out rows too."""
    held = {"cpt": {"heldout_text": "text"}, "sft": {"heldout_chat": "held_chat"},
            "dpo": {"heldout_pairs": "held_pairs"}}[stage]  # fmt: skip
    values = {name: f"{data}/{file}.jsonl" for name, file in held.items()}
    values |= {"token_cache": f"{folder}/tokens", "save_every": EVERY[stage], "eval_every": 3}
    values |= {"batch_tokens": 4 * 96, "micro_batch_tokens": 96}
    values |= {"epochs": {"cpt": 1.0, "sft": 1.5, "dpo": 2.0}[stage]} | changes
    flags = settings(stage, data, f"{folder}/out", **values)
    return script(f"train_{stage}.py", flags, ranks, (INJECT,) if injected else ())


@dataclass
class Run:
    """A run that has ended, or was ended because it did not."""

    code: int | None = None  # None = it hung
    said: str = ""
    seconds: float = 0.0  # from its start
    since: float = 0.0  # from the fault, where one was noted or given from outside
    note: dict = field(default_factory=dict)  # what inject.py wrote down
    codes: list = field(default_factory=list)  # of the ranks, by inject.py
    orphans: int = 0  # processes that outlived the command
    word: str = ""  # for end(), where those were left alone


def processes(word):
    """Ids of the living processes that carry a word in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                ours = f"FAULT_RUN={word}".encode() in (entry / "environ").read_bytes()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if ours and state != "Z":
                found.append(int(entry.name))
    return found


def end(word):
    """SIGKILL for all that is left of a run; how many there were."""
    left = processes(word)
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return len(left)


def run(command, folder, fault=None, outside=None, limit=HANG, prefix=(), leave=False):
    """Run a command in ROOT until it ends; Run. It hangs if it takes `limit` seconds from the
    fault on, or twice that in all.

    fault: what inject.py is to do. outside: called every few ms with (pid, seconds since the
    start); does something to the run, and returns true when it has.
    """
    word, folder = uuid.uuid4().hex, Path(folder)
    environment = os.environ | {"FAULT_RUN": word, "OMP_NUM_THREADS": "1"}
    environment |= {"FAULT": json.dumps({"folder": str(folder)} | (fault or {}))}
    environment.pop("OPENAI_API_KEY", None)
    for old in [folder / "injected", *folder.glob("exit.*")]:
        old.unlink(missing_ok=True)
    begin, hit, result = time.time(), None, Run(word=word)
    with open(folder / "said.txt", "ab") as said:
        start = said.tell()
        process = subprocess.Popen([*prefix, *command], cwd=ROOT, env=environment, stdout=said,
                                   stderr=said, stdin=subprocess.DEVNULL,
                                   start_new_session=True)  # fmt: skip
        try:
            while (code := process.poll()) is None:
                now = time.time()
                if hit is None and outside and outside(process.pid, now - begin):
                    hit = time.time()
                if hit is None and (folder / "injected").exists():
                    hit = now
                if now - (hit or begin + limit) > limit:
                    break
                time.sleep(0.005 if outside and hit is None else 0.03)
            result.seconds = time.time() - begin
            result.since = time.time() - (hit or begin)
            for _ in range(20):  # a moment to go after the launcher has gone
                if code is None or leave or not processes(word):
                    break
                time.sleep(0.1)
            result.code = code
        finally:
            result.orphans = len(processes(word)) if leave else end(word)
            process.wait()
    result.said = (folder / "said.txt").read_bytes()[start:].decode("utf-8", "replace")
    if (folder / "injected").exists() and (text := (folder / "injected").read_text()):
        result.note = json.loads(text)
    result.codes = [int(file.read_text() or -1) for file in sorted(folder.glob("exit.*"))]
    return result


def signalled(number, when):
    """For run(outside=...): a signal to the command, when when(pid, seconds) is true."""

    def outside(pid, seconds):
        if not when(pid, seconds):
            return False
        os.kill(pid, number)
        return True

    return outside


def killed_whole(when):
    """For run(outside=...): SIGKILL to a command and everything below it."""

    def below(pid):
        try:
            direct = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:
            direct = []
        return [pid, *(p for child in direct for p in below(int(child)))]

    def outside(pid, seconds):
        if not when(pid, seconds):
            return False
        for each in below(pid):
            try:
                os.kill(each, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return True

    return outside


def lines(path):
    path = Path(path)
    return path.read_bytes().count(b"\n") if path.exists() else 0


def rows(out):
    """metrics.jsonl without what is measured by the clock; a torn last line is left out."""
    path, found = Path(out) / "metrics.jsonl", []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        found.append({key: value for key, value in row.items() if key not in TIMED})
    return found


def results(out):
    """(rows, sha256 of the weights) of a run that has ended."""
    return rows(out), weights(out)


def difference(out, want):
    """What differs from an undisturbed run, or None."""
    try:
        found = results(out)
    except OSError as e:
        return f"no exported model: {e}"
    if [row["step"] for row in found[0]] != [row["step"] for row in want[0]]:
        return f"steps {[row['step'] for row in found[0]]}, wanted {len(want[0])}"
    for row, other in zip(found[0], want[0], strict=True):
        if row != other:
            return f"step {row['step']}: {row}, undisturbed {other}"
    return None if found[1] == want[1] else "other weights"


def resumed_at(said):
    """The step from which a train script says that it goes on; None if the run had ended."""
    found = re.findall(r": step (\d+) of \d+", said)
    return int(found[0]) if found else None


def message(said):
    """The line in which a run says why it ended."""
    patterns = (r"^(?:\[rank\d+\]:)?(error: .*)$", r"^(rank \d+ failed:)", r"(stopped before .*)",
                r"^(\w*(?:Error|Fault): .*)$")  # fmt: skip
    for pattern in patterns:
        if found := re.findall(pattern, said, re.M):
            return found[0]
    return ""


def states(out):
    return sorted(p for p in (Path(out) / "resume").glob("step_*") if p.suffix != ".tmp")
