"""dedup.py: the first of rows that are alike is kept, the others name it; no kill changes that."""

import json
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from tiny import write_rows

import curate
import dedup
from dedup import band_keys, bands, find_copies, minima, shingles_of
from overlap import words

VOCABULARY = [f"{a}{b}" for a in "kamobi rate loan fund bond cash".split() for b in range(60)]
TEXT = "Sales of the third quarter rose by ten percent against the year before last, it said today."


def read(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def run(folder, rows, *flags):
    """(texts that were kept, [(row from 1, reason, of, jaccard)] of the dropped ones)."""
    path = rows if isinstance(rows, str) else write_rows(folder / "in.jsonl", rows)
    out = folder / "out.jsonl"
    curate.main(["dedup", "--data", path, "--out", str(out), *flags])
    dropped = read(folder / "out.dropped.jsonl")
    line = [[int(d.get(key, ":0").split(":")[-1]) for d in dropped] for key in ("where", "of")]
    more = [[d.get(key) for d in dropped] for key in ("reason", "jaccard")]
    numbers = list(zip(line[0], more[0], line[1], more[1], strict=True))
    return [row.get("text") for row in read(out)], numbers


def texts(*found):
    return [{"text": text} for text in found]


def passages(count, seed, size=(30, 120)):
    """Random texts, a third of them edited copies of an earlier one."""
    rng, made = random.Random(seed), []
    for _ in range(count):
        if made and rng.random() < 0.35:
            text = list(rng.choice(made))
            for _ in range(rng.randrange(5)):
                place = rng.randrange(len(text))
                text[place : place + rng.randrange(3)] = rng.choices(VOCABULARY, k=rng.randrange(3))
        else:
            text = rng.choices(VOCABULARY, k=rng.randint(*size))
        made.append(text)
    return [" ".join(text) for text in made]


def grams(text, n=5):
    found = words(text)
    return {tuple(found[i : i + n]) for i in range(max(1, len(found) - n + 1))}


def jaccard(a, b, n=5):
    a, b = grams(a, n), grams(b, n)
    return len(a & b) / len(a | b)


# What is a copy ---------------------------------------------------------------------------------


def test_rows_of_the_same_words_are_exact_duplicates_of_the_first(tmp_path):
    changed = TEXT.upper().replace(" ", " \n\t").replace(",", " -- ")
    kept, dropped = run(
        tmp_path, texts(TEXT, "else", changed, TEXT, f"one two three {TEXT} four", "Else!")
    )
    assert kept == [TEXT, "else", f"one two three {TEXT} four"]
    assert dropped == [(row, "exact duplicate", of, 1.0) for row, of in ((3, 1), (4, 1), (6, 2))]


@pytest.mark.parametrize(
    "one, other",
    [
        ("solve -3*x = 6 for x", "solve 3*x = 6 for x"),
        ("solve 3 - x = 6 for x", "solve 3 + x = 6 for x"),
        ("solve -x = 6 for x", "solve x = 6 for x"),
        ("(a)-b of it", "(a) b of it"),
        ("earnings per share of 0.15", "earnings per share of 15"),
        ("earnings of .5 a share", "earnings of 5 a share"),
        ("a loss of (-15) in all", "a loss of (15) in all"),
        ("a rise of 5% in all", "a rise of 5 in all"),
    ],
)
def test_a_sign_or_a_point_in_a_number_makes_another_text(tmp_path, one, other):
    assert run(tmp_path, texts(one, other), "--no-near")[0] == [one, other]


def test_hyphens_dashes_and_full_stops_make_none(tmp_path):
    rows = texts(
        "a short-term loan, it said", "A short term loan -- it said.", "a short term - loan it said"
    )
    assert len(run(tmp_path, rows, "--no-near")[0]) == 1


def test_the_kept_rows_are_what_they_were(tmp_path):
    rows = [{"text": TEXT, "id": 7, "more": {"a": [1, None]}}, {"text": "ä\n", "url": "x"}]
    run(tmp_path, rows)
    assert read(tmp_path / "out.jsonl") == rows


def test_rows_of_the_same_words_in_another_order_are_two_texts(tmp_path):
    assert run(tmp_path, texts("a b c d e f g", "a b c d e g f", "ab c", "a bc"))[1] == []
    [near] = run(tmp_path / "near", write_rows(tmp_path / "n.jsonl", texts("a b a", "b a a")),
                 "--ngram", "1")[1]  # fmt: skip
    assert near == (2, "near duplicate", 1, 1.0)  # the same set, not the same text


def test_all_kinds_of_rows_are_compared_by_all_they_say(tmp_path):
    chat = {"messages": [{"role": "user", "content": "How much?"}, {"role": "assistant",
                         "content": "Ten percent."}]}  # fmt: skip
    other = {"messages": [chat["messages"][0], {"role": "assistant", "content": "Nine."}]}
    rows = [chat, {"prompt": "How much?", "completion": "ten percent"}, other]
    assert run(tmp_path, rows)[1] == [(2, "exact duplicate", 1, 1.0)]


def test_hashes_are_equal_if_both_halves_are():
    halves = np.array([[1, 2], [1, 3], [4, 3], [1, 2], [0, 2], [1, 3]], dtype=np.uint64)
    assert dedup.first_equal(halves).tolist() == [0, 1, 2, 0, 4, 1]


@pytest.mark.parametrize("seed", range(3))
def test_random_rows_are_dropped_as_the_definition_says(tmp_path, seed):
    found = passages(400, seed)
    _, dropped = run(tmp_path, texts(*found))
    lost = {row - 1: (reason, of - 1, alike) for row, reason, of, alike in dropped}
    kept = [i for i in range(len(found)) if i not in lost]
    sets, missed = [grams(text) for text in found], 0
    for i in range(len(found)):
        pairs = [(j, len(sets[i] & sets[j]) / len(sets[i] | sets[j])) for j in kept if j < i]
        expected = [(j, alike) for j, alike in pairs if alike >= 0.8]
        if i in lost:
            reason, of, alike = lost[i]
            assert (of, alike) in [(j, round(true, 4)) for j, true in expected]
            assert (reason == "exact duplicate") == (words(found[i]) == words(found[of]))
        else:
            missed += bool(expected)
    assert 60 < len(lost) < 140 and missed <= 1


def test_a_row_near_to_a_dropped_row_only_is_kept(tmp_path):
    base = VOCABULARY[:100]
    steps = [" ".join([*VOCABULARY[100 : 100 + k], *base[k:]]) for k in (0, 6, 12, 18)]
    assert jaccard(*steps[:2]) > 0.8 > jaccard(steps[0], steps[2]) and jaccard(*steps[1:3]) > 0.8
    kept, dropped = run(tmp_path, texts(*steps, steps[1], steps[3].upper()))
    assert kept == [steps[0], steps[2]]
    near = ["near duplicate", "near duplicate"]
    first, second = round(jaccard(*steps[:2]), 4), round(jaccard(*steps[2:]), 4)
    # The copy of a near duplicate is one itself: the row that it equals is not there
    assert dropped == [(2, near[0], 1, first), (4, near[1], 3, second), (5, near[0], 1, first),
                       (6, near[1], 3, second)]  # fmt: skip


def test_of_several_kept_rows_that_are_alike_the_first_is_named(tmp_path):
    base = VOCABULARY[:60]
    ends = [" ".join([*base[k:], *VOCABULARY[100 : 100 + 2 * k]]) for k in (0, 9)]
    between = " ".join([*base[4:], *VOCABULARY[100:104]])
    assert jaccard(*ends) < 0.7 < min(jaccard(ends[0], between), jaccard(ends[1], between))
    for order in (1, -1):
        folder = tmp_path / str(order)
        path = write_rows(tmp_path / "in.jsonl", texts(*ends[::order], between))
        assert [d[:3] for d in run(folder, path, "--threshold", "0.7")[1]] == [
            (3, "near duplicate", 1)]  # fmt: skip


@pytest.mark.parametrize(
    "threshold, sizes, flags",
    [(0.8, (9, 8), "0.8"), (0.8, (10, 8), "0.8"), (0.56, (25, 14), "0.56"), (1.0, (9, 9), "1")],
)
def test_the_threshold_itself_counts_and_nothing_below_it(tmp_path, threshold, sizes, flags):
    rng, rows = random.Random(0), []
    for k in range(100):
        first = [f"{word}p{k}" for word in rng.sample(VOCABULARY, sizes[0])]
        second = first[: sizes[1]] + ["new"] * (len(first) == 9 and sizes[1] == 8)
        rows += texts(" ".join(first), " ".join(reversed(second)))
    assert jaccard(rows[0]["text"], rows[1]["text"], 1) == threshold
    path = write_rows(tmp_path / "in.jsonl", rows)
    _, dropped = run(tmp_path / "at", path, "--threshold", flags, "--ngram", "1")
    assert len(dropped) >= 97 and {d[3] for d in dropped} == {threshold}
    assert all(row - of == 1 for row, _, of, _ in dropped)
    if threshold < 1:
        above = str(threshold + 1e-6)
        assert not run(tmp_path / "above", path, "--threshold", above, "--ngram", "1")[1]


def test_texts_of_fewer_words_than_an_ngram_are_copies_if_equal(tmp_path):
    few = ["a b c d", "A, b: c d", "a b c e", "a b c", "b c d", "", "...", "a b c d e"]
    _, dropped = run(tmp_path, texts(*few), "--threshold", "0.3")
    assert [d[:3] for d in dropped] == [(2, "exact duplicate", 1), (7, "exact duplicate", 6)]


def test_without_near_only_exact_copies_are_dropped_and_no_ngrams_are_stored(tmp_path, monkeypatch):
    sizes = []
    old = dedup.Signatures.load
    monkeypatch.setattr(dedup.Signatures, "load", lambda self: sizes.append(
        self.dropped.stat().st_size) or old(self))  # fmt: skip
    rows = texts(TEXT, f"{TEXT} Yes.", TEXT.lower())
    assert [d[:2] for d in run(tmp_path / "a", write_rows(tmp_path / "x.jsonl", rows))[1]] == [
        (2, "near duplicate"), (3, "exact duplicate")]  # fmt: skip
    assert [d[0] for d in run(tmp_path, rows, "--no-near")[1]] == [3]
    assert sizes[0] > 0 == sizes[1]


# The estimate -----------------------------------------------------------------------------------


def test_bands_find_the_threshold_with_99_percent_and_no_longer_ones_would():
    for threshold in np.arange(0.3, 1.0, 0.01):
        b, r = bands(threshold)
        assert 1 - (1 - threshold**r) ** b >= 0.99 and b * r <= 144 and r >= 2
        for longer in range(r + 1, 145):
            assert 1 - (1 - threshold**longer) ** (144 // longer) < 0.99
    assert bands(0.8) == (20, 7) and bands(1.0) == (1, 144)


@pytest.mark.parametrize("common, size", [(8, 9), (60, 80), (800, 1100)])  # PART = 512 lies between
def test_minima_and_bands_agree_as_often_as_the_formulas_say(common, size):
    expected, pairs = common / (2 * size - common), 1500
    rng, agree, found = np.random.default_rng(0), [], 0
    for _ in range(pairs):
        drawn = rng.integers(2**64, size=2 * size - common, dtype=np.uint64)
        one, two = (minima(x, 140) for x in (drawn[:size], drawn[size - common :]))
        agree.append((one == two).mean())
        found += (band_keys(one, 20, 7) == band_keys(two, 20, 7)).any()
    error = 4 * np.std(agree) / pairs**0.5
    assert np.mean(agree) == pytest.approx(expected, abs=error) and error < 0.01
    # Independent functions: the spread is that of 140 throws of a coin
    assert np.std(agree) == pytest.approx((expected * (1 - expected) / 140) ** 0.5, rel=0.1)
    share = 1 - (1 - expected**7) ** 20
    assert found / pairs == pytest.approx(share, abs=4 * (share * (1 - share) / pairs) ** 0.5)


def test_minima_are_the_smallest_of_the_stated_functions_and_bands_hold_all_of_theirs(monkeypatch):
    monkeypatch.setattr(dedup, "PART", 3)
    shingles = shingles_of([f"w{i}" for i in range(1500)], 5)
    assert len(shingles) == 1496 and (np.diff(shingles) > 0).all()
    a, b = (side.ravel().tolist() for side in dedup.functions(6))
    low = [int(x) >> 32 for x in shingles]
    want = [min((p * x + q) % 2**64 >> 32 for x in low) for p, q in zip(a, b, strict=True)]
    assert minima(shingles, 6).tolist() == want
    keys = band_keys(np.array(want, dtype=np.uint64), 3, 2)
    for i in range(6):  # another minimum changes its band's key, and no other
        other = np.array(want, dtype=np.uint64)
        other[i] += np.uint64(1)
        assert (band_keys(other, 3, 2) != keys).tolist() == [i // 2 == k for k in range(3)]


def test_rows_share_a_bucket_for_each_band_in_which_they_agree():
    keys = np.array([[1, 0], [5, 5], [1, 8], [2, 0], [3, 1], [2, 0]], dtype=np.uint64)
    members, buckets = dedup.shared_buckets(keys, np.array([0, 2, 3, 4]))  # 1 and 5 do not count
    assert members.tolist() == [0, 0, 2, 3]
    assert buckets[0] == buckets[2] != buckets[1] == buckets[3]


# Much of it -------------------------------------------------------------------------------------


def count_comparisons(monkeypatch):
    calls, old = [], dedup.similarity
    monkeypatch.setattr(dedup, "similarity", lambda x, y: calls.append(1) or old(x, y))
    return calls


def test_many_copies_of_one_row_are_compared_with_the_one_that_is_kept(tmp_path, monkeypatch):
    calls = count_comparisons(monkeypatch)
    assert len(run(tmp_path, texts(*[TEXT] * 20_000))[1]) == 19_999
    assert not calls
    base = VOCABULARY * 2
    near = texts(*(" ".join([*base, f"x{i}"]) for i in range(3000)))
    path = write_rows(tmp_path / "near.jsonl", near)
    assert len(run(tmp_path / "near", path)[1]) == len(calls) == 2999


def test_rows_that_share_no_band_cost_no_python_objects(monkeypatch):
    count, rng = 50_000, np.random.default_rng(0)
    dtype = [("exact", "<u8", 2), ("end", "<i8"), ("bands", "<u8", (20,)), ("where", "S40")]
    records = np.zeros(count, dtype)
    records["exact"] = rng.integers(2**63, size=(count, 2))
    records["bands"] = rng.integers(2**63, size=(count, 20))
    records["end"] = np.arange(1, count + 1) * 300
    tracemalloc.start()
    copies = find_copies(records, np.zeros(0, np.uint64), 0.8)
    peak = tracemalloc.get_traced_memory()[1] / count
    tracemalloc.stop()
    assert peak < 110 and (copies["of"] == np.arange(count)).all()
