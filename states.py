"""The files of a state, without any communication between the ranks, so that a thread may write it.

    out/sft/resume/step_00000200/  state-00001-of-00004.safetensors ...  manifest.json

Each rank writes its own rows into its own file and then says so in a small file beside it. Rank 0
waits for all of these and writes the manifest: step, run, number of ranks, size and sha256 of every
file, and of every tensor its name, shape, dtype and which rows lie in which file; any number of
ranks can read that. Only then the folder is renamed from step_N.tmp to step_N, and every one of
that name is whole.
"""

import contextlib
import json
import os
import re
import shutil
import time
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from config import UserError, read_json
from jsonl import sha_of_file
from streams import DTYPES, named, stream, sync

PATIENCE = 600  # seconds that rank 0 waits for the files of the others
FOLDER = re.compile(r"step_\d{8}")
NAME = re.compile(r"state-\d{5}-of-\d{5}\.safetensors")
KEYS = {"step", "run", "world", "files", "tensors"}
BYTES = {name: dtype.itemsize for dtype, name in DTYPES.items()}


def folder_of(out_dir, step):
    return Path(out_dir) / "resume" / f"step_{step:08d}"


def file_of(rank, world):
    return f"state-{rank + 1:05d}-of-{world:05d}.safetensors"


def listed(out_dir):
    """The folders of states, the newest first."""
    found = (Path(out_dir) / "resume").glob("step_*")
    return sorted((f for f in found if FOLDER.fullmatch(f.name) and f.is_dir()), reverse=True)


# ---- writing -------------------------------------------------------------------------------------


def prepare(folder):
    """Clear away what killed runs left and make the folder to write to (rank 0, before all)."""
    try:
        with named(folder):
            for leftover in folder.parent.glob("step_*.tmp"):
                shutil.rmtree(leftover)
            folder.with_suffix(".tmp").mkdir(parents=True)
    except OSError as e:
        raise lost(folder, e) from None


def lost(folder, error):
    """A UserError that says why a state was not written, and to which one a run would go back."""
    before = next(
        (f"{state} stands" for state in listed(folder.parent.parent)), "there is no other"
    )
    what = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else error
    return UserError(f"{what}; the state {folder.name} is lost, {before}")


def write(
    folder, step, run, shapes, rows, tensors, rank, world, keep_last=2, keep_every=0, met=None
):  # fmt: skip
    """This rank's part of a state; on rank 0 all that makes it one. No collectives but `met`.

    shapes {name: whole shape} and rows {name: [begin, end)} in the order of tensors, an iterable
    of CPU tensors. met: called between both parts, a barrier where all ranks are at it anyway:
    nobody then looks for a file before it is there, as NFS remembers for a while that it was not.
    UserError if it could not be written: then nothing of it is left.
    """
    tmp = folder.with_suffix(".tmp")
    try:
        with named(tmp):
            write_part(tmp / file_of(rank, world), shapes, rows, tensors)
            if met:
                met()
            if rank == 0:
                publish(tmp, manifest(step, run, shapes, await_parts(tmp, world)))
    except (OSError, UserError) as e:
        alone, failed = tmp.is_dir(), tmp.with_suffix(".failed.tmp")
        with contextlib.suppress(OSError):
            tmp.rename(failed)  # at once, so that no rank waits: others may be writing into it
        shutil.rmtree(failed, ignore_errors=True)
        raise lost(folder, e if alone else f"{tmp}: another rank could not write") from None
    if rank == 0:
        try:
            with named(folder):
                sync(folder.parent)
                purge(folder, keep_last, keep_every)
        except OSError as e:
            raise UserError(f"{e.filename}: {e.strerror}; {folder} stands") from None


def write_part(file, shapes, rows, tensors):
    """Stream one rank's rows, then leave a note that they are on the disk."""
    specs = {}
    for name, (begin, end) in rows.items():
        specs[name] = torch.float32, (end - begin, *shapes[name][1:])
    note = stream(file, specs, tensors) | {"rows": rows}
    written = file.with_suffix(".json.tmp")
    written.write_text(json.dumps(note))
    written.rename(file.with_suffix(".json"))


def await_parts(tmp, world):
    """{file name: its note}, once every rank has left one."""
    deadline, parts = time.monotonic() + PATIENCE, {}
    for rank in range(world):
        note = (tmp / file_of(rank, world)).with_suffix(".json")
        while not note.exists():
            if not tmp.is_dir():
                raise UserError("")  # write says why
            if time.monotonic() > deadline:
                raise UserError(f"{note}: rank {rank} has not written its part")
            time.sleep(0.01)
        parts[file_of(rank, world)] = read_json(note)
        note.unlink()
    return parts


def manifest(step, run, shapes, parts):
    """The manifest of these parts."""
    tensors = {}
    for name, shape in shapes.items():
        spans = {file: part["rows"][name] for file, part in parts.items()}
        spans = {file: [begin, end] for file, (begin, end) in spans.items() if begin < end}
        tensors[name] = {"shape": [*shape], "dtype": "F32", "rows": spans}
    files = {file: {"bytes": p["bytes"], "sha256": p["sha256"]} for file, p in parts.items()}
    return {"step": step, "run": run, "world": len(parts), "files": files, "tensors": tensors}


def publish(tmp, content):
    """Write the manifest, flush it and the folder, give the folder its name."""
    folder, file = tmp.with_suffix(""), tmp / "manifest.json"
    if wrong := flaw(content, folder):
        raise ValueError(f"{folder}: {wrong}")
    file.write_text(json.dumps(content, indent=1))
    sync(file, tmp)
    if folder.exists():  # a damaged one
        folder.rename(folder.with_suffix(".old.tmp"))
    tmp.rename(folder)


def purge(folder, keep_last, keep_every):
    """Remove what a new state makes superfluous: all but the newest keep_last and those of each
    keep_every-th step; and newer ones, which were passed over as damaged."""
    states = [state for state in listed(folder.parent.parent) if state <= folder]
    steps = {state: int(state.name.removeprefix("step_")) for state in states}
    kept = states[: max(1, keep_last)]
    kept += [state for state in states if keep_every and steps[state] % keep_every == 0]
    remove(*(state for state in listed(folder.parent.parent) if state not in kept))
    for leftover in folder.parent.glob("*.old.tmp"):
        shutil.rmtree(leftover)


def remove(*folders):
    """Delete folders, each under a name of no state: half of one must not look like one."""
    for folder in folders:
        gone = folder.with_suffix(".tmp")
        folder.rename(gone)
        shutil.rmtree(gone)


def drop(out_dir, keep_every=0):
    """Remove all states but those of each keep_every-th step, and what killed runs left."""
    resume = Path(out_dir) / "resume"
    for leftover in resume.glob("step_*.tmp"):
        shutil.rmtree(leftover)
    steps = {state: int(state.name.removeprefix("step_")) for state in listed(out_dir)}
    remove(*(state for state, step in steps.items() if not keep_every or step % keep_every))
    if resume.is_dir() and not any(resume.iterdir()):
        resume.rmdir()


# ---- reading -------------------------------------------------------------------------------------


def opened(folder):
    """(manifest, None), or (None, what is wrong with it); the files are not read yet."""
    if not (folder / "manifest.json").exists():
        return None, "manifest.json is missing"
    try:
        content = read_json(folder / "manifest.json")
    except (UserError, ValueError, RecursionError):
        return None, "manifest.json is torn"
    if content.keys() == KEYS - {"world", "tensors"}:
        raise UserError(
            f"{folder}: written by an earlier minfin; go on with that one, or delete it"
        )
    wrong = flaw(content, folder)
    return (None, f"manifest.json: {wrong}") if wrong else (content, None)


def flaw(content, folder):
    """Why a manifest is none of the state in this folder, or None."""
    if odd := content.keys() ^ KEYS:
        return f"{min(odd)}: {'unknown' if min(odd) in content else 'missing'}"
    step, world, files = content["step"], content["world"], content["files"]
    if type(step) is not int or folder.name != f"step_{step:08d}":
        return f"is of step {step!r}"
    if not all(isinstance(content[key], dict) for key in ("run", "files", "tensors")):
        return "run, files and tensors must be objects"
    for name, file in files.items():
        if not NAME.fullmatch(name):
            return f"files: {name!r} is not the name of a file of states"
        if not isinstance(file, dict) or file.keys() != {"bytes", "sha256"}:
            return f"files: {name}: must have bytes and sha256"
        if type(file["bytes"]) is not int or not re.fullmatch("[0-9a-f]{64}", str(file["sha256"])):
            return f"files: {name}: bytes or sha256 is none"
    names = [file_of(rank, len(files)) for rank in range(len(files))]
    if type(world) is not int or world != len(files) or sorted(files) != names:
        return f"files: not those of {world!r} ranks"
    for name, tensor in content["tensors"].items():
        if wrong := flaw_of_tensor(tensor, files):
            return f"tensors: {name}: {wrong}"
    return None


def flaw_of_tensor(tensor, files):
    """Why the entry of a tensor is not one, or None: its rows without holes and overlaps."""
    if not isinstance(tensor, dict) or tensor.keys() != {"shape", "dtype", "rows"}:
        return "must have shape, dtype and rows"
    shape, rows = tensor["shape"], tensor["rows"]
    if not isinstance(shape, list) or not shape or any(type(n) is not int or n < 1 for n in shape):
        return f"shape {shape!r} is none"
    if tensor["dtype"] not in BYTES:
        return f"dtype {tensor['dtype']!r} is not one of {', '.join(BYTES)}"
    if not isinstance(rows, dict) or (odd := rows.keys() - files.keys()):
        return f"rows: {min(odd)} is not among the files" if isinstance(rows, dict) else "rows"
    spans = list(rows.values())
    if any(type(s) is not list or [*map(type, s)] != [int, int] for s in spans):
        return "rows: must be pairs of numbers"
    at = 0
    for begin, end in sorted(spans):
        if begin != at or end <= begin:
            return f"rows {begin} to {end} where {at} is due"
        at = end
    return None if at == shape[0] else f"rows end at {at} of {shape[0]}"


def damage(folder, name, content):
    """What is wrong with one file of a state, or None: size, names, shapes, then every byte.

    UserError where the disk does not let it be read: a good state must not pass for damaged, or the
    run would begin again and its states would go.
    """
    file, want = folder / name, content["files"][name]
    try:
        if not file.is_file() or file.stat().st_size != want["bytes"]:
            return f"{name} is missing or cut short"
        if hash_of(file) != want["sha256"]:
            return f"{name} has changed since it was written (sha256)"
        with safe_open(file, framework="pt") as f:
            slices = {tensor: f.get_slice(tensor) for tensor in f.keys()}
            found = {key: (s.get_dtype(), s.get_shape()) for key, s in slices.items()}
    except SafetensorError as e:
        return f"{name} cannot be read: {e}"
    except OSError as e:
        raise UserError(
            f"{file}: {e.strerror}; whether this state is good cannot be told"
        ) from None
    for key, tensor in content["tensors"].items():
        begin, end = tensor["rows"].get(name, (0, 0))
        kind = tensor["dtype"], [end - begin, *tensor["shape"][1:]]
        if found.pop(key, None if begin < end else kind) != kind:
            return f"{name} does not hold the rows of {key} that manifest.json tells of"
    return f"{name} holds {min(found)}, of which manifest.json does not tell" if found else None


def hash_of(file):
    """sha256 of a file, which the system is asked to read ahead."""
    with open(file, "rb") as f:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
        return sha_of_file(file)
