"""Packing a million documents: how full, how fast, against TRL's best-fit packing in the same run.

    pip install -r benchmarks/requirements-trl.txt       # in an environment of its own
    OMP_NUM_THREADS=1 python benchmarks/packing.py

Lengths are drawn from benchmarks/lengths.json, a histogram of the tokens of real rows; documents
that are longer than a row are cut first (data.cut), alike for both. Timed: packing.best_fit from an
array of lengths to rows of indices, and Plan (shuffled, packed, kept); TRL's best fit (_pack_bfd)
from a table whose tokens take one byte each to the packed table, and what its pack_dataset does by
default, a thousand examples at a time. The result goes to benchmarks/results/packing.json.

    python benchmarks/packing.py histogram FILE.jsonl,... --tokenizer DIR       makes lengths.json
"""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.measure import RESULTS, about
from data import cut
from packing import Plan, best_fit

HISTOGRAM = Path(__file__).resolve().parent / "lengths.json"
ROW = 8192  # tokens
COUNTS = (10_000, 100_000, 1_000_000)


def histogram(paths, folder):
    """Count the tokens of every row of text and chat files, in bins of an eighth of a doubling."""
    from jsonl import read_jsonl
    from token_files import tokenise
    from tokenizer import Tokenizer

    tokenizer, lengths = Tokenizer(folder), []
    for path in paths.split(","):
        _, row = next(read_jsonl(path, {}))
        kind = "chat" if "messages" in row else "text"
        lengths.append(np.array(tokenise(kind, path, tokenizer, "").lengths))
    lengths = np.concatenate(lengths)
    edges = np.unique(np.round(2 ** np.arange(1, 20, 0.125)).astype(int))
    counts, _ = np.histogram(lengths, edges)
    kept = counts.nonzero()[0]
    bins = [[int(edges[i]), int(edges[i + 1]), int(counts[i])] for i in kept]
    found = {"rows": len(lengths), "tokens": int(lengths.sum()), "bins": bins}
    HISTOGRAM.write_text(json.dumps(found) + "\n")
    print(f"{len(lengths):,} rows, {lengths.sum():,} tokens, longest {lengths.max():,}")


def draw(count, seed=0):
    """Lengths of `count` documents from the histogram, those beyond a row cut into chunks."""
    low, high, weight = np.array(json.loads(HISTOGRAM.read_text())["bins"]).T
    rng = np.random.default_rng(seed)
    bins = rng.choice(len(weight), count, p=weight / weight.sum())
    ends = np.cumsum(rng.integers(low[bins], high[bins]) + 1)
    _, begin, end = cut(np.append(0, ends[:-1]), ends, ROW)
    return end - begin


def timed(function, times):
    """(best of several seconds, the last result)"""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


def table(lengths):
    """Documents as TRL packs them: a column of lists."""
    import pyarrow

    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = pyarrow.array(np.zeros(offsets[-1], dtype=np.int8))
    return pyarrow.table({"input_ids": pyarrow.LargeListArray.from_arrays(offsets, tokens)})


def trl(lengths, batch=None):
    """(seconds, rows) of TRL's best fit, of all at once or of `batch` at a time as its default."""
    from trl.data_utils import _pack_bfd

    batch = batch or len(lengths)
    parts = [table(lengths[i : i + batch]) for i in range(0, len(lengths), batch)]
    seconds, packed = timed(lambda: [_pack_bfd(part, ROW, "split") for part in parts], 1)
    return seconds, sum(map(len, packed))


def main():
    results = []
    for count in COUNTS:
        lengths = draw(count)
        assert lengths.max() <= ROW
        times = 1 if count > 500_000 else 3
        ours, rows = timed(lambda lengths=lengths: best_fit(lengths, ROW), 3)
        plan, _ = timed(lambda lengths=lengths: Plan(lengths, ROW, 16 * ROW, 1, 0), times)
        theirs, their_rows = trl(lengths)
        thousand, thousand_rows = trl(lengths, 1000)
        whole = np.sort(np.concatenate([np.array(row) for row in rows]))
        assert np.array_equal(whole, np.arange(len(lengths)))  # every document once, none cut
        assert max(sum(lengths[i] for i in row) for row in rows) <= ROW

        def fill(rows, lengths=lengths):
            return float(lengths.sum() / (rows * ROW))

        result = {"documents": count, "pieces": len(lengths)}
        result |= {"seconds": ours, "plan_seconds": plan, "fill": fill(len(rows))}
        result |= {"trl_seconds": theirs, "trl_fill": fill(their_rows)}
        result |= {"trl_default_seconds": thousand, "trl_default_fill": fill(thousand_rows)}
        results.append(result)
        print(f"{count:>9,} documents, {len(lengths):,} pieces: {ours:.3f} s, plan {plan:.3f} s,")
        print(f"{'':>9} {result['fill']:.4%} full; TRL {theirs:.2f} s, {fill(their_rows):.4%}; by")
        print(f"{'':>9} thousands {thousand:.2f} s, {fill(thousand_rows):.4%}. ", end="")
        print(f"{theirs / ours:.1f} times as fast", flush=True)
    found = {"about": about(), "row": ROW, "runs": results}
    (RESULTS / "packing.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["histogram"]:
        histogram(sys.argv[2], sys.argv[4])
    else:
        main()
