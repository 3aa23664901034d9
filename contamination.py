"""Does a training file hold what the tasks ask? 10-gram matches, then overlap of characters.

    python evaluate.py contamination --train web.jsonl,chat.jsonl --data out/data

As FinDAP did (arXiv:2501.04961): an item and a document that share ten words in a row are
compared, and the item is contaminated if the shared stretches of one document cover more than half
of its characters. Words are runs of letters and digits, in lower case. Compared is a row's own
`text`: a sentence, a question, the evidence from a filing; not its query: instructions are the same
in every row, and in training rows of the same task too. Items of 5 to 9 words are looked for whole;
shorter ones would be found anywhere, and are counted only.

OUT_DIR/contamination.json   counts per task
OUT_DIR/matches.jsonl        per item with a match: the document that covers most of it
"""

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from config import UserError, check_range, parse
from jsonl import read_jsonl, write_jsonl, write_text
from rows import load_rows
from tasks import TASKS

GRAM = 10  # words in a row that make two texts worth comparing
SHORTEST = 5  # words of an item that is still looked for
WORD = re.compile(r"[^\W_]+")
BASE = np.uint64(0x9E3779B97F4A7C15)  # of the rolling hash, modulo 2^64


@dataclass
class Config:
    train: str = ""  # training files with commas: texts, chats, pairs, prompts with completions
    data: str = "out/data"  # directory of TASK.jsonl files
    tasks: str = ""  # names with commas; empty = all that have data
    out_dir: str = "out/contamination"  # gets contamination.json and matches.jsonl
    threshold: float = 50.0  # percent of an item's characters above which it is contaminated


# Finding items in a text: pure functions --------------------------------------------------------


@dataclass
class Index:
    """Items to look for. Memory grows with them, not with what is searched."""

    items: list  # word ids of each item, (n,) arrays
    letters: list  # characters of each of its words, (n,) arrays
    vocabulary: dict  # word -> id from 1; 0 is every word that no item holds
    places: dict  # n-gram length -> (sorted hashes, item of each, position of each)


def words(text):
    return WORD.findall(text.lower())


def hashes(ids, n):
    """Hash of every n-gram of (N,) word ids -> (N - n + 1,)."""
    out = np.zeros(max(0, len(ids) - n + 1), dtype=np.uint64)
    for k in range(n):
        out = out * BASE + ids[k : k + len(out)]
    return out


def make_index(texts):
    """Index of texts; those under SHORTEST words have no place in it."""
    vocabulary, items, letters, found = {}, [], [], {}
    for number, text in enumerate(texts):
        named = words(text)
        ids = [vocabulary.setdefault(word, len(vocabulary) + 1) for word in named]
        items.append(np.array(ids, dtype=np.uint64))
        letters.append(np.array([len(word) for word in named], dtype=np.int64))
        if len(ids) >= SHORTEST:
            n = min(GRAM, len(ids))
            grams = hashes(items[-1], n)
            found.setdefault(n, []).append((grams, np.full(len(grams), number)))
    places = {}
    for n, parts in found.items():
        grams, owners = (np.concatenate(column) for column in zip(*parts, strict=True))
        positions = np.concatenate([np.arange(len(gram)) for gram, _ in parts])
        order = np.argsort(grams, kind="stable")
        places[n] = grams[order], owners[order], positions[order]
    return Index(items, letters, vocabulary, places)


def find(index, text):
    """{item: (share of its characters that the text covers, is it there whole, longest run of
    shared words)} of the items that share an n-gram with it."""
    named = words(text)
    known = index.vocabulary.get
    ids = np.fromiter((known(word, 0) for word in named), dtype=np.uint64, count=len(named))
    starts = {}  # item -> [(place in the text, place in the item, words)]
    for n, (grams, owners, positions) in index.places.items():
        here = hashes(ids, n)
        first, last = np.searchsorted(grams, here), np.searchsorted(grams, here, side="right")
        for at in np.flatnonzero(first < last).tolist():
            for k in range(first[at], last[at]):
                item, place = int(owners[k]), int(positions[k])
                # Equal hashes are not yet equal words
                if np.array_equal(index.items[item][place : place + n], ids[at : at + n]):
                    starts.setdefault(item, []).append((at, place, n))
    found = {}
    for item, hits in starts.items():
        size, letters = len(index.items[item]), index.letters[item]
        covered, run, longest = np.zeros(size, dtype=bool), 0, (0, 0)
        hits.sort(key=lambda hit: (hit[0] - hit[1], hit[0]))  # by offset, then by place
        for i, (at, place, n) in enumerate(hits):
            covered[place : place + n] = True
            run = run + 1 if i and hits[i - 1][:2] == (at - 1, place - 1) else 1
            longest = max(longest, (run + n - 1, at + n))
        length, stop = longest
        stretch = " ".join(named[stop - length : stop])
        found[item] = float(letters[covered].sum() / letters.sum()), length == size, stretch
    return found


# Rows of either side ----------------------------------------------------------------------------


def training_text(row, where):
    """All that a training row says, as one text."""
    if isinstance(row.get("text"), str):
        return row["text"]
    fields = ("prompt", "prefix", "chosen", "rejected", "completion", "solution", "answer", "query")
    parts = [row.get("messages"), *(row.get(field) for field in fields)]
    said = []
    for part in parts:
        if isinstance(part, str):
            said.append(part)
        elif isinstance(part, list):
            said += [str(message.get("content") or "") for message in part
                     if isinstance(message, dict)]  # fmt: skip
    if not said:
        raise UserError(f"{where}: holds no text: needs text, messages, query, or prompt with "
                        f"chosen or completion; it has {', '.join(list(row)[:8])}")  # fmt: skip
    return "\n".join(said)


def read_items(cfg):
    """[(task, row id, text)] of the tasks that have data. UserError if none has."""
    names = [name.strip() for name in cfg.tasks.split(",") if name.strip()]
    for name in names:
        if name not in TASKS:
            raise UserError(f"--tasks: unknown task {name!r}; see evaluate.py --list")
    found = []
    for name in names or TASKS:
        path = Path(cfg.data) / f"{name}.jsonl"
        if path.exists():
            for row in load_rows(name, path)[0]:
                found.append((name, row["id"], row.get("text") or row["query"]))
        elif names:
            raise UserError(f"--tasks: no {path}; python evaluate.py prepare {name} SOURCE")
    if not found:
        raise UserError(f"--data {cfg.data}: no TASK.jsonl in it; see evaluate.py --list")
    return found


def best_matches(items, files):
    """{item: (overlap, whole, stretch, "file:line")}: the document that covers most of each."""
    index, best = make_index([text for _, _, text in items]), {}
    size = sum(Path(path).stat().st_size for path in files)
    with tqdm(total=size, desc="searching", unit="B", unit_scale=True) as bar:
        for path in files:
            for line, row in read_jsonl(path, {}):
                text = training_text(row, f"{path}:{line}")
                for item, (share, whole, stretch) in find(index, text).items():
                    if (share, whole) > best.get(item, (0.0, False))[:2]:
                        best[item] = share, whole, stretch, f"{path}:{line}"
                bar.update(len(text))
    return best


def main(argv):
    cfg = parse(Config, argv)
    check_range(cfg, ("threshold",))
    files = [path.strip() for path in cfg.train.split(",") if path.strip()]
    if not files:
        raise UserError("--train: name a training file, or several with commas")
    for path in files:
        if not Path(path).is_file():
            raise UserError(f"--train: {path}: no such file")
    items = read_items(cfg)
    best = best_matches(items, files)
    counts, matches = {}, []
    for number, (name, row, text) in enumerate(items):
        count = counts.setdefault(name, Counter())
        count["items"] += 1
        count["too_short"] += len(words(text)) < SHORTEST
        if number not in best:
            continue
        share, whole, stretch, where = best[number]
        count["matched"] += 1
        count["exact"] += whole
        count["contaminated"] += 100 * share > cfg.threshold
        matches.append({"task": name, "id": row, "where": where, "overlap": round(100 * share, 2),
                        "exact": whole, "stretch": stretch})  # fmt: skip
    out = Path(cfg.out_dir)
    out.mkdir(parents=True, exist_ok=True)
    write_jsonl(out / "matches.jsonl", sorted(matches, key=lambda m: -m["overlap"]))
    keys = ("items", "too_short", "matched", "exact", "contaminated")
    result = {"train": files, "data": cfg.data, "gram": GRAM, "threshold": cfg.threshold,
              "tasks": {name: {key: count[key] for key in keys}
                        for name, count in counts.items()}}  # fmt: skip
    write_text(out / "contamination.json", json.dumps(result, indent=1) + "\n")
    print_table(counts, keys)
    print(f"\n{out}/contamination.json, matches.jsonl")


def print_table(counts, keys):
    """Items per task; contaminated also as a share of those that could be compared."""
    line = "{:<22}" + "{:>14}" * (len(keys) + 1)
    print(line.format("task", *(key.replace("_", " ") for key in keys), "share"))
    total = sum(counts.values(), Counter())
    for name, count in [*counts.items(), ("all", total)]:
        compared = max(1, count["items"] - count["too_short"])
        share = f"{100 * count['contaminated'] / compared:.3f}%"
        print(line.format(name, *(f"{count[key]:,}" for key in keys), share))
