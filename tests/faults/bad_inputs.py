"""Bad inputs, each given to the real scripts: one line says what is wrong, or it is counted.

    python tests/faults/bad_inputs.py                     all of them, and a table
    python tests/faults/bad_inputs.py --only tokenizer    those whose class or name holds a word

An input that stops a script: exit code 1 and, apart from notices, one line on stderr, `error:
FILE:LINE: FIELD: reason`; no traceback, nothing published. An input that is sorted out: exit code 0
and a line that counts it, rows in = rows used + rows left out.

One process imports the scripts and forks; a child runs a script's own __main__ block, with its own
exit code and stderr. Ten cases of every script start a new interpreter instead.
"""

import contextlib
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]

import judging  # noqa: E402
from bad_checkpoints import CHECKPOINTS  # noqa: E402
from bad_commands import COMMANDS  # noqa: E402
from bad_files import FILES  # noqa: E402
from bad_logs import LOGS  # noqa: E402
from bad_rows import ROWS  # noqa: E402
from judging import Handler, Server, answer_of, well  # noqa: E402
from making import LEFT_BEHIND, URL, good_files  # noqa: E402

from config import parse  # noqa: E402

ALL = [*FILES, *ROWS, *CHECKPOINTS, *COMMANDS, *LOGS]
# What does not end as it should yet, class: name
OPEN = ()  # names of cases whose causes are not mended yet
CASES = [case for case in ALL if f"{case.kind}: {case.name}" not in OPEN]
NEW = 10  # cases of each script, the train scripts being one, that start a new interpreter
AT_ONCE = 2
LIMIT = 60  # seconds of a case
IMPORTED = ("train_cpt train_sft train_dpo reward evaluate generate curate token_files data "
            "prepare judged results contamination scoreboard").split()  # fmt: skip
PUBLISHED = ("out/model.safetensors", "out/results.json", "out.jsonl", "new.jsonl",
             "out/board.html", "rows/arc.jsonl", "reward/trl.jsonl")  # fmt: skip
BAR = re.compile(r"\d%\||\d \[\d\d:\d\d")  # of tqdm
SUM = re.compile(r"([\d,]+) [^=]* = (.+?) \+ ([\d,]+) (?:skipped|left out)")


@dataclass
class Config:
    only: str = ""  # cases whose class or name holds this word
    quick: bool = False  # some of each class
    open: bool = False  # those that are known to go wrong, too
    folder: str = ""  # where they run; a temporary one if none is said
    records: str = ""  # json file of what became of each


def spread(members, count):
    """So many of a list, from all over it."""
    return members[:: max(1, len(members) // count)][:count]


def by(key, cases):
    groups = {}
    for case in cases:
        groups.setdefault(key(case), []).append(case)
    return groups


def quick_cases():
    """A few of each class."""
    return [case for members in by(lambda c: c.kind, CASES).values() for case in spread(members, 3)]


def script_class(case):
    """The scripts that begin alike are one class."""
    return re.match("train|data|token|[a-z]+", case.command[0])[0].replace("token", "data")


def full_name(case):
    return f"{case.kind}: {case.name}"


# One case ------------------------------------------------------------------------------------


def child(work):
    """A forked process that does work() and leaves with its exit code. Returns its id."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    code = 70
    try:
        work()
        code = 0
    except SystemExit as e:  # as the interpreter does it
        if isinstance(e.code, str):
            print(e.code, file=sys.stderr)
        code = e.code if isinstance(e.code, int) else 0 if e.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def execute(words, folder, new):
    """Become a script with these words in a folder; its output goes to files beside the folder."""
    os.chdir(folder)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder.with_suffix(f".{name}"), os.O_CREAT | os.O_WRONLY), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "OPENAI_API_KEY": ""}
    words = [str(ROOT / words[0]), *words[1:]]
    if new:
        os.execv(sys.executable, [sys.executable, *words])
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")


class Running:
    """A script on its way in a folder, beside the judge that it asks if its words name one."""

    def __init__(self, words, folder, judge=None, new=False):
        self.folder, self.server, self.address = folder, None, URL
        if URL in words:
            server = Server(("127.0.0.1", 0), Handler)
            server.seen, server.misbehave = [], judge or well
            self.address = f"http://127.0.0.1:{server.server_port}/v1"
            self.server = child(partial(serve, server))
            server.server_close()
        self.start = time.monotonic()
        words = [word.replace(URL, self.address) for word in words]
        self.pid = child(partial(execute, words, folder, new))

    def ended(self):
        """(exit code, stdout, stderr, seconds), None while it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        seconds = time.monotonic() - self.start
        if not pid and seconds < LIMIT:
            return None
        if not pid:
            os.kill(self.pid, signal.SIGKILL)
            _, status = os.waitpid(self.pid, 0)
        if self.server:
            os.kill(self.server, signal.SIGKILL)
            os.waitpid(self.server, 0)
        files = [self.folder.with_suffix(f".{name}") for name in ("stdout", "stderr")]
        texts = [file.read_text(errors="replace").replace(self.address, URL) for file in files]
        for file in files:
            file.unlink()
        return os.waitstatus_to_exitcode(status), *texts, seconds


def begin(case, good, folder, new):
    """A case on its way: (case, Running, what was published before, is its interpreter new?)."""
    shutil.copytree(good, folder)
    if os.waitpid(child(partial(case.make, folder)), 0)[1]:
        raise RuntimeError(f"{full_name(case)}: cannot be made")
    return case, Running(case.command, folder, case.judge, new), published(folder), new


def record(case, new, code, seconds, found, why):
    """What became of a case."""
    kept = {"case": case.name, "class": case.kind, "command": " ".join(["python", *case.command])}
    kept |= {"new_interpreter": new, "exit": code, "line": found, "ok": not why}
    return kept | {"seconds": round(seconds, 2)} | ({"why": why} if why else {})


def serve(server):
    def answer(prompt):
        with contextlib.suppress(TypeError):  # no question of a judge
            return answer_of(prompt)

    server.lock, judging.answer_of = threading.Lock(), answer
    server.serve_forever(0.01)


def published(folder):
    return {name for name in PUBLISHED if (folder / name).exists()}


def said(text):
    """The lines of a terminal's text, without bars and blank lines."""
    lines = (line.strip() for line in re.split(r"[\r\n]|\x1b\[A", text))
    return [line for line in lines if line and not BAR.search(line)]


def verdict(case, code, out, err, fresh):
    """(the line that counts, what is wrong with the outcome or None)."""
    errors = [line for line in said(err) if not line.startswith("notice: ")]
    wrong = []
    if case.exit:
        found = errors[-1] if errors else ""
        if len(errors) != 1:
            wrong.append(f"{len(errors)} lines on stderr")
        if not re.match("error: " + case.line, found):
            wrong.append("another line than expected")
        if fresh:
            wrong.append(f"published {', '.join(sorted(fresh))}")
    else:
        found = next((line for line in said(out) + said(err) if re.search(case.line, line)), "")
        wrong += [] if found else ["the expected line is not there"]
        wrong += [f"says {line}" for line in errors if line.startswith("error")]
        wrong += [f"does not add up: {line}" for line in said(out) if not adds_up(line)]
    if code != case.exit:
        wrong.append(f"exit code {code}, not {case.exit}")
    if "Traceback" in err + out:
        wrong.append("a traceback")
    if len(found) > 600:
        wrong.append("a line of more than 600 characters")
    return found[:600] or (errors or [""])[-1][:600], "; ".join(wrong)


def adds_up(line):
    """Is what a line says of rows true: all = used + left out?"""
    if not (match := SUM.search(line)):
        return True
    total, used, lost = match.groups()
    used = sum(int(n.replace(",", "")) for n in re.findall(r"(?<![\w.])[\d,]+(?= )", f"{used} "))
    return int(total.replace(",", "")) == used + int(lost.replace(",", ""))


# All of them ---------------------------------------------------------------------------------


def work(folder, cases, new):
    """Records of the cases, in their order; `new` of each script start an interpreter. All in one
    thread: a fork of several is a gamble."""
    for name in IMPORTED:
        __import__(name)
    good = folder / "good"
    good.mkdir(parents=True)
    if os.waitpid(child(partial(good_files, good)), 0)[1]:
        raise RuntimeError("the good files cannot be made")
    for words in LEFT_BEHIND:
        run = Running(words, good)
        while not (end := run.ended()):
            time.sleep(0.01)
        if end[0]:
            raise RuntimeError(f"{' '.join(words)}: {end[2]}")
    groups = by(script_class, cases).values()
    own = {id(case) for members in groups for case in spread(members, new)}
    todo, running, records = list(enumerate(cases)), {}, {}
    while todo or running:
        while todo and len(running) < AT_ONCE:
            i, case = todo.pop(0)
            running[i] = begin(case, good, folder / f"case{i:03d}", id(case) in own)
        for i, (case, run, before, alone) in list(running.items()):
            if not (end := run.ended()):
                continue
            code, out, err, seconds = end
            fresh = published(run.folder) - before
            found, why = verdict(case, code, out, err, fresh)
            records[i] = record(case, alone, code, seconds, found, why)
            shutil.rmtree(run.folder)
            del running[i]
        time.sleep(0.005)
    return [records[i] for i in sorted(records)]


def run_all(folder, *flags):
    """Records of all cases: class, case, command, exit, line, ok, seconds. In a process of its own,
    whatever threads the caller has."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--folder", str(folder), *flags]
    file = folder / "records.json"
    subprocess.run([*command, "--records", str(file)], stdout=subprocess.DEVNULL, check=False)
    return json.loads(file.read_text())


def print_table(records, seconds):
    line = "{:<18}{:>7}{:>10}{:>10}{:>9}{:>10}{:>10}"
    print(line.format("class", "cases", "refused", "counted", "as due", "not so", "seconds"))
    groups = by(lambda r: r["class"], records) | {"all": records}
    for name, members in groups.items():
        exits = Counter(r["exit"] == 0 for r in members)
        good = sum(r["ok"] for r in members)
        cells = len(members), exits[False], exits[True], good, len(members) - good
        print(line.format(name, *cells, f"{sum(r['seconds'] for r in members):.1f}"))
    new = sum(r["new_interpreter"] for r in records)
    print(f"{seconds:.0f} s; {new} of {len(records)} in an interpreter of their own")


def main(cfg):
    cases = quick_cases() if cfg.quick else CASES if not cfg.open else ALL
    cases = [case for case in cases if cfg.only in full_name(case)]
    start, place = time.monotonic(), contextlib.nullcontext(cfg.folder)
    if not cfg.folder:
        place = tempfile.TemporaryDirectory(prefix="minfin-bad-inputs-")
    with place as folder:
        records = work(Path(folder).resolve(), cases, 1 if cfg.quick else NEW)
    if cfg.records:
        Path(cfg.records).write_text(json.dumps(records, indent=1) + "\n")
    for r in records:
        if not r["ok"]:
            print(f"{r['class']}: {r['case']}: {r['why']}\n    {r['command']}\n    {r['line']}")
    print_table(records, time.monotonic() - start)
    return int(not all(r["ok"] for r in records))


if __name__ == "__main__":
    sys.exit(main(parse(Config)))
