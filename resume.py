"""The state from which a run goes on after it was stopped or killed: fp32 weights, both Adam
moments, and the step, which also is the data position, as batches are a pure function of it
(packing.Plan); training draws no other random numbers.

    resume.save(out_dir, step, model, optimizer, run, background=True)    each rank its own rows
    step = resume.load(out_dir, model, optimizer, run)                    on any number of ranks

A state is there complete or not at all (states.py), and one that does not match its manifest is
passed over for the one before.
"""

import dataclasses
import fcntl
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import safe_open

import states
from checkpoint import (
    barrier,
    check_out_dir,
    copy_rows,
    held,
    is_main,
    named_weights,
    span,
    weight_files,
)
from config import UserError, read_json
from jsonl import sha_of_file, write_text
from parallel import check_same, on_rank0, print0
from streams import sync

# Settings that change where and how fast a run goes, not what it computes
NEUTRAL = (
    *("out_dir", "device", "micro_batch_tokens", "recompute", "eval_every", "save_every"),
    *("keep_last", "keep_every", "background", "replicas", "dry_run", "max_bad_steps"),
    *("heldout_text", "heldout_chat", "heldout_pairs", "warn_nats", "max_skipped", "token_cache"),
)


def identity(cfg, files):
    """What makes two runs the same: the settings that steer the numbers, and sha256 of every file
    read: data and the checkpoint begun from, with the files that hold its chat format. UserError if
    one is not there, or would be lost."""
    source = Path(cfg.init_from)
    if Path(cfg.out_dir).resolve() == source.resolve():
        raise UserError(f"--out_dir {cfg.out_dir} is --init_from: it would be written over")
    settings = settings_of(dataclasses.asdict(cfg))
    weights = sorted(str(file) for file in set(weight_files(source).values()))
    for file in (files := [*files, str(source / "config.json"), str(source / "tokenizer.json")]):
        if not Path(file).is_file():
            raise UserError(f"{file}: no such file")
    chat = [str(source / name) for name in ("tokenizer_config.json", "chat_template.jinja")]
    files += [file for file in chat if Path(file).is_file()]
    return settings | {file: sha_of_file(file) for file in [*files, *weights]}


occupied = {}  # {folder: its descriptor, which holds the lock}
writing = []  # the state that a thread is writing now
copies = {}  # {name: this rank's rows}: what the thread writes while training goes on


def check_space(out_dir, model, steps, keep_last=2, keep_every=0):
    """UserError unless the disk has room for all states that are there at once, one more that is
    being written, and the exported model. The model may still be on the meta device."""
    numbers = sum(p.numel() for p in model.parameters())
    kept = keep_last + (steps // keep_every if keep_every else 0)
    needed = (kept + 1) * 12 * numbers + 4 * numbers  # fp32: weight, exp_avg, exp_avg_sq; export
    on_rank0(check_free, Path(out_dir), needed, f"{kept + 1} states and the model")


def check_free(out_dir, needed, what):
    """UserError if a folder's disk has less free than `needed` bytes; states there count as free,
    as they make room for the next ones."""
    for file in out_dir.glob("resume/step_*/*"):
        needed -= file.stat().st_size
    place = next(p for p in (out_dir, *out_dir.resolve().parents) if p.is_dir())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f"{out_dir}: {what} need {needed / 1e9:.2f} GB of disk, {free / 1e9:.2f} GB are free;"
            " keep fewer states or take another out_dir"
        )


def optimizer_state(model, optimizer):
    """(name, tensor) of the weights and of both Adam moments, in an order all ranks share."""
    for name, p in named_weights(model).items():
        yield f"weight.{name}", p
        for moment in ("exp_avg", "exp_avg_sq"):
            yield f"{moment}.{name}", optimizer.state[p][moment]


def share(tensors):
    """({name: [begin, end)}, an iterator over their values): the rows that this rank writes."""
    rows = {name: span(t, writer=True) for name, t in tensors.items()}
    return rows, map(held, tensors.values(), (end - begin for begin, end in rows.values()))


@torch.no_grad()
def save(
    out_dir, step, model, optimizer, run, background=False, keep_last=2, keep_every=0
):  # fmt: skip
    """Write resume/step_N: weights, Adam moments, step, and `run` (the settings and data it belongs
    to). A good state of this step that is there already is left as it is.

    background: copy this rank's rows and return; a thread writes them. Its error is raised by
    wait(), which every save and finish begins with. Of the states before, the newest keep_last
    stay, and those of each keep_every-th step. All ranks must call it.
    """
    wait()
    folder = states.folder_of(out_dir, step)
    if is_good(folder, run):
        return
    on_rank0(states.prepare, folder)
    log = Path(out_dir) / "metrics.jsonl"
    if is_main() and log.exists():
        sync(log)  # a state must not be newer than the rows before it
    tensors = dict(optimizer_state(model, optimizer))
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    rows, mine = share(tensors)
    place = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    job = (folder, step, run, shapes, rows)
    if background:
        pool = ThreadPoolExecutor(1)
        values = copied(tensors, mine)
        writing.append(pool.submit(states.write, *job, values, *place, keep_last, keep_every))
        pool.shutdown(wait=False)
    else:
        values = map(torch.Tensor.cpu, mine)
        states.write(*job, values, *place, keep_last, keep_every, met=barrier)
        barrier()


def copied(names, mine):
    """The rows of these names in memory that one save leaves to the next, as new pages are slow."""
    for name in names:
        rows = next(mine)
        if name not in copies or copies[name].shape != rows.shape:
            copies[name] = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=rows.is_cuda)
        copies[name].copy_(rows, non_blocking=True)
        del rows
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return [copies[name] for name in names]


def wait():
    """Until the state that is being written in the background is complete; its error is raised."""
    while writing:
        writing.pop().result()


def gathered(value):
    """[value of each rank], on every rank."""
    values = [value]
    if dist.is_initialized():
        dist.all_gather_object(values := [None] * dist.get_world_size(), value)
    return values


def checked(folder):
    """(manifest, None) of a good state, or (None, what is wrong with it), on every rank; each reads
    another share of the files."""
    content, problem = on_rank0(states.opened, folder)
    if problem:
        return None, problem
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    names = sorted(content["files"])[rank::world]
    mine = next(filter(None, (states.damage(folder, name, content) for name in names)), None)
    problem = next(filter(None, gathered(mine)), None)
    return (None, problem) if problem else (content, None)


def is_good(folder, run):
    """Is there an undamaged state? UserError if it is another run's."""
    if not on_rank0(folder.exists):
        return False
    content, problem = checked(folder)
    if content:
        check_same_run(folder.parent.parent, run, content["run"])
    return problem is None


def newest_good(out_dir):
    """The newest undamaged state and its manifest, or (None, None); says what it passed over."""
    for folder in on_rank0(states.listed, out_dir):
        content, problem = checked(folder)
        if problem is None:
            return folder, content
        print0(f"{folder}: {problem}; going back to the state before it")
    return None, None


def check_same_run(out_dir, run, stored):
    """UserError when a folder belongs to a run with other settings or other data."""
    changed = sorted(key for key in run.keys() | stored.keys() if run.get(key) != stored.get(key))
    if changed:
        what = ", ".join(f"{key} was {stored.get(key)!r}, is {run.get(key)!r}" for key in changed)
        raise UserError(
            f"{out_dir}: holds a run with other settings ({what}); take another out_dir"
        )


def check_same_model(folder, content, tensors):
    """UserError unless a state holds exactly these tensors."""
    stored = {name: tuple(tensor["shape"]) for name, tensor in content["tensors"].items()}
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    for name in sorted(stored.keys() | shapes.keys()):
        if stored.get(name) != shapes.get(name):
            was, now = stored.get(name, "not there"), shapes.get(name, "not there")
            raise UserError(f"{folder}: of another model: {name} was {was}, is {now}")


@torch.no_grad()
def load(out_dir, model, optimizer, run, background=False):
    """Load the newest good state of this run, on any number of ranks: each reads the rows it holds.
    Its step, 0 if there is none. background: take the memory that such saves copy to already now.
    """
    tensors = dict(optimizer_state(model, optimizer))
    if background:
        copied(tensors, share(tensors)[1])
    folder, content = newest_good(out_dir)
    if not folder:
        return 0
    check_same_run(out_dir, run, content["run"])
    check_same_model(folder, content, tensors)
    for group in optimizer.param_groups:
        group["step"] = content["step"]
    for file in sorted(content["files"]):
        spans = {name: content["tensors"][name]["rows"].get(file, (0, 0)) for name in tensors}
        spans = {name: rows for name, rows in spans.items() if overlap(span(tensors[name]), rows)}
        if spans:
            with safe_open(folder / file, framework="pt") as f:
                for name, (begin, end) in spans.items():
                    copy_rows(tensors[name], f.get_slice(name), begin, end - begin)
    return content["step"]


def overlap(rows, others):
    return max(rows[0], others[0]) < min(rows[1], others[1])


def is_done(out_dir, run):
    out, done = Path(out_dir), Path(out_dir) / "done.json"
    if done.exists():
        check_same_run(out, run, read_json(done)["run"])
        return True
    for folder in states.listed(out):
        content, _ = states.opened(folder)  # a torn one: load passes it over
        if content:
            check_same_run(out, run, content["run"])
    check_out_dir(out)
    if [*out.glob("model*.safetensors")]:  # exported, and killed before done.json
        if not (out / "run.json").exists():
            raise UserError(f"{out}: a model that no run wrote here; take another out_dir")
        settings = read_json(out / "run.json")
        check_same_run(out, {k: v for k, v in run.items() if k in settings}, settings_of(settings))
    return False


def settings_of(values):
    return {k: v for k, v in values.items() if k not in NEUTRAL}


def finished(out_dir, run):
    """Has this very run ended in out_dir? UserError if the folder holds another one, ended or not,
    or a model that no run wrote, if another process is at it, or if the ranks do not mean the same
    run: at once, before anything is loaded or written."""
    if dist.is_initialized():
        check_same(run, "settings, data and weights")
    return on_rank0(is_done, out_dir, run) or on_rank0(occupy, out_dir)


def occupy(out_dir):
    """Take a folder for this process until it ends; two runs would mix what they write."""
    Path(out_dir).mkdir(parents=True, exist_ok=True)
    place = Path(out_dir).resolve()
    if place not in occupied:
        folder = os.open(place, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(folder)
            raise UserError(f"{out_dir}: another run is writing to it") from None
        except OSError:  # a file system that has no locks
            os.close(folder)
            return
        occupied[place] = folder


def finish(out_dir, run, keep_every=0):
    """Mark the run as ended and drop its states but those of each keep_every-th step: the model
    itself stands in out_dir."""
    wait()
    copies.clear()
    barrier()
    if is_main():
        write_text(Path(out_dir) / "done.json", json.dumps({"run": run}, indent=1) + "\n")
        sync(Path(out_dir) / "done.json", out_dir)
        states.drop(out_dir, keep_every)
    barrier()
