"""curate.py dedup against brute force: which copies it finds, how fast, and how that grows.

    OMP_NUM_THREADS=1 python benchmarks/dedup.py --data FILE.jsonl

pairs    passages of real text, 150 to 400 words each, among them planted copies: exact ones (case,
         punctuation, white space), and edited ones with 1% to 30% of the words changed, deleted or
         moved. Exact Jaccard similarity of all pairs, on sets of n-grams of words, against the
         pairs that MinHash proposes and the comparison confirms: recall and precision
rows     those that the step drops against those of its definition: a row goes if an earlier row
         that was kept is its copy, all compared with all
growth   seconds of the whole step for more and more rows; those of the processor count on a machine
         that others use, too

Exit code 1 if recall or precision is below 0.95, or an exact copy is missed. The result goes to
benchmarks/results/dedup.json.
"""

import contextlib
import itertools
import json
import os
import random
import re
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.measure import RESULTS, about
from config import UserError, parse
from contamination import training_text
from dedup import Dedup, Signatures, bands, dedup, shared_buckets, similarity
from jsonl import read_jsonl, write_jsonl, write_text
from overlap import words

KINDS = ("changed", "deleted", "moved")
RATES = (0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3)
GOAL = 0.95


@dataclass
class Config:
    data: str = ""  # FILE.jsonl of texts
    rows: int = 2500  # passages that copies are planted among
    copies: int = 40  # of each kind and rate
    growth: str = "1000,2000,5000,10000"  # rows of the runs that are timed
    repeats: int = 3  # of each timed run; the median counts
    threshold: float = 0.8  # as in dedup.py
    ngram: int = 5  # as in dedup.py
    seed: int = 0  # of passages and edits
    store: bool = True  # write the result


# Texts ------------------------------------------------------------------------------------------


def passages(path, low, high, rng):
    """All texts of a file, cut into passages of low to high words, shuffled."""
    found = []
    for line, row in read_jsonl(path, {}):
        split, start = training_text(row, f"{path}:{line}").split(" "), 0
        while len(split) - start >= low:
            size = rng.randint(low, high)
            found.append(" ".join(split[start : start + size]))
            start += size
    rng.shuffle(found)
    return found


def edited(text, kind, rate, pool, rng):
    """A copy in which about this share of the words is changed, deleted or moved."""
    split = text.split(" ")
    count = max(1, round(rate * len(split)))
    if kind == "moved":  # in pieces of up to 20 words
        while count > 0:
            size = min(count, rng.randint(1, 20))
            start = rng.randrange(len(split) - size)
            piece = split[start : start + size]
            del split[start : start + size]
            place = rng.randrange(len(split))
            split[place:place] = piece
            count -= size
    elif kind == "changed":
        for place in rng.sample(range(len(split)), count):
            split[place] = rng.choice(pool)
    else:
        for place in sorted(rng.sample(range(len(split)), count), reverse=True):
            del split[place]
    return " ".join(split)


def disguised(text, way):
    """An exact copy that looks different."""
    if way == "case":
        return text.upper()
    if way == "punctuation":
        return f'"{re.sub(r" ", " - ", text, count=9)}..."'
    return text.replace(" ", " \n ")


def plant(cfg, rng):
    """(texts, [what was planted there or None]), in random order."""
    found = passages(cfg.data, 150, 400, rng)
    if len(found) < cfg.rows:
        raise UserError(f"--data {cfg.data}: makes {len(found):,} passages, fewer than --rows")
    originals, pool = found[: cfg.rows], " ".join(found[: cfg.rows]).split(" ")
    made = [(text, None) for text in originals]
    for way in ("case", "punctuation", "space"):
        made += [(disguised(t, way), "exact") for t in rng.sample(originals, cfg.copies)]
    for kind, rate in itertools.product(KINDS, RATES):
        for text in rng.sample(originals, cfg.copies):
            made.append((edited(text, kind, rate, pool, rng), f"{kind} {rate:.0%}"))
    rng.shuffle(made)
    return map(list, zip(*made, strict=True))


# Brute force ------------------------------------------------------------------------------------


def all_similar(texts, ngram):
    """{(i, j): exact Jaccard similarity} of all pairs i < j that share an n-gram at all."""
    holders, sizes, common = defaultdict(list), [], Counter()
    for i, text in enumerate(texts):
        found = words(text)
        size = min(ngram, len(found))
        grams = {tuple(found[k : k + size]) for k in range(len(found) - size + 1)}
        sizes.append(len(grams))
        for gram in grams:
            holders[gram].append(i)
    for rows in holders.values():
        common.update(itertools.combinations(rows, 2))
    return {(i, j): n / (sizes[i] + sizes[j] - n) for (i, j), n in common.items()}


def greedy(count, alike):
    """{dropped row: first kept row alike} by the definition; alike: pairs at the threshold."""
    before, dropped = defaultdict(list), {}
    for i, j in alike:
        before[j].append(i)
    for row in range(count):
        if kept := [i for i in before[row] if i not in dropped]:
            dropped[row] = min(kept)
    return dropped


# Ours -------------------------------------------------------------------------------------------


def found_pairs(cfg):
    """(pairs that share a band, those of them that the comparison confirms)."""
    signatures = Signatures(cfg)
    signatures.run()
    records, shingles = signatures.load()
    members, buckets = shared_buckets(records["bands"], np.arange(len(records)))
    inside = defaultdict(list)
    for row, bucket in zip(members.tolist(), buckets.tolist(), strict=True):
        inside[bucket].append(row)
    proposed = {pair for rows in inside.values() for pair in itertools.combinations(rows, 2)}
    sets = np.split(shingles, records["end"][:-1])
    return proposed, {p for p in proposed if similarity(*(sets[i] for i in p)) >= cfg.threshold}


def step(cfg):
    """{dropped row: kept row} of the step, and its seconds: of the clock, of the processor."""
    start, busy = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(None):
        dedup(cfg)
    seconds = time.perf_counter() - start, time.process_time() - busy
    lines = Path(cfg.out).with_suffix(".dropped.jsonl").read_text().splitlines()
    number = [[int(row[key].split(":")[-1]) - 1 for row in map(json.loads, lines)]
              for key in ("where", "of")]  # fmt: skip
    return dict(zip(*number, strict=True)), seconds


def compare(cfg, folder, rng):
    """Parts pairs and rows of the result."""
    texts, planted = plant(cfg, rng)
    data = folder / "planted.jsonl"
    write_jsonl(data, [{"text": text} for text in texts])
    ours = Dedup(str(data), str(folder / "o.jsonl"), threshold=cfg.threshold, ngram=cfg.ngram)
    similar = all_similar(texts, cfg.ngram)
    alike = {pair for pair, value in similar.items() if value >= cfg.threshold}
    proposed, found = found_pairs(ours)
    (b, r), near = bands(cfg.threshold), {}
    for low, high in itertools.pairwise([0.3, 0.5, 0.7, 0.8, 0.85, 0.9, 1.01]):
        values = {pair: s for pair, s in similar.items() if low <= s < high}
        near[f"{low} to {min(1, high)}"] = {
            "pairs": len(values),
            "proposed": len(values.keys() & proposed),
            "expected": round(sum(1 - (1 - s**r) ** b for s in values.values()), 1),
        }
    expected = greedy(len(texts), alike)
    dropped, _ = step(ours)
    later = Counter(what for row, what in enumerate(planted) if what)
    exact = {i for i, what in enumerate(planted) if what == "exact"}
    whole = defaultdict(list)
    for i, text in enumerate(texts):
        whole[tuple(words(text))].append(i)
    equal = {i for rows in whole.values() for i in rows[1:]}
    return {
        "texts": len(texts),
        "planted": sum(later.values()),
        "pairs": {
            "all": len(texts) * (len(texts) - 1) // 2,
            "at_threshold": len(alike),
            "proposed": len(proposed),
            "found": len(found),
            "recall": round(len(found & alike) / len(alike), 4),
            "precision": round(len(found & alike) / len(found), 4),
            "precision_if_not_compared": round(len(proposed & alike) / len(proposed), 4),
            "by_similarity": near,
        },
        "exact": {"planted": len(exact), "equal_to_an_earlier": len(equal),
                  "dropped": len(equal & dropped.keys())},
        "rows": {
            "by_definition": len(expected),
            "ours": len(dropped),
            "both": len(expected.keys() & dropped.keys()),
            "same_kept_row_named": sum(expected.get(row) == of for row, of in dropped.items()),
        },
    }  # fmt: skip


def growth(cfg, folder, rng):
    """Rows, MB and seconds of runs over more and more rows."""
    found, out = passages(cfg.data, 100, 200, rng), []
    sizes = [int(size) for size in cfg.growth.split(",")]
    if len(found) < max(sizes):
        raise UserError(f"--growth: {cfg.data} makes {len(found):,} passages")
    for size in sizes:
        data, seconds = folder / f"{size}.jsonl", []
        write_jsonl(data, [{"text": text} for text in found[:size]])
        for i in range(cfg.repeats):
            ours = Dedup(str(data), str(folder / f"{size}-{i}.jsonl"), threshold=cfg.threshold,
                         ngram=cfg.ngram)  # fmt: skip
            dropped, taken = step(ours)
            seconds.append(taken)
        middle = [sorted(side)[len(side) // 2] for side in zip(*seconds, strict=True)]
        mb = os.stat(data).st_size / 1e6
        out.append({"rows": size, "dropped": len(dropped), "mb": round(mb, 2),
                    "seconds": round(middle[0], 2), "cpu_seconds": round(middle[1], 2),
                    "rows_per_cpu_second": round(size / middle[1]),
                    "mb_per_cpu_second": round(mb / middle[1], 2)})  # fmt: skip
    return out


def show(result):
    pairs, rows, exact = result["pairs"], result["rows"], result["exact"]
    b, r = result["bands"]
    print(f"{result['texts']:,} texts, {result['planted']:,} of them planted; {b} bands of {r}\n")
    print("| J of a pair | pairs | proposed | by the formula |\n|---|---|---|---|")
    for name, near in pairs["by_similarity"].items():
        print(f"| {name} | {near['pairs']:,} | {near['proposed']:,} | {near['expected']:,} |")
    print(f"\nrecall {pairs['recall']}, precision {pairs['precision']} "
          f"({pairs['precision_if_not_compared']} of all that is proposed)")  # fmt: skip
    print(f"exact copies: {exact['dropped']} of {exact['equal_to_an_earlier']} dropped")
    print(f"rows: {rows['by_definition']} to drop by definition, {rows['ours']} dropped, "
          f"{rows['both']} the same, {rows['same_kept_row_named']} for the same row\n")  # fmt: skip
    print("| rows | MB | s | cpu s | rows/cpu s | MB/cpu s |\n|---|---|---|---|---|---|")
    for run in result["growth"]:
        print(f"| {' | '.join(f'{value:,}' for name, value in run.items() if name != 'dropped')} |")


def main(cfg):
    if not Path(cfg.data).is_file():
        raise UserError("--data: name a file of texts")
    rng = random.Random(cfg.seed)
    with tempfile.TemporaryDirectory() as folder:
        result = compare(cfg, Path(folder), rng)
        result["growth"] = growth(cfg, Path(folder), rng)
    size = os.stat(cfg.data).st_size / 1e6
    settings = {k: v for k, v in asdict(cfg).items() if k not in ("data", "store")}
    result = {"data": f"passages of {size:.0f} MB of text", "settings": settings,
              "bands": bands(cfg.threshold), **result, **about()}  # fmt: skip
    show(result)
    if cfg.store:
        write_text(RESULTS / "dedup.json", json.dumps(result, indent=1) + "\n")
    pairs, exact = result["pairs"], result["exact"]
    good = min(pairs["recall"], pairs["precision"]) >= GOAL
    return 0 if good and exact["dropped"] == exact["equal_to_an_earlier"] else 1


if __name__ == "__main__":
    sys.exit(main(parse(Config)))
