import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from runs import torchrun, write_data
from test_data import ask
from tiny import sentences, write_rows, write_tokenizer

import token_files
from config import UserError
from data import load_chat, load_text
from metrics import read_metrics
from token_files import key_of, tokenise
from tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parent.parent


def files_of(tmp_path, count=120):
    """A file of every kind: {kind: path}; texts beyond a block, a blank line, a Windows line."""
    words = sentences(3 * count, 5, 1, 30)
    rows = {
        "text": [{"text": t + " ½ 🦙"} for t in words[:count]],
        "chat": [ask(t, "one two") for t in words[count : 2 * count]],
        "pair": [{"prompt": t, "chosen": t, "rejected": "two"} for t in words[2 * count :]],
    }
    found = {kind: write_rows(tmp_path / f"{kind}.jsonl", part) for kind, part in rows.items()}
    path = Path(found["text"])
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n\n", 1))
    return found


def same(a, b):
    return all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def sequences(tokens, mine=None):
    ends = np.cumsum(tokens.lengths)
    parts = [tokens.ids[z - n : z].tolist() for z, n in zip(ends, tokens.lengths, strict=True)]
    return parts if mine is None else parts[mine]


# ---- what is in a token file


def test_a_token_file_holds_the_ids_and_marks_of_the_tokenizer(tokenizer, tmp_path):
    paths, cache = files_of(tmp_path), str(tmp_path / "cache")
    rows = [json.loads(line) for line in open(paths["text"]) if line.strip()]
    text = tokenise("text", paths["text"], tokenizer, cache)
    assert sequences(text) == [tokenizer.text(row["text"]) for row in rows]
    assert text.lines.tolist() == [1, *range(3, len(rows) + 2)]  # line 2 is blank
    rows = [json.loads(line) for line in open(paths["chat"])]
    chat = tokenise("chat", paths["chat"], tokenizer, cache)
    assert sequences(chat) == [tokenizer.chat(row["messages"])[0] for row in rows]
    marks = [mark for row in rows for mark in tokenizer.chat(row["messages"])[1]]
    assert chat.trained.tolist() == marks
    rows = [json.loads(line) for line in open(paths["pair"])]
    pair = tokenise("pair", paths["pair"], tokenizer, cache)
    prompts, chosen, rejected = (sequences(pair)[i::3] for i in range(3))
    assert prompts == [tokenizer.prompt(row["prompt"]) for row in rows]
    end = [tokenizer.turn_end_id]
    assert chosen == [tokenizer.encode(row["chosen"].strip()) + end for row in rows]
    assert rejected == [tokenizer.encode("two") + end] * len(rows)


@pytest.mark.parametrize("kind", ["text", "chat", "pair"])
def test_blocks_and_several_processes_change_nothing(llama3, tmp_path, monkeypatch, kind):
    path = files_of(tmp_path)[kind]
    whole = tokenise(kind, path, llama3, "")
    monkeypatch.setattr(token_files, "BLOCK", 300)
    assert same(tokenise(kind, path, llama3, ""), whole)
    for workers in (1, 3):
        cache = str(tmp_path / f"cache{workers}")
        assert same(tokenise(kind, path, llama3, cache, workers), whole)


def test_reading_runs_only_a_few_blocks_ahead_of_the_workers(llama3, tmp_path, monkeypatch):
    monkeypatch.setattr(token_files, "BLOCK", 100)
    path, read, blocks = files_of(tmp_path)["text"], [], token_files.line_blocks

    def counted(path):
        for block in blocks(path):
            read.append(block)
            yield block

    monkeypatch.setattr(token_files, "line_blocks", counted)
    encoded = token_files.encoded_blocks("text", path, llama3, 2)
    next(encoded)
    assert len(read) == 5 < len(list(encoded))
    encoded.close()


def test_ids_take_two_bytes_if_the_vocabulary_lets_them():
    assert token_files.dtypes(2**16)["ids"] == np.uint16
    assert token_files.dtypes(2**16 + 1)["ids"] == np.uint32


def test_from_the_file_or_from_memory_training_sees_the_same_families(llama3, tmp_path):
    paths = files_of(tmp_path)
    for load, kind in ((load_text, "text"), (load_chat, "chat")):
        mapped, counts = load(paths[kind], llama3, 60, 1.0, token_cache=str(tmp_path / "cache"))
        memory, wanted = load(paths[kind], llama3, 60, 1.0)
        assert counts == wanted and len(mapped) == len(memory) > 0
        for a, b in zip(mapped, memory, strict=True):
            assert [s.input_ids.tolist() for s in a] == [s.input_ids.tolist() for s in b]
            assert [s.labels.tolist() for s in a] == [s.labels.tolist() for s in b]


# ---- keys, publishing


def test_a_file_is_tokenised_once_and_found_again_wherever_it_lies(llama3, tmp_path, monkeypatch):
    path, cache = files_of(tmp_path)["chat"], str(tmp_path / "cache")
    first = tokenise("chat", path, llama3, cache)
    monkeypatch.setattr(token_files, "encoded_blocks", lambda *_: pytest.fail("tokenised again"))
    assert same(tokenise("chat", path, llama3, cache), first)
    moved = shutil.copy(path, tmp_path / "elsewhere.jsonl")
    assert same(tokenise("chat", moved, llama3, cache), first)


def test_the_key_changes_with_all_that_the_ids_depend_on(llama3, tmp_path, monkeypatch):
    path = files_of(tmp_path)["text"]
    keys = [key_of("text", path, llama3), key_of("chat", path, llama3)]
    write_tokenizer(tmp_path / "other", "chatml")
    keys.append(key_of("text", path, other := Tokenizer(tmp_path / "other")))
    other.system = "You are terse."
    keys.append(key_of("text", path, other))
    other.template_sha = "0"
    keys.append(key_of("text", path, other))
    with open(path, "a") as file:
        file.write('{"text": "one more"}\n')
    keys.append(key_of("text", path, llama3))
    for name in ("token_files.py", "kinds.py", "tokenizer.py", "jsonl.py"):  # code
        code = token_files.sha_of_file

        def changed(file, name=name, code=code):
            return "changed" if Path(file).name == name else code(file)

        monkeypatch.setattr(token_files, "sha_of_file", changed)
        keys.append(key_of("text", path, llama3))
        monkeypatch.setattr(token_files, "sha_of_file", code)
    monkeypatch.setattr(token_files, "version", lambda name: "0")
    keys.append(key_of("text", path, llama3))
    assert len({json.dumps(key) for key in keys}) == len(keys)


def folders(cache):
    """What is published in a cache, beside its locks."""
    return [path for path in Path(cache).iterdir() if path.suffix != ".lock"]


def test_what_does_not_match_its_sizes_is_made_again(llama3, tmp_path, capsys):
    path, cache = files_of(tmp_path)["chat"], tmp_path / "cache"
    first = tokenise("chat", path, llama3, str(cache))
    wanted = [np.array(array) for array in first]
    (folder,) = folders(cache)
    for harm in (
        lambda: os.truncate(folder / "ids.bin", 10),
        lambda: (folder / "lines.bin").unlink(),
        lambda: (folder / "meta.json").unlink(),
        lambda: (folder / "meta.json").write_text('{"bytes": {"ids"'),
        lambda: (folder / "meta.json").write_text("{}"),
    ):
        harm()
        assert same(tokenise("chat", path, llama3, str(cache)), wanted)
        assert folders(cache) == [folder]
    assert "not whole; made again" in capsys.readouterr().err


def test_a_bad_row_publishes_nothing_and_names_its_line(llama3, tmp_path, monkeypatch):
    monkeypatch.setattr(token_files, "BLOCK", 300)
    rows = [ask(t, "one two") for t in sentences(80)]
    path = write_rows(tmp_path / "c.jsonl", [*rows, {"messages": 3}, *rows])
    for workers in (1, 2):
        with pytest.raises(UserError, match="c.jsonl:81: messages: must be a list, not an integer"):
            tokenise("chat", path, llama3, str(tmp_path / "cache"), workers)
        assert folders(tmp_path / "cache") == []


def test_an_empty_file_and_one_whose_writer_was_stopped(llama3, tmp_path, capsys):
    path, cache = tmp_path / "t.jsonl", str(tmp_path / "cache")
    path.write_text("")
    assert [len(a) for a in tokenise("text", path, llama3, cache)] == [0] * 4
    path.write_text('{"text": "one"}\n{"text": "tw')
    assert len(tokenise("text", path, llama3, cache).lines) == 1
    for _ in range(2):  # made and found: said each time
        assert load_text(str(path), llama3, 99, token_cache=cache)[1].rows == 1
        assert f"{path}: incomplete last line, left out" in capsys.readouterr().out
    with pytest.raises(UserError, match="gone.jsonl: no such file"):
        tokenise("text", tmp_path / "gone.jsonl", llama3, cache)


def test_a_line_of_more_than_16_mb_is_refused_whoever_reads_it(llama3, tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "one"}\n{"text": "' + "two " * 4_200_000 + '"}\n{"text": "three"}\n')
    for workers in (1, 2):
        with pytest.raises(UserError, match="t.jsonl:2: longer than 16 MB; split the document"):
            tokenise("text", path, llama3, str(tmp_path / "cache"), workers)


def test_what_changes_while_it_is_read_is_not_stored(llama3, tmp_path, monkeypatch):
    path, cache = files_of(tmp_path)["chat"], tmp_path / "cache"
    blocks = token_files.line_blocks

    def growing(name):
        yield from blocks(name)
        with open(name, "a") as file:
            file.write("\n")

    monkeypatch.setattr(token_files, "line_blocks", growing)
    with pytest.raises(UserError, match="chat.jsonl: changed while it was tokenised"):
        tokenise("chat", path, llama3, str(cache))
    assert folders(cache) == []


def test_where_locks_do_not_reach_the_first_to_end_counts_and_nobody_fails(
    llama3, tmp_path, monkeypatch
):
    path, cache = files_of(tmp_path)["chat"], str(tmp_path / "cache")
    monkeypatch.setattr(token_files.fcntl, "flock", lambda *_: None)
    write, others = token_files.write, []

    def while_another_does(*args):
        write(*args)
        if not others:  # another machine, which ends before
            others.append(1)
            monkeypatch.setattr(token_files.socket, "gethostname", lambda: "other")
            others.append(tokenise("chat", path, llama3, cache))

    monkeypatch.setattr(token_files, "write", while_another_does)
    found = tokenise("chat", path, llama3, cache)
    assert same(found, tokenise("chat", path, llama3, "")) and same(found, others[1])
    assert len(folders(cache)) == 1


def test_a_worker_that_dies_while_it_answers_publishes_nothing(llama3, tmp_path, monkeypatch):
    path, cache = files_of(tmp_path)["text"], str(tmp_path / "cache")
    monkeypatch.setattr(token_files, "BLOCK", 2000)
    start = token_files.Workers.__init__

    class Cut:
        """The answers of a process that dies while it writes them."""

        def __init__(self, stream):
            self.readline, self.all = stream.readline, stream.read

        def read(self, size):
            return self.all(size)[:-2]

    def cutting(self, *args):
        start(self, *args)
        for process in self.all:
            process.stdout = Cut(process.stdout)

    monkeypatch.setattr(token_files.Workers, "__init__", cutting)
    with pytest.raises(UserError, match="a process that tokenises it died"):
        tokenise("text", path, llama3, cache, 2)
    assert folders(cache) == []


def test_a_long_blank_line_is_refused_too(llama3, tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "one"}\n' + " " * (17 * 2**20) + '\n{"text": "two"}\n')
    with pytest.raises(UserError, match="t.jsonl:2: longer than 16 MB"):
        tokenise("text", path, llama3, str(tmp_path / "cache"))


# ---- processes


def command(path, llama3, cache, *more):
    words = [sys.executable, "token_files.py", str(path), "--tokenizer", str(llama3.path)]
    return [*words, "--token_cache", str(cache), *more]


def test_a_worker_has_no_torch(llama3):
    code = "import sys, token_files; sys.exit('torch' in sys.modules or 'triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_killed_while_tokenising_it_starts_anew_and_ends_alike(llama3, tmp_path):
    path = write_rows(tmp_path / "t.jsonl", [{"text": t} for t in sentences(60_000, 1, 20, 60)])
    cache = tmp_path / "cache"
    words = command(path, llama3, cache, "--workers", "2")
    for seconds in (0.3, 0.6, 0.9, 1.3):
        process = subprocess.Popen(words, cwd=ROOT, start_new_session=True)
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "60,000 rows" in done.stdout
    assert same(tokenise("text", path, llama3, str(cache)), tokenise("text", path, llama3, ""))


def test_workers_end_with_the_process_that_started_them(llama3, tmp_path):
    path = write_rows(tmp_path / "t.jsonl", [{"text": t} for t in sentences(60_000, 1, 20, 60)])
    process = subprocess.Popen(
        command(path, llama3, tmp_path / "cache", "--workers", "2"), cwd=ROOT
    )
    children = []
    while len(children) < 2 and process.poll() is None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()
    assert len(children) == 2
    for _ in range(100):
        if not any(Path(f"/proc/{child}").exists() for child in children):
            break
        time.sleep(0.1)
    else:
        pytest.fail("workers outlive the process that was killed")


def test_two_that_want_the_same_file_tokenise_it_once(llama3, tmp_path):
    path = write_rows(tmp_path / "t.jsonl", [{"text": t} for t in sentences(30_000, 1, 20, 60)])
    words = command(path, llama3, tmp_path / "cache")
    both = [subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE) for _ in range(3)]
    assert [p.wait() for p in both] == [0, 0, 0]
    said = {p.stdout.read() for p in both}
    assert len(said) == 1
    (folder,) = folders(tmp_path / "cache")
    assert same(
        tokenise("text", path, llama3, str(folder.parent)), tokenise("text", path, llama3, "")
    )


def test_ranks_share_one_token_file_and_train_the_same_rows(tmp_path):
    data = write_data(tmp_path / "data")
    jobs = [{"stage": "cpt", "data": data, "out": tmp_path / "two", "epochs": 0.2}]
    torchrun(2, tmp_path, jobs)
    assert len(folders(data / "tokens")) == 2  # text and chat, and nothing half made
    assert len(read_metrics(tmp_path / "two")) > 1


def test_the_command_says_what_it_made_or_what_is_wrong(llama3, tmp_path):
    def run(*words):
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True)

    path = files_of(tmp_path)["chat"]
    done = run(*command(path, llama3, tmp_path / "cache", "--kind", "chat"))
    assert done.returncode == 0 and "120 rows" in done.stdout
    for words, reason in (
        (command(path, llama3, tmp_path / "cache"), "chat.jsonl:1: text: missing"),
        (command(path, llama3, tmp_path / "cache", "--kind", "words"), "--kind must be one of"),
        ([sys.executable, "token_files.py"], "usage: python token_files.py FILE"),
        (command(write_rows(tmp_path / "none.jsonl", []), llama3, tmp_path), "none.jsonl: holds"),
    ):
        done = run(*words)
        assert done.returncode == 1 and done.stderr.startswith("error: ") and reason in done.stderr
        assert done.stderr.count("\n") == 1
