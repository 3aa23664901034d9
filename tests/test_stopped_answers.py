"""Sampling, judging and evaluating that a signal stops, in real processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from evaluating import exam_rows
from judging import completion, serving, trajectory, url
from runs import ROOT, write_data
from test_signals import launcher
from tiny import sentences, write_rows


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def asked(data, tmp_path_factory):
    """Prompts for a sampler, rows of a task and solutions for a judge, which take a while."""
    folder = tmp_path_factory.mktemp("asked")
    words = sentences(120, 3, 20, 30)
    prompts = [{"id": f"q{i}", "prompt": t, "answer": "40"} for i, t in enumerate(words)]
    write_rows(folder / "prompts.jsonl", prompts)
    write_rows(folder / "reasoning.jsonl", exam_rows(120))
    write_rows(folder / "trajectories.jsonl", [
        trajectory(f"q{i}", 0, f"{t}. Answer: 40") for i, t in enumerate(words)
    ])  # fmt: skip
    return folder


def generating(what, data, asked, out, address):
    """(words of the command, its log)"""
    base, out = str(data / "base"), str(out)
    return {
        "sample": (["reward.py", "sample", "--init_from", base, "--out_dir", out, "--prompts",
                    f"{asked}/prompts.jsonl", "--slots", "4", "--max_new_tokens", "60"],
                   "trajectories"),
        "judge": (["reward.py", "judge", "--base_url", address, "--model", "m", "--concurrency",
                   "2", "--out_dir", out], "verdicts"),
        "evaluate": (["evaluate.py", "--init_from", base, "--tasks", "reasoning", "--data",
                      str(asked), "--out_dir", out, "--slots", "4", "--max_new_tokens", "60"],
                     "answers"),
    }[what]  # fmt: skip


@pytest.mark.parametrize(
    ("what", "ranks", "name"),
    [("sample", 1, "SIGTERM"), ("judge", 1, "SIGINT"),
     ("sample", 2, "SIGTERM"), ("evaluate", 2, "SIGINT")],
)  # fmt: skip
def test_generation_that_is_stopped_ends_at_once_and_loses_and_doubles_nothing(
    what, ranks, name, data, asked, server, tmp_path
):
    """On two ranks one alone receives the signal, or the launcher does."""
    shutil.copytree(asked, tmp_path, dirs_exist_ok=True)
    if what == "sample":
        (tmp_path / "trajectories.jsonl").unlink()
    words, log = generating(what, data, asked, tmp_path, server)
    said = tmp_path / "said"
    with open(said, "w") as file:
        command = [*launcher(ranks), *words]
        job = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    while job.poll() is None and sum(map(len, lines_of(tmp_path, log).values())) < 20:
        time.sleep(0.01)
    assert job.poll() is None, said.read_text()
    receiver = job.pid
    if ranks > 1 and what == "sample":
        children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
        receiver = int(children[1])
    begin = time.monotonic()
    os.kill(receiver, number := getattr(signal, name))
    code = job.wait(60)
    assert time.monotonic() - begin < 25
    assert code == (128 + number if ranks == 1 else 1) and f"stopped by {name}" in said.read_text()
    if receiver != job.pid:
        assert "rank 1: stopped by SIGTERM" in said.read_text()
        assert "rank 0: stopped by SIGTERM" in said.read_text()  # torchrun ends it
        assert "exitcode  : 143" in said.read_text()
    kept = {line for lines in lines_of(tmp_path, log).values() for line in lines}
    assert 20 <= len(kept) < 120
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = lines_of(tmp_path, log)
    assert [*found] == [f"{log}.jsonl"] and kept <= {*found[f"{log}.jsonl"]}
    ids = [json.loads(line)["id"] for line in found[f"{log}.jsonl"]]
    assert len(ids) == len({*ids}) >= 120


@pytest.fixture(scope="module")
def server():
    """The address of a judge who takes a moment for each reply."""
    with serving(lambda _, body, good: (time.sleep(0.05), completion(good))[1]) as judge:
        yield url(judge)


def lines_of(folder, log):
    """{file: its whole lines} of a log and of its parts, which other ranks write."""
    files = folder.glob(f"{log}*.jsonl")
    return {f.name: f.read_text().rpartition("\n")[0].splitlines() for f in files}
