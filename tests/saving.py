"""Models with random moments, and states of them: written here, or as many ranks would. As a script

    python tests/saving.py DATA OUT

it kills a run of train_sft.py before each call that changes the disk from its save of step 6 to its
end, lets it go on, and prints one json line for each: the call, the states that were left, damaged
ones among them, the step from which it went on (null if it had ended), the weights in the end.
"""

import contextlib
import errno
import itertools
import json
import os
import re
import shutil
import signal
import sys
import threading
import traceback
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import checkpoint  # noqa: E402
import parallel  # noqa: E402
import resume  # noqa: E402
import states  # noqa: E402
import streams  # noqa: E402
from config import UserError  # noqa: E402
from model import Llama  # noqa: E402
from optim import build_optimizer  # noqa: E402

CALLS = [(os, "fsync"), (os, "unlink"), (os, "rmdir"), (Path, "mkdir"), (Path, "rename"),
         (Path, "write_text"), (states, "stream"), (states, "publish"),
         (states, "purge")]  # fmt: skip
RUN = {"lr": 0.1, "data.jsonl": "0" * 64}
SIZES = {"vocab_size": 385, "hidden_size": 8, "intermediate_size": 12}


def trained(folder, seed, dtype="float32"):
    """A model and its optimizer with random weights and moments."""
    model = parallel.shard(Llama.from_pretrained(folder, "meta"), parallel.init("cpu")[2], dtype)
    checkpoint.load_weights(model, folder)
    optimizer = build_optimizer(model, 1e-3, 0.1)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, t in resume.optimizer_state(model, optimizer):
            checkpoint.copy_rows(t, torch.rand(t.shape) + name.startswith("weight"))
    return model, optimizer


def contents(model, optimizer):
    return {n: checkpoint.whole(t).clone() for n, t in resume.optimizer_state(model, optimizer)}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def save(out, step, pair, **how):
    resume.save(out, step, *pair, RUN, **how)
    resume.wait()
    return states.folder_of(out, step)


def names(out):
    return sorted(p.name for p in (out / "resume").iterdir())


def loaded(out, folder, dtype="float32"):
    """(step, contents) of the newest state, read into another model."""
    pair = trained(folder, 99, dtype)
    return resume.load(out, *pair, RUN), contents(*pair)


def split_over(tensors, world):
    """[({name: [begin, end)}, [rows])] as FSDP would spread them."""
    parts = []
    for rank in range(world):
        rows = {}
        for name, t in tensors.items():
            size = -(-len(t) // world)
            rows[name] = min(len(t), rank * size), min(len(t), (rank + 1) * size)
        parts.append((rows, [tensors[name][a:b] for name, (a, b) in rows.items()]))
    return parts


def write_as(out, tensors, world, step=7, broken=()):
    """A state as `world` ranks write it, each in a thread, without any process group. Returns what
    each raised."""
    folder, errors = states.folder_of(out, step), [None] * world
    states.prepare(folder)
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}

    def rank_of(rank, rows, values):
        try:
            if rank in broken:
                values = failing(values)
            states.write(folder, step, RUN, shapes, rows, values, rank, world)
        except UserError as e:
            errors[rank] = str(e)

    parts = enumerate(split_over(tensors, world))
    threads = [threading.Thread(target=rank_of, args=(r, *part)) for r, part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return errors


def failing(values):
    yield values[0]
    raise OSError(errno.ENOSPC, "No space left on device")


def dying_before(number, note):
    """Kill this process before that call from the save of step 6 on; its name is left in a file."""
    real_write, left = Path.write_text, [number]

    def count(name):
        if left and states.armed:
            left[0] -= 1
            if left[0] == 0:
                real_write(note, name)
                os.kill(os.getpid(), signal.SIGKILL)

    def counted(owner, name):
        real = getattr(owner, name)

        def call(*args, **named):
            count(name)
            return real(*args, **named)

        setattr(owner, name, call)

    def prepared(folder, real=states.prepare):
        states.armed |= folder.name.endswith("06")
        return real(folder)

    def parts(*args, real=streams.chunks):
        for i, chunk in enumerate(real(*args)):
            if i in (1, 2, 40):
                count(f"tensor {i}")
            yield chunk

    for owner, name in CALLS:
        counted(owner, name)
    states.armed, states.prepare, streams.chunks = False, prepared, parts


def live(data, out, number, background):
    """A run in a process of its own, killed before that call or not at all. Returns its status."""
    if pid := os.fork():
        return os.waitpid(pid, 0)[1]
    code = 1
    try:
        with open(out / "said.txt", "w") as said, contextlib.redirect_stdout(said):
            if number:
                dying_before(number, out / "call.txt")
            run("sft", data, out, epochs=1.0, save_every=2, background=background)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def main(data, out):
    for background in (False, True):
        for number in itertools.count(1, 5 if background else 1):
            folder = Path(out) / f"{number}-{background}"
            folder.mkdir()
            if live(data, folder, number, background) != signal.SIGKILL:
                break
            left = what_is_left(folder)
            status = live(data, folder, None, background)
            began = re.search(r"step (\d+) of", (folder / "said.txt").read_text())
            went_on = {
                "status": status,
                "from": began and int(began[1]),
                "weights": weights(folder),
            }
            print(json.dumps(left | {"background": background} | went_on), flush=True)
            shutil.rmtree(folder)


def what_is_left(folder):
    found, damaged = states.listed(folder), []
    for state in found:
        content, problem = states.opened(state)
        if problem or any(states.damage(state, file, content) for file in content["files"]):
            damaged.append(state.name)
    call = (folder / "call.txt").read_text()
    return {"call": call, "left": [state.name for state in found], "damaged": damaged}


if __name__ == "__main__":
    from runs import run, weights

    import train_sft  # noqa: F401  once, not in every life

    torch.set_num_threads(1)
    main(*sys.argv[1:])
