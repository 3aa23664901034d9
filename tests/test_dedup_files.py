"""dedup.py and its files: any form, rows that cannot be read, and no kill changes a byte."""

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from test_dedup import TEXT, jaccard, passages, read, run, texts
from tiny import write_rows

import corpus
import curate
import dedup
from config import UserError
from dedup import Dedup


def test_several_files_of_any_form_are_one_corpus(tmp_path):
    table = arrow.table({"text": [f"other {TEXT}", "one", TEXT], "n": [1, 2, 3]})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    (tmp_path / "b.json").write_text(json.dumps(texts("One", "two")))
    (tmp_path / "c.txt").write_text("two")
    data = ",".join(str(tmp_path / name) for name in ("a.parquet", "b.json", "c.txt"))
    curate.main(["dedup", "--data", data, "--out", str(tmp_path / "o.jsonl"), "--threshold", ".9"])
    dropped = [(d["where"].split("/")[-1], d["of"].split("/")[-1])
               for d in read(tmp_path / "o.dropped.jsonl")]  # fmt: skip
    assert dropped == [("a.parquet: row 2", "a.parquet: row 0"),
                       ("b.json: row 0", "a.parquet: row 1"),
                       ("c.txt", "b.json: row 1")]  # fmt: skip


@pytest.fixture
def mixed(tmp_path, monkeypatch):
    """A file with rows of all kinds, and rows that are none, in blocks of ten."""
    monkeypatch.setattr(corpus, "BLOCK_ROWS", 10)
    monkeypatch.setattr(corpus, "EVERY", 0)
    found, rng = passages(60, 5), random.Random(1)
    lines = [json.dumps({"text": text}) for text in found]
    for flaw in ("{", '{"foo": 1}', '{"text": "\\u0000"}', "[]", '{"foo": 2}'):
        lines.insert(rng.randrange(len(lines)), flaw)
    path = tmp_path / "mixed.jsonl"
    path.write_text("\n".join([lines[0], "", *lines[1:], '{"te']))
    return str(path), found


def test_rows_that_cannot_be_read_in_between_shift_nothing(tmp_path, mixed):
    path, found = mixed
    kept, dropped = run(tmp_path, path, "--max_bad", "0.2")
    lines = Path(path).read_text().split("\n")
    bad = [row for row, reason, *_ in dropped if reason == "unreadable"]
    assert len(bad) == 6 and len(kept) + len(dropped) == 66
    copies = [d for d in dropped if d[1] != "unreadable"]
    assert len(copies) == 10
    for row, reason, of, alike in copies:
        one, two = (json.loads(lines[k - 1])["text"] for k in (row, of))
        assert two in kept and alike == round(jaccard(one, two), 4) >= 0.8, (row, of)
        assert (reason == "exact duplicate") == (one == two)


def test_too_many_rows_that_cannot_be_read_stop_the_first_pass(tmp_path, mixed):
    with pytest.raises(UserError, match="6 of 66 rows cannot be read"):
        run(tmp_path, mixed[0])
    assert not (tmp_path / "out.jsonl").exists() and not (tmp_path / "out.counts.json").exists()


def test_a_corpus_without_one_readable_row_is_empty(tmp_path):
    path = write_rows(tmp_path / "in.jsonl", [{"foo": 1}])
    assert run(tmp_path, path, "--max_bad", "1") == ([], [(1, "unreadable", 0, None)])


def listing(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name.startswith("out.")}


def test_stopped_at_any_change_of_a_file_it_ends_with_the_same_bytes(tmp_path, mixed, monkeypatch):
    class Stop(BaseException):
        pass

    flags = ("--max_bad", "0.2")
    whole = tmp_path / "whole"
    run(whole, mixed[0], *flags)
    assert set(listing(whole)) == {"out.jsonl", "out.dropped.jsonl", "out.counts.json"}
    left = [0]

    def stopping(old):
        def new(*args, **more):
            left[0] -= 1
            if left[0] == 0:
                raise Stop
            return old(*args, **more)

        return new

    for owner, name in ((Path, "replace"), (Path, "unlink"), (os, "fsync"), (np, "save")):
        monkeypatch.setattr(owner, name, stopping(getattr(owner, name)))

    def ends_the_same(moment, stops):
        """Stopped so many times, each time before it changes a file for the moment-th time."""
        for stop in range(stops + 1):
            left[0] = moment if stop < stops else 0
            try:
                run(tmp_path / f"{moment}-{stops}", mixed[0], *flags)
                break
            except Stop:
                pass
        assert listing(tmp_path / f"{moment}-{stops}") == listing(whole), moment
        return stop

    moment = 1
    while ends_the_same(moment, 1):
        moment += 1
    assert 40 < moment < 80
    assert all(1 < ends_the_same(moment, 100) < 60 for moment in (12, 20))


GO = "import sys, corpus; corpus.EVERY = 0.02; import curate; curate.main(sys.argv[1:])"


def test_killed_at_random_moments_it_goes_on_and_ends_with_the_same_bytes(tmp_path):
    rng, found = random.Random(3), passages(5000, 2)
    data = write_rows(tmp_path / "in.jsonl", texts(*found))
    command = [sys.executable, "-c", GO, "dedup", "--data", data, "--out"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([sys.executable, "curate.py", *command[3:], str(whole / "out.jsonl")],
                   check=True, capture_output=True)  # fmt: skip
    sizes = {".signatures.partial": 5000 * 250, ".shingles.partial": 5000 * 500,
             ".jsonl.partial": (whole / "out.jsonl").stat().st_size}  # fmt: skip
    moments = [(ending, size * rng.uniform(0.1, 0.8)) for ending, size in sizes.items()]
    for ending, size in [*moments, (".copies.npy", 1)]:
        process = subprocess.Popen([*command, str(killed / "out.jsonl")], stdout=subprocess.PIPE,
                                   stderr=subprocess.DEVNULL)  # fmt: skip
        watched = killed / f"out{ending}"
        while process.poll() is None:
            if watched.exists() and watched.stat().st_size > size:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.001)
        process.wait()
        assert process.returncode in (-9, 0 if ending == ".copies.npy" else -9)
    last = subprocess.run([*command, str(killed / "out.jsonl")], check=True, text=True,
                          capture_output=True)  # fmt: skip
    assert "goes on behind row" in last.stdout or "is there already" in last.stdout
    assert listing(killed) == listing(whole)


def test_what_is_there_already_is_not_done_again(tmp_path, monkeypatch, capsys):
    run(tmp_path, texts(TEXT, TEXT))
    before = listing(tmp_path)
    (tmp_path / "out.signatures").write_text("left by a run that was stopped at its very end")
    monkeypatch.setattr(dedup, "Signatures", None)
    monkeypatch.setattr(dedup, "find_copies", None)
    curate.main(["dedup", "--data", str(tmp_path / "in.jsonl"), "--out", f"{tmp_path}/out.jsonl"])
    assert "is there already" in capsys.readouterr().out and listing(tmp_path) == before


@pytest.mark.parametrize("stop", ["find_copies", "decide", "minima"])
def test_a_stopped_run_is_not_taken_up_with_other_settings(tmp_path, mixed, monkeypatch, stop):
    def broken(*args):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return old(*args)

    old, left = getattr(dedup, stop), [0 if stop == "find_copies" else 30]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(dedup, stop, broken)
        run(tmp_path, mixed[0], "--max_bad", "0.2")
    before = listing(tmp_path)
    with pytest.raises(UserError, match=r"other settings \(threshold\); delete it"):
        run(tmp_path, mixed[0], "--max_bad", "0.2", "--threshold", "0.5")
    assert listing(tmp_path) == before
    if stop == "decide":  # the last pass: refused before the first is done once more
        (tmp_path / "out.signatures.counts.json").rename(tmp_path / "away")
        with pytest.raises(UserError, match=r"out.progress.json: belongs to a run with other"):
            run(tmp_path, mixed[0], "--max_bad", "0.2", "--threshold", "0.5")
        (tmp_path / "away").rename(tmp_path / "out.signatures.counts.json")
        assert listing(tmp_path) == before
        monkeypatch.setattr(dedup, "find_copies", None)  # nor are they done for the same settings
        monkeypatch.setattr(dedup, "minima", None)
    run(tmp_path, mixed[0], "--max_bad", "0.3")  # changes no row


def test_findings_of_signatures_that_are_gone_are_not_used(tmp_path, mixed, monkeypatch):
    whole = run(tmp_path / "whole", mixed[0], "--max_bad", "0.2")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(dedup, "decide", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        run(tmp_path, mixed[0], "--max_bad", "0.2", "--no-near")
    for name in ("out.signatures.counts.json", "out.progress.json"):
        (tmp_path / name).unlink(missing_ok=True)
    assert (tmp_path / "out.copies.npy").exists()
    assert run(tmp_path, mixed[0], "--max_bad", "0.2") == whole


@pytest.mark.parametrize("ending", [".signatures.lock", ".lock"])
def test_two_runs_do_not_write_the_same_result(tmp_path, ending):
    with open(tmp_path / f"out{ending}", "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another run is writing"):
            run(tmp_path, texts(TEXT, TEXT))
    assert run(tmp_path, str(tmp_path / "in.jsonl"))[0] == [TEXT]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--threshold", "0.2"], "--threshold must be from 0.3 to 1, not 0.2"),
        (["--threshold", "1.01"], "--threshold must be from 0.3 to 1"),
        (["--ngram", "0"], "--ngram must be above 0"),
    ],
)
def test_bad_settings_are_one_line(tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        run(tmp_path, texts(TEXT), *flags)


def test_a_row_that_is_not_where_it_was_stops_the_run(tmp_path, monkeypatch):
    old = dedup.Signatures.load
    monkeypatch.setattr(dedup.Signatures, "load", lambda self: (old(self)[0][1:], old(self)[1]))
    with pytest.raises(UserError, match="in.jsonl:1: is not where it was when out.signatures"):
        run(tmp_path, texts(TEXT, "other"))


def test_the_defaults_are_those_of_the_help(capsys):
    with pytest.raises(SystemExit):
        curate.main(["dedup", "--help"])
    shown = capsys.readouterr().out
    assert Dedup().threshold == 0.8 and "--threshold" in shown and "P(compared)" in shown
