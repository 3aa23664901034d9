"""Scores of answers and how sure they are: pure functions, numpy. (extract.py reads replies.)

A metric is a pair: statistics per sample (n, S), and a score of their sums (..., S) -> (...).
Accuracy, every F1, MCC, entity F1 and ROUGE have this form, so one bootstrap serves them all:

    sums[r] = sum_i count[r, i] * statistics[i]     count[r, i]: how often resample r drew sample i
    interval = 2.5% and 97.5% quantile of score(sums[r]) over r

Scores are fractions (MCC from -1 to 1); whoever prints them turns them into points.
"""

import re
from collections import Counter

import numpy as np

RESAMPLES = 1000
BLOCK = 50  # resamples drawn at once: bounds the count matrix to BLOCK x n


# Bootstrap -----------------------------------------------------------------------------------


def resample(statistics, score, resamples=RESAMPLES, seed=""):
    """Scores of `resamples` samples of n drawn with replacement: (n, S) -> (resamples,).

    The draws depend on n and seed (a task's name) only. Two checkpoints on the same rows see the
    same draws, so the difference of their resampled scores is a paired bootstrap; two tasks see
    independent ones.
    """
    rng = np.random.default_rng(list(seed.encode()))
    n, out = len(statistics), []
    for start in range(0, resamples, BLOCK):
        rows = min(BLOCK, resamples - start)
        drawn = rng.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
        out.append(score(counts.astype(float) @ statistics))
    return np.concatenate(out)


def interval(scores):
    """The central 95% of resampled scores (R,) -> (low, high)."""
    low, high = np.quantile(scores, [0.025, 0.975])
    return float(low), float(high)


def point(statistics, score):
    """The score itself, as a float: (n, S) -> ()."""
    return float(score(np.asarray(statistics, dtype=float).sum(0)))


# Means ---------------------------------------------------------------------------------------


def mean_statistics(values):
    """(n,) numbers -> (n, 2): the value and a one to count it."""
    values = np.asarray(values, dtype=float)
    return np.stack([values, np.ones_like(values)], axis=1)


def mean_score(sums):
    return ratio(sums[..., 0], sums[..., 1])


def ratio(a, b):
    """a / b, 0 where b is 0."""
    a, b = np.broadcast_arrays(np.asarray(a, dtype=float), np.asarray(b, dtype=float))
    return np.divide(a, b, out=np.zeros_like(a), where=b != 0)


# Classification: everything follows from the confusion matrix --------------------------------


def confusion_statistics(gold, predicted, labels):
    """One-hot confusion matrices (n, L * (L + 1)): row = gold, last column = no label found."""
    place = {label: i for i, label in enumerate(labels)}
    width = len(labels) + 1
    out = np.zeros((len(gold), len(labels) * width))
    pairs = zip(gold, predicted, strict=True)
    cells = [place[g] * width + place.get(p, width - 1) for g, p in pairs]
    out[np.arange(len(gold)), cells] = 1
    return out


def square(sums):
    """Flat sums (..., L * (L + 1)) -> counts (..., L, L + 1)."""
    labels = int((np.sqrt(1 + 4 * sums.shape[-1]) - 1) / 2 + 0.5)
    return sums.reshape(*sums.shape[:-1], labels, labels + 1)


def f1_per_label(sums):
    """F1 (..., L) and gold counts (..., L). A missing answer is a miss, no false alarm."""
    matrix = square(sums)
    right = np.diagonal(matrix, axis1=-2, axis2=-1)  # (..., L)
    gold, predicted = matrix.sum(-1), matrix[..., :-1].sum(-2)  # (..., L)
    return ratio(2 * right, gold + predicted), gold


def accuracy_score(sums):
    matrix = square(sums)
    return ratio(np.trace(matrix, axis1=-2, axis2=-1), matrix.sum((-2, -1)))


def weighted_f1_score(sums):
    f1, gold = f1_per_label(sums)
    return ratio((f1 * gold).sum(-1), gold.sum(-1))


def macro_f1_score(sums):
    """Plain mean over the labels that occur in gold: one that never could be right is left out."""
    f1, gold = f1_per_label(sums)
    return ratio((f1 * (gold > 0)).sum(-1), (gold > 0).sum(-1))


def balanced_accuracy_score(sums):
    """Mean recall over the labels that occur in gold."""
    matrix = square(sums)
    gold = matrix.sum(-1)
    recall = ratio(np.diagonal(matrix, axis1=-2, axis2=-1), gold)
    return ratio(recall.sum(-1), (gold > 0).sum(-1))


def mcc_score(sums):
    """Matthews correlation for L classes (R_K, Gorodkin 2004); "missing" is a class of its own.

    (c s - sum_k t_k p_k) / sqrt((s^2 - sum_k p_k^2)(s^2 - sum_k t_k^2)); 0 when a side is constant.
    """
    matrix = square(sums)
    gold, predicted = matrix.sum(-1), matrix.sum(-2)  # t (..., L), p (..., L + 1)
    total, right = gold.sum(-1), np.trace(matrix, axis1=-2, axis2=-1)
    above = right * total - (gold * predicted[..., :-1]).sum(-1)
    below = (total**2 - (predicted**2).sum(-1)) * (total**2 - (gold**2).sum(-1))
    return ratio(above, np.sqrt(np.maximum(below, 0)))


def majority(values):
    """The most frequent value, the first seen among equals."""
    return Counter(values).most_common(1)[0][0]


# Entities ------------------------------------------------------------------------------------


def bio_spans(tags):
    """BIO or IOB tags -> {(start, end, type)}. I- after another type or after O opens a span."""
    spans, start, kind = set(), 0, None
    for i, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        if kind is not None and (prefix != "I" or name != kind):
            spans.add((start, i, kind))
            kind = None
        if prefix in ("B", "I") and kind is None:
            start, kind = i, name
    return spans


def parse_entities(reply):
    """Lines `entity, TYPE` -> [(entity, TYPE)]. An entity may hold commas: the last one divides."""
    pairs = []
    for line in reply.splitlines():
        entity, comma, kind = line.strip().lstrip("-*• ").rpartition(",")
        if comma and entity.strip() and re.fullmatch(r"[A-Za-z]+", kind.strip(" .'\"")):
            pairs.append((entity.strip(" '\""), kind.strip(" .'\"").upper()))
    return pairs


def find_entity(entity, words):
    """Word spans [(start, end)] where the entity stands, spaces ignored ("Inc." finds "Inc ."),
    beginning and ending at word boundaries."""
    ends = np.cumsum([len(word) for word in words]).tolist()
    last = {end: i + 1 for i, end in enumerate(ends)}  # characters before the end -> words
    first = {0: 0, **last}
    joined, target = "".join(words), "".join(entity.split())
    found, at = [], joined.find(target) if target else -1
    while at >= 0:
        if at in first and at + len(target) in last:
            found.append((first[at], last[at + len(target)]))
        at = joined.find(target, at + 1)
    return found


def entity_statistics(replies, words, tags):
    """Strict span matching: (n, 3) = right, predicted, gold spans per sample.

    Every occurrence of a named entity counts as predicted, longer entities first; a word belongs
    to one span. An entity that the text does not hold is a wrong prediction, not silence.
    """
    out = np.zeros((len(replies), 3))
    for i, (reply, text, gold) in enumerate(zip(replies, words, tags, strict=True)):
        predicted, taken, invented = set(), set(), 0
        for entity, kind in sorted(dict.fromkeys(parse_entities(reply)), key=lambda p: -len(p[0])):
            places = find_entity(entity, text)
            invented += not places
            for start, end in places:
                if taken.isdisjoint(range(start, end)):
                    taken.update(range(start, end))
                    predicted.add((start, end, kind))
        gold = bio_spans(gold)
        out[i] = len(predicted & gold), len(predicted) + invented, len(gold)
    return out


def entity_f1_score(sums):
    """F1 over the spans of the whole corpus."""
    return ratio(2 * sums[..., 0], sums[..., 1] + sums[..., 2])


# ROUGE ---------------------------------------------------------------------------------------


def rouge(reply, target, kind):
    """ROUGE F-measure, kind "rouge1", "rouge2" or "rougeL", as rouge-score without stemming."""
    a, b = (re.findall(r"[a-z0-9]+", text.lower()) for text in (reply, target))
    if kind == "rougeL":
        shared, sizes = longest_common(a, b), (len(a), len(b))
    else:
        n = int(kind.removeprefix("rouge"))
        grams = [Counter(zip(*(words[i:] for i in range(n)), strict=False)) for words in (a, b)]
        shared, sizes = (grams[0] & grams[1]).total(), (grams[0].total(), grams[1].total())
    return 2 * shared / sum(sizes) if shared else 0.0


def longest_common(a, b):
    """Length of the longest common subsequence. One bit per word of a (Hyyro 2004): bit i of
    `open_` is 0 once a[i] ends a longer match, so a row of the table costs one big-integer sum."""
    places = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    full = open_ = (1 << len(a)) - 1
    for word in b:
        hit = open_ & places.get(word, 0)
        open_ = ((open_ + hit) | (open_ - hit)) & full
    return (full & ~open_).bit_count()
