"""Does a training file hold what the tasks ask? 10-gram matches, then overlap of characters.

    python evaluate.py contamination --train web.jsonl,chat.jsonl --data out/data

As FinDAP did (arXiv:2501.04961): an item and a training row that share ten words in a row are
compared, and the item is contaminated if what one row shares with it covers more than half of its
characters. Two readings of an item are compared, and the larger overlap counts:

    question    the row's own `text`: a sentence, a question, the evidence from a filing (its query
                where it has none); not the instruction, which is the same in every row
    + answer    the same with the answer behind it: label, text of the option, filler of the blank

Ten words that more than a tenth of a task's items hold (a template, an instruction) belong to the
task, not to the item: they are no match, and their characters do not count. In tables written as
sentences (credit, fraud) what is left is still much alike: overlaps say little there. Questions
under ten words are looked for whole and counted apart, since they stand in many texts by chance;
under five words they would be found anywhere and are looked for with their answers only.

OUT_DIR/contamination.json   counts per task and per training file
OUT_DIR/matches.jsonl        per item with a match: overlaps in percent, the training row that
                             covers most of it, their longest shared stretch; the worst item first
"""

import difflib
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from config import UserError, check_range, parse
from jsonl import read_jsonl, write_jsonl, write_text
from overlap import GRAM, find, longest, make_index, words
from rows import load_rows
from tasks import TASKS

BLOCK = 200_000  # characters of training text that are searched together
COLUMNS = ("items", "exact", "matched", "contaminated", "short", "short_found")
FIELDS = ("text", "messages", "prompt", "prefix", "chosen", "rejected", "completion", "query",
          "answer", "solution")  # fmt: skip


@dataclass
class Config:
    train: str = ""  # training files with commas: texts, chats, pairs, prompts with completions
    data: str = "out/data"  # directory of TASK.jsonl files
    tasks: str = ""  # names with commas; empty = all that have data
    out_dir: str = "out/contamination"  # gets contamination.json and matches.jsonl
    threshold: float = 50.0  # percent of an item's characters above which it is contaminated


# Rows of either side ----------------------------------------------------------------------------


def training_text(row, where):
    """All that a training row says, as one text."""
    said = []
    for part in map(row.get, FIELDS):
        if isinstance(part, str):
            said.append(part)
        elif isinstance(part, list):
            said += [str(message.get("content") or "") for message in part
                     if isinstance(message, dict)]  # fmt: skip
    if not said:
        raise UserError(f"{where}: holds no text: needs text, messages, query, or prompt with "
                        f"chosen or completion; it has {', '.join(list(row)[:8])}")  # fmt: skip
    return "\n".join(said)


def item_texts(task, row):
    """(question, answer) of an evaluation row, as a text that holds the item would say them."""
    question, answer = row.get("text") or row["query"], row.get("answer", "")
    if task.answer == "blank":
        return question.replace("_", answer), ""
    if task.answer == "chat":
        return "\n".join(row.get("turns") or [question]), answer
    if task.answer == "letter":  # a text does not say "B", it says what B is
        option = re.search(rf"^{re.escape(answer)}[.:)] *(.+)$", row["query"], re.M)
        return question, option[1] if option else answer
    return question, answer


def read_items(data, tasks="", flag="--data"):
    """[(task, row id, question, answer)] of the tasks that have data. UserError if none has.

    data: folder of TASK.jsonl files, from the setting that `flag` names; tasks: names with commas.
    """
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    for name in names:
        if name not in TASKS:
            near = difflib.get_close_matches(name, TASKS, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else "see evaluate.py --list"
            raise UserError(f"--tasks: unknown task {name!r}; {hint}")
    found = []
    for name in dict.fromkeys(names) or TASKS:
        path = Path(data) / f"{name}.jsonl"
        if path.exists():
            for row in load_rows(name, path)[0]:
                found.append((name, row["id"], *item_texts(TASKS[name], row)))
        elif names:
            raise UserError(f"--tasks: no {path}; python evaluate.py prepare {name} SOURCE")
    if not found:
        raise UserError(f"{flag} {data}: no TASK.jsonl in it; see evaluate.py --list")
    return found


# The search -------------------------------------------------------------------------------------


class Search:
    """What a pass over the training files has found so far, of I items."""

    def __init__(self, index, threshold):
        self.index = index
        self.threshold = threshold  # fraction
        self.overlap = np.zeros(len(index.starts))  # (I,) largest share that one row covers
        self.rows = np.zeros(len(index.starts), dtype=np.int64)  # (I,) rows that share GRAM words
        self.best = {}  # item -> (file:line, question, answered, exact, stretch) of the best row
        self.short = {}  # item -> "file:line", short questions found whole
        self.files = {}  # file -> Counter of its rows

    def block(self, path, lines, texts):
        """Search some rows of a training file, all at once."""
        pairs = find(self.index, texts)
        for item, row in pairs.short.items():
            self.short.setdefault(item, f"{path}:{lines[row]}")
        overlap = np.maximum(pairs.question, pairs.answered)
        count = self.files[path]
        count["rows"] += len(texts)
        count["matched"] += len(np.unique(pairs.row))
        count["contaminating"] += len(np.unique(pairs.row[overlap > self.threshold]))
        self.rows += np.bincount(pairs.item, minlength=len(self.rows))
        before = self.overlap.copy()
        np.maximum.at(self.overlap, pairs.item, overlap)
        # Of rows that cover all of it, one that holds the question in one piece is worth more
        new = (overlap > before[pairs.item]) | (overlap == 1)
        for i in np.flatnonzero(new & (overlap == self.overlap[pairs.item])).tolist():
            item, question, answered = int(pairs.item[i]), pairs.question[i], pairs.answered[i]
            had = self.best.get(item)
            if had and max(had[1:3]) == overlap[i] and (had[3] or overlap[i] < 1):
                continue
            exact, stretch = longest(self.index, pairs, i)
            if exact or not had or max(had[1:3]) < overlap[i]:
                where = f"{path}:{lines[pairs.row[i]]}"
                self.best[item] = where, float(question), float(answered), exact, stretch


def search_files(index, files, threshold):
    """A Search of all training files, block by block, with a bar over their bytes."""
    search, done = Search(index, threshold), 0
    total = sum(Path(path).stat().st_size for path in files)
    with tqdm(total=total, desc="searching", unit="B", unit_scale=True, mininterval=1) as bar:
        for path in files:
            search.files[path] = Counter(rows=0, matched=0, contaminating=0)
            lines, texts, size = [], [], 0
            for line, row in read_jsonl(path, {}):
                text = training_text(row, f"{path}:{line}")
                lines.append(line)
                texts.append(text)
                size += len(text)
                if size > BLOCK:
                    search.block(path, lines, texts)
                    bar.update(size)
                    lines, texts, size = [], [], 0
            if texts:
                search.block(path, lines, texts)
            done += Path(path).stat().st_size
            bar.update(done - bar.n)  # characters are fewer than bytes
    return search


# The report -------------------------------------------------------------------------------------


def counted(items, search):
    """({task: counts}, [lines of matches.jsonl])."""
    counts, matches = {}, []
    for number, (name, row, question, answer) in enumerate(items):
        asked = words(question)
        count = counts.setdefault(name, Counter(dict.fromkeys(COLUMNS, 0)))
        count["items"] += 1
        count["short"] += len(asked) < GRAM
        best, whole = search.best.get(number), search.short.get(number)
        match = {"task": name, "id": row}
        if best:
            where, share, with_answer, exact, stretch = best
            overlap = max(share, with_answer)
            count["matched"] += 1
            count["exact"] += exact
            count["contaminated"] += overlap > search.threshold
            stretch = " ".join((asked + words(answer))[slice(*stretch)])
            overlaps = {"overlap": overlap, "question": share, "with_answer": with_answer}
            match |= {"where": where} | {k: round(100 * v, 2) for k, v in overlaps.items()}
            match |= {"exact": exact, "rows": int(search.rows[number]), "stretch": stretch}
        if whole:
            count["short_found"] += 1
            match |= {"short_found": whole}
        if best or whole:
            matches.append(match)
    return counts, sorted(matches, key=lambda match: -match.get("overlap", 0))


def main(argv):
    cfg = parse(Config, argv)
    check_range(cfg, ("threshold",))
    files = list(dict.fromkeys(path.strip() for path in cfg.train.split(",") if path.strip()))
    if not files:
        raise UserError("--train: name a training file, or several with commas")
    for path in files:
        if not Path(path).is_file():
            raise UserError(f"--train: {path}: no such file")
    items = read_items(cfg.data, cfg.tasks)
    index = make_index([item[2:] for item in items], [name for name, *_ in items])
    search = search_files(index, files, cfg.threshold / 100)
    counts, matches = counted(items, search)
    out = Path(cfg.out_dir)
    out.mkdir(parents=True, exist_ok=True)
    write_jsonl(out / "matches.jsonl", matches)
    result = {"train": search.files, "data": cfg.data, "gram": GRAM, "threshold": cfg.threshold,
              "tasks": counts}  # fmt: skip
    write_text(out / "contamination.json", json.dumps(result, indent=1) + "\n")
    print_table(counts, search.files)
    print(f"\n{out}/contamination.json, matches.jsonl")


def print_table(counts, files):
    """Items per task: with a 10-gram match, contaminated, and the short questions found whole."""
    line = "{:<22}{:>9}{:>8}{:>10}{:>14}{:>9}{:>14}"
    print(line.format("task", "items", "exact", "10-gram", "contaminated", "", "short, found"))
    total = sum(counts.values(), Counter())
    for name, count in [*counts.items(), ("all", total)]:
        share = f"{100 * count['contaminated'] / count['items']:.3f}%"
        cells = (f"{count[key]:,}" for key in COLUMNS[:4])
        print(line.format(name, *cells, share, f"{count['short']:,}, {count['short_found']:,}"))
    for path, count in files.items():
        share = f"{100 * count['contaminating'] / max(1, count['rows']):.3f}%"
        print(f"{path}: {count['rows']:,} rows, {count['matched']:,} share ten words in a row with "
              f"an item, {count['contaminating']:,} ({share}) contaminate one")  # fmt: skip
