"""Exercises out of book text, word for word: a judge finds them, and nothing it invents is kept.

    python curate.py exercises --data out/books.jsonl --out out/prompts.jsonl --base_url URL ...
    python reward.py sample --prompts out/prompts.jsonl

    document -> passages -> lists of equal length (FinDAP's form, arXiv:2501.04961) -> one row each:
    {"id", "source", "prompt", "answer", "questions", "scenario", "exhibit", "answer_choices",
     "where"}

What is written stands in the source, letter by letter and with its white space (passages.py).

OUT.jsonl           the exercises
OUT.dropped.jsonl   documents without any
OUT.rejected.jsonl  exercises that are not kept, and passages without a valid reply, of all
OUT.counts.json     documents, passages and exercises by what became of them
"""

import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from config import UserError, check_range
from corpus import Pass, beside
from jsonl import read_jsonl, sha
from logs import tally
from overlap import words
from passages import passages, place_of
from quality import REFUSED, Reading, check_reading, open_judge, plain
from text_prompts import LISTS

SHORTEST = 500  # characters of a passage
COLUMNS = ("questions", "scenario", "exhibit", "answer_choices", "answer")
PASSAGES = ("with exercises", "without", "invalid", REFUSED)


@dataclass
class Exercises(Reading):
    passage: int = 8000  # characters of a document that are read at once
    max_tokens: int = 4096  # longest reply


# ---- one passage --------------------------------------------------------------------------------


def listed(parsed):
    """The exercises of a reply, each {column: what the judge says}."""
    found = []
    for entries in zip(*(parsed[name] for name in LISTS), strict=True):
        exercise = dict(zip(COLUMNS, entries, strict=True))
        if isinstance(exercise["answer_choices"], str):
            exercise["answer_choices"] = [exercise["answer_choices"]]
        found.append(exercise)
    return found


def row_of(text, place, source, where):
    """The row of an exercise, each part cut out of the text at its place."""

    def cut(span):
        return text[slice(*span)] if span else ""

    choices = "\n".join(map(cut, place.choices))
    parts = [*map(cut, (place.scenario, place.exhibit, place.question)), choices]
    prompt = "\n\n".join(filter(None, parts))
    return {"id": sha(" ".join(words(prompt)))[:16], "source": source, "prompt": prompt,
            "answer": cut(place.answer), "questions": cut(place.question),
            "scenario": cut(place.scenario), "exhibit": cut(place.exhibit),
            "answer_choices": choices, "where": where}  # fmt: skip


# ---- one document -------------------------------------------------------------------------------


class Book:
    """What becomes of a document: its exercises in the order of the text, and what is not kept."""

    def __init__(self, text, where, source):
        self.text, self.where, self.source = text, where, source
        self.rows, self.rejected = {}, []  # rows by where their questions begin
        self.passages = Counter()
        self.found = 0

    def reject(self, reason, **more):
        self.rejected.append({"where": self.where, "reason": reason, **more})

    def read(self, start, end, verdict):
        """Take the exercises out of a passage of which the judge has said something."""
        if verdict is None:  # nothing but control characters
            word = "without"
        elif "detail" in verdict:
            word = REFUSED
            self.reject(REFUSED, passage=[start, end], detail=verdict["detail"])
        elif not verdict["parsed"]:
            word = "invalid"
            self.reject("no valid reply", passage=[start, end], detail=verdict["reason"])
        else:
            exercises = listed(verdict["parsed"])
            word = "with exercises" if exercises else "without"
            for exercise in exercises:
                self.take(start, end, exercise)
        self.passages[word] += 1

    def take(self, start, end, exercise):
        """One exercise. Of the same question in two passages the longer form is taken: in the other
        one it may be cut off."""
        self.found += 1
        passage = self.text[start:end]
        place, reason = place_of(passage, exercise)
        if reason:
            self.reject(reason, passage=[start, end], **exercise)
            return
        at, row = start + place.question[0], row_of(passage, place, self.source, self.where)
        if had := self.rows.get(at):
            had, row = sorted((had, row), key=lambda row: len(row["prompt"]))
            self.reject("duplicate", **had)
        self.rows[at] = row

    def kept(self, seen):
        """The rows whose ids were not seen, which they are then."""
        kept = []
        for _, row in sorted(self.rows.items()):
            if row["id"] in seen:
                self.reject("duplicate", **row)
            else:
                seen.add(row["id"])
                kept.append(row)
        return kept

    def without(self):
        """Why a document of which no row is kept is dropped."""
        if not self.passages:
            return "empty"
        if self.found:
            return "none of its exercises is kept"
        words = {"invalid": "no valid reply", REFUSED: REFUSED}
        return next((words[word] for word in words if self.passages[word]), "holds no exercise")


# ---- all documents ------------------------------------------------------------------------------


def exercises(cfg):
    """The exercises that documents hold -> OUT.jsonl, as prompts with their reference answers."""
    check_reading(cfg)
    check_range(cfg, ("passage",), ())
    if cfg.passage < SHORTEST:
        raise UserError(f"--passage must be at least {SHORTEST} characters")
    todo = Pass(cfg)
    todo.counts.setdefault("passages", dict.fromkeys(PASSAGES, 0))
    todo.counts.setdefault("exercises", {"kept": 0})
    rejected, seen = beside(todo.out, ".rejected.jsonl"), None
    with open_judge(cfg, todo, "exercises") as read:
        for block in todo.blocks():
            if seen is None:  # by now the pass has cut its files back to what it had noted
                seen = taken_up(todo, rejected)
            books = [book_of(row, where) for where, row in block]
            spans = [passages(book.text, cfg.passage) if book else [] for book in books]
            asked = list(zip(block, books, spans, strict=True))
            texts = [book.text[slice(*span)] for _, book, found in asked for span in found]
            verdicts, lines = read(dict.fromkeys(texts)), []
            for (where, _), book, found in asked:
                if book is None:
                    todo.unreadable(where, "holds no text")
                    continue
                for span in found:
                    book.read(*span, verdicts[book.text[slice(*span)]])
                lines += put(todo, book, seen)
            write_lines(rejected, lines)
    if (partial := Path(f"{rejected}.partial")).exists():
        cut_back(todo, partial)
        partial.replace(rejected)
    tally("passages", Counter(todo.counts["passages"]), PASSAGES[:2])
    tally("exercises", Counter(todo.counts["exercises"]), ["kept"])


def book_of(row, where):
    """A row's document, None if it has none."""
    if not isinstance(text := row.get("text"), str):
        return None
    return Book(plain(text), where, str(row.get("source") or row.get("url") or ""))


def put(todo, book, seen):
    """Keep a document's exercises or drop it, and count. Returns what is rejected of it."""
    kept = book.kept(seen)
    todo.keep(*kept) if kept else todo.drop(book.where, book.without())
    for word, number in book.passages.items():
        todo.counts["passages"][word] += number
    counts = todo.counts["exercises"]
    counts["kept"] += len(kept)
    for record in book.rejected:
        if "questions" in record:
            counts[record["reason"]] = counts.get(record["reason"], 0) + 1
    return book.rejected


# ---- what a stopped run had written -------------------------------------------------------------


def taken_up(todo, rejected):
    """Cut the rejected back, too; ids of the rows that were written by then."""
    cut_back(todo, Path(f"{rejected}.partial"))
    return {row["id"] for _, row in read_jsonl(Path(f"{todo.out}.partial"), {"id": str})}


def cut_back(todo, partial):
    """Leave of the rejected as many lines as are counted."""
    counts = todo.counts
    lines = sum(counts["exercises"].values()) - counts["exercises"]["kept"]
    lines += counts["passages"]["invalid"] + counts["passages"][REFUSED]
    with open(partial, "ab+") as file:
        file.seek(0)
        sizes = [len(line) for _, line in zip(range(lines), file, strict=False)]
        if len(sizes) < lines:
            raise UserError(f"{partial}: is shorter than {todo.progress} says; delete both")
        file.truncate(sum(sizes))


def write_lines(rejected, records):
    """Append, and be sure that it is on the disk before the pass notes that it is."""
    with open(f"{rejected}.partial", "ab") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
