"""contamination.py: what a training text shares with an item is found, and nothing else."""

import json
import random

import pytest
from tiny import write_rows

import contamination
from config import UserError
from contamination import find, make_index, words

ITEM = "The committee decided to keep the target range for the federal funds rate at four percent."


def shared(text, *items):
    return find(make_index(items or [ITEM]), text)


def test_a_whole_item_is_found_in_whatever_case_and_punctuation():
    found = shared(f"He said: {ITEM.upper().replace(' ', '  ').replace('.', '!')} And went.")
    assert found == {0: (1.0, True, " ".join(words(ITEM)))}


def test_nine_words_in_a_row_are_no_match_and_ten_are():
    first = ITEM.split()
    assert shared(" ".join(first[:9]) + " elsewhere") == {}
    [(share, whole, stretch)] = shared("so " + " ".join(first[:10]) + " other").values()
    assert stretch == " ".join(words(ITEM)[:10]) and not whole
    letters = [len(word) for word in words(ITEM)]
    assert share == pytest.approx(sum(letters[:10]) / sum(letters))


def test_words_of_the_text_that_no_item_holds_break_a_run():
    split = ITEM.split()
    assert shared(" ".join([*split[:7], "unseen", *split[7:]])) == {}


def test_two_stretches_add_up_and_overlapping_ones_count_once():
    item = " ".join(f"w{i}" for i in range(30))
    halves = " ".join(f"w{i}" for i in range(12)) + " x " + " ".join(f"w{i}" for i in range(18, 30))
    [(share, whole, stretch)] = shared(halves, item).values()
    letters = [len(f"w{i}") for i in range(30)]
    assert share == pytest.approx((sum(letters) - sum(letters[12:18])) / sum(letters))
    assert not whole and len(stretch.split()) == 12
    assert shared(halves + " " + halves, item)[0][0] == pytest.approx(share)


def test_short_items_are_looked_for_whole_and_very_short_ones_not_at_all():
    assert shared("oil prices rose by four percent today", "Oil prices rose by four percent")[0][1]
    assert shared("oil prices rose by five percent", "Oil prices rose by four percent") == {}
    assert shared("oil prices rose by four", "oil prices rose by") == {}


def test_many_random_items_are_found_exactly_where_they_were_planted():
    rng = random.Random(0)
    items = [" ".join(rng.choices("a b c d e f g h".split(), k=rng.randint(5, 40)))
             for _ in range(300)]  # fmt: skip
    index = make_index(items)
    for number in range(0, 300, 7):
        before, after = (" ".join(rng.choices("p q r s".split(), k=20)) for _ in range(2))
        found = find(index, f"{before} {items[number]} {after}")
        assert found[number][0] == 1 and found[number][1]
        for other, (share, whole, stretch) in found.items():  # equal parts of other items only
            assert " ".join(words(items[other])).find(stretch) >= 0 and (share == 1) >= whole


def test_equal_hashes_of_unequal_words_are_no_match(monkeypatch):
    monkeypatch.setattr(contamination, "BASE", contamination.np.uint64(0))  # hash = last word only
    item = [f"w{i}" for i in range(12)]
    assert shared(" ".join([*item[8::-1], *item[9:]]), " ".join(item)) == {}
    assert shared(" ".join(item), " ".join(item))[0][1]


def test_an_item_that_repeats_itself_is_found_whole():
    item = " ".join("one two three four five six seven eight nine ten".split() * 2)
    assert shared(item, item) == {0: (1.0, True, item)}


# Files


ROW = {"answer": "good", "choices": ["good", "bad"], "gold": 0}
QUERY = "Judge the profile of this client and reply good or bad.\nText: {}\nAnswer:"


@pytest.fixture
def folder(tmp_path):
    texts = [ITEM, "Sales of the third quarter rose by ten percent against the year before last.",
             "Too short", "A warning was given by nobody this year or the next."]  # fmt: skip
    rows = [ROW | {"id": f"r{i}", "text": text, "query": QUERY.format(text)}
            for i, text in enumerate(texts)]  # fmt: skip
    write_rows(tmp_path / "mlesg.jsonl", rows)
    return tmp_path


def run(folder, train, *flags):
    path = write_rows(folder / "train.jsonl", train)
    contamination.main(["--train", path, "--data", str(folder), "--out_dir", str(folder / "out"),
                        *flags])  # fmt: skip
    result = json.loads((folder / "out" / "contamination.json").read_text())["tasks"]
    lines = (folder / "out" / "matches.jsonl").read_text().splitlines()
    return result["mlesg"], [json.loads(line) for line in lines]


def test_the_report_counts_every_item_and_names_the_place(folder, capsys):
    half = " ".join(ITEM.split()[:10])
    train = [{"text": "nothing"}, {"text": f"x {ITEM} y"}, {"text": half}]
    counts, matches = run(folder, train)
    assert counts == {"items": 4, "too_short": 1, "matched": 1, "exact": 1, "contaminated": 1}
    assert [m["id"] for m in matches] == ["r0"] and matches[0]["where"].endswith("train.jsonl:2")
    assert matches[0]["overlap"] == 100 and matches[0]["exact"]
    assert "33.333%" in capsys.readouterr().out  # of the three items that could be compared


@pytest.mark.parametrize("order", [1, -1])
def test_the_document_that_covers_most_is_named_and_the_worst_item_comes_first(folder, order):
    half = " ".join(ITEM.split()[:10])
    other = "the third quarter rose by ten percent against the year"
    _, matches = run(folder, [{"text": text} for text in [half, f"{ITEM} {other}", half][::order]])
    found = [(m["id"], m["where"][-2:], m["exact"]) for m in matches]
    assert found == [("r0", ":2", True), ("r1", ":2", False)]
    assert matches[0]["overlap"] > matches[1]["overlap"]
    texts = [" ".join(ITEM.split()[:11]), f"of {other} before", half]
    _, matches = run(folder, [{"text": text} for text in texts[::order]])
    assert matches == sorted(matches, key=lambda m: -m["overlap"]) and len(matches) == 2
    assert {m["id"]: m["where"][-1] for m in matches} == {"r0": "13"[order < 0], "r1": "2"}


def test_the_threshold_decides_what_is_contaminated(folder):
    half = [{"text": " ".join(ITEM.split()[:10])}]
    share = run(folder, half)[1][0]["overlap"]
    assert 50 < share < 100
    assert run(folder, half, "--threshold", str(share - 1))[0]["contaminated"] == 1
    counts = run(folder, half, "--threshold", str(share + 1))[0]
    assert counts["contaminated"] == 0 and counts["matched"] == 1 and counts["exact"] == 0


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": f"Say: {ITEM}"}]},
        {"prompt": "p", "chosen": ITEM, "rejected": "r"},
        {"prompt": "p", "chosen": "c", "rejected": ITEM},
        {"prompt": [{"role": "user", "content": ITEM}], "chosen": "c"},
        {"prompt": "p", "completion": ITEM},
        {"query": ITEM, "answer": "good"},
    ],
)
def test_every_kind_of_training_row_is_searched(folder, row):
    assert run(folder, [row])[0]["exact"] == 1


def test_the_instruction_that_all_rows_share_is_no_match(folder):
    row = {"messages": [{"role": "user", "content": QUERY.format("Another text altogether, yes.")}]}
    assert run(folder, [row])[0]["matched"] == 0


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--train", ""], "--train: name a training file"),
        (["--train", "none.jsonl"], "none.jsonl: no such file"),
        (["--tasks", "fbp"], "unknown task 'fbp'"),
        (["--tasks", "fpb"], r"no .*fpb.jsonl; python evaluate.py prepare fpb"),
        (["--threshold", "0"], "--threshold must be above 0"),
    ],
)
def test_bad_settings_are_one_line(folder, flags, message):
    path = write_rows(folder / "t.jsonl", [{"text": "x"}])
    given = {"--train": path, "--data": str(folder)} | {flags[0]: flags[1]}
    with pytest.raises(UserError, match=message):
        contamination.main([part for pair in given.items() for part in pair])


def test_a_row_without_text_is_named(folder):
    with pytest.raises(UserError, match=r"train.jsonl:2: holds no text.*it has foo"):
        run(folder, [{"text": "x"}, {"foo": 1}])
