"""Token files -> families, ready to be packed (packing.py); and a look at what is trained.

    python data.py show sample/data/sft.jsonl --tokenizer sample/base --row 3
    python data.py show out/demo/reward/pairs.jsonl --tokenizer out/demo/cpt_it

Every row is checked (jsonl.py) and encoded so that no text becomes a control token (tokenizer.py),
once, into memory-mapped files (token_files.py). Here it is used, or skipped and counted: rows in =
rows used + rows skipped by reason, always printed.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

import parallel
from config import UserError, check_range, parse
from jsonl import check_fields, ends_torn, read_jsonl
from kinds import KINDS, SEQUENCES
from packing import IGNORE, document, family
from token_files import encode_rows, tokenise
from tokenizer import Tokenizer

# ---- families -----------------------------------------------------------------------------------


def cut(starts, ends, max_length):
    """Where documents are cut that are longer than a row: (document, begin, end) of each chunk.

    starts, ends (R,): places of documents among the ids; the first id of each is not trained. A
    chunk trains the ids from begin to end, each id of a document once. The end token follows the
    true end only: else texts would seem to stop at multiples of max_length.
    """
    pieces = np.maximum(1, -(-(ends - starts - 1) // max_length))  # (R,)
    row = np.repeat(np.arange(len(starts)), pieces)
    piece = np.arange(len(row)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    begin = starts[row] + 1 + piece * max_length
    # A chunk of the end token alone would teach that a text ends at once: it takes one token more
    begin -= (piece > 0) & (begin == ends[row] - 1)
    end = np.where(np.append(np.diff(row) > 0, True), ends[row], np.append(begin[1:], 0))
    return row, begin, end


class FileFamilies:
    """The families of one token file, F of them, for packed rows of max_length tokens.

    A text that is longer than a row becomes several, each opened with BOS (without one: with the
    last token of the chunk before); a chat or a pair that is longer is skipped, never cut. Of a
    pair prompt, chosen and rejected count together, since they share a packed row (FinDAP's 2,048
    is for each of two sequences).

    rows      (F,) the training row of each family
    sizes     (F,) tokens that it fills; targets (F,) those that are trained
    skipped   {training row: why it is in no family}
    """

    def __init__(self, kind, tokens, max_length, bos_id):
        self.kind, self.tokens, self.bos_id = kind, tokens, bos_id
        self.ends = np.cumsum(tokens.lengths, dtype=np.int64)  # (S,)
        starts, step = self.ends - tokens.lengths, SEQUENCES[kind]
        starts, ends = starts[::step], self.ends[step - 1 :: step]  # (R,)
        if kind == "text":
            self.rows, self.begin, self.end = cut(starts, ends, max_length)
        else:
            self.rows, self.begin, self.end = np.arange(len(starts)), starts + 1, ends
        self.sizes = self.targets = self.end - self.begin
        too_long = self.sizes > max_length, f"longer than {max_length} tokens"
        if kind == "text":
            reasons = [(self.sizes < 1, "without a token")]
        elif kind == "chat":
            self.targets = self.sizes * 0
            if len(starts):  # the first token is trained in no chat
                self.targets = np.add.reduceat(tokens.trained, starts, dtype=np.int64)
            reasons = [too_long, (self.targets < 1, "without a trained token")]
        else:
            self.targets = ends - self.ends[::3]
            reasons = [(self.equal(), "with chosen and rejected of the same tokens"), too_long]
        self.skipped, unused = {}, np.zeros(len(self.rows), dtype=bool)
        for mask, reason in reasons:
            self.skipped |= dict.fromkeys(self.rows[mask & ~unused].tolist(), reason)
            unused |= mask
        for name in ("rows", "begin", "end", "sizes", "targets"):
            setattr(self, name, getattr(self, name)[~unused])

    def sequences(self, row):
        """[(ids (n,), trained (n,))] of a training row: one, or prompt, chosen and rejected."""
        step = SEQUENCES[self.kind]
        places = self.ends[row * step : (row + 1) * step]
        spans = zip(
            places - self.tokens.lengths[row * step : (row + 1) * step], places, strict=True
        )
        return [(self.tokens.ids[a:z], self.tokens.trained[a:z]) for a, z in spans]

    def equal(self):
        """Pairs whose chosen and rejected are of the same ids (R,): two words that the vocabulary
        lacks may both be <unk>."""
        alike = self.tokens.lengths[1::3] == self.tokens.lengths[2::3]
        for row in np.flatnonzero(alike).tolist():
            _, (chosen, _), (rejected, _) = self.sequences(row)
            alike[row] = np.array_equal(chosen, rejected)
        return alike

    def family(self, i):
        """Family i as segments, copied from the file."""
        if self.kind == "pair":
            prompt, *replies = (ids for ids, _ in self.sequences(self.rows[i]))
            return family(prompt, replies)
        here = slice(self.begin[i] - 1, self.end[i])
        ids = self.tokens.ids[here].astype(np.int32)
        if self.kind == "chat":
            return document(ids, self.tokens.trained[here])
        if self.bos_id is not None:
            ids[0] = self.bos_id
        return document(ids)


class Families(Sequence):
    """Families of several token files, in an order; each is read when it is asked for.

    which (F,): their numbers, counted through the files one after the other; None = all.
    sizes, targets (F,): tokens that a family fills, and trained ones of them.
    """

    def __init__(self, files, which=None):
        self.files = files
        counts = [len(file.sizes) for file in files]
        self.starts = np.cumsum([0, *counts])  # number of each file's first family
        self.which = np.arange(self.starts[-1]) if which is None else which
        nothing = [np.zeros(0, dtype=np.int64)]
        self.sizes = np.concatenate([*(f.sizes for f in files), *nothing])[self.which]
        self.targets = np.concatenate([*(f.targets for f in files), *nothing])[self.which]

    def __len__(self):
        return len(self.which)

    def __getitem__(self, i):
        if isinstance(i, slice):
            return self.take(np.arange(len(self))[i])
        number = self.which[i]
        file = np.searchsorted(self.starts, number, side="right") - 1
        return self.files[file].family(number - self.starts[file])

    def take(self, order):
        """These of the families, in this order; the same one may be there several times."""
        return Families(self.files, self.which[np.asarray(order, dtype=np.int64)])

    def __add__(self, other):
        later = other.which + self.starts[-1]
        return Families(self.files + other.files, np.concatenate([self.which, later]))


# ---- files --------------------------------------------------------------------------------------


@dataclass
class Counts:
    """rows = used + skipped by reason; tokens and trained tokens of what is used."""

    name: str
    rows: int = 0
    used: int = 0
    tokens: int = 0
    trained: int = 0
    skipped: dict = field(default_factory=dict)  # reason -> ["file:line", ...]

    def __str__(self):
        lost = sum(map(len, self.skipped.values()))
        assert self.rows == self.used + lost, (self.rows, self.used, lost)
        text = f"{self.name}: {self.rows:,} rows = {self.used:,} used + {lost:,} skipped"
        for reason, places in self.skipped.items():
            more = ", ..." if len(places) > 5 else ""
            text += f" [{len(places):,} {reason}: {', '.join(places[:5])}{more}]"
        return f"{text}; {self.tokens:,} tokens, {self.trained:,} trained"


def load(kind, paths, tokenizer, max_length, max_skipped=0.05, token_cache=""):
    """Files (comma separated, or a list) -> (Families, Counts); the counts are printed.

    token_cache: folder of token files; "" = tokenised in memory. UserError on a bad row, if there
    is none, or if more than max_skipped of them are left out.
    """
    paths = paths.split(",") if isinstance(paths, str) else map(str, paths)
    paths = [path.strip() for path in paths if path.strip()]
    if not paths:
        raise UserError("the list of training files is empty: name one, or several with commas")
    counts, files = Counts(", ".join(paths)), []
    for path in paths:
        tokens = tokenise(kind, path, tokenizer, token_cache)
        files.append(found := FileFamilies(kind, tokens, max_length, tokenizer.bos_id))
        counts.rows += len(tokens.lines)
        if ends_torn(path):
            parallel.print0(f"{path}: incomplete last line, left out: was its writer stopped?")
        counts.used += len(tokens.lines) - len(found.skipped)
        for row, reason in sorted(found.skipped.items()):
            counts.skipped.setdefault(reason, []).append(f"{path}:{tokens.lines[row]}")
    families = Families(files)
    counts.tokens, counts.trained = int(families.sizes.sum()), int(families.targets.sum())
    parallel.print0(counts)
    if not counts.rows:
        raise UserError(f"{counts.name}: holds no rows")
    lost = counts.rows - counts.used
    if not counts.used or lost > max_skipped * counts.rows:
        raise UserError(f"{counts.name}: {lost} of {counts.rows} rows cannot be used; at most "
                        f"{max_skipped:.0%} may be skipped")  # fmt: skip
    return families, counts


def load_text(*args, **settings):
    """load of {"text"} rows: a family per document, or per chunk of a long one."""
    return load("text", *args, **settings)


def load_chat(*args, **settings):
    """load of {"messages"} rows: a family per conversation."""
    return load("chat", *args, **settings)


def load_pairs(*args, **settings):
    """load of preference rows: a family [prompt, chosen, rejected] a pair."""
    return load("pair", *args, **settings)


# ---- python data.py show -------------------------------------------------------------------------


def marked(ids, trained, tokenizer, colour):
    """Decoded ids with control tokens visible; trained stretches green, or in brackets."""
    open_mark, close_mark = ("\033[32m", "\033[0m") if colour else ("⟦", "⟧")
    text, start = "", 0
    for i in range(1, len(ids) + 1):
        if i == len(ids) or trained[i] != trained[start]:
            piece = tokenizer.decode(ids[start:i], skip_special=False)
            text += f"{open_mark}{piece}{close_mark}" if trained[start] else piece
            start = i
    return text


def sequences_of(members):
    """A family as the sequences a model sees: (ids, trained) of each segment without children."""
    parents = {s.parent for s in members}
    for segment in (s for i, s in enumerate(members) if i not in parents):
        before = members[segment.parent].input_ids.tolist() if segment.parent >= 0 else []
        labels = segment.labels.tolist()
        following = [*segment.input_ids.tolist()[1:], None]
        ids = [n if label == IGNORE else label for n, label in zip(following, labels, strict=True)]
        ids = [*before, int(segment.input_ids[0]), *ids]
        trained = [False] * (len(before) + 1) + [label != IGNORE for label in labels]
        yield (ids, trained) if ids[-1] is not None else (ids[:-1], trained[:-1])


@dataclass
class Show:
    tokenizer: str = "sample/base"  # checkpoint folder whose tokenizer and chat format are used
    row: int = 1  # line of the file
    max_length: int = 8192  # tokens per packed row: longer texts are cut into chunks


def show(path, cfg):
    """Print one row as training sees it."""
    check_range(cfg, ("max_length",))
    tokenizer = Tokenizer(cfg.tokenizer)
    row = next((row for line, row in read_jsonl(path, {}) if line == cfg.row), None)
    if row is None:
        raise UserError(f"{path}: has no row on line {cfg.row}")
    kind = "chat" if "messages" in row else "pair" if "chosen" in row else "text"
    check_fields(row, KINDS[kind][0], where := f"{path}:{cfg.row}")
    tokens = encode_rows(kind, [row], [cfg.row], path, tokenizer)
    found = FileFamilies(kind, tokens, cfg.max_length, tokenizer.bos_id)
    if found.skipped:
        return print(f"{where}: skipped, {found.skipped[0]}")
    shown = (sequence for members in Families([found]) for sequence in sequences_of(members))
    for i, (ids, trained) in enumerate(shown):
        name = ("chosen", "rejected")[i] if kind == "pair" else f"document {i + 1}"
        ends = [k for k, token in enumerate(ids) if token == tokenizer.turn_end_id]
        bos = [k for k, token in enumerate(ids) if token == tokenizer.bos_id]
        print(f"{where} {name}: {len(ids)} ids, {sum(trained)} trained; BOS at {bos};", end=" ")
        print(f"turn ends at {ends}, trained {[k for k in ends if trained[k]]}")
        print(marked(ids, trained, tokenizer, colour=sys.stdout.isatty()) + "\n")


def main(words):
    if {"-h", "--help"} & {*words}:
        parse(Show, ["--help"])
    if len(words) < 2 or words[0] != "show":
        raise UserError("usage: python data.py show FILE --tokenizer DIR --row LINE; see --help")
    show(words[1], parse(Show, words[2:]))


if __name__ == "__main__":
    with parallel.clean_exit():
        main(sys.argv[1:])
