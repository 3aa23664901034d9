"""What the lists of bad inputs are written with: a case, commands, ways to spoil a good file.

A case begins with a folder of good files (good_files). Its `make` spoils one of them, its command
runs in that folder, so every path is short and the same on every machine.
"""

import json
import shutil
import struct
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from evaluating import CHAT, arc_rows, exam_rows, label_rows  # noqa: E402
from judging import write_solutions  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from tiny import sentences, write_checkpoint, write_rows  # noqa: E402

URL = "http://JUDGE/v1"  # in a command: the address of the case's own judge
ROWS = 12  # of each training file


class Case(NamedTuple):
    kind: str  # class under which it is counted
    name: str
    command: list  # words behind `python`
    make: Callable  # (folder) -> None
    line: str  # pattern of the one line behind "error: "; with exit 0 of any line
    exit: int = 1
    judge: Callable | None = None  # what its judge replies: judging.serving's misbehave


def words(script, flags, *more, **changes):
    """Command words of a script; a change to None takes a flag away, `more` goes behind."""
    pairs = [(f"--{k}", str(v)) for k, v in (flags | changes).items() if v is not None]
    return [*script.split(), *(word for pair in pairs for word in pair), *more]


TRAIN = {"init_from": "base", "out_dir": "out", "max_length": 96, "batch_tokens": 192,
         "micro_batch_tokens": 96, "epochs": 1, "lr": "1e-3", "device": "cpu",
         "token_cache": "tokens"}  # fmt: skip
ASK = {"device": "cpu", "max_new_tokens": 4}
JUDGE = {"out_dir": "reward", "judge": "http", "base_url": URL, "model": "j", "backoff_s": "0.01",
         "retries": 1, "timeout_s": 5, "device": "cpu"}  # fmt: skip
CURATE = {"data": "text.jsonl", "out": "out.jsonl"}
SFT = partial(words, "train_sft.py", TRAIN | {"chat": "chat.jsonl", "heldout_chat": ""})
CPT = partial(words, "train_cpt.py", TRAIN | {"text": "text.jsonl", "chat": "chat.jsonl",
              "heldout_text": "", "heldout_chat": "", "mix": "all"})  # fmt: skip
MIXTURE = partial(CPT, text=None, chat=None, mixture="mixture.json")
DPO = partial(words, "train_dpo.py", TRAIN | {"pairs": "pairs.jsonl"})
SAMPLE = partial(words, "reward.py sample", ASK | {"init_from": "base", "prompts": "prompts.jsonl",
                 "out_dir": "out", "samples": 1})  # fmt: skip
JUDGING = partial(words, "reward.py judge", JUDGE)
EXACT = partial(words, "reward.py judge", {"judge": "exact", "out_dir": "reward"})
PAIRS = partial(words, "reward.py pairs", {"out_dir": "reward"})
EXPORT = partial(words, "reward.py export", {"out_dir": "reward"})
CASES_OF = partial(words, "reward.py eval", JUDGE | {"cases": "cases.jsonl", "out_dir": "out"})
CORRECT = partial(words, "reward.py correct", ASK | {"init_from": "base", "out_dir": "reward"})
EVAL = partial(words, "evaluate.py", ASK | {"init_from": "base", "data": "eval", "out_dir": "out",
               "tasks": "arc"})  # fmt: skip
EVAL_JUDGE = partial(words, "evaluate.py judge", JUDGE | {"out_dir": "scored"})
GENERATE = partial(words, "generate.py", ASK | {"init_from": "base", "prompt": "one"})
TOKENS = partial(words, "token_files.py text.jsonl",
                 {"kind": "text", "tokenizer": "base", "token_cache": "tokens"})  # fmt: skip
CONTAMINATION = partial(words, "evaluate.py contamination",
                        {"train": "text.jsonl", "data": "eval", "out_dir": "out"})  # fmt: skip


def curate(step, *more, **changes):
    return words(f"curate.py {step}", CURATE, *more, **changes)


def show(file="chat.jsonl", row=2, tokenizer="base", **changes):
    return words(f"data.py show {file}", {"tokenizer": tokenizer, "row": row}, **changes)


def good_files(folder):
    """A folder of which every command above works."""
    folder = Path(folder)
    write_checkpoint(folder / "base")
    said = sentences(4 * ROWS, 1, 3, 12)
    turns = [said[i : i + 4] for i in range(0, len(said), 4)]
    chats = [[{"role": "user", "content": a}, {"role": "assistant", "content": b}]
             for a, b, _, _ in turns]  # fmt: skip
    write_rows(folder / "text.jsonl", [{"text": text} for text in said[:ROWS]])
    write_rows(folder / "chat.jsonl", [{"messages": chat} for chat in chats])
    write_rows(folder / "pairs.jsonl", [
        {"prompt": a, "chosen": f"good {b}", "rejected": f"bad {c}"} for a, b, c, _ in turns
    ])  # fmt: skip
    write_rows(folder / "prompts.jsonl", [
        {"id": f"p{i}", "source": "s", "prompt": [{"role": "user", "content": a}], "answer": str(i)}
        for i, (a, *_) in enumerate(turns[:4])
    ])  # fmt: skip
    write_rows(folder / "cases.jsonl", [
        {"id": f"c{i}", "problem": a, "steps": [b, c], "final_answer_correct": False, "label": 1}
        for i, (a, b, c, _) in enumerate(turns[:4])
    ])  # fmt: skip
    for name in ("reward", "eval"):
        (folder / name).mkdir()
    write_solutions(folder / "reward")
    write_rows(folder / "eval" / "arc.jsonl", arc_rows(ROWS))
    write_rows(folder / "eval" / "fpb.jsonl", label_rows(ROWS))
    write_rows(folder / "eval" / "reasoning.jsonl", exam_rows(4))
    write_rows(folder / "eval" / "mt_bench.jsonl", CHAT)
    sources = [{"name": "web", "kind": "text", "files": ["text.jsonl"], "share": 0.5},
               {"name": "chat", "kind": "chat", "files": ["chat.jsonl"], "share": 0.5}]  # fmt: skip
    write_json(folder / "mixture.json", {"groups": [{"sources": sources}]})


# What the commands of a finished run leave behind, for cases about logs and results
LEFT_BEHIND = [
    SFT(out_dir="trained"),
    JUDGING(stepwise="wrong", concurrency=1),  # one after the other: the log has one order
    PAIRS(),
    EVAL(out_dir="scored", tasks="arc,mt_bench"),
    EVAL("--no-chat_template", out_dir="other"),
]


def write_json(path, value):
    Path(path).write_text(json.dumps(value), encoding="utf-8")


# Ways to spoil a file: each returns make(folder) ---------------------------------------------


def nothing(folder):
    pass


def put(name, content):
    """A file of these bytes, or of this text."""

    def make(folder):
        raw = content.encode() if isinstance(content, str) else content
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(raw)

    return make


def each(*makes):
    return lambda folder: [make(folder) for make in makes]


def raw_lines(path):
    return path.read_bytes().splitlines(keepends=True)


def line(name, raw, number=2):
    """Another line in a file."""

    def make(folder):
        lines = raw_lines(folder / name)
        lines[number - 1] = (raw.encode() if isinstance(raw, str) else raw) + b"\n"
        (folder / name).write_bytes(b"".join(lines))

    return make


def changed(value, changes):
    """A dict with changes; `...` takes a key away, a function is applied to what is there."""
    for key, new in changes.items():
        if new is ...:
            value.pop(key, None)
        else:
            value[key] = new(value.get(key)) if callable(new) else new
    return value


def row(name, number=2, **changes):
    """Changes in a row of json lines; number None: in all of them."""

    def make(folder):
        rows = [json.loads(raw) for raw in raw_lines(folder / name)]
        for i, value in enumerate(rows, 1):
            rows[i - 1] = changed(value, changes) if number in (i, None) else value
        write_rows(folder / name, rows)

    return make


def edit(name, **changes):
    """Changes in a json file."""

    def make(folder):
        path = folder / name
        write_json(path, changed(json.loads(path.read_text()) if path.exists() else {}, changes))

    return make


def remove(name):
    def make(folder):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return make


def cut(name, share=0.5):
    """Only the first part of a file."""

    def make(folder):
        raw = (folder / name).read_bytes()
        (folder / name).write_bytes(raw[: int(len(raw) * share)])

    return make


def append(name, raw):
    def make(folder):
        with open(folder / name, "ab") as file:
            file.write(raw.encode() if isinstance(raw, str) else raw)

    return make


def directory(name):
    """A folder where a file is due."""

    def make(folder):
        if (folder / name).exists():
            (folder / name).unlink()
        (folder / name).mkdir(parents=True)

    return make


def tensors(change, name="base/model.safetensors"):
    """change(tensors) on the weights: a dict that it may alter."""

    def make(folder):
        found = load_file(folder / name)
        change(found)
        save_file(found, folder / name, metadata={"format": "pt"})

    return make


def header(raw, size=None):
    """A file of weights with these bytes as its header, which says it has `size` of them."""
    return put(
        "base/model.safetensors", struct.pack("<Q", len(raw) if size is None else size) + raw
    )


def index(weight_map, **files):
    """An index in place of the single file, which becomes base/a.safetensors."""

    def make(folder):
        base = folder / "base"
        (base / "model.safetensors").rename(base / "a.safetensors")
        full = dict.fromkeys(load_file(base / "a.safetensors"), "a.safetensors")
        found = weight_map(full) if callable(weight_map) else weight_map
        write_json(base / "model.safetensors.index.json", {"weight_map": found})
        for name, content in files.items():
            (base / name.replace("_bin", ".bin")).write_bytes(content)

    return make
