"""Families of token sequences -> packed rows -> the micro-batches of a step.

A packed row holds whole documents side by side, without padding (N tokens, B documents):

    input_ids     b  t  t  t  | b  t  t  | ...     b = BOS, exactly one at the head of each document
    labels        t  t  t  e  | t  t  e  | ...     already shifted: the token after input_ids[i]
    position_ids  0  1  2  3  | 0  1  2  | ...     restart with each document
    cu_seqlens    0             4          7 ...   (B + 1,)

A family is what packing keeps together: one document, or a prompt (parent) with its completions
(children), whose positions go on where the prompt ends. A Plan says which families form which step;
it knows neither ranks nor micro-batches: the same rows make a step however many machines share it.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from config import UserError

IGNORE = -100  # the only label that means "not trained"; 0 is a real token


@dataclass(slots=True)
class Segment:
    input_ids: np.ndarray  # (n,) int32
    labels: np.ndarray  # (n,) int32, already shifted
    parent: int = -1  # index within the family


def document(ids, trained=None):
    """Family of one sequence of ids: len(ids) - 1 positions. trained: a bool per id, None = all."""
    if len(ids) < 2:
        raise ValueError("a document has at least two tokens")
    ids = np.asarray(ids, dtype=np.int32)
    labels = ids[1:] if trained is None else np.where(trained[1:], ids[1:], np.int32(IGNORE))
    return [Segment(ids[:-1], labels)]


def family(prompt_ids, completions):
    """A prompt once and each completion as its child, wholly trained; the prompt is not.

    The last prompt token opens each child instead of closing the parent: its label differs.
    """
    if len(prompt_ids) < 2 or not all(map(len, completions)):
        raise ValueError("a family has a prompt of at least two tokens and no empty completion")
    prompt = np.asarray(prompt_ids, dtype=np.int32)
    segments = [Segment(prompt[:-1], np.full(len(prompt) - 1, IGNORE, dtype=np.int32))]
    for completion in completions:
        labels = np.asarray(completion, dtype=np.int32)
        segments.append(Segment(np.concatenate([prompt[-1:], labels[:-1]]), labels, parent=0))
    return segments


def size(family):
    """Tokens that a family fills in a packed row."""
    return sum(len(segment.input_ids) for segment in family)


def targets(family):
    """Trained tokens of a family."""
    return sum(int((segment.labels != IGNORE).sum()) for segment in family)


@dataclass
class Batch:
    input_ids: torch.Tensor  # (N,) int64
    position_ids: torch.Tensor  # (N,) int64
    cu_seqlens: torch.Tensor  # (B + 1,) int32
    labels: torch.Tensor  # (N,) int64, already shifted, -100 = ignored
    parent: torch.Tensor  # (B,) int32, -1 = none
    source: torch.Tensor  # (B,) int64: the int that collate was given for the document's family

    def to(self, device):
        return Batch(*(t.to(device, non_blocking=True) for t in vars(self).values()))


def collate(families, sources=None):
    """Families side by side, as torch tensors. sources: an int per family (default 0)."""
    segments, parents, starts, source = [], [], [], []
    for i, members in enumerate(families):
        first = len(segments)
        for segment in members:
            child = segment.parent >= 0
            parents.append(first + segment.parent if child else -1)
            starts.append(len(members[segment.parent].input_ids) if child else 0)
            source.append(0 if sources is None else int(sources[i]))
            segments.append(segment)
    lengths = [len(s.input_ids) for s in segments]
    positions = [np.arange(a, a + n) for a, n in zip(starts, lengths, strict=True)]
    return Batch(
        input_ids=torch.from_numpy(
            np.concatenate([s.input_ids for s in segments]).astype(np.int64)
        ),
        position_ids=torch.from_numpy(np.concatenate(positions)),
        cu_seqlens=torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32)),
        labels=torch.from_numpy(np.concatenate([s.labels for s in segments]).astype(np.int64)),
        parent=torch.tensor(parents, dtype=torch.int32),
        source=torch.tensor(source),
    )


def best_fit(lengths, capacity):
    """Indices per packed row: longest first, each into the fullest row that still takes it.

    Open rows lie in buckets by their free tokens; bit r of one big integer says that bucket r is
    not empty, so the tightest fit is the lowest set bit from the length upwards: n log n in all.
    UserError if a length exceeds the capacity.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if len(lengths) and lengths.max() > capacity:
        raise UserError(
            f"sequence {lengths.argmax()} has {lengths.max()} tokens; a row takes {capacity}"
        )
    rows, buckets, filled = [], [[] for _ in range(capacity + 1)], 0
    order = np.argsort(-lengths, kind="stable")
    for i, n in zip(order.tolist(), lengths[order].tolist(), strict=True):
        if fits := filled >> n:
            free = n + (fits & -fits).bit_length() - 1
            row = buckets[free].pop()
            filled ^= 0 if buckets[free] else 1 << free
        else:
            free, row = capacity, len(rows)
            rows.append([])
        rows[row].append(i)
        buckets[free - n].append(row)
        filled |= 1 << (free - n)
    return rows


class Plan:
    """Which families form which step, for every number of ranks: .steps, .rows(step).

    lengths: tokens per family; max_length: tokens per packed row; batch_tokens: tokens per step
    over all ranks, hence batch_tokens // max_length rows. Packed once, shuffled by (seed, epoch);
    the last step of an epoch may be smaller: no row is left out or seen twice in an epoch.
    """

    def __init__(self, lengths, max_length, batch_tokens, epochs, seed):
        if batch_tokens < max_length:
            raise UserError(
                f"batch_tokens {batch_tokens} is less than one row of max_length {max_length}"
            )
        if not len(lengths):
            raise UserError("nothing to train on: no sequence is left")
        # Shuffled before packing too: equal lengths would otherwise meet in the order of the file.
        order = np.random.default_rng([seed, len(lengths)]).permutation(len(lengths))
        packed = best_fit(np.asarray(lengths)[order], max_length)
        self.packed = [order[row].tolist() for row in packed]
        self.max_length, self.seed = max_length, seed
        self.rows_per_step = batch_tokens // max_length
        self.steps_per_epoch = math.ceil(len(packed) / self.rows_per_step)
        self.steps = max(1, round(epochs * self.steps_per_epoch))
        self.fill = sum(lengths) / (len(packed) * max_length)  # used share of the rows
        self.shuffled = None, None  # (epoch, order of its rows)

    def rows(self, step):
        """Packed rows of a step, as lists of family indices."""
        epoch, k = divmod(step, self.steps_per_epoch)
        if self.shuffled[0] != epoch:
            order = np.random.default_rng([self.seed, epoch + 1]).permutation(len(self.packed))
            self.shuffled = epoch, order
        chosen = self.shuffled[1][k * self.rows_per_step : (k + 1) * self.rows_per_step]
        return [self.packed[i] for i in chosen]


class Curriculum:
    """Plans one after the other: every epoch of the first group of families, then of the next.

    groups: how many of the lengths belong to each, in their order; one group is a Plan.
    """

    def __init__(self, lengths, groups, max_length, batch_tokens, epochs, seed):
        lengths, starts = np.asarray(lengths, dtype=np.int64), np.cumsum([0, *groups])
        spans = zip(starts[:-1], starts[1:], strict=True)
        settings = max_length, batch_tokens, epochs, seed
        self.plans = [Plan(lengths[a:z], *settings) for a, z in spans]
        self.max_length, self.starts = max_length, starts[:-1].tolist()
        self.steps = sum(plan.steps for plan in self.plans)
        slots = sum(len(plan.packed) for plan in self.plans) * max_length
        self.fill = int(lengths.sum()) / slots

    @property
    def packed(self):
        return [plan.packed for plan in self.plans]

    def rows(self, step):
        """Packed rows of a step, as lists of family indices."""
        for start, plan in zip(self.starts, self.plans, strict=True):
            if step < plan.steps:
                return [[start + i for i in row] for row in plan.rows(step)]
            step -= plan.steps
        raise IndexError(step)


def micro_batches(plan, families, step, rank, world, micro_batch_tokens, sources=None):
    """This rank's Batches of a step: equally many on every rank, since a backward is collective.

    A rank that has no rows left gets one token with label -100 and source -1.
    """
    if micro_batch_tokens < plan.max_length:
        raise UserError(
            f"micro_batch_tokens {micro_batch_tokens} is less than one row of max_length "
            f"{plan.max_length}"
        )
    rows, per = plan.rows(step), micro_batch_tokens // plan.max_length
    mine, empty = rows[rank::world], [Segment(*np.array([[0], [IGNORE]], dtype=np.int32))]
    batches = []
    for start in range(0, math.ceil(len(rows) / world), per):
        chosen = [i for row in mine[start : start + per] for i in row]
        labels = None if sources is None else [sources[i] for i in chosen]
        full = collate([families[i] for i in chosen], labels) if chosen else collate([empty], [-1])
        batches.append(full)
    return batches
