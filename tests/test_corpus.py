import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny import sentences, write_rows

import corpus
from config import UserError
from corpus import Pass, Rows

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Long(Rows):
    least: int = 20  # characters of a text that is kept


def keep_long(cfg, crash_after=None):
    """A small step: rows with a text of some length are kept; it may break off within a block."""
    todo, seen = Pass(cfg), 0
    for block in todo.blocks():
        for where, row in block:
            seen += 1
            if seen == crash_after:
                raise KeyboardInterrupt
            if len(row["text"]) < cfg.least:
                todo.drop(where, "short", length=len(row["text"]))
            else:
                todo.keep({**row, "n": len(row["text"])})
    return todo


def texts(path, count=2000, seed=0):
    rows = [{"text": t, "source": f"s{i}"} for i, t in enumerate(sentences(count, seed, 1, 12))]
    return write_rows(path, rows)


def results(out):
    """The bytes of all three files of a result."""
    return [corpus.beside(Path(out), ending).read_bytes()
            for ending in (".jsonl", ".dropped.jsonl", ".counts.json")]  # fmt: skip


def read(path):
    return [json.loads(line) for line in open(path, encoding="utf-8")]


# ---- in = out + dropped


def test_every_row_is_kept_or_dropped_with_its_place_and_reason(tmp_path, capsys):
    path = texts(tmp_path / "a.jsonl", 700)
    keep_long(Long(data=path, out=str(tmp_path / "o.jsonl")))
    rows, kept = read(path), read(tmp_path / "o.jsonl")
    assert [r["text"] for r in kept] == [r["text"] for r in rows if len(r["text"]) >= 20]
    dropped = read(tmp_path / "o.dropped.jsonl")
    assert dropped == [
        {"where": f"{path}:{i}", "reason": "short", "length": len(r["text"])}
        for i, r in enumerate(rows, 1) if len(r["text"]) < 20
    ]  # fmt: skip
    counts = json.loads((tmp_path / "o.counts.json").read_text())["counts"]
    assert counts == {"rows": 700, "used": len(kept), "written": len(kept),
                      "dropped": {"short": len(dropped)}}  # fmt: skip
    said = f"700 rows = {len(kept)} kept + {len(dropped)} skipped [{len(dropped)} short]"
    assert said in capsys.readouterr().out
    assert {p.name for p in tmp_path.iterdir()} == {"a.jsonl", "o.jsonl", "o.dropped.jsonl",
                                                    "o.counts.json"}  # fmt: skip


def test_a_row_that_is_neither_kept_nor_dropped_is_caught(tmp_path):
    todo = Pass(Rows(data=texts(tmp_path / "a.jsonl"), out=str(tmp_path / "o.jsonl")))
    with pytest.raises(AssertionError):
        for _ in todo.blocks():
            pass


# ---- stopped and resumed


def test_broken_off_anywhere_it_goes_on_and_ends_with_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "EVERY", 0.0)
    monkeypatch.setattr(corpus, "BLOCK_ROWS", 100)
    data = ",".join(texts(tmp_path / f"{n}.jsonl", 450, n) for n in range(3))
    keep_long(Long(data=data, out=str(tmp_path / "whole.jsonl")))
    rng = random.Random(0)
    cfg = Long(data=data, out=str(tmp_path / "part.jsonl"))
    breaks = 0
    while not Path(cfg.out).exists():
        try:
            keep_long(cfg, crash_after=rng.randint(1, 250) if breaks < 12 else None)
        except KeyboardInterrupt:
            breaks += 1
            with open(f"{cfg.out}.partial", "ab") as file:  # half a line of what came after
                file.write(b'{"text": "ha')
    assert breaks > 4
    assert results(cfg.out) == results(tmp_path / "whole.jsonl")


@pytest.mark.parametrize("at", range(4))
def test_a_kill_while_the_result_is_published_loses_nothing(tmp_path, monkeypatch, at):
    data = texts(tmp_path / "a.jsonl")
    keep_long(Long(data=data, out=str(tmp_path / "whole.jsonl")))
    cfg, calls = Long(data=data, out=str(tmp_path / "part.jsonl")), []
    replace, unlink, write = Path.replace, Path.unlink, corpus.write_text

    def stopping(function):
        def stop(*args):
            if function is not write or "counts" in str(args[0]):
                calls.append(function)
                if len(calls) == at + 1:
                    raise KeyboardInterrupt
            return function(*args)

        return stop

    with monkeypatch.context() as patch:
        # The progress is written by renaming, too: only what publishes counts here
        patch.setattr(corpus.Pass, "publish", publish_with(stopping, replace, unlink, write))
        with pytest.raises(KeyboardInterrupt):
            keep_long(cfg)
    assert len(calls) == at + 1
    keep_long(cfg)
    assert results(cfg.out) == results(tmp_path / "whole.jsonl")


def publish_with(stopping, replace, unlink, write):
    """corpus.Pass.publish, whose renames, writes and removals go through `stopping`."""
    publish = corpus.Pass.publish

    def changed(self):
        originals = Path.replace, Path.unlink, corpus.write_text
        try:
            Path.replace, Path.unlink = stopping(replace), stopping(unlink)
            corpus.write_text = stopping_write = stopping(write)
            assert stopping_write
            publish(self)
        finally:
            Path.replace, Path.unlink, corpus.write_text = originals

    return changed


def test_what_is_done_is_not_done_again(tmp_path, capsys):
    cfg = Long(data=texts(tmp_path / "a.jsonl"), out=str(tmp_path / "o.jsonl"))
    keep_long(cfg)
    before, said = results(cfg.out), capsys.readouterr().out
    keep_long(cfg, crash_after=1)
    assert results(cfg.out) == before
    again = capsys.readouterr().out
    assert "is there already" in again and said in again


def test_a_step_that_keeps_nothing_says_so(tmp_path, capsys):
    keep_long(Long(data=texts(tmp_path / "a.jsonl"), out=str(tmp_path / "o.jsonl"), least=10**6))
    assert f"nothing is left; {tmp_path}/o.dropped.jsonl says why" in capsys.readouterr().out


def test_another_setting_or_file_is_another_result(tmp_path):
    path = texts(tmp_path / "a.jsonl")
    cfg = Long(data=path, out=str(tmp_path / "o.jsonl"))
    keep_long(cfg)
    keep_long(Long(data=path, out=cfg.out, max_bad=0.5))  # changes no row
    with pytest.raises(UserError, match=r"o.counts.json: .* other settings \(least\); delete it"):
        keep_long(Long(data=path, out=cfg.out, least=21))
    os.utime(path, ns=(1, 1))
    with pytest.raises(UserError, match=r"other size and time of files \(.*a.jsonl\)"):
        keep_long(cfg)
    part = Long(data=path, out=str(tmp_path / "part.jsonl"))
    with pytest.raises(KeyboardInterrupt):
        keep_long(part, crash_after=1500)
    with pytest.raises(UserError, match=r"part.progress.json: .* other settings"):
        keep_long(Long(data=path, out=part.out, least=1))
    os.truncate(f"{part.out}.partial", 3)
    with pytest.raises(UserError, match="part.jsonl.partial: is shorter than"):
        keep_long(part)


def test_two_runs_cannot_write_one_result(tmp_path):
    cfg = Long(data=texts(tmp_path / "a.jsonl"), out=str(tmp_path / "o.jsonl"))
    first = Pass(cfg).blocks()
    next(first)
    with pytest.raises(UserError, match="o.jsonl: another run is writing it"):
        keep_long(cfg)
    first.close()


def test_a_run_that_waits_while_another_ends_does_not_write_over_its_result(tmp_path, monkeypatch):
    cfg = Long(data=texts(tmp_path / "a.jsonl"), out=str(tmp_path / "o.jsonl"))
    with pytest.raises(KeyboardInterrupt):
        keep_long(cfg, crash_after=1500)
    flock, ended = corpus.fcntl.flock, []

    def late(*args):
        if not ended:  # another run goes on and ends between this one's look and its lock
            ended.append(1)
            keep_long(cfg)
        return flock(*args)

    monkeypatch.setattr(corpus.fcntl, "flock", late)
    todo = Pass(cfg)
    before = results(cfg.out)
    assert todo.done and list(todo.blocks()) == [] and results(cfg.out) == before
    assert len(read(cfg.out)) == todo.counts["written"]
    assert not (tmp_path / "o.lock").exists()


def test_a_result_that_was_deleted_is_missed(tmp_path):
    cfg = Long(data=texts(tmp_path / "a.jsonl"), out=str(tmp_path / "o.jsonl"))
    keep_long(cfg)
    Path(cfg.out).unlink()
    with pytest.raises(UserError, match="o.jsonl is gone; delete .*o.counts.json to make it again"):
        keep_long(cfg)


def test_rows_that_cannot_be_read_fill_no_block(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "BLOCK_BYTES", 100)
    path = bad_lines(tmp_path / "a.jsonl", *[b"{" * 60] * 9, GOOD)
    todo = Pass(Rows(data=path, out=str(tmp_path / "o.jsonl"), max_bad=1.0))
    sizes = []
    for block in todo.blocks():
        sizes.append(len(block))
        for _, row in block:
            todo.keep(row)
    assert sizes == [1]


def test_killed_at_random_moments_every_time_the_bytes_are_the_same(tmp_path):
    """SIGKILL of the real command, many times."""
    data = texts(tmp_path / "a.jsonl", 60_000)
    words = [sys.executable, "curate.py", "select", "--data", data, "--min_words", "4", "--out"]
    subprocess.run([*words, str(tmp_path / "whole.jsonl")], cwd=ROOT, check=True)
    rng, kills = random.Random(1), 0
    out = tmp_path / "part.jsonl"
    while not out.exists():
        process = subprocess.Popen([*words, str(out)], cwd=ROOT, stdout=subprocess.DEVNULL)
        with_progress = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < with_progress:
            time.sleep(rng.uniform(0.01, 0.3))
            if kills < 5 and Path(f"{out}.partial").exists():
                process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 3
    for ending in (".jsonl", ".dropped.jsonl", ".counts.json"):
        a, b = (corpus.beside(p, ending).read_bytes() for p in (out, tmp_path / "whole.jsonl"))
        assert a == b


# ---- bad input


def bad_lines(path, *lines):
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return str(path)


GOOD = b'{"text": "a text of more than twenty letters"}'


@pytest.mark.parametrize(
    "line, reason",
    [
        (b'{"text": "\xff"}', "not UTF-8 at byte 11; save it as UTF-8"),
        (b'{"text": ', "not json: Expecting value"),
        (b'{"text": "a", "text": "b"}', "text: the key is there twice"),
        (b'{"text": NaN}', "NaN is not a number json knows"),
        (b'["a"]', "must be an object, not a list"),
        (b'{"text": "\\u0000"}', "text: holds a NUL character"),
        (b'{"text": "\\ud800"}', "text: holds a lone surrogate"),
        (b'{"text": ' + b"[" * 5000 + b"}", "nested too deep"),
        (b'{"text": "' + b"x" * (17 * 2**20) + b'"}', "longer than 16 MB; split the document"),
    ],
)
def test_a_row_that_cannot_be_read_is_dropped_with_its_line_and_the_others_go_on(
    tmp_path, capsys, line, reason
):
    path = bad_lines(tmp_path / "a.jsonl", GOOD, line, b"", GOOD)
    keep_long(Long(data=path, out=str(tmp_path / "o.jsonl"), max_bad=0.4))
    assert len(read(tmp_path / "o.jsonl")) == 2
    (dropped,) = read(tmp_path / "o.dropped.jsonl")
    assert dropped["where"] == f"{path}:2" and dropped["reason"] == "unreadable"
    assert reason in dropped["detail"]
    assert f"unreadable: {path}:2: " in capsys.readouterr().out


def test_more_unreadable_rows_than_allowed_publish_nothing(tmp_path):
    path = bad_lines(tmp_path / "a.jsonl", *[GOOD] * 94, *[b"{"] * 6)
    cfg = Long(data=path, out=str(tmp_path / "o.jsonl"))
    reason = r"6 of 100 rows cannot be read, the first: .*a.jsonl:95: not json.*\(--max_bad lets"
    with pytest.raises(UserError, match=reason):
        keep_long(cfg)
    assert not Path(cfg.out).exists()
    keep_long(Long(data=path, out=cfg.out, max_bad=0.06))  # the same command goes on
    assert len(read(cfg.out)) == 94


def test_a_document_of_100_mb_is_passed_over_without_being_held(tmp_path):
    path = tmp_path / "a.jsonl"
    with open(path, "wb") as file:
        file.write(GOOD + b'\n{"text": "')
        for _ in range(100):
            file.write(b"x" * 2**20)
        file.write(b'"}\n' + GOOD + b"\n")
    code = (
        "import resource, records, pathlib, sys\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"rows = [r[1] is not None for r in records.read_rows(pathlib.Path({str(path)!r}), None)]\n"
        "grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
        "sys.exit(f'{rows} {grown}' if rows != [1, 0, 1] or grown > 60_000 else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "holds no rows"),
        (b"\n\n", "holds no rows"),
        (b"\x1f\x8b\x08rest", "a.jsonl:1: the file is compressed; unpack it"),
        (b"\xef\xbb\xbf{}", "a.jsonl:1: the file starts with a byte order mark"),
        (b"PAR1 and no more", "a.jsonl: not readable as parquet"),
        (b"[1]", "a.jsonl: must hold a list of objects"),
    ],
)
def test_a_file_that_is_no_corpus_is_one_line(tmp_path, content, reason):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=reason):
        keep_long(Long(data=f"{tmp_path}/a.jsonl", out=str(tmp_path / "o.jsonl")))
    assert not (tmp_path / "o.jsonl").exists()


def test_an_output_that_is_no_jsonl_or_would_be_written_over_is_refused(tmp_path):
    path = texts(tmp_path / "a.jsonl", 3)
    with pytest.raises(UserError, match="--out 'x.json': name the FILE.jsonl"):
        Pass(Rows(data=path, out="x.json"))
    with pytest.raises(UserError, match="is read as well: it would be written over"):
        Pass(Rows(data=path, out=path))
    (tmp_path / "deep").mkdir()
    for out in ("o.jsonl", "deep/o.jsonl"):  # what it writes would be read, too
        with pytest.raises(UserError, match=f"{out}: lies in {tmp_path}, which is read"):
            Pass(Rows(data=f"{tmp_path}", out=str(tmp_path / out)))
