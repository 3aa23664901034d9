"""decontaminate.py: what holds an item goes, what only touches one stays and is listed."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import write_rows

import corpus
import curate
import decontaminate
from config import UserError
from overlap import GRAM, words

ITEM = "The committee decided to keep the target range for the federal funds rate at four percent."
HALF = " ".join(ITEM.split()[:10])
OTHER = "Sales of the third quarter rose by ten percent against the year before last, they told us."
QUERY = "Judge the profile of this client and reply good or bad.\nText: {}\nAnswer:"
ROW = {"answer": "good", "choices": ["good", "bad"], "gold": 0}
RULED = {"answer": "hawkish", "choices": ["dovish", "hawkish", "neutral"], "gold": 1}


def write_items(folder, name, texts, more=ROW):
    rows = [more | {"id": f"{name}{i}", "text": text, "query": QUERY.format(text)}
            for i, text in enumerate(texts)]  # fmt: skip
    folder.mkdir(exist_ok=True)
    write_rows(folder / f"{name}.jsonl", rows)


@pytest.fixture
def folder(tmp_path):
    write_items(tmp_path / "eval", "mlesg", [ITEM, OTHER, "Too short"])
    return tmp_path


def read(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def run(folder, rows, *flags):
    """(kept rows, dropped, touched, report) of a run."""
    data = rows if isinstance(rows, str) else write_rows(folder / "in.jsonl", rows)
    out = folder / "out" / "clean.jsonl"
    curate.main(["decontaminate", "--data", data, "--eval_data", str(folder / "eval"),
                 "--out", str(out), *flags])  # fmt: skip
    report = json.loads((folder / "out" / "clean.contamination.json").read_text())
    lists = (read(folder / "out" / f"clean{end}.jsonl") for end in ("", ".dropped", ".matches"))
    return *lists, report


def texts(*said):
    return [{"text": text} for text in said]


def places(rows):
    return [int(row["where"].rpartition(":")[2]) for row in rows]


def test_a_row_that_holds_an_item_is_dropped_with_what_it_holds(folder, capsys):
    rows = texts("nothing", f"He said: {ITEM.upper()} So it was.", HALF + " else", "at all")
    kept, dropped, touched, report = run(folder, rows, "--threshold", "70")
    assert kept == [rows[0], *rows[2:]] and places(dropped) == [2] and places(touched) == [3]
    [match] = dropped[0]["matches"]
    assert match == {"task": "mlesg", "id": "mlesg0", "overlap": 100.0, "exact": True,
                     "stretch": " ".join(words(ITEM))}  # fmt: skip
    assert dropped[0]["reason"] == "contaminated" and "below" not in dropped[0]
    [below] = touched[0]["below"]
    assert below["id"] == "mlesg0" and 50 < below["overlap"] < 70 and not below["exact"]
    assert below["stretch"] == " ".join(words(HALF))
    assert report["tasks"] == {"mlesg": {"items": 3, "exact": 1, "matched": 1, "contaminated": 1,
                                         "rows_dropped": 1}}  # fmt: skip
    [[path, counts]] = report["files"].items()
    assert path.endswith("in.jsonl") and counts == {"rows": 4, "touched": 1, "contaminated": 1}
    shown = capsys.readouterr().out
    assert "4 rows = 3 kept + 1 skipped [1 contaminated]" in shown
    assert "in.jsonl:2: 100.0% of mlesg mlesg0, all in one piece" in shown
    assert f"in.jsonl:3: {below['overlap']}% of mlesg mlesg0\n" in shown


@pytest.mark.parametrize("threshold, first", [("50", 11), ("49.9", 10), ("55", 12), ("99", 99)])
def test_a_row_that_covers_just_the_threshold_is_kept(folder, threshold, first):
    item = " ".join(f"{i:04d}" for i in range(20))
    write_items(folder / "eval", "mlesg", [item])
    rows = texts(*(f"{' '.join(item.split()[:n])} x" for n in range(9, 13)))  # 45% to 60% of it
    _, dropped, touched, _ = run(folder, rows, "--threshold", threshold)
    assert [place + 8 for place in places(dropped)] == [*range(first, 13)]
    assert [place + 8 for place in places(touched)] == [*range(10, min(first, 13))]


def test_a_rows_matches_stand_the_worst_first_and_touched_items_apart(folder):
    write_items(folder / "eval", "fomc", [f"{HALF} federal funds"], RULED)
    row = f"{HALF} federal {' '.join(OTHER.split()[:10])}"
    kept, [dropped], _, report = run(folder, texts(row), "--threshold", "67")
    assert [(m["task"], m["id"]) for m in dropped["matches"]] == [("fomc", "fomc0"),
                                                                  ("mlesg", "mlesg0")]  # fmt: skip
    assert dropped["matches"][0]["overlap"] > dropped["matches"][1]["overlap"] > 67
    assert [m["id"] for m in dropped["below"]] == ["mlesg1"] and not kept
    counts = {name: (c["matched"], c["contaminated"], c["rows_dropped"])
              for name, c in report["tasks"].items()}  # fmt: skip
    assert counts == {"fomc": (1, 1, 1), "mlesg": (2, 1, 1)}


def test_the_instruction_that_a_tasks_items_share_is_no_match(folder):
    rule = "judge whether the profile of this client below is good or bad now"
    write_items(folder / "eval", "mlesg", [f"{rule} w{i}" for i in range(4)])
    write_items(folder / "eval", "fomc", [f"{i} {OTHER}" for i in range(2)] * 50, RULED)
    kept, dropped, touched, _ = run(folder, texts(rule))
    assert kept and not dropped and not touched


def test_after_it_the_contamination_report_finds_none(folder):
    import contamination

    run(folder, texts(ITEM, "x " + OTHER, HALF, "fine"), "--threshold", "80")
    contamination.main(["--train", f"{folder}/out/clean.jsonl", "--data", f"{folder}/eval",
                        "--out_dir", f"{folder}/found", "--threshold", "80"])  # fmt: skip
    [counts] = json.loads((folder / "found/contamination.json").read_text())["tasks"].values()
    assert (counts["contaminated"], counts["matched"]) == (0, 1)


def plant(rng, item, document):
    """The item's words in other case and with other marks, in the midst of a document."""
    said = [rng.choice([w, w.upper(), w.title()]) + rng.choice(["", ",", ".", " -", "\n"])
            for w in item.split()]  # fmt: skip
    around = document.split()
    at = rng.randint(0, len(around))
    return " ".join([*around[:at], *said, *around[at:]])


@pytest.mark.parametrize("seed", range(3))
def test_every_planted_item_is_found_and_no_clean_document_is_dropped(tmp_path, seed):
    rng = random.Random(seed)
    vocabulary = [f"{a}{b}" for a in ("rate", "bond", "fund", "cash") for b in range(40)]
    items = [" ".join(rng.choices(vocabulary, k=rng.randint(GRAM, 60))) for _ in range(300)]
    write_items(tmp_path / "eval", "mlesg", items[:150])
    write_items(tmp_path / "eval", "fomc", items[150:], RULED)
    documents = [" ".join(rng.choices(vocabulary, k=rng.randint(0, 400))) for _ in range(600)]
    for place in rng.sample(range(600), 100):  # and some that quote nine words or a small part
        part = rng.choice(items).split()
        part = part[: 9 if len(part) < 25 else 11]
        documents[place] += " " + " ".join(part)
    planted = dict(zip(rng.sample(range(600), 50), rng.sample(range(300), 50), strict=True))
    for place, item in planted.items():
        documents[place] = plant(rng, items[item], documents[place])
    kept, dropped, touched, report = run(tmp_path, texts(*documents))
    names = [f"mlesg{i}" for i in range(150)] + [f"fomc{i}" for i in range(150)]
    assert {place - 1 for place in places(dropped)} == set(planted)
    for row, place in zip(dropped, places(dropped), strict=True):
        worst = row["matches"][0]
        assert worst["id"] == names[planted[place - 1]]
        assert worst["overlap"] == 100 and worst["exact"]
    assert len(kept) == 550 and len(touched) > 20
    assert sum(count["contaminated"] for count in report["tasks"].values()) == 50
    assert sum(count["rows_dropped"] for count in report["tasks"].values()) == 50


@pytest.mark.parametrize("block", [1, 3, 256])
def test_where_blocks_end_changes_nothing(folder, block, monkeypatch):
    monkeypatch.setattr(corpus, "BLOCK_ROWS", block)
    rows = [*texts(HALF, ITEM), {"foo": 1}, *texts(OTHER, HALF, "x", ITEM, ITEM + OTHER)]
    _, dropped, touched, report = run(folder, rows, "--threshold", "80", "--max_bad", "1")
    assert places(dropped) == [2, 3, 4, 7, 8] and places(touched) == [1, 5]
    assert [row["reason"] == "unreadable" for row in dropped] == [0, 1, 0, 0, 0]
    assert "holds no text" in dropped[1]["detail"]
    assert [m["id"] for m in dropped[-1]["matches"]] == ["mlesg0", "mlesg1"]
    [counts] = report["files"].values()
    assert counts == {"rows": 7, "touched": 2, "contaminated": 4}
    assert report["tasks"]["mlesg"]["rows_dropped"] == 4  # one that holds two items is one row


def test_files_of_all_forms_are_counted_apart(folder):
    (folder / "b.txt").write_text(f"A report.\n{ITEM}")
    (folder / "c.json").write_text(json.dumps(texts("x", OTHER, HALF)))
    data = f"{write_rows(folder / 'a.jsonl', texts(HALF))},{folder}/b.txt,{folder}/c.json"
    _, dropped, touched, report = run(folder, data, "--threshold", "80")
    counts = {Path(path).name: [*found.values()] for path, found in report["files"].items()}
    assert counts == {"a.jsonl": [1, 1, 0], "b.txt": [1, 0, 1], "c.json": [3, 1, 1]}
    assert dropped[1]["where"].endswith("c.json: row 1") and len(touched) == 2


def test_only_the_first_matches_of_a_row_say_their_words(folder, monkeypatch):
    monkeypatch.setattr(decontaminate, "STRETCHES", 2)
    items = [f"{HALF} {i}" for i in range(3)] + [f"a{i} b c d e f g h i j" for i in range(40)]
    write_items(folder / "eval", "mlesg", items)
    _, dropped, _, report = run(folder, texts(HALF, " x ".join(items[:3])))
    for row, exact in zip(dropped, (None, True), strict=True):
        assert ["stretch" in match for match in row["matches"]] == [True, True, False]
        assert row["matches"][2].get("exact") is exact
    counts = report["tasks"]["mlesg"]
    assert (counts["contaminated"], counts["exact"]) == (3, 3)  # whatever is written out


def test_the_worst_of_many_rows_are_shown(folder, monkeypatch, capsys):
    monkeypatch.setattr(decontaminate, "SHOWN", 2)
    split = ITEM.split()
    rows = texts(*(" ".join(split[:n]) for n in (12, 16, 11, 14, 16)))
    report = run(folder, rows)[-1]
    assert report["dropped"]["rows"] == 5 and places(report["dropped"]["worst"]) == [2, 5]
    assert "dropped, the worst of 5:" in capsys.readouterr().out


def test_only_the_named_tasks_count(folder):
    write_items(folder / "eval", "fomc", [OTHER], RULED)
    kept, _, touched, report = run(folder, texts(ITEM, OTHER), "--tasks", "fomc")
    assert kept == texts(ITEM) and [*report["tasks"]] == ["fomc"] and not touched


def listing(folder):
    """{name: bytes} of all files."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_killed_at_any_moment_it_ends_with_the_same_bytes(tmp_path):
    rng = random.Random(5)
    items = [" ".join(f"w{rng.randrange(300)}" for _ in range(rng.randint(10, 30)))
             for _ in range(200)]  # fmt: skip
    write_items(tmp_path / "eval", "mlesg", items)
    rows = []
    for _ in range(130):
        item = rng.choice(items).split()
        part = item[: rng.choice([0, 9, 10, 11, 30])]
        rows.append({"text": " ".join(["so", *part, "it", "was"])} if rng.random() < 0.97 else {})
    flags = ["--max_bad", "1"]
    run(tmp_path, rows, *flags)
    whole = listing(tmp_path / "out")
    assert len(whole) == 5 and whole["clean.matches.jsonl"] and whole["clean.dropped.jsonl"]
    command = [sys.executable, str(Path(__file__).with_name("killing.py")), "1", "decontaminate",
               "--data", f"{tmp_path}/in.jsonl", "--eval_data", f"{tmp_path}/eval", "--out",
               f"{tmp_path}/again/clean.jsonl", *flags]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-2]) > 3
    assert listing(tmp_path / "again") == whole


def command(folder):
    return ["decontaminate", "--data", f"{folder}/in.jsonl", "--eval_data", f"{folder}/eval",
            "--out", f"{folder}/out/clean.jsonl"]  # fmt: skip


def test_a_finished_run_shows_its_report_again_and_searches_no_more(folder, monkeypatch, capsys):
    run(folder, texts(ITEM, HALF, "x"))
    first, before = capsys.readouterr().out, listing(folder / "out")
    monkeypatch.setattr(decontaminate, "make_index", None)
    curate.main(command(folder))
    assert capsys.readouterr().out.endswith(first) and listing(folder / "out") == before
    (folder / "out/clean.contamination.json").unlink()
    with pytest.raises(UserError, match="contamination.json is gone; delete .*counts.json"):
        curate.main(command(folder))


def test_what_a_stopped_run_left_does_not_reach_one_with_other_settings(folder, monkeypatch):
    monkeypatch.setattr(corpus, "BLOCK_ROWS", 1)
    rows = texts(f"{HALF} federal", HALF, ITEM, "stop here", OTHER)
    with monkeypatch.context() as patch:
        found = decontaminate.training_text
        patch.setattr(
            decontaminate,
            "training_text",
            lambda row, where: 1 / (row["text"] != "stop here") and found(row, where),
        )
        with pytest.raises(ZeroDivisionError):
            run(folder, rows, "--threshold", "90")
    record = folder / "out/clean.matches.partial.jsonl"
    assert len(read(record)) == 3
    with pytest.raises(UserError, match="other settings .threshold."):
        run(folder, rows, "--threshold", "40")
    (folder / "out/clean.progress.json").unlink()
    _, dropped, touched, report = run(folder, rows, "--threshold", "40")
    assert places(dropped) == [1, 2, 3, 5] and touched == [] and not record.exists()
    assert [*report["files"].values()] == [{"rows": 5, "touched": 0, "contaminated": 4}]


@pytest.mark.parametrize("last", [b"", b'{"behind": 4, "ke', b'{"behind": 4}', b'{"behind": 9}\n'])
def test_the_record_is_cut_back_to_the_last_note(tmp_path, last):
    record, progress = tmp_path / "record", tmp_path / "progress"
    record.write_bytes(b'{"behind": 2}\n{"behind": 4}\n' + last)
    progress.write_text('{"counts": {"rows": 4}}')
    decontaminate.cut_back(record, progress)
    assert record.read_bytes() == b'{"behind": 2}\n{"behind": 4}\n'
    progress.unlink()
    decontaminate.cut_back(record, progress)
    assert record.read_bytes() == b""


def test_a_run_of_other_evaluation_rows_is_not_gone_on_with(folder):
    run(folder, texts(ITEM))
    write_items(folder / "eval", "mlesg", [OTHER])
    with pytest.raises(UserError, match="other size and time of files .*mlesg.jsonl"):
        curate.main(command(folder))


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--eval_data", "nowhere"], "--eval_data nowhere: no TASK.jsonl in it"),
        (["--tasks", "mlseg"], "unknown task 'mlseg'; did you mean mlesg"),
        (["--tasks", "fpb"], "no .*fpb.jsonl; python evaluate.py prepare fpb"),
        (["--threshold", "0"], "--threshold must be above 0"),
        (["--threshold", "100"], "--threshold 100: no row covers more than all"),
        (["--data", "none.jsonl"], "--data none.jsonl: no such file"),
        (["--data", ""], "--data: name a file"),
        (["--out", "clean"], "--out 'clean': name the FILE.jsonl"),
    ],
)
def test_bad_settings_are_one_line(folder, flags, message):
    write_rows(folder / "in.jsonl", texts("x"))
    words = command(folder)
    given = dict(zip(words[1::2], words[2::2], strict=True)) | {flags[0]: flags[1]}
    with pytest.raises(UserError, match=message):
        curate.main(["decontaminate", *(part for pair in given.items() for part in pair)])


def test_no_rows_are_an_error_and_unreadable_ones_are_counted(folder):
    with pytest.raises(UserError, match="holds no rows"):
        run(folder, [])
    (folder / "out/clean.progress.json").unlink(missing_ok=True)
    with pytest.raises(UserError, match="1 of 2 rows cannot be read.*holds no text"):
        run(folder, [{"text": "x"}, {"foo": 1}])
    (folder / "out/clean.progress.json").unlink(missing_ok=True)
    assert (folder / "out/clean.matches.partial.jsonl").exists()
    (folder / "in.jsonl").write_text("{no json}\n")
    kept, dropped, _, report = run(folder, f"{folder}/in.jsonl", "--max_bad", "1")
    assert not kept and len(dropped) == 1 and report["dropped"]["rows"] == 0
    assert [*report["files"].values()] == [{"rows": 0, "touched": 0, "contaminated": 0}]
    for name in ("clean.counts.json", "clean.contamination.json"):
        (folder / "out" / name).unlink()
    report = run(folder, f"{folder}/in.jsonl", "--max_bad", "1")[-1]
    assert report["tasks"]["mlesg"]["matched"] == 0
