"""Stop signals, hangs and lost ranks, in real processes. As a script it is such a process:

    torchrun --nproc_per_node 2 tests/test_signals.py job.json

main(Config(...)) of a train script, with faults on rank `on`. Exit codes are noted in exit.RANK.
"""

import contextlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from runs import STAGES, run, series, settings, weights, write_data  # noqa: E402

import parallel  # noqa: E402
import resume  # noqa: E402
import streams  # noqa: E402
from metrics import read_metrics  # noqa: E402

LOSS = {"cpt": "token_losses", "sft": "loss_sum", "dpo": "step_sums"}
HELD = {"cpt": {"heldout_text": "text"}, "sft": {"heldout_chat": "held_chat"},
        "dpo": {"heldout_pairs": "held_pairs"}}  # fmt: skip


def long(stage, data, **changes):
    """Nine or more steps of 3 micro-batches on one rank; held-out rows of two batches or more."""
    files = {name: f"{data}/{file}.jsonl" for name, file in HELD[stage].items()}
    epochs = {"cpt": 1.0, "sft": 1.5, "dpo": 2.0}[stage]
    return files | {"epochs": epochs, "save_every": 3, "eval_every": 3,
                    "micro_batch_tokens": 192} | changes  # fmt: skip


# ---- faults --------------------------------------------------------------------------------------


def stuck_for_ever():
    while True:
        time.sleep(1)


def act(do):
    if do == "raise":
        raise RuntimeError("a bug on one rank")
    if do == "pause":
        return time.sleep(2.5)
    if do == "work":
        until = time.process_time() + 6
        while time.process_time() < until:
            pass
        return None
    if do == "kill the launcher":
        os.kill(os.getppid(), signal.SIGKILL)
        return time.sleep(2)
    if do == "hang, then SIGTERM to all":
        os.kill(os.getppid(), signal.SIGTERM)
    if do.startswith("hang"):
        stuck_for_ever()
    return os.kill(os.getpid(), getattr(signal, do))


class Faults:
    """Patches of a train script. faults: (what, kind, number): before that forward of `training` or
    `held-out` rows, or within that `save`; all count from 0."""

    def __init__(self, stage, faults, note=None):
        self.faults, self.note, self.seen = faults, note, dict.fromkeys(KINDS, 0)
        self.module, self.stack = importlib.import_module(f"train_{stage}"), contextlib.ExitStack()
        self.losses, self.save = getattr(self.module, LOSS[stage]), resume.save
        self.name = LOSS[stage]

    def reached(self, kind):
        for do, of, number in self.faults:
            if (of, number) == (kind, self.seen[kind]) and do != "nan":
                if self.note:
                    self.note.write_text(str(time.time()))
                act(do)
        self.seen[kind] += 1

    def forward(self, *args):
        kind = "training" if torch.is_grad_enabled() else "held-out"
        bad = ["nan", kind, self.seen[kind]] in list(map(list, self.faults))
        self.reached(kind)
        return self.losses(*args) + float("nan") if bad else self.losses(*args)

    def saving(self, *args, **named):
        self.reached("save")
        return self.save(*args, **named)

    def __enter__(self):
        self.stack.enter_context(mock.patch.object(self.module, self.name, self.forward))
        self.stack.enter_context(mock.patch.object(resume, "save", self.saving))
        return self

    def __exit__(self, *error):
        self.stack.close()


KINDS = ("training", "held-out", "save")


def process(file):
    """What torchrun starts."""
    job, rank = json.loads(Path(file).read_text()), os.environ.get("RANK", "0")
    leave, folder = os._exit, Path(file).parent

    def noted(code):
        (folder / f"exit.{rank}").write_text(str(code))
        leave(code)

    os._exit = noted
    for name, value in job.get("constants", {}).items():
        setattr(parallel, name, value)
    torch.set_num_threads(1)
    faults = job["faults"] if str(job.get("on", 0)) == rank else []
    with parallel.clean_exit(), Faults(job["stage"], faults, folder / "time") as patched:
        plot = mock.patch.object(patched.module, "plot_metrics", lambda out: act("pause"))
        with plot if "constants" in job else mock.patch.object(patched.module, "plot_metrics"):
            patched.module.main(patched.module.Config(**job["settings"]))


def start(data, folder, ranks, faults, on=0, **job):
    """Popen of a run of train_sft on several ranks, what it says in folder/said."""
    folder.mkdir()
    values = settings("sft", data, folder / "out", **long("sft", data))
    job |= {"stage": "sft", "on": on, "faults": faults, "settings": values}
    (folder / "job.json").write_text(json.dumps(job))
    with open(folder / "said", "w") as said:
        command = [*launcher(ranks), __file__, str(folder / "job.json")]
        return subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)


def launcher(ranks):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    return [sys.executable, *(torchrun if ranks > 1 else [])]


def codes(folder):
    """{rank: its exit code}; one that was killed has none."""
    return {int(f.suffix[1:]): int(f.read_text() or -1) for f in folder.glob("exit.*")}


def states(out):
    return sorted(p.name for p in (out / "resume").iterdir())


# ---- what a stopped run leaves: resumed = uninterrupted ------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """{stage: (rows of metrics.jsonl, sha256 of the weights)} of runs that nothing interrupts."""
    found = {}
    for stage in STAGES:
        out = tmp_path_factory.mktemp(stage)
        found[stage] = run(stage, data, out, **long(stage, data)), weights(out)
    return found


# where: what is then in the folder: rows, states, and what is said
MOMENTS = {
    ("training", 1): (0, [], "stopped before step 0;"),
    ("training", 7): (2, ["step_00000002"], "stopped before step 2;"),
    ("training", 8): (2, ["step_00000002"], "stopped before step 2;"),  # the last of a step
    ("training", 10): (3, ["step_00000003"], "stopped before step 3;"),
    ("held-out", "second pass"): (5, ["step_00000003"], "stopped while step 5 was measured;"),
    ("save", 1): (6, ["step_00000003", "step_00000006"], "stopped before step 6;"),
}


@pytest.mark.parametrize(
    ("stage", "moment"),
    [
        (stage, moment)
        for stage in STAGES
        for moment in MOMENTS
        if stage == "sft" or moment in (("training", 7), ("held-out", "second pass"))
    ],
)
def test_a_signal_is_answered_within_the_step_and_the_same_command_ends_as_if_it_had_not_come(
    stage, moment, data, whole, tmp_path, capsys
):
    kind, number = moment
    rows, kept, said = MOMENTS[moment]
    if kind == "held-out":
        number = held_batches(stage, data, tmp_path / "counted") + 1
    with Faults(stage, [("SIGTERM", kind, number)]) as faults:
        stopped = run(stage, data, tmp_path / "out", **long(stage, data))
    out = capsys.readouterr().out
    assert said in out and out.count("the same command goes on") == 1
    assert len(stopped) == rows and (states(tmp_path / "out") if kept else []) == kept
    assert faults.seen["save"] == len(kept)  # the state of a step is not written twice
    assert kind == "save" or faults.seen[kind] == number + 1  # nothing more is computed
    assert not (tmp_path / "out" / "model.safetensors").exists()
    again, (want, sha) = run(stage, data, tmp_path / "out", **long(stage, data)), whole[stage]
    held = [key for key in want[-1] if key.startswith("heldout/")]
    assert series(again) == series(want) and weights(tmp_path / "out") == sha
    assert held and [[row.get(k) for k in held] for row in again] == [
        [row.get(k) for k in held] for row in want
    ]


def held_batches(stage, data, out):
    """How many there are in a pass."""
    with Faults(stage, []) as faults:
        run(stage, data, out, **long(stage, data, epochs=0.01))
    assert faults.seen["held-out"] >= 2
    return faults.seen["held-out"]


def test_a_signal_in_the_last_save_lets_the_run_end(data, whole, tmp_path, monkeypatch):
    import train_sft

    save = train_sft.save_pretrained
    late = lambda *args: (os.kill(os.getpid(), signal.SIGTERM), save(*args))  # noqa: E731
    monkeypatch.setattr(train_sft, "save_pretrained", late)
    run("sft", data, tmp_path, **long("sft", data))
    assert (tmp_path / "done.json").exists() and weights(tmp_path) == whole["sft"][1]


def test_a_copy_of_the_first_signal_is_not_the_second(monkeypatch):
    """A scheduler signals every process, and torchrun hands on what it got itself."""
    codes, handlers = [], [(s, signal.getsignal(s)) for s in (signal.SIGTERM, signal.SIGINT)]
    monkeypatch.setattr(os, "_exit", codes.append)
    try:
        parallel.catch_stop_signals()
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert parallel.stop_signals == [signal.SIGTERM] and not codes
        parallel.pulse.signal_at -= parallel.COPY
        os.kill(os.getpid(), signal.SIGTERM)
        assert codes == [128 + signal.SIGTERM]
    finally:
        parallel.stop_signals.clear()
        for number, handler in handlers:
            signal.signal(number, handler)


# ---- two ranks, one of which is at fault ---------------------------------------------------------

# What rank 1 does before forward 9, the second of step 4: the exit codes of both ranks, steps done
FAULTS = {
    "hang": ({0: 1, 1: 1}, 4),
    "hang, then SIGTERM to all": ({0: 143, 1: 143}, 4),
    "SIGKILL": ({0: 1}, 4),
    "raise": ({0: 1, 1: 1}, 4),
    "SIGTERM": ({0: 143, 1: 143}, 4),
    "kill the launcher": ({0: 143, 1: 143}, 4),
    "nan": ({0: 0, 1: 0}, 10),
}


@pytest.fixture(scope="module")
def faulty(data, tmp_path_factory):
    """(folder of folders, {fault: seconds until all ranks had ended})."""
    folder, seconds = tmp_path_factory.mktemp("faults"), {}
    waiting, running, until = list(FAULTS), {}, time.time() + 150
    while (waiting or running) and time.time() < until:
        if waiting and len(running) < 4:  # the first two wait most of the time
            do = waiting.pop(0)
            running[do] = start(data, folder / do, 2, [(do, "training", 9)], on=1)
        for do, launched in list(running.items()):
            over = len(codes(folder / do)) == 2 if do == "kill the launcher" else True
            if launched.poll() is not None and over:
                begun = folder / do / "time"
                seconds[do] = time.time() - float(begun.read_text()) if begun.exists() else 0
                del running[do]
        time.sleep(0.05)
    for launched in running.values():
        launched.kill()
    return folder, seconds


@pytest.mark.parametrize("do", FAULTS)
def test_whatever_becomes_of_a_rank_the_job_ends_soon_and_tells_why(do, faulty):
    folder, seconds = faulty[0] / do, faulty[1][do]
    (ends, steps), said = FAULTS[do], (folder / "said").read_text()
    assert codes(folder) == ends, said
    assert seconds < 30, said
    rows = read_metrics(folder / "out")
    assert [row["step"] for row in rows] == list(range(steps))
    if steps < 10:  # what stops in good order leaves a state of where it is
        new = ["step_00000004"] if do in ("SIGTERM", "kill the launcher") else []
        assert states(folder / "out") == ["step_00000003", *new]
    if do == "hang":
        assert "rank 1: no progress for 20 s" in said and "in stuck_for_ever" in said
    if do == "raise":
        assert "rank 1 failed:" in said and "RuntimeError: a bug on one rank" in said
    if do == "hang, then SIGTERM to all":
        assert seconds > parallel.GRACE and "rank 0: does not react to signal 15: ended" in said
    if do == "nan":  # the same decision on both, and both go on
        assert [row.get("skipped") for row in rows] == [None] * 4 + [1] + [None] * 5
        assert "step 4: loss nan" in said


def test_a_job_that_lost_a_rank_goes_on_from_its_last_state(faulty, data, whole, tmp_path):
    for do in ("SIGKILL", "SIGTERM"):
        shutil.copytree(faulty[0] / do / "out", tmp_path / do)
        again = run("sft", data, tmp_path / do, **long("sft", data))
        for row, want in zip(again, whole["sft"][0], strict=True):
            assert [row[k] for k in ("step", "lr")] == [want[k] for k in ("step", "lr")]
            assert row["loss"] == pytest.approx(want["loss"], rel=1e-5)


# ---- the watchdog does not bite in what may take long --------------------------------------------


def test_first_steps_measuring_saving_and_plotting_may_take_as_long_as_they_like(data, tmp_path):
    """Each pauses for 2.5 seconds, and silence of 1.5 would be a hang."""
    kinds = [("training", 0), ("training", 5), ("held-out", 0), ("save", 0), ("save", 1)]
    faults = [("pause", *where) for where in kinds]
    said = start(data, tmp_path / "slow", 1, faults, constants={"SILENCE": 1.5})
    assert said.wait(60) == 0, (tmp_path / "slow" / "said").read_text()
    stuck = start(data, tmp_path / "stuck", 1, [("pause", "training", 9)],
                  constants={"SILENCE": 1.5})  # fmt: skip
    assert stuck.wait(60) == 1
    assert "no progress for 2 s" in (tmp_path / "stuck" / "said").read_text()


@pytest.mark.parametrize("where", [("training", 0), ("save", 0)])
def test_all_ranks_waiting_for_one_is_a_hang_in_any_phase_and_waiting_for_its_work_is_none(
    where, data, tmp_path
):
    quick = {"SILENCE": 4}
    works = start(data, tmp_path / "work", 2, [("work", *where)], on=1, constants=quick)
    stuck = start(data, tmp_path / "hang", 2, [("hang", *where)], on=1, constants=quick)
    said = {do: tmp_path / do / "said" for do in ("work", "hang")}
    assert stuck.wait(60) == 1, said["hang"].read_text()
    assert "rank 1: no rank does anything for 4 s" in (text := said["hang"].read_text())
    assert "in stuck_for_ever" in text
    assert works.wait(60) == 0, said["work"].read_text()


@pytest.mark.parametrize("watched", [True, False])
def test_a_second_signal_ends_what_waits_in_cpp_at_once(watched):
    """Python's handler does not run there."""
    code = f"""if True:
        import time, parallel, torch.distributed as dist
        from datetime import timedelta
        with parallel.clean_exit():
            parallel.catch_stop_signals()
            parallel.beat(watched={watched})
            print("waits", flush=True)
            dist.HashStore().wait(["never"], timedelta(seconds=100))"""
    waits = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    assert waits.stdout.readline() == "waits\n"
    waits.send_signal(signal.SIGTERM)
    time.sleep(1.5)
    assert waits.poll() is None
    waits.send_signal(signal.SIGTERM)
    assert waits.wait(8) == 143


def test_a_slow_disk_is_no_hang(monkeypatch, tmp_path):
    """Neither while it flushes, nor in state D; and it is one again afterwards."""
    assert not parallel.waits_for_disk()
    file, seen = tmp_path / "file", []
    file.write_text("content")
    monkeypatch.setattr(os, "fsync", lambda fd: seen.append(parallel.waits_for_disk()))
    streams.sync(file, tmp_path)
    assert seen == [True, True] and not parallel.waits_for_disk()
    stat = tmp_path / "stat"
    monkeypatch.setattr(parallel.glob, "glob", lambda _: [tmp_path / "ended", stat])
    for state, waits in (("S", False), ("D", True), ("R", False)):
        stat.write_text(f"7 (a name) with D) {state} 1 2 3")
        assert parallel.waits_for_disk() is waits


def test_a_suspended_rank_ends_the_job(data, tmp_path):
    """torchrun leaves it another 30 seconds to answer SIGTERM; it is woken here for the test."""
    begun = start(data, tmp_path / "run", 2, [("SIGSTOP", "training", 0)], on=1,
                  constants={"SILENCE": 2})  # fmt: skip
    note = tmp_path / "run" / "exit.0"
    until = time.time() + 60
    while not (note.exists() and note.read_text()) and time.time() < until:
        time.sleep(0.05)
    for child in Path(f"/proc/{begun.pid}/task/{begun.pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
    assert begun.wait(60) == 1
    assert "rank 0: no rank does anything for 2 s" in (tmp_path / "run" / "said").read_text()


def test_a_hang_is_longer_than_five_of_the_gaps_before_and_no_time_a_process_was_stopped():
    code = """if True:
        import os, signal, subprocess, time, parallel
        parallel.SILENCE = 3.5
        with parallel.clean_exit():
            for gap in (1, 4.2):
                parallel.beat(watched=True)
                time.sleep(gap)
            parallel.beat()
            subprocess.Popen(["sh", "-c", f"sleep 6; kill -CONT {os.getpid()}"])
            parallel.pulse.longest = 0
            time.sleep(0.7)
            os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(0.8)
            parallel.beat(watched=False)
            time.sleep(4.5)
            parallel.pulse.longest = 0
            print("alive", flush=True)
            parallel.beat(watched=True)
            time.sleep(60)"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "alive\n"), done.stderr
    assert "no progress for" in done.stderr and "line 19, in <module>" in done.stderr


if __name__ == "__main__":
    process(sys.argv[1])
