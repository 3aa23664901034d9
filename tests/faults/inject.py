"""Runs a script of this repository with a fault at one chosen moment of it:

    FAULT='{"folder": F, "trace": true}' python tests/faults/inject.py train_sft.py --chat ...
    FAULT='{"folder": F, "moment": "before fsync out/x", "nth": 1, "rank": 0, "do": "kill"}' ...

A moment is a thing done to a file below F, or a stage of the training step, seen from outside:
Python's audit events, os.fsync, renames, deletions, safetensors' writer, torch's public hooks. With
"trace" every moment is written to F/moments.RANK, so that what can be hit is read off a real run.
What happens is noted in F/injected, the exit code of a rank in F/exit.RANK.
"""

import builtins
import functools
import io
import json
import os
import resource
import runpy
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
AUDITED = {"os.remove": "remove", "os.rmdir": "rmdir", "os.mkdir": "mkdir"}  # event: name
WRITING = os.O_WRONLY | os.O_RDWR
LEFT = 4096  # bytes that a full disk still takes


class InjectedFault(RuntimeError):
    """Raised in the place of a bug."""


class State:
    """What is to happen here, and what has been seen so far."""

    spec = json.loads(os.environ.get("FAULT", "null")) or {"folder": "/nowhere"}
    rank = int(os.environ.get("RANK", 0))
    folder, counts, lock = spec["folder"], Counter(), threading.RLock()
    trace, busy = None, threading.local()


def place(path, folder_fd=-1):
    """A path below the folder, relative to it; None elsewhere. Process ids get a common name."""
    if not isinstance(path, (str, os.PathLike)):
        return None
    path = os.fspath(path)
    if isinstance(folder_fd, int) and folder_fd >= 0 and not os.path.isabs(path):
        path = os.path.join(os.readlink(f"/proc/self/fd/{folder_fd}"), path)
    path = os.path.relpath(os.path.abspath(path), State.folder)
    return None if path.startswith("..") else path.replace(f".{os.getpid()}.", ".PID.")


def moment(what, path=""):
    """Note that a moment has come, and do what is to be done in it. path: None = elsewhere."""
    if path is None or getattr(State.busy, "now", False):
        return False
    key, spec = f"{what} {path}".strip(), State.spec
    with State.lock:
        State.counts[key] += 1
        if State.trace is not None:
            os.write(State.trace, json.dumps([key, State.counts[key]]).encode() + b"\n")
        wanted = spec.get("moment") == key and spec["nth"] == State.counts[key]
    if wanted and spec["rank"] in (State.rank, None):  # None: whichever comes to it
        State.busy.now = True
        try:
            act(spec["do"], key)
        finally:
            State.busy.now = False
    return wanted


def act(what, key):
    """The fault itself."""
    note = {"time": time.time(), "moment": key, "do": what, "rank": State.rank, "pid": os.getpid()}
    Path(State.folder, "injected").write_text(json.dumps(note))
    if what == "raise":
        raise InjectedFault(f"injected {key} on rank {State.rank}")
    if what == "hang":
        while True:
            time.sleep(1)
    if what == "fill":
        return fill()
    number = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}.get(what[:4], signal.SIGTERM)
    launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
    if what == "terminate all":  # as a scheduler does: the launcher passes it on
        os.kill(launcher or os.getpid(), number)
    elif what == "kill launcher":
        os.kill(launcher, number)
    else:
        if what == "kill all" and launcher:
            ranks = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
            for pid in [launcher, *map(int, ranks)]:
                if pid != os.getpid():
                    os.kill(pid, number)
        os.kill(os.getpid(), number)


def fill():
    """Another job has filled the disk; where it is not a small one of our own, files of this
    process can grow no more."""
    out = Path(State.folder, "out")
    if out.is_mount():
        with open(out / "filler", "wb", buffering=0) as file:
            disk = os.statvfs(out)
            file.write(b"\0" * max(0, disk.f_bavail * disk.f_frsize - LEFT))
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (LEFT, resource.RLIM_INFINITY))


# ---- where moments are seen ----------------------------------------------------------------------


def audit(event, args):
    if event == "open" and isinstance(args[2], int) and args[2] & WRITING:
        moment("open", place(args[0]))
    elif event in AUDITED:
        moment(AUDITED[event], place(args[0], args[-1]))


def around(module, name, what, path_of):
    """Moments before and after a function of a module."""
    function = getattr(module, name)

    def call(*args, **named):
        path = path_of(*args, **named)
        moment(f"before {what}", path)
        result = function(*args, **named)
        moment(f"after {what}", path)
        return result

    setattr(module, name, call)


class Watched(io.BufferedWriter):
    """A file that is written to: what stands in it when a write begins is a part of the whole."""

    def write(self, data):
        moment("write", place(self.name))
        return super().write(data)


def watched(real):
    """open(), with Watched files below the folder."""

    @functools.wraps(real)
    def opening(file, mode="r", buffering=-1, *args, **named):
        if mode in ("wb", "ab") and buffering == -1 and place(file):
            return Watched(io.FileIO(file, mode))
        return real(file, mode, buffering, *args, **named)

    return opening


def watch_files():
    import safetensors.torch

    def opened(fd):
        number = fd if isinstance(fd, int) else fd.fileno()
        return place(os.readlink(f"/proc/self/fd/{number}"))

    def written(fd, data):
        return None if fd == State.trace else opened(fd)

    around(os, "write", "write", written)
    around(os, "fsync", "fsync", opened)
    around(os, "fdatasync", "fsync", opened)
    for name in ("rename", "replace"):
        around(os, name, "rename", lambda source, target, **named: place(target))
    around(shutil, "rmtree", "rmtree", lambda path, *args, **named: place(path))
    around(safetensors.torch, "save_file", "write", lambda _, name, *args, **named: place(name))
    builtins.open = io.open = watched(io.open)
    sys.addaudithook(audit)


def watch_training():
    import torch
    from torch.nn.modules.module import register_module_forward_pre_hook
    from torch.optim import optimizer
    from torch.overrides import TorchFunctionMode

    class Counting(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            moment("inside optimizer step")
            return function(*args, **(kwargs or {}))

    counting = Counting()

    wanted = State.trace is not None or State.spec.get("moment", "").startswith("inside")

    def before(*args):
        moment("before optimizer step")
        if wanted:
            counting.__enter__()

    def after(*args):
        if wanted:
            counting.__exit__(None, None, None)
        moment("after optimizer step")

    def forward(module, args):
        if type(module).__name__.endswith("Llama") and not torch.is_grad_enabled():
            moment("forward without gradient")

    optimizer.register_optimizer_step_pre_hook(before)
    optimizer.register_optimizer_step_post_hook(after)
    register_module_forward_pre_hook(forward)
    around(torch.Tensor, "backward", "backward", lambda *args, **named: "")


def watch_exit():
    leave = os._exit

    def noted(code):
        State.busy.now = True
        with open(f"{State.folder}/exit.{State.rank}", "w") as file:
            file.write(str(code))
        leave(code)

    os._exit = noted


def main(script, *words):
    if State.spec.get("trace"):
        name = f"{State.folder}/moments.{State.rank}"
        State.trace = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    sys.path[0] = str(ROOT)
    sys.argv = [script, *words]
    watch_training()
    watch_files()
    watch_exit()
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
