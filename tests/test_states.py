import errno
import itertools
import json
import os
import resource
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from saving import RUN, SIZES, contents, loaded, names, same, save, trained, write_as
from tiny import write_checkpoint

import resume
import states
from config import UserError
from jsonl import sha_of_file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("states") / "base", **SIZES)


@pytest.fixture
def pair(folder):
    return trained(folder, 1)


# ---- what is written -----------------------------------------------------------------------------


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_state_comes_back_bit_for_bit(folder, tmp_path, dtype, background):
    pair = trained(folder, 1, dtype)
    want = contents(*pair)
    assert any((t != t.bfloat16()).any() for n, t in want.items() if n.startswith("weight"))
    state = save(tmp_path, 7, pair, background=background)
    step, got = loaded(tmp_path, folder, dtype)
    assert step == 7 and same(got, want)
    assert same(load_file(state / "state-00001-of-00001.safetensors"), want)


def test_the_manifest_tells_size_and_sha256_and_the_rows_of_every_tensor(tmp_path, pair):
    state = save(tmp_path, 7, pair)
    content = json.loads((state / "manifest.json").read_text())
    assert content.keys() == {"step", "run", "world", "files", "tensors"}
    assert (content["step"], content["run"], content["world"]) == (7, RUN, 1)
    name = "state-00001-of-00001.safetensors"
    assert {p.name for p in state.iterdir()} == {name, "manifest.json"}
    file = state / name
    sizes = {"bytes": file.stat().st_size, "sha256": sha_of_file(file)}
    assert content["files"] == {name: sizes}
    assert content["tensors"] == {
        key: {"shape": list(t.shape), "dtype": "F32", "rows": {name: [0, len(t)]}}
        for key, t in load_file(file).items()
    }


@pytest.mark.parametrize("world", [2, 3, 4, 16])
def test_ranks_write_their_own_rows_without_speaking_and_one_rank_reads_them(
    folder, tmp_path, pair, world
):
    """385 rows of vocabulary; norms of 8 leave some of 16 ranks with nothing."""
    want = contents(*pair)
    assert write_as(tmp_path, want, world) == [None] * world
    state = states.folder_of(tmp_path, 7)
    files = sorted(state.glob("*.safetensors"))
    assert [f.name for f in files] == [states.file_of(rank, world) for rank in range(world)]
    name = "weight.model.embed_tokens.weight"
    parts = [load_file(file)[name] for file in files]
    assert max(map(len, parts)) == -(-385 // world) and torch.equal(torch.cat(parts), want[name])
    step, got = loaded(tmp_path, folder)
    assert step == 7 and same(got, want)


def test_rank_0_gives_up_at_once_when_another_cannot_write(tmp_path, pair):
    save(tmp_path, 3, pair)
    errors = write_as(tmp_path, contents(*pair), 3, broken=(1,))
    state = states.folder_of(tmp_path, 7).with_suffix(".tmp") / states.file_of(1, 3)
    assert errors[1].startswith(
        f"{state}: No space left on device; the state step_00000007 is lost"
    )
    assert "another rank could not write" in errors[0]
    assert names(tmp_path) == ["step_00000003"]


def test_a_blocking_save_holds_one_tensor_at_a_time(tmp_path, folder, monkeypatch):
    """In bf16, where each fp32 master is made: it is gone before the next one is."""
    import gc
    import weakref

    alive, most, held = [], [], resume.held

    def counted(*args):
        most.append(sum(ref() is not None for ref in alive))
        made = held(*args).clone()
        alive.append(weakref.ref(made))
        return made

    monkeypatch.setattr(resume, "held", counted)
    gc.disable()
    try:
        save(tmp_path, 3, trained(folder, 1, "bfloat16"))
    finally:
        gc.enable()
    assert len(most) > 50 and max(most) == 0


# ---- in the background ---------------------------------------------------------------------------


def test_a_background_save_holds_what_was_there_when_it_was_called(
    folder, tmp_path, pair, monkeypatch
):
    """The thread is stopped before its first byte, while training changes every number."""
    go, stream = threading.Event(), states.stream
    monkeypatch.setattr(states, "stream", lambda *a: go.wait(60) and stream(*a))
    want = contents(*pair)
    resume.save(tmp_path, 3, *pair, RUN, background=True)
    assert names(tmp_path) == ["step_00000003.tmp"]
    with torch.no_grad():
        for _, t in resume.optimizer_state(*pair):
            t.add_(1)
    go.set()
    resume.wait()
    assert names(tmp_path) == ["step_00000003"] and same(loaded(tmp_path, folder)[1], want)


@pytest.mark.parametrize("then", ["wait", "save", "finish"])
def test_what_goes_wrong_in_the_background_is_raised_by_the_next_call(
    tmp_path, pair, monkeypatch, then
):
    def broken(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    save(tmp_path, 3, pair)
    monkeypatch.setattr(states, "stream", broken)
    resume.save(tmp_path, 6, *pair, RUN, background=True)
    calls = {"wait": resume.wait, "save": lambda: resume.save(tmp_path, 9, *pair, RUN),
             "finish": lambda: resume.finish(tmp_path, RUN)}  # fmt: skip
    with pytest.raises(UserError, match="No space left on device; the state step_00000006 is lost"):
        calls[then]()
    assert names(tmp_path) == ["step_00000003"] and not (tmp_path / "done.json").exists()
    resume.wait()  # raised once


def test_the_next_save_and_the_end_of_the_run_wait_for_the_one_before(tmp_path, pair, monkeypatch):
    order, stream = [], states.stream

    def slow(file, *args):
        order.append(f"begin {file.parent.name[-5:-4]}")
        time.sleep(0.1)
        done = stream(file, *args)
        order.append(f"end {file.parent.name[-5:-4]}")
        return done

    monkeypatch.setattr(states, "stream", slow)
    resume.save(tmp_path, 1, *pair, RUN, background=True)
    resume.save(tmp_path, 2, *pair, RUN, background=True)
    resume.finish(tmp_path, RUN)
    assert order == ["begin 1", "end 1", "begin 2", "end 2"]
    assert not (tmp_path / "resume").exists() and not resume.copies


# ---- what stays ----------------------------------------------------------------------------------


def test_a_good_state_is_never_written_over(folder, tmp_path, pair):
    state = save(tmp_path, 3, pair)
    before = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in state.iterdir()}
    save(tmp_path, 3, trained(folder, 2))
    assert {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in state.iterdir()} == before
    with pytest.raises(UserError, match="lr was 0.1, is 0.2"):
        resume.save(tmp_path, 3, *pair, RUN | {"lr": 0.2})


def test_a_damaged_state_is_replaced_only_when_the_new_one_is_complete(
    folder, tmp_path, pair, monkeypatch
):
    file = save(tmp_path, 3, pair) / states.file_of(0, 1)
    file.write_bytes(file.read_bytes()[:-1])
    seen, publish = [], states.publish
    monkeypatch.setattr(
        states, "publish", lambda *a: seen.extend(names(tmp_path)) or publish(*a)
    )  # fmt: skip
    save(tmp_path, 3, pair)
    assert seen == ["step_00000003", "step_00000003.tmp"]
    assert names(tmp_path) == ["step_00000003"] and loaded(tmp_path, folder)[0] == 3


@pytest.mark.parametrize(
    "keep_last, keep_every, left",
    [(2, 0, [7, 8]), (1, 0, [8]), (3, 0, [6, 7, 8]), (1, 3, [3, 6, 8]), (2, 4, [4, 7, 8])],
)
def test_the_newest_states_and_every_nth_stay(tmp_path, pair, keep_last, keep_every, left):
    for step in range(1, 9):
        save(tmp_path, step, pair, keep_last=keep_last, keep_every=keep_every)
    assert names(tmp_path) == [f"step_{step:08d}" for step in left]
    resume.finish(tmp_path, RUN, keep_every=keep_every)
    forever = [f"step_{step:08d}" for step in left if keep_every and step % keep_every == 0]
    assert ((tmp_path / "resume").exists() and names(tmp_path) or []) == forever


def test_what_killed_runs_left_is_cleared_away_by_the_next_save(tmp_path, pair):
    save(tmp_path, 3, pair)
    for name in ("step_00000005.tmp", "step_00000003.old.tmp"):
        shutil.copytree(states.folder_of(tmp_path, 3), tmp_path / "resume" / name)
    assert resume.newest_good(tmp_path)[1]["step"] == 3
    save(tmp_path, 6, pair)
    assert names(tmp_path) == ["step_00000003", "step_00000006"]


def test_a_state_is_deleted_under_a_name_of_no_state(tmp_path, pair, monkeypatch):
    """A kill while it goes leaves half a folder: not one that looks like a state."""
    deleted, rmtree = [], shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda p, **how: deleted.append(p) or rmtree(p, **how))
    for step in (1, 2, 3):
        save(tmp_path, step, pair)
    resume.finish(tmp_path, RUN)
    assert [p.name for p in deleted] == [f"step_0000000{step}.tmp" for step in (1, 3, 2)]


# ---- a full disk ---------------------------------------------------------------------------------

CALLS = [(os, "fsync"), (Path, "mkdir"), (Path, "rename"), (Path, "unlink"), (Path, "write_text"),
         (shutil, "rmtree"), (states, "publish"), (states, "write_part")]  # fmt: skip


def failing_at(monkeypatch, number):
    """Let the call of that number that changes the disk meet a full one. Returns the list of calls,
    which is longer than `number` if it came so far."""
    calls = []

    def counted(owner, name):
        real = getattr(owner, name)

        def call(*args, **named):
            if not calls or len(calls) < number:
                calls.append(name)
                if len(calls) == number:
                    raise OSError(errno.ENOSPC, "No space left on device")
            return real(*args, **named)

        monkeypatch.setattr(owner, name, call)

    for owner, name in CALLS:
        counted(owner, name)
    return calls


@pytest.mark.parametrize("background", [False, True])
def test_a_full_disk_at_any_moment_leaves_the_state_before_and_one_line(
    folder, tmp_path, pair, background
):
    """Every call of a save that changes the disk fails once; the save after it works."""
    want, met = contents(*pair), []
    for number in itertools.count(1):
        out = tmp_path / str(number)
        for step in (1, 2):
            save(out, step, pair)
        with pytest.MonkeyPatch.context() as patch:
            calls = failing_at(patch, number)
            try:
                save(out, 3, pair, background=background)
            except UserError as e:
                assert "\n" not in str(e) and str(out) in str(e) and "No space left" in str(e)
                assert f"{out}/resume/step_0000000" in str(e) and str(e).endswith(" stands")
                left = names(out)
                assert left[:2] == ["step_00000001", "step_00000002"] or "00003" in left[-1]
            else:
                break
        met.append(calls[-1])
        folder_3 = states.folder_of(out, 3)
        assert resume.newest_good(out)[1]["step"] == (3 if folder_3.exists() else 2)
        if not folder_3.exists():
            assert not folder_3.with_suffix(".tmp").exists() or calls[-1] == "rmtree"
        save(out, 4, pair)
        assert len(names(out)) == 2 and same(loaded(out, folder)[1], want)
    assert {"fsync", "mkdir", "rename", "unlink", "write_text", "rmtree"} <= set(met)
    assert len(met) >= 12


def test_a_file_that_the_system_cuts_off_is_named(tmp_path, pair):
    """A real limit of the size of files, met within the tensors."""
    save(tmp_path, 3, pair)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(UserError) as e:
            save(tmp_path, 6, pair)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    file = tmp_path / "resume" / "step_00000006.tmp" / states.file_of(0, 1)
    before = states.folder_of(tmp_path, 3)
    assert str(e.value) == (
        f"{file}: File too large; the state step_00000006 is lost, {before} stands"
    )
    assert names(tmp_path) == ["step_00000003"]


def test_too_small_a_disk_is_found_at_the_start(tmp_path, pair, monkeypatch):
    model = pair[0]
    state = sum(t.nbytes for t in contents(*pair).values())
    needed = 3 * state + state // 3
    usage = shutil.disk_usage(tmp_path)
    free = [needed]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free[0]))
    out = tmp_path / "not" / "yet"
    resume.check_space(out, model, steps=10)
    free[0] = needed - 1
    with pytest.raises(UserError) as e:
        resume.check_space(out, model, steps=10)
    assert str(e.value).startswith(f"{out}: 3 states and the model need {needed / 1e9:.2f} GB")
    assert f"{free[0] / 1e9:.2f} GB are free" in str(e.value)
    free[0] = needed + 5 * state - 1
    with pytest.raises(UserError, match="8 states"):
        resume.check_space(out, model, steps=10, keep_every=2)
    save(out, 2, pair)  # what is there already need not fit once more
    resume.check_space(out, model, steps=10, keep_every=2)
