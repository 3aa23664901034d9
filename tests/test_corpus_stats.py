"""corpus_stats.py: counts that add up, groups and warnings, a page that needs nothing beside it."""

import json
import random
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from tiny import write_rows, write_tokenizer

import corpus
import corpus_stats
import curate
from config import UserError
from corpus_stats import LISTED, histogram, kind_of, quantiles, source_of
from tokenizer import Tokenizer


def run(folder, rows, *flags):
    """(records, numbers, page) of a run."""
    data = rows if isinstance(rows, str) else write_rows(folder / "in.jsonl", rows)
    curate.main(["stats", "--data", data, "--out", f"{folder}/out/s.jsonl", *flags])
    lines = (folder / "out/s.jsonl").read_text().splitlines()
    numbers = json.loads((folder / "out/s.stats.json").read_text())
    return [json.loads(line) for line in lines], numbers, (folder / "out/s.stats.html").read_text()


def texts(*said, **more):
    return [{"text": text, **more} for text in said]


@pytest.fixture
def undrawn(monkeypatch):
    monkeypatch.setattr(corpus_stats, "draw", lambda result, path: None)


def test_every_row_is_measured(tmp_path, undrawn):
    write_tokenizer(tmp_path / "ck")
    row = {
        "text": "Profit, revenue: 3.5%!",
        "source": "Book: 7",
        "license": "MIT",
        "language": "en",
    }
    chat = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}
    records, numbers, _ = run(tmp_path, [row, chat], "--tokenizer", f"{tmp_path}/ck")
    tokenizer = Tokenizer(tmp_path / "ck")
    first, second = records
    assert {name: first[name] for name in ("source", "licence", "language", "kind")} == {
        "source": "Book", "licence": "MIT", "language": "en", "kind": "text"}  # fmt: skip
    assert first["file"] == str(tmp_path / "in.jsonl") and first["characters"] == 22
    assert first["words"] == 4 and first["tokens"] == len(tokenizer.encode(row["text"]))
    assert second["kind"] == "chat" and second["tokens"] == len(tokenizer.encode("Hi\nYo"))
    assert second["source"] == "in.jsonl" and second["licence"] is second["language"] is None
    for name in ("characters", "words", "tokens"):
        assert numbers[name] == first[name] + second[name]
    assert numbers["source"]["Book"]["size"] == first["tokens"]
    assert numbers["unit"] == "tokens" and numbers["rows"] == 2


def test_without_a_tokenizer_words_are_counted(tmp_path, undrawn, capsys):
    records, numbers, page = run(tmp_path, texts("a b c", "d"))
    assert [record["tokens"] for record in records] == [None, None]
    assert numbers["unit"] == "words" and "tokens" not in numbers and "tokens" not in page
    assert "2 rows, 6 characters, 4 words; 0 copies" in capsys.readouterr().out


def test_texts_in_other_case_and_punctuation_are_copies(tmp_path, undrawn):
    rows = texts("One two, three.", "one TWO\nthree", "one two three four", "One-two three!")
    records, numbers, page = run(tmp_path, rows)
    assert numbers["copies"] == 2 and len({record["sha"] for record in records}) == 2
    assert "2 rows (50.0%) are copies of another one" in page


@pytest.mark.parametrize(
    "source, group",
    [
        ("OpenStax Principles of Accounting:m67914", "OpenStax Principles of Accounting"),
        ("Federal Reserve speech 20040219", "Federal Reserve speech"),
        ("Federal Reserve speech bernanke20070206a", "Federal Reserve speech"),
        ("SEC filing Tesla_Q4", "SEC filing Tesla_Q4"),
        ("Form 10-K of 3M", "Form 10-K of 3M"),
        ("CC-MAIN-2024", "CC-MAIN"),
        ("https://www.sec.gov/x?a=b", "sec.gov"),
        ("http://SEC.gov:80/", "sec.gov"),
        ("2024", "2024"),
        ("a\n b", "a b"),
        (7, "7"),
        (": x", "in.jsonl"),
        ("", "in.jsonl"),
        (None, "in.jsonl"),
    ],
)
def test_chapters_dates_and_pages_belong_to_one_source(source, group):
    assert source_of({"source": source}, "data/in.jsonl") == group


def test_the_kind_of_a_row_is_what_it_trains():
    rows = {"text": {"text": "x"}, "chat": {"messages": [1]}, "prompt": {"query": "q", "text": "t"},
            "pair": {"prompt": "p", "chosen": "c", "rejected": "r"}}  # fmt: skip
    assert {kind: kind_of(row) for kind, row in rows.items()} == {kind: kind for kind in rows}
    assert kind_of({"prompt": "p", "completion": "c", "messages": None}) == "prompt"


def test_groups_add_up_and_the_largest_are_shown(tmp_path, undrawn):
    rows = [{"text": "w " * (i + 1), "source": f"s{i}"} for i in range(LISTED + 5)]
    rows += texts("w " * 500, source="s0")
    _, numbers, page = run(tmp_path, rows)
    found = numbers["source"]
    assert len(found) == LISTED + 1 and [*found][-1] == "5 others"
    assert [*found][:3] == ["s0", "s24", "s23"]
    assert found["s0"] == {"rows": 2, "size": 501, "rows %": 7.69, "size %": 60.73}
    assert found["5 others"] == {"rows": 5, "size": 2 + 3 + 4 + 5 + 6, "rows %": 19.23,
                                 "size %": 2.42}  # fmt: skip
    for name in ("source", "file", "licence", "language", "kind"):
        assert sum(group["rows"] for group in numbers[name].values()) == numbers["rows"] == 26
        assert sum(group["size"] for group in numbers[name].values()) == numbers["words"] == 825
    assert "<td>5 others</td>" in page and "19.2%" in page


def test_the_source_with_most_words_comes_first(tmp_path, undrawn):
    rows = texts("a", "b", "c", source="often") + texts("a b c d", source="long")
    assert [*run(tmp_path, rows)[1]["source"]] == ["long", "often"]


def test_another_tokenizer_is_another_run(tmp_path, undrawn):
    write_tokenizer(tmp_path / "ck")
    run(tmp_path, texts("a"), "--tokenizer", f"{tmp_path}/ck")
    write_tokenizer(tmp_path / "ck", "chatml")
    with pytest.raises(UserError, match="other size and time of files .*tokenizer.json"):
        run(tmp_path, f"{tmp_path}/in.jsonl", "--tokenizer", f"{tmp_path}/ck")


def test_files_are_counted_apart(tmp_path, undrawn):
    (tmp_path / "b.txt").write_text("one two three")
    (tmp_path / "c.json").write_text(json.dumps(texts("a", "b")))
    data = f"{write_rows(tmp_path / 'a.jsonl', texts('x'))},{tmp_path}/b.txt,{tmp_path}/c.json"
    _, numbers, _ = run(tmp_path, data)
    found = {Path(name).name: (g["rows"], g["size"]) for name, g in numbers["file"].items()}
    assert found == {"b.txt": (1, 3), "c.json": (2, 2), "a.jsonl": (1, 1)}
    assert {*numbers["source"]} == {*found}


def test_quantiles_are_lengths_that_are_there():
    lengths = np.array([*range(1, 100), 1000])
    assert quantiles(lengths) == {"median": 50, "90%": 90, "99%": 99, "max": 1000, "mean": 59.5}
    assert quantiles(np.array([3, 8]))["median"] == 3


@pytest.mark.parametrize("seed", range(3))
def test_bins_hold_every_row_once(seed):
    rng = random.Random(seed)
    lengths = [int(rng.lognormvariate(5, 2)) for _ in range(500)] + [0, 1, 2, 16, 2**20]
    bins = histogram(np.array(lengths))
    edges = [entry[0] for entry in bins] + [2**30]
    for (low, rows, size), high in zip(bins, edges[1:], strict=True):
        inside = [n for n in lengths if low <= n < high]
        assert (rows, size) == (len(inside), sum(inside)), low
    assert edges[:2] == [0, 1.0] and sum(entry[1] for entry in bins) == len(lengths)


def warned(folder, rows, *flags):
    return run(folder, rows, *flags)[1]["warnings"]


def test_nothing_is_warned_of_without_need(tmp_path, undrawn):
    rows = [{"text": f"w{i}", "source": f"s{i % 2}", "licence": "MIT"} for i in range(200)]
    _, numbers, page = run(tmp_path, rows)
    assert numbers["warnings"] == [] and "Nothing stands out." in page
    assert numbers["licence"] == {"MIT": {"rows": 200, "size": 200, "rows %": 100.0,
                                          "size %": 100.0}}  # fmt: skip


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({3: {"text": "w7"}, 4: {"text": "W7!"}}, None),  # 1% is still fine
        ({3: {"text": "w7"}, 4: {"text": "W7!"}, 5: {"text": "w7"}}, "Copies .*: 3 .1.5%."),
        ({3: {"text": "w " * 100_001}}, "more than 100,000 words: 1"),
        ({3: {"text": "w " * 100_000}}, "^One source"),
        ({3: {"text": "--"}}, "without a word: 1"),
        ({3: {"licence": None}, 4: {"licence": ""}}, "without a licence.*: 2 .1.0%."),
        ({3: {"text": "w3 " * 199}}, "One source holds 74.9% of all words: s1."),
        ({3: {"text": None}}, "could not be read.*: 1"),
    ],
)
def test_what_needs_a_persons_eyes_is_named(tmp_path, undrawn, changes, sentence):
    rows = [{"text": f"w{i}", "source": f"s{i % 2}", "licence": "MIT"} for i in range(200)]
    for place, change in changes.items():
        rows[place] |= change
    found = warned(tmp_path, rows)
    if sentence is None:
        assert found == []
        return
    assert re.search(sentence, " ".join(found)), found
    page = (tmp_path / "out/s.stats.html").read_text()
    assert page.count('<p class="warning">') == len(found) <= 2


def test_rows_that_all_lack_a_licence_or_share_a_source_are_no_news(tmp_path, undrawn):
    _, numbers, page = run(tmp_path, texts("a", "b"))
    assert numbers["warnings"] == [] and page.count("No row says it.") == 2


class Links(HTMLParser):
    """Every address in a page, and the tags that are open."""

    def __init__(self, page):
        super().__init__()
        self.open, self.found, self.tags = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.found += [value for name, value in attributes if name in ("src", "href")]
        self.open += [] if tag in ("meta", "img", "br") else [tag]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_needs_nothing_beside_it_and_shows_names_as_they_are(tmp_path):
    import matplotlib  # noqa: F401  without it the page has no picture

    rows = [{"text": "w " * 3 * i, "source": f"<b>$\\frac{i}$ & co"} for i in range(14)]
    _, _, page = run(tmp_path, rows)
    links = Links(page)
    assert links.open == [] and "script" not in links.tags and "b" not in links.tags
    assert len(links.found) == 1 and links.found[0].startswith("data:image/png;base64,iVBOR")
    assert "&lt;b&gt;$\\frac13$ &amp; co" in page and "http" not in page and "viewport" in page
    from matplotlib import image

    height, width, _ = image.imread(tmp_path / "out/s.stats.png").shape
    assert width > 900 and height > 900


def test_without_matplotlib_the_page_has_no_picture(tmp_path, monkeypatch, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/s.stats.png").write_text("of another run")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    _, _, page = run(tmp_path, texts("a b", "c"))
    assert "<img" not in page and "Lengths" in page and "note: no figure" in capsys.readouterr().out
    assert not (tmp_path / "out/s.stats.png").exists()


def test_rows_without_a_word_can_be_drawn(tmp_path):
    _, numbers, _ = run(tmp_path, texts("--", "..."))
    assert numbers["histogram"] == [[0, 2, 0]] and numbers["lengths"]["words"]["max"] == 0


def listing(folder):
    """{name: bytes} of all files."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_killed_at_any_moment_it_ends_with_the_same_bytes(tmp_path):
    write_tokenizer(tmp_path / "ck")
    rng = random.Random(2)
    rows = [{"text": "profit rate " * rng.randint(1, 90), "source": f"s{rng.randrange(30)}"}
            for _ in range(90)]  # fmt: skip
    rows[7] = {"foo": 1}
    flags = ["--tokenizer", f"{tmp_path}/ck"]
    run(tmp_path, rows, *flags)
    whole = listing(tmp_path / "out")
    assert {"s.jsonl", "s.stats.json", "s.stats.html"} <= {*whole}
    command = [sys.executable, str(Path(__file__).with_name("killing.py")), "1", "stats", "--data",
               f"{tmp_path}/in.jsonl", "--out", f"{tmp_path}/again/s.jsonl", *flags]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-2]) > 3
    assert listing(tmp_path / "again") == whole


def test_the_page_is_made_again_from_a_finished_pass(tmp_path, undrawn, monkeypatch, capsys):
    run(tmp_path, texts("a b", "c"))
    before = listing(tmp_path / "out")
    for ending in ("html", "json"):
        (tmp_path / f"out/s.stats.{ending}").unlink()
    monkeypatch.setattr(corpus_stats, "measure", None)
    run(tmp_path, f"{tmp_path}/in.jsonl")
    assert listing(tmp_path / "out") == before and "is there already" in capsys.readouterr().out


def test_where_blocks_end_changes_nothing(tmp_path, undrawn, monkeypatch):
    rows = [*texts(*(f"w{i}" for i in range(10))), {"foo": 1}, *texts("x", "y")]
    run(tmp_path, rows, "--max_bad", "1")
    before = listing(tmp_path / "out")
    monkeypatch.setattr(corpus, "BLOCK_ROWS", 3)
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    run(tmp_path, f"{tmp_path}/in.jsonl", "--max_bad", "1")
    assert listing(tmp_path / "out") == before


def test_bad_input_is_one_line(tmp_path):
    data = write_rows(tmp_path / "in.jsonl", [{"foo": 1}])
    out = f"{tmp_path}/out/s.jsonl"
    with pytest.raises(UserError, match="--data: name a file"):
        curate.main(["stats", "--out", out])
    with pytest.raises(UserError, match="tokenizer.json: no such file"):
        curate.main(["stats", "--data", data, "--out", out, "--tokenizer", f"{tmp_path}/none"])
    with pytest.raises(UserError, match="no row could be read"):
        curate.main(["stats", "--data", data, "--out", out, "--max_bad", "1"])
    with pytest.raises(UserError, match="holds no rows"):
        curate.main(["stats", "--data", write_rows(tmp_path / "no.jsonl", []), "--out",
                     f"{tmp_path}/no_out.jsonl"])  # fmt: skip
