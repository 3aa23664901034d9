"""The state from which a run goes on after it was stopped or killed.

    out/sft/resume/step_00000200/  state-00001.safetensors ...  manifest.json

Tensors are stored whole, so a state does not know how many ranks wrote it and any number can read
it. A folder is written under a temporary name, flushed to the disk, then renamed: it is there
complete or not at all. The manifest is written last and holds every file's size and sha256; a state
that does not match it is passed over for the one before. The data position is the step itself,
as batches are a pure function of it (packing.Plan), and training draws no other random numbers.
"""

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path

import torch
from safetensors import safe_open

from checkpoint import (
    barrier,
    copy_rows,
    is_main,
    named_weights,
    sync_folder,
    weight_files,
    write_tensors,
)
from config import UserError, read_json
from jsonl import sha_of_file
from parallel import on_rank0

# Settings that change where and how fast a run goes, not what it computes
NEUTRAL = (
    *("out_dir", "device", "micro_batch_tokens", "recompute", "eval_every", "save_every"),
    *("heldout_text", "heldout_chat", "heldout_pairs", "warn_nats", "max_skipped", "token_cache"),
)


def identity(cfg, files):
    """What makes two runs the same: the settings that steer the numbers, and sha256 of every file
    read: data and the checkpoint begun from. UserError if one is not there, or would be lost."""
    source = Path(cfg.init_from)
    if Path(cfg.out_dir).resolve() == source.resolve():
        raise UserError(f"--out_dir {cfg.out_dir} is --init_from: it would be written over")
    settings = {k: v for k, v in dataclasses.asdict(cfg).items() if k not in NEUTRAL}
    weights = sorted(str(file) for file in set(weight_files(source).values()))
    for file in (files := [*files, str(source / "config.json"), str(source / "tokenizer.json")]):
        if not Path(file).is_file():
            raise UserError(f"{file}: no such file")
    return settings | {file: sha_of_file(file) for file in [*files, *weights]}


def optimizer_state(model, optimizer):
    """(name, tensor) of the weights and of both Adam moments, in an order all ranks share."""
    for name, p in named_weights(model).items():
        yield f"weight.{name}", p
        for moment in ("exp_avg", "exp_avg_sq"):
            yield f"{moment}.{name}", optimizer.state[p][moment]


def save(out_dir, step, model, optimizer, run, keep=2):
    """Write resume/step_N: weights, Adam moments, step, and `run` (the settings and data it belongs
    to). `step` is also the data position, because batches are a pure function of it. Older states
    beyond `keep` are removed afterwards. All ranks must call it."""
    folder = Path(out_dir) / "resume" / f"step_{step:08d}"
    tmp = folder.with_suffix(".tmp")
    if is_main():
        shutil.rmtree(tmp, ignore_errors=True)
        tmp.mkdir(parents=True)
    barrier()
    write_tensors(tmp, "state", optimizer_state(model, optimizer))
    if is_main():
        sync_folder(tmp)
        files = {
            p.name: {"bytes": p.stat().st_size, "sha256": sha_of_file(p)} for p in tmp.iterdir()
        }
        manifest = {"step": step, "run": run, "files": files}
        (tmp / "manifest.json").write_text(json.dumps(manifest, indent=1))
        sync_folder(tmp)
        shutil.rmtree(folder, ignore_errors=True)
        tmp.rename(folder)
        sync_folder(folder.parent)
        states = sorted(folder.parent.glob("step_????????"))
        old = [state for state in states if state <= folder][:-keep]
        damaged = [state for state in states if state > folder]  # newer, and yet passed over
        for state in old + damaged:
            shutil.rmtree(state)
    barrier()


def damage(folder):
    """What is wrong with a state, or None: every file against the manifest's size and sha256."""
    if not (folder / "manifest.json").exists():
        return "manifest.json is missing"
    try:
        manifest = read_json(folder / "manifest.json")
        files, step = manifest["files"], manifest["step"]
    except (UserError, KeyError):
        return "manifest.json is torn"
    if folder.name != f"step_{step:0>8}":
        return f"manifest.json is of step {step}"
    for name, want in files.items():
        file = folder / name
        if not file.exists() or file.stat().st_size != want["bytes"]:
            return f"{name} is missing or cut short"
        if sha_of_file(file) != want["sha256"]:
            return f"{name} has changed since it was written (sha256)"
    return None


def newest_good(out_dir):
    """The newest undamaged state and its manifest, or (None, None); says what it passed over."""
    for folder in sorted((Path(out_dir) / "resume").glob("step_????????"), reverse=True):
        problem = damage(folder)
        if problem is None:
            return folder, read_json(folder / "manifest.json")
        print(f"{folder}: {problem}; going back to the state before it", flush=True)
    return None, None


def check_same_run(out_dir, run, stored):
    """UserError when a folder belongs to a run with other settings or other data."""
    changed = sorted(key for key in run.keys() | stored.keys() if run.get(key) != stored.get(key))
    if changed:
        what = ", ".join(f"{key} was {stored.get(key)!r}, is {run.get(key)!r}" for key in changed)
        raise UserError(
            f"{out_dir}: holds a run with other settings ({what}); take another out_dir"
        )


def newest_of_run(out_dir, run):
    """newest_good(out_dir), after its settings agreed with run's."""
    folder, manifest = newest_good(out_dir)
    if folder:
        check_same_run(out_dir, run, manifest["run"])
    return folder, manifest


@torch.no_grad()
def load(out_dir, model, optimizer, run):
    """Load the newest good state of this run, on any number of ranks. Its step, 0 if none."""
    folder, manifest = on_rank0(newest_of_run, out_dir, run)
    if not folder:
        return 0
    for group in optimizer.param_groups:
        group["step"] = manifest["step"]
    tensors = dict(optimizer_state(model, optimizer))
    for file in sorted(manifest["files"]):
        with safe_open(folder / file, framework="pt") as f:
            for name in f.keys():
                copy_rows(tensors[name], f.get_slice(name))
    return manifest["step"]


def is_done(out_dir, run):
    done = Path(out_dir) / "done.json"
    if done.exists():
        check_same_run(out_dir, run, read_json(done)["run"])
        return True
    for file in (Path(out_dir) / "resume").glob("step_????????/manifest.json"):
        with contextlib.suppress(OSError, ValueError, KeyError):  # torn: load passes it over
            check_same_run(out_dir, run, json.loads(file.read_text())["run"])
    return False


def finished(out_dir, run):
    """Has this very run ended in out_dir? UserError if the folder holds another one, ended or not:
    at once, before anything is loaded or written."""
    return on_rank0(is_done, out_dir, run)


def finish(out_dir, run):
    """Mark the run as ended and drop its resume states: the model itself stands in out_dir."""
    if is_main():
        done = Path(out_dir) / "done.json"
        done.with_suffix(".tmp").write_text(json.dumps({"run": run}, indent=1) + "\n")
        done.with_suffix(".tmp").rename(done)
        shutil.rmtree(Path(out_dir) / "resume", ignore_errors=True)
    barrier()
