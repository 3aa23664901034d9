import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from runs import ROOT, STAGES, run, series, settings, torchrun, weights, write_data
from safetensors.torch import load_file
from tiny import sentences, write_rows

import parallel
import resume
import states
from config import UserError


def long(stage, data):
    """About ten steps; each state is written right after the held-out rows were measured."""
    held = {"cpt": {"heldout_text": "text"}, "sft": {"heldout_chat": "held_chat"},
            "dpo": {"heldout_pairs": "held_pairs"}}[stage]  # fmt: skip
    files = {name: f"{data}/{file}.jsonl" for name, file in held.items()}
    epochs = {"cpt": 1.0, "sft": 1.5, "dpo": 2.0}[stage]
    return files | {"epochs": epochs, "save_every": 3, "eval_every": 3}


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
        assert len(found[stage][0]) >= 9
    return found


def states_of(out):
    return sorted(p.name for p in (out / "resume").iterdir())


# ---- resumed = uninterrupted ---------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("how", ["stop_at", "crash_at"])
def test_an_interrupted_run_ends_as_if_nothing_had_happened(stage, how, data, whole, tmp_path):
    """Twice interrupted: losses, norms and rates bit for bit, and the same bytes of weights."""
    rows, sha = whole[stage]
    for step in (4, 7):
        run(stage, data, tmp_path, **{how: step}, **long(stage, data))
        assert not (tmp_path / "model.safetensors").exists()
    # a signal is answered by a state at the next step; after a crash the last regular one is left
    assert states_of(tmp_path)[-1] == f"step_{8 if how == 'stop_at' else 6:08d}"
    again = run(stage, data, tmp_path, **long(stage, data))
    assert [row["step"] for row in again] == list(range(len(rows)))  # no holes, no doubles
    assert series(again) == series(rows)
    held = [key for key in rows[-1] if key.startswith("heldout/")]
    assert held and [row.get(held[0]) for row in again] == [row.get(held[0]) for row in rows]
    assert weights(tmp_path) == sha
    assert not (tmp_path / "resume").exists()  # dropped when the model itself is there


def test_a_run_goes_on_on_one_two_and_four_ranks_as_on_one(data, whole, tmp_path):
    """Stopped on one, on two, ended on four; and from two and from four back to one. 385 rows of
    vocabulary: 193 + 192, and 97 + 97 + 97 + 94."""

    def job(stage, out, **how):
        return {"stage": stage, "data": data, "out": tmp_path / out, **how, **long(stage, data)}

    for stage in STAGES:
        run(stage, data, tmp_path / stage, stop_at=2, **long(stage, data))
    said = torchrun(2, tmp_path, [*(job(stage, stage, stop_at=4) for stage in STAGES),
                                  job("sft", "two", stop_at=4),
                                  job("dpo", "cut", stop_at=4), job("dpo", "cut"),
                                  job("dpo", "uncut")])  # fmt: skip
    assert said.count("step 3 of") == 3 and said.count("2 ranks") == 7
    assert states_of(tmp_path / "two")[-1] == "step_00000005"  # the signal met one, both stopped
    # On as many ranks as before nothing changes at all
    assert weights(tmp_path / "cut") == weights(tmp_path / "uncut")
    assert series(resume_rows(tmp_path / "cut")) == series(resume_rows(tmp_path / "uncut"))
    said = torchrun(4, tmp_path, [job("sft", "four", stop_at=4),
                                  *(job(stage, stage) for stage in STAGES)])  # fmt: skip
    assert said.count("step 5 of") == 3 and said.count("4 ranks") == 4
    newest = tmp_path / "four" / "resume" / "step_00000005"
    embeddings = [load_file(file)["weight.model.embed_tokens.weight"]
                  for file in sorted(newest.glob("*.safetensors"))]  # fmt: skip
    assert [len(rows) for rows in embeddings] == [97, 97, 97, 94]
    for out in ("two", "four"):
        run("sft", data, tmp_path / out, **long("sft", data))
    runs = [*((s, s) for s in STAGES), ("sft", "two"), ("sft", "four"), ("dpo", "cut")]
    for stage, out in runs:
        (rows, _), again = whole[stage], resume_rows(tmp_path / out)
        assert [row["step"] for row in again] == [row["step"] for row in rows]
        for row, want in zip(again, rows, strict=True):
            for name in ("loss", "grad_norm", "lr"):
                assert row[name] == pytest.approx(want[name], rel=1e-5, abs=1e-9)


def test_bf16_runs_resume_with_the_bits_that_their_weights_lack(data, tmp_path):
    """Bit for bit on one rank. States hold fp32 masters, which bf16 weights and any other number of
    ranks begin from."""
    values = long("sft", data) | {"dtype": "bfloat16"}
    want = run("sft", data, tmp_path / "whole", **values)
    for out in ("one", "two"):
        run("sft", data, tmp_path / out, stop_at=4, **values)
    file = tmp_path / "two" / "resume" / "step_00000005" / "state-00001-of-00001.safetensors"
    state = {name: t for name, t in load_file(file).items() if name.startswith("weight.")}
    assert all(t.dtype == torch.float32 and (t != t.bfloat16()).any() for t in state.values())
    again = run("sft", data, tmp_path / "one", **values)
    assert series(again) == series(want)
    assert weights(tmp_path / "one") == weights(tmp_path / "whole")
    torchrun(2, tmp_path, [{"stage": "sft", "data": data, "out": tmp_path / "two", **values}])
    for row, other in zip(resume_rows(tmp_path / "two"), want, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=5e-3)  # the ranks round apart
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=3e-2)


def test_a_rank_that_fails_names_itself_and_takes_the_others_with_it(data, whole, tmp_path):
    """The rank that is left waiting in a collective is ended by torchrun, not by a time-out."""
    out = tmp_path / "out"
    job = {"stage": "sft", "data": data, "out": out, **long("sft", data)}
    said = torchrun(2, tmp_path, [job | {"fail_at": 4}], code=1)
    assert "rank 1 failed:" in said and "RuntimeError: a bug on one rank" in said
    assert states_of(out) == ["step_00000003"]
    run("sft", data, out, **long("sft", data))
    assert len(resume_rows(out)) == len(whole["sft"][0])


def resume_rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_run_that_has_ended_says_so_and_leaves_everything(data, tmp_path, capsys):
    run("sft", data, tmp_path, epochs=0.3)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    capsys.readouterr()
    run("sft", data, tmp_path, epochs=0.3)
    assert capsys.readouterr().out == f"{tmp_path}: this run has ended already\n"
    assert {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before


def test_a_checkpoint_whose_chat_format_changed_is_another_one(data, tmp_path):
    """Other turns are other tokens: a run that went on with them would be a mix of two."""
    base, file = tmp_path / "base", tmp_path / "base" / "tokenizer_config.json"
    shutil.copytree(data / "base", base)
    changes = {"init_from": str(base), "save_every": 2}
    run("sft", data, tmp_path / "out", stop_at=3, **changes)
    was = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(was | {"added": "by hand"}))
    with pytest.raises(UserError, match=r"other settings .*tokenizer_config\.json was"):
        run("sft", data, tmp_path / "out", **changes)


def test_a_disk_that_cannot_be_read_for_a_moment_damages_no_state(data, tmp_path, monkeypatch):
    """The run ends with a line, and all states and rows are as they were."""
    run("sft", data, tmp_path, stop_at=5, save_every=2)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    def stale(path):
        raise OSError(errno.ESTALE, "Stale file handle", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(states, "hash_of", stale)
        with pytest.raises(UserError, match="state-.*Stale file handle; whether this state"):
            run("sft", data, tmp_path, save_every=2)
    kept = {p: p.read_bytes() for p in before if "resume" in p.parts or p.suffix == ".jsonl"}
    assert kept == {p: raw for p, raw in before.items() if p in kept} and len(kept) > 4


def test_two_runs_do_not_write_into_one_folder(data, tmp_path):
    """The second is refused before it writes, and may begin once the first has ended, or died."""
    code = """if True:
        import sys, resume
        resume.occupy(sys.argv[1])
        print("mine", flush=True)
        sys.stdin.read()"""
    other = subprocess.Popen([sys.executable, "-c", code, tmp_path / "out"], cwd=ROOT, text=True,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert other.stdout.readline() == "mine\n"
    with pytest.raises(UserError, match="out: another run is writing to it"):
        run("sft", data, tmp_path / "out")
    assert not any((tmp_path / "out").iterdir())
    other.kill()
    other.wait()
    assert run("sft", data, tmp_path / "out")
    assert run("sft", data, tmp_path / "out") is not None  # this process may come back to it


def test_other_settings_or_other_data_in_the_same_folder_are_refused(data, tmp_path):
    chat = write_rows(tmp_path / "chat.jsonl", rows := chats(40))
    run("sft", data, tmp_path / "out", chat=chat, stop_at=2)
    described = {f.name: f.read_bytes() for f in (tmp_path / "out").iterdir() if f.is_file()}
    for changes in ({"lr": 2e-3}, {"seed": 1}, {"epochs": 3.0}, {"batch_tokens": 384}):
        with pytest.raises(UserError) as e:
            run("sft", data, tmp_path / "out", chat=chat, **changes)
        assert f"{next(iter(changes))} was" in str(e.value) and "\n" not in str(e.value)
    write_rows(chat, rows[:-1])
    with pytest.raises(UserError, match="chat.jsonl was '"):
        run("sft", data, tmp_path / "out", chat=chat)
    write_rows(chat, rows)
    left = {f.name: f.read_bytes() for f in (tmp_path / "out").iterdir() if f.is_file()}
    assert left == described  # run.json still tells of the run that is there
    # How the work is cut up and how often it is measured or saved changes no number
    neutral = {"micro_batch_tokens": 96, "eval_every": 1, "save_every": 2}
    run("sft", data, tmp_path / "out", chat=chat, **neutral)
    assert (tmp_path / "out" / "done.json").exists()
    with pytest.raises(UserError, match="holds a run with other settings"):
        run("sft", data, tmp_path / "out", chat=chat, lr=2e-3)


def chats(count):
    turns = sentences(2 * count, 7)
    return [
        {"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]}
        for a, b in zip(turns[::2], turns[1::2], strict=True)
    ]


# ---- damaged states ------------------------------------------------------------------------------


def cut(folder):
    file = max(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])


def flip_a_bit(folder):
    file = max(folder.glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1000] ^= 1
    file.write_bytes(bytes(content))


def tear_the_manifest(folder):
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text[: len(text) // 2])


def change_the_step(folder):
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"step": 6', '"step": 7'))


DAMAGE = {
    "manifest.json: is of step 7": change_the_step,
    "cut short": cut,
    "has changed": flip_a_bit,
    "manifest.json is missing": lambda folder: (folder / "manifest.json").unlink(),
    "manifest.json is torn": tear_the_manifest,
    "or cut": lambda folder: max(folder.glob("*.safetensors")).unlink(),
}


@pytest.mark.parametrize("said", DAMAGE)
def test_a_damaged_state_is_passed_over_for_the_one_before(said, data, whole, tmp_path, capsys):
    run("sft", data, tmp_path, crash_at=7, **long("sft", data))
    assert states_of(tmp_path) == ["step_00000003", "step_00000006"]
    DAMAGE[said](tmp_path / "resume" / "step_00000006")
    (tmp_path / "resume" / "step_00000009.tmp").mkdir()  # broken off while it was written
    capsys.readouterr()
    again = run("sft", data, tmp_path, **long("sft", data))
    out = capsys.readouterr().out
    assert "step_00000006: " in out and said in out and "step 3 of" in out
    assert series(again) == series(whole["sft"][0]) and weights(tmp_path) == whole["sft"][1]


def test_when_every_state_is_damaged_the_run_begins_again(data, whole, tmp_path, capsys):
    run("sft", data, tmp_path, crash_at=7, **long("sft", data))
    for folder in (tmp_path / "resume").iterdir():
        cut(folder)
    again = run("sft", data, tmp_path, **long("sft", data))
    assert capsys.readouterr().out.count("going back") == 2
    assert series(again) == series(whole["sft"][0]) and weights(tmp_path) == whole["sft"][1]


def test_a_state_behind_damaged_newer_ones_is_kept_and_they_go(data, tmp_path):
    """After starting again from 0 the new states have smaller numbers than the damaged ones."""
    run("sft", data, tmp_path, stop_at=7, **long("sft", data))
    for folder in (tmp_path / "resume").iterdir():
        cut(folder)
    run("sft", data, tmp_path, stop_at=1, **long("sft", data))
    assert states_of(tmp_path) == ["step_00000002"]
    assert resume.newest_good(tmp_path)[1]["step"] == 2


PHASES = {"before the header": (states, "stream"), "after the tensors": (states, "write_part"),
          "while waiting": (states, "await_parts"), "before the manifest": (states, "flaw"),
          "after the manifest": (states, "sync")}  # fmt: skip


@pytest.mark.parametrize("at", PHASES)
@pytest.mark.parametrize("background", [False, True])
def test_a_save_that_breaks_off_leaves_the_states_before_it(
    at, background, data, whole, tmp_path, monkeypatch
):
    """Whatever moment the power goes: step 3 is still there and used."""
    owner, name = PHASES[at]
    real, calls = getattr(owner, name), []

    def broken(*args, **kwargs):
        result = real(*args, **kwargs) if at.startswith("after") else None
        if any("step_00000006" in str(a) for a in args):
            calls.append(args)
            raise KeyboardInterrupt
        return result if at.startswith("after") else real(*args, **kwargs)

    monkeypatch.setattr(owner, name, broken)
    run("sft", data, tmp_path, background=background, **long("sft", data))
    assert calls and states_of(tmp_path)[0] == "step_00000003"
    assert "step_00000006" not in states_of(tmp_path)
    monkeypatch.undo()
    again = run("sft", data, tmp_path, **long("sft", data))
    assert series(again) == series(whole["sft"][0]) and weights(tmp_path) == whole["sft"][1]


def test_a_run_killed_before_any_call_that_changes_the_disk_loses_nothing(data, tmp_path):
    """SIGKILL from a save over the export to the end, and every fifth call while a thread saves:
    whatever has the name of a state is one, the run goes on from step 4 or 6, or had ended, and the
    weights are the same bytes."""
    run("sft", data, tmp_path / "whole", epochs=1.0, save_every=2)
    command = [sys.executable, str(ROOT / "tests" / "saving.py"), str(data), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    kills = [json.loads(line) for line in done.stdout.splitlines()]
    assert {kill["call"] for kill in kills} == {
        *("mkdir", "stream", "tensor 1", "tensor 2", "fsync", "rename", "write_text", "unlink"),
        *("rmdir", "publish", "purge", "tensor 40"),
    }
    for kill in kills:
        assert not kill["damaged"] and kill["status"] == 0, kill
        assert kill["weights"] == weights(tmp_path / "whole"), kill
        if kill["from"] is not None:
            assert kill["from"] == int(max(kill["left"])[-1]) in (4, 6), kill
            assert "step_00000004" in kill["left"], kill
    assert {kill["from"] for kill in kills} == {4, 6, None} and len(kills) >= 45


def test_two_states_are_kept_and_hold_weights_and_both_moments(data, tmp_path):
    run("sft", data, tmp_path, stop_at=7, epochs=2.0, save_every=1)
    assert states_of(tmp_path) == ["step_00000007", "step_00000008"]
    held = load_file(tmp_path / "resume" / "step_00000008" / "state-00001-of-00001.safetensors")
    names = load_file(data / "base" / "model.safetensors")
    kinds = ("weight", "exp_avg", "exp_avg_sq")
    assert held.keys() == {f"{kind}.{name}" for kind in kinds for name in names}
    assert all(t.dtype == torch.float32 and t.any() for t in held.values())
    assert all(held[f"weight.{name}"].shape == t.shape for name, t in names.items())


# ---- signals -------------------------------------------------------------------------------------


def test_sigterm_saves_and_the_same_command_finishes_the_run(data, tmp_path):
    """As a process: exit code 143, then 0, and the numbers of an uninterrupted run."""
    values = settings("sft", data, tmp_path / "out", epochs=8.0, save_every=1000)
    flags = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, str(ROOT / "train_sft.py"), *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = tmp_path / "out" / "metrics.jsonl"
    while process.poll() is None and not (lines.exists() and lines.read_text().count("\n") >= 3):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[0]
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "the same command goes on from here" in said
    stopped = len(resume_rows(tmp_path / "out"))
    assert states_of(tmp_path / "out") == [f"step_{stopped:08d}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and f"step {stopped} of" in done.stdout
    want = run("sft", data, tmp_path / "whole", epochs=8.0, save_every=1000)
    assert 3 <= stopped < len(want)
    assert series(resume_rows(tmp_path / "out")) == series(want)
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


def test_a_second_signal_ends_at_once(monkeypatch):
    handlers = [(s, signal.getsignal(s)) for s in (signal.SIGTERM, signal.SIGINT)]
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    try:
        parallel.catch_stop_signals()
        os.kill(os.getpid(), signal.SIGTERM)
        assert parallel.stop_signals == [signal.SIGTERM] and not codes
        os.kill(os.getpid(), signal.SIGINT)
        assert codes == [128 + signal.SIGINT]
    finally:
        parallel.stop_signals.clear()
        for number, handler in handlers:
            signal.signal(number, handler)
