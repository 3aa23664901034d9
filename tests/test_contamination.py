"""contamination.py: every training row is searched, every item counted, the worst row named."""

import json

import pytest
from tiny import write_rows

import contamination
from config import UserError
from contamination import item_texts
from overlap import words
from tasks import TASKS

ITEM = "The committee decided to keep the target range for the federal funds rate at four percent."
HALF = " ".join(ITEM.split()[:10])
OTHER = "the third quarter rose by ten percent against the year"
TEXTS = [ITEM, "Sales of the third quarter rose by ten percent against the year before last.",
         "Too short", "Nobody gave a warning before."]  # fmt: skip
QUERY = "Judge the profile of this client and reply good or bad.\nText: {}\nAnswer:"
ROW = {"answer": "good", "choices": ["good", "bad"], "gold": 0}


@pytest.fixture
def folder(tmp_path):
    rows = [ROW | {"id": f"r{i}", "text": text, "query": QUERY.format(text)}
            for i, text in enumerate(TEXTS)]  # fmt: skip
    write_rows(tmp_path / "mlesg.jsonl", rows)
    return tmp_path


def run(folder, train, *flags):
    """(all of contamination.json, [lines of matches.jsonl])."""
    path = train if isinstance(train, str) else write_rows(folder / "train.jsonl", train)
    contamination.main(["--train", path, "--data", str(folder), "--out_dir", str(folder / "out"),
                        *flags])  # fmt: skip
    result = json.loads((folder / "out" / "contamination.json").read_text())
    lines = (folder / "out" / "matches.jsonl").read_text().splitlines()
    return result, [json.loads(line) for line in lines]


def counts(folder, train, *flags):
    return run(folder, train, *flags)[0]["tasks"]["mlesg"]


def test_the_report_counts_every_item_and_row_and_names_the_place(folder, capsys):
    train = [{"text": "nothing"}, {"text": f"x {ITEM} y"}, {"text": HALF}]
    result, matches = run(folder, train)
    assert result["tasks"]["mlesg"] == {"items": 4, "exact": 1, "matched": 1, "contaminated": 1,
                                        "short": 2, "short_found": 0}  # fmt: skip
    [rows] = result["train"].values()
    assert rows == {"rows": 3, "matched": 2, "contaminating": 2}
    [match] = matches
    assert match["id"] == "r0" and match["where"].endswith("train.jsonl:2") and match["exact"]
    assert match["overlap"] == match["question"] == 100 and 90 < match["with_answer"] < 100
    assert match["stretch"] == " ".join(words(ITEM)) and match["rows"] == 2
    shown = capsys.readouterr().out
    assert "25.000%" in shown and "2 (66.667%) contaminate one" in shown


@pytest.mark.parametrize("block", [1, 10**6])  # rows searched one by one, or all at once
@pytest.mark.parametrize("order", [1, -1])
def test_the_row_that_covers_most_is_named_and_the_worst_item_comes_first(
    folder, order, block, monkeypatch
):
    monkeypatch.setattr(contamination, "BLOCK", block)
    train = [HALF, f"{ITEM} {OTHER}", HALF]
    result, matches = run(folder, [{"text": text} for text in train[::order]])
    assert [(m["id"], m["where"][-2:]) for m in matches] == [("r0", ":2"), ("r1", ":2")]
    assert matches[0]["overlap"] > matches[1]["overlap"]
    assert [m["rows"] for m in matches] == [3, 1] and list(result["train"].values())[0] == {
        "rows": 3, "matched": 3, "contaminating": 3}  # fmt: skip
    train = [f"{HALF} federal", f"of {OTHER} before", HALF]
    _, matches = run(folder, [{"text": text} for text in train[::order]])
    assert {m["id"]: m["where"][-1] for m in matches} == {"r0": "13"[order < 0], "r1": "2"}
    assert matches[0]["overlap"] >= matches[1]["overlap"]


@pytest.mark.parametrize("block", [1, 10**6])
@pytest.mark.parametrize("order", [1, -1])
def test_of_rows_that_cover_all_one_that_holds_it_in_one_piece_is_named(
    folder, order, block, monkeypatch
):
    monkeypatch.setattr(contamination, "BLOCK", block)
    split = ITEM.split()
    pieces = f"{' '.join(split[:12])} x {' '.join(split[4:])} good"
    texts = [pieces, f"{ITEM} Good.", pieces]
    result, [match] = run(folder, [{"text": text} for text in texts[::order]])
    assert match["overlap"] == 100 and match["exact"] and match["where"].endswith(":2")
    assert result["tasks"]["mlesg"]["exact"] == 1
    _, [match] = run(folder, [{"text": pieces}, {"text": pieces}])
    assert match["where"].endswith(":1") and not match["exact"]  # of equals the first


def test_the_larger_overlap_of_question_and_question_with_answer_counts(folder):
    long = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    rows = [{"id": "a", "query": f"{ITEM}\nAnswer:", "text": ITEM, "answer": f"{long} {long}"},
            {"id": "b", "query": "So?\nAnswer:", "text": "So?", "answer": long}]  # fmt: skip
    write_rows(folder / "edtsum.jsonl", rows)
    result, matches = run(folder, [{"text": f"{ITEM} So {long}"}], "--tasks", "edtsum")
    assert result["tasks"]["edtsum"]["contaminated"] == 2
    shares = {m["id"]: [m["overlap"], m["question"], m["with_answer"]] for m in matches}
    assert shares["b"] == [100, 100, 100] and shares["a"][:2] == [100, 100]
    assert {m["id"]: m["stretch"] for m in matches}["b"] == f"so {long}"
    write_rows(folder / "edtsum.jsonl", rows[:1])
    result, [match] = run(folder, [{"text": ITEM}], "--tasks", "edtsum")
    assert [count["contaminating"] for count in result["train"].values()] == [1]
    assert match["overlap"] == 100 and match["with_answer"] < 50
    _, [match] = run(folder, [{"text": long}], "--tasks", "edtsum")
    assert match["overlap"] == match["with_answer"] > 50 and match["question"] == 0


def test_a_short_question_is_reported_apart(folder, monkeypatch):
    monkeypatch.setattr(contamination, "BLOCK", 1)
    said = {"text": "Nobody gave a warning before, he said"}
    result, [match] = run(folder, [{"text": "x"}, said, said])
    found = result["tasks"]["mlesg"]
    assert (found["short_found"], found["matched"], found["contaminated"]) == (1, 0, 0)
    assert match["id"] == "r3" and match["short_found"].endswith(":2") and "overlap" not in match


def test_several_files_are_searched_and_one_named_twice_once(folder):
    a = write_rows(folder / "a.jsonl", [{"text": HALF}])
    b = write_rows(folder / "b.jsonl", [{"text": ITEM}])
    result, [match] = run(folder, f"{a},{b}, {a}")
    assert match["where"] == f"{b}:1" and match["rows"] == 2
    assert {path: count["rows"] for path, count in result["train"].items()} == {a: 1, b: 1}


def test_the_threshold_decides_what_is_contaminated(folder):
    half = [{"text": HALF}]
    share = run(folder, half)[1][0]["overlap"]
    assert 50 < share < 100
    assert counts(folder, half, "--threshold", str(share - 1))["contaminated"] == 1
    result, _ = run(folder, half, "--threshold", str(share + 1))
    found, [rows] = result["tasks"]["mlesg"], result["train"].values()
    assert (found["contaminated"], found["matched"], found["exact"]) == (0, 1, 0)
    assert rows == {"rows": 1, "matched": 1, "contaminating": 0}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": f"Say: {ITEM}"}]},
        {"prompt": "p", "chosen": ITEM, "rejected": "r"},
        {"prompt": "p", "chosen": "c", "rejected": ITEM},
        {"prompt": "p", "prefix": ITEM, "chosen": "c", "rejected": "r"},
        {"prompt": [{"role": "user", "content": ITEM}], "chosen": "c"},
        {"prompt": HALF, "completion": " ".join(ITEM.split()[10:])},  # the cut is no border
        {"query": ITEM, "answer": "good"},
    ],
)
def test_every_kind_of_training_row_is_searched(folder, row):
    assert counts(folder, [row])["exact"] == 1


def test_the_instruction_that_all_rows_share_is_no_match(folder):
    row = {"messages": [{"role": "user", "content": QUERY.format("Another text altogether, yes.")}]}
    assert counts(folder, [row])["matched"] == 0


def test_an_item_is_compared_as_a_text_would_say_it():
    letter = {"text": "Which?", "query": "Which?\nA. cash\nB. a bond\nAnswer:", "answer": "B"}
    assert item_texts(TASKS["mmlu"], letter) == ("Which?", "a bond")
    blank = {"text": "The bond beat the share as the _ was safe.", "query": "", "answer": "bond"}
    filled = "The bond beat the share as the bond was safe."
    assert item_texts(TASKS["winogrande"], blank) == (filled, "")
    chat = {"text": "Write.", "query": "Write.", "turns": ["Write.", "Shorter."], "answer": ""}
    assert item_texts(TASKS["mt_bench"], chat) == ("Write.\nShorter.", "")
    assert item_texts(TASKS["arc"], {"query": "Q", "answer": "one"}) == ("Q", "one")  # no text


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--train", ""], "--train: name a training file"),
        (["--train", "none.jsonl"], "none.jsonl: no such file"),
        (["--tasks", "fbp"], "unknown task 'fbp'; did you mean fpb"),
        (["--tasks", "fpb"], r"no .*fpb.jsonl; python evaluate.py prepare fpb"),
        (["--data", "nowhere"], "--data nowhere: no TASK.jsonl in it"),
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
