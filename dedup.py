"""Exact and near duplicates: a row is dropped if an earlier row that was kept is its copy.

    python curate.py dedup --data out/web.jsonl --out out/web_once.jsonl
    python curate.py dedup --data a.jsonl,b.parquet --out out/once.jsonl --no-near

exact duplicate   the same words, numbers and signs (+ - * / = < > ^ %) in the same order; case,
                  other punctuation and spaces do not count
near duplicate    Jaccard similarity J = |A & B| / |A | B| of the two sets of word n-grams reaches
                  --threshold; a text of fewer words has itself as its only n-gram

OUT.dropped.jsonl names the kept row (`of`, the first that is alike) and their J (`jaccard`).

Pairs to compare are found by MinHash (Broder 1997) in bands. Of a hash function's values over a set
the smallest is kept; that of two sets' union lies in both of them with P = J, so P(two minima
agree) = J. The b * r minima of a row are b bands of r; rows that agree in a whole band are compared
on all their n-grams, so nothing is dropped by an estimate:

    P(compared) = 1 - (1 - J^r)^b        0.991 at J = 0.8, 0.15 at 0.5, 0.004 at 0.3 (b 20, r 7)

b and r are such that this is at least 0.99 at the threshold itself. h(x) = (a x + b mod 2^64) >> 32
of 32 bits x, a and b of 64: strongly universal (Dietzfelbinger 1996), on n-grams that are hashed
already, where such functions act as random ones do (Mitzenmacher & Vadhan 2008).

The rows are read twice. First OUT.signatures gets a record of each (hash, bands) and OUT.shingles
its n-grams, 8 bytes a word; from these OUT.copies.npy says of what each row is a copy; then OUT is
written. Memory: some 100 bytes a row, and as many for each band that it shares with another row.
Texts of one form with J just below the threshold are all compared with each other: 4 us a pair.
"""

import functools
import hashlib
import math
import os
import re
import unicodedata
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from tqdm import tqdm

from config import UserError, check_range
from contamination import training_text
from corpus import Pass, Rows, beside
from overlap import BASE, hashes, words

RECALL = 0.99  # least share of the pairs at the threshold itself that are compared
MOST = 144  # minima of a row at most
LEAST = 0.3  # threshold: below it two minima make a band, or one, and most rows share some
WORKING = (".signatures.counts.json", ".signatures", ".shingles", ".copies.npy",
           ".signatures.progress.json", ".signatures.progress.json.tmp",
           ".signatures.lock")  # fmt: skip
# What makes a copy exact: words, and what changes a number or a formula. A hyphen counts beside a
# number or bracket and as a sign (-x), not between words; a point before a digit.
MINUS = r"-(?=\s?[\d.(])|(?<=[\d)])-|(?<=[\d)]\s)-|(?<![\w-])-(?=[^\W\d_])"
EXACT = re.compile(rf"[^\W_]+|[+*/=<>^%]|{MINUS}|\.(?=\d)")
PART = 512  # n-grams that are hashed at a time: with MOST functions they fit a cache


@dataclass
class Dedup(Rows):
    threshold: float = 0.8  # Jaccard similarity from which two texts are copies
    ngram: int = 5  # words in a row that are compared
    near: bool = True  # near duplicates, too; --no-near drops exact ones only


# A row's signature ------------------------------------------------------------------------------


def bands(threshold):
    """(b, r): the longest bands for which 1 - (1 - threshold^r)^b >= RECALL and b * r <= MOST."""
    found = []
    for r in range(1, MOST + 1):
        agree = threshold**r
        b = 1 if agree == 1 else math.ceil(math.log(1 - RECALL) / math.log1p(-agree))
        if b * r <= MOST:
            found.append((b, r))
    return found[-1]


def normal(text):
    """A text as its exact copies have it, too."""
    return " ".join(EXACT.findall(unicodedata.normalize("NFKC", text).lower()))


@functools.lru_cache(1 << 16)
def word_id(word):
    """64 bits, the same in every process."""
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def shingles_of(found, n):
    """Sorted hashes of the different n-grams of words (W,) -> (S,), S > 0."""
    ids = np.fromiter(map(word_id, found), np.uint64, len(found))
    return np.unique(hashes(ids, min(n, len(ids))))


@functools.cache
def functions(count):
    """a, b (count, 1) of so many hash functions, fixed for all time."""
    drawn = hashlib.shake_128(b"minhash").digest(16 * count)
    return np.frombuffer(drawn, "<u8").astype(np.uint64).reshape(2, count, 1)


def minima(shingles, count):
    """Smallest value of each of `count` functions over shingles (S,) -> (count,), 32 bits each."""
    a, b = functions(count)
    x, out = shingles >> np.uint64(32), np.full(count, 2**64 - 1, dtype=np.uint64)
    for start in range(0, len(x), PART):
        np.minimum(out, (a * x[start : start + PART] + b).min(axis=1), out=out)
    return out >> np.uint64(32)


def band_keys(values, b, r):
    """One number for each band of minima (b * r,) -> (b,)."""
    keys = np.zeros(b, dtype=np.uint64)
    for column in values.reshape(b, r).T:
        keys = keys * BASE + column
    return keys


# First pass: signatures -------------------------------------------------------------------------


class Signatures(Pass):
    """A pass that writes a record and the n-grams of every row with a text, instead of rows.

    Rows that cannot be read have none: record i is of the row that i such rows stand before.
    """

    def __init__(self, cfg):
        super().__init__(replace(cfg, out=str(beside(Path(cfg.out), ".signatures.jsonl"))))
        self.out, self.dropped = (beside(Path(cfg.out), e) for e in (".signatures", ".shingles"))
        self.bands, self.rows = bands(cfg.threshold) if cfg.near else (0, 0)
        longest = max(len(str(path).encode()) for path in self.files) + 24
        self.record = np.dtype([
            ("exact", "<u8", 2),  # hash of all words
            ("end", "<i8"),  # place behind its last n-gram in .shingles
            ("bands", "<u8", (self.bands,)),
            ("where", f"S{longest - longest % -8}"),  # numbers lie at multiples of their size
        ])  # fmt: skip

    def run(self):
        for block in self.blocks():
            for where, row in block:
                try:
                    said = training_text(row, where)
                except UserError as e:  # a row of no kind that is trained on
                    self.unreadable(where, e)
                    continue
                self.keep(where, said)

    def keep(self, where, said):
        """The record of one row, of what it says."""
        record = np.zeros((), dtype=self.record)
        whole = hashlib.blake2b(normal(said).encode(), digest_size=16).digest()
        record["exact"] = np.frombuffer(whole, "<u8")
        record["where"] = where.encode()
        if self.bands:
            shingles = shingles_of(words(said), self.cfg.ngram)
            values = minima(shingles, self.bands * self.rows)
            record["bands"] = band_keys(values, self.bands, self.rows)
            self.handles[1].write(shingles.astype("<u8").tobytes())
            record["end"] = self.handles[1].tell() // 8
        self.handles[0].write(record.tobytes())
        self.counts["used"] += 1

    def drop(self, where, reason, **more):
        dropped = self.counts["dropped"]
        dropped[reason] = dropped.get(reason, 0) + 1

    def report(self):
        """Nothing: there is a second pass to come."""

    def load(self):
        """(R,) records, n-grams of all."""
        return mapped(self.out, self.record), mapped(self.dropped, np.dtype("<u8"))


def mapped(path, dtype):
    """The array that a file holds, read from it where it is used."""
    return np.asarray(np.memmap(path, dtype, "r")) if path.stat().st_size else np.zeros(0, dtype)


# Who is a copy of whom --------------------------------------------------------------------------


def first_equal(exact):
    """(R, 2) hashes -> (R,) the first row that has the same."""
    order = np.lexsort((exact[:, 1], exact[:, 0]))  # stable: equal ones stay in order
    new = np.ones(len(order), dtype=bool)
    new[1:] = (exact[order[1:]] != exact[order[:-1]]).any(axis=1)
    out = np.empty_like(order)
    out[order] = order[new][np.cumsum(new) - 1]
    return out


def shared_buckets(keys, rows):
    """Rows (U,) that have a band's key in common with another, keys (R, b).

    (P,) rows in order, (P,) numbers of their buckets: one of each for each such band.
    """
    members, buckets, count = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
    for k in range(keys.shape[1]):
        own = keys[:, k][rows]  # (U,)
        order = np.argsort(own, kind="stable")
        same = np.diff(own[order]) == 0
        number = np.cumsum(np.append(True, ~same)) + count
        inside = np.append(same, False) | np.append(False, same)
        members.append(rows[order[inside]])
        buckets.append(number[inside])
        count = number[-1]
    members, buckets = np.concatenate(members), np.concatenate(buckets)
    order = np.argsort(members, kind="stable")
    return members[order], buckets[order]


def similarity(x, y):
    """Jaccard similarity of two sorted sets."""
    both = np.concatenate([x, y])
    both.sort(kind="stable")  # merges what is sorted already
    common = int((both[1:] == both[:-1]).sum())
    return common / (len(both) - common)


def find_copies(records, shingles, threshold):
    """Of each of R rows: the kept row of which it is a copy (itself if kept), and their Jaccard."""
    copies = np.zeros(len(records), [("of", "<i8"), ("jaccard", "<f8")])
    copies["jaccard"] = 1
    if not len(records):
        return copies
    first = first_equal(records["exact"])
    of, jaccard, kept = np.arange(len(records)), copies["jaccard"], {}  # kept: bucket -> rows
    rows = np.flatnonzero(first == of)  # (U,) different texts
    members, buckets = shared_buckets(records["bands"], rows)
    edges = np.append(np.flatnonzero(np.diff(members, prepend=-1)), len(members))
    ends = np.append(0, records["end"])
    bar = tqdm(pairwise(edges), "comparing", total=len(edges) - 1, mininterval=1, delay=2)
    for start, stop in bar:
        row, own = int(members[start]), buckets[start:stop].tolist()
        mine = shingles[ends[row] : ends[row + 1]]
        for other in sorted(set().union(*(kept.get(bucket, ()) for bucket in own))):
            theirs = shingles[ends[other] : ends[other + 1]]
            small, large = sorted((len(mine), len(theirs)))
            if small / large < threshold:  # not even if one holds the other
                continue
            if (alike := similarity(mine, theirs)) >= threshold:
                of[row], jaccard[row] = other, alike
                break
        else:
            for bucket in own:
                kept.setdefault(bucket, []).append(row)
    # What equals a near duplicate is as near to the same row
    copies["of"], copies["jaccard"] = of[first], jaccard[first]
    return copies


def load_copies(path, records, shingles, threshold):
    """find_copies, or what a stopped run found."""
    if not path.exists():
        with open(f"{path}.tmp", "wb") as file:
            np.save(file, find_copies(records, shingles, threshold))
            file.flush()
            os.fsync(file.fileno())
        Path(f"{path}.tmp").replace(path)
    return np.load(path, mmap_mode="r")


# The step ---------------------------------------------------------------------------------------


def dedup(cfg):
    """Keep the first of rows that are alike."""
    check_range(cfg, ("ngram",))
    if not LEAST <= cfg.threshold <= 1:
        raise UserError(f"--threshold must be from {LEAST} to 1, not {cfg.threshold}")
    todo, copies = Pass(cfg), None
    found = beside(todo.out, ".copies.npy")
    if not todo.done:
        signatures = Signatures(cfg)
        if not signatures.done:
            found.unlink(missing_ok=True)  # may be of signatures that someone deleted
            signatures.run()
        records, shingles = signatures.load()
    for block in todo.blocks():
        if copies is None:  # only now: blocks() keeps other runs away
            copies = load_copies(found, records, shingles, cfg.threshold)
        for where, row in block:
            decide(todo, where, row, records, copies)
    for ending in WORKING:
        beside(todo.out, ending).unlink(missing_ok=True)


def decide(todo, where, row, records, copies):
    """Keep or drop one row."""
    try:
        training_text(row, where)
    except UserError as e:
        return todo.unreadable(where, e)
    dropped = todo.counts["dropped"]
    i = todo.counts["used"] + sum(dropped.values()) - dropped.get("unreadable", 0)
    if i >= len(records) or records["where"][i].decode() != where:
        raise UserError(f"{where}: is not where it was when {todo.out.stem}.signatures was made; "
                        "delete that, and its .counts.json")  # fmt: skip
    if (kept := int(copies["of"][i])) == i:
        return todo.keep(row)
    exact = (records["exact"][i] == records["exact"][kept]).all()
    reason = "exact duplicate" if exact else "near duplicate"
    alike = round(float(copies["jaccard"][i]), 4)
    todo.drop(where, reason, of=records["where"][kept].decode(), jaccard=alike)
