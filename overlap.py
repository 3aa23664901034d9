"""Which stretches of a text are also in one of many items: pure functions, numpy.

    index = make_index([("a question", "its answer"), ...])
    pairs = find(index, ["a text", ...])       what each text shares with each item

A text is its words: runs of letters and digits, in lower case. Items and texts are compared where
they share GRAM words in a row; what is shared is measured in characters of words. Memory grows with
the items, some 50 bytes a word, and not with what is searched.
"""

import re
import unicodedata
from dataclasses import dataclass
from itertools import repeat

import numpy as np

GRAM = 10  # words in a row that make two texts worth comparing
SHORTEST = 5  # words of a short question that is still looked for
SHARED = 0.1  # of the items of a group: above, ten words belong to the group, not to an item
BASE = np.uint64(0x9E3779B97F4A7C15)  # of the rolling hash, modulo 2^64
WORD = re.compile(r"[^\W_]+")


@dataclass
class Index:
    """Items to look for, I of them with W words.

    Word ids count from 1; 0 is every word that no item holds, and stands behind each item.
    """

    vocabulary: dict  # word -> id
    ids: np.ndarray  # (W + I,) words of all items, one after the other
    letters: np.ndarray  # (W + I + 1,) characters of the item's own words before a place
    starts: np.ndarray  # (I,) place of an item's first word
    answers: np.ndarray  # (I,) place where its question ends and its answer begins
    places: dict  # n -> (sorted hashes of n-grams, their places, filter of hashes)


@dataclass
class Pairs:
    """What texts share with items, P pairs of the two; shares of characters are fractions."""

    item: np.ndarray  # (P,)
    row: np.ndarray  # (P,) which of the texts
    question: np.ndarray  # (P,) share of the question that is covered
    answered: np.ndarray  # (P,) share of question and answer
    at: np.ndarray  # (H,) places of the shared n-grams in the texts, pair by pair
    place: np.ndarray  # (H,) their places in Index.ids
    first: np.ndarray  # (P + 1,) where the n-grams of a pair begin
    short: dict  # {item: the first text that holds it whole}, of short questions


def words(text):
    return WORD.findall(unicodedata.normalize("NFKC", text).lower())


def hashes(ids, n):
    """Hash of every n-gram of word ids (N,) -> (N - n + 1,)."""
    out = np.zeros(max(0, len(ids) - n + 1), dtype=np.uint64)
    for k in range(n):
        out = out * BASE + ids[k : k + len(out)]
    return out


def within(ids, n):
    """Whether an n-gram of (N,) ids lies inside one item: no 0 in it -> (N - n + 1,)."""
    zeros = np.concatenate([[0], np.cumsum(ids == 0)])
    return zeros[n:] == zeros[: max(0, len(zeros) - n)]


def cover(starts, n, size):
    """Places that n-grams beginning at `starts` cover -> (size,) bool."""
    edges = np.zeros(size + 1, dtype=np.int64)
    np.add.at(edges, starts, 1)
    np.add.at(edges, starts + n, -1)
    return np.cumsum(edges[:-1]) > 0


def make_index(items, groups=None):
    """Index of items (question, answer); groups: the task of each, whose items stand together.

    What more than SHARED of a group's items hold (and more than two) is not looked for.
    """
    vocabulary, ids, sizes, starts, answers = {}, [], [], [], []
    for question, answer in items:
        asked = words(question)
        starts.append(len(ids))
        answers.append(len(ids) + len(asked))
        for word in asked + words(answer):
            ids.append(vocabulary.setdefault(word, len(vocabulary) + 1))
            sizes.append(len(word))
        ids.append(0)
        sizes.append(0)
    ids, sizes = np.array(ids, dtype=np.uint32), np.array(sizes, dtype=np.int64)
    starts, answers = np.array(starts, dtype=np.int64), np.array(answers, dtype=np.int64)
    grams, inside = hashes(ids, GRAM), within(ids, GRAM)
    common = inside & shared_grams(grams, starts, groups or [""] * len(items))
    sizes[cover(np.flatnonzero(common), GRAM, len(ids))] = 0
    places = {GRAM: lookup(grams, np.flatnonzero(inside & ~common))}
    lengths = answers - starts
    for n in range(SHORTEST, GRAM):
        if len(short := starts[lengths == n]):
            places[n] = lookup(hashes(ids, n), short)
    letters = np.concatenate([[0], np.cumsum(sizes)])
    return Index(vocabulary, ids, letters, starts, answers, places)


def shared_grams(grams, starts, groups):
    """Which n-grams (G,) more than SHARED of the items of their group hold -> (G,) bool."""
    out = np.zeros(len(grams), dtype=bool)
    owners = np.searchsorted(starts, np.arange(len(grams)), side="right") - 1
    cuts = [i for i, name in enumerate(groups) if i == 0 or name != groups[i - 1]]
    for first, last in zip(cuts, [*cuts[1:], len(groups)], strict=True):
        end = starts[last] if last < len(groups) else len(grams)
        here, owner = grams[starts[first] : end], owners[starts[first] : end]
        order = np.lexsort((owner, here))
        # An item may hold the same words twice: it counts once
        once = np.concatenate([[True], (np.diff(owner[order]) != 0) | (np.diff(here[order]) != 0)])
        found, place = np.unique(here, return_inverse=True)
        holders = np.bincount(place[order], weights=once[: len(here)], minlength=len(found))
        out[starts[first] : end] = (holders > max(2, SHARED * (last - first)))[place]
    return out


def lookup(grams, places):
    """(sorted hashes, their places, filter): filter[top bits] is False for most other hashes."""
    order = np.argsort(grams[places], kind="stable")
    found = grams[places][order]
    bits = min(27, max(10, int(len(found)).bit_length() + 3))
    seen = np.zeros(1 << bits, dtype=bool)
    seen[found >> np.uint64(64 - bits)] = True
    return found, places[order], seen


def hits(index, ids, n):
    """n-grams that a text (N,) shares with items: (places in the text, places in index.ids)."""
    grams, places, seen = index.places[n]
    here = hashes(ids, n)
    at = np.flatnonzero(seen[here >> np.uint64(65 - len(seen).bit_length())])
    first = np.searchsorted(grams, here[at])
    count = np.searchsorted(grams, here[at], side="right") - first
    before = np.cumsum(count) - count
    place = places[np.repeat(first - before, count) + np.arange(count.sum())]
    at = np.repeat(at, count)
    same = np.ones(len(at), dtype=bool)
    for k in range(n):  # equal hashes are not yet equal words
        same &= index.ids[place + k] == ids[at + k]
    return at[same], place[same]


def word_ids(index, texts):
    """Texts as one row of ids (N,), each behind a 0, and where each begins."""
    known, parts, starts, size = index.vocabulary.get, [], [], 0
    for text in texts:
        found = words(text)
        parts += [(0,), np.fromiter(map(known, found, repeat(0)), np.uint32, len(found))]
        starts.append(size)
        size += 1 + len(found)
    return np.concatenate([*parts, ()]).astype(np.uint32), np.array(starts, dtype=np.int64)


def find(index, texts):
    """Pairs of items and texts that share GRAM words in a row, ordered by item, then by text."""
    ids, rows = word_ids(index, texts)
    short = {}
    for n in index.places.keys() - {GRAM}:
        at, place = hits(index, ids, n)
        items, first = np.unique(np.searchsorted(index.starts, place), return_index=True)
        found = np.searchsorted(rows, at[first], side="right") - 1
        short |= dict(zip(items.tolist(), found.tolist(), strict=True))
    at, place = hits(index, ids, GRAM)
    row = np.searchsorted(rows, at, side="right") - 1
    item = np.searchsorted(index.starts, place, side="right") - 1
    order = np.lexsort((place, row, item))
    at, place, row, item = at[order], place[order], row[order], item[order]
    new = np.ones(len(at), dtype=bool)
    new[1:] = (np.diff(item) != 0) | (np.diff(row) != 0)
    first = np.flatnonzero(new)  # of each pair
    # Places go up within a pair: an n-gram adds what lies beyond the one before
    begin = np.where(new, place, np.maximum(place, np.roll(place, 1) + GRAM))
    letters, stop = index.letters, index.answers[item]
    whole = letters[place + GRAM] - letters[begin]
    asked = letters[np.minimum(place + GRAM, stop)] - letters[np.minimum(begin, stop)]
    item, row = item[first], row[first]
    start, stop = letters[index.starts[item]], letters[index.answers[item]]
    end = letters[np.append(index.starts, len(index.ids))[item + 1]]
    whole, asked = np.add.reduceat(whole, first), np.add.reduceat(asked, first)
    question, answered = asked / np.maximum(1, stop - start), whole / np.maximum(1, end - start)
    return Pairs(item, row, question, answered, at, place, np.append(first, len(at)), short)


def longest(index, pairs, i):
    """Of pair i: (does the whole question stand there in one piece, the longest run of shared
    words as (first, last + 1) of the item's words)."""
    here, item = slice(pairs.first[i], pairs.first[i + 1]), pairs.item[i]
    at, place = pairs.at[here], pairs.place[here]
    order = np.lexsort((place, at - place))
    at, place = at[order], place[order]
    breaks = np.flatnonzero((np.diff(place) != 1) | (np.diff(at - place) != 0)) + 1
    begin, end = place[np.append(0, breaks)], place[np.append(breaks - 1, -1)] + GRAM
    start, stop = int(index.starts[item]), int(index.answers[item])
    # What belongs to the task and not to the item need not be there
    own = start + np.flatnonzero(np.diff(index.letters[start : stop + 1]))
    exact = len(own) and ((begin <= own[0]) & (end > own[-1])).any()
    best = int(np.argmax(end - begin))
    return bool(exact), (int(begin[best]) - start, int(end[best]) - start)
