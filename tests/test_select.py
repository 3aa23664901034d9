import json

import pytest
from tiny import write_rows

import curate
from config import UserError
from curate import is_english, on_site
from overlap import words

ENGLISH = "The bank said that it will pay the interest of this bond to all of its holders by May."
GERMAN = "Die Bank hat mitgeteilt, dass sie den Zins der Anleihe im Mai an alle Besitzer zahlt."
DUTCH = (
    "De bank zegt dat zij de rente van deze lening in mei aan alle houders betaalt, en niet later."
)
FRENCH = (
    "La banque a dit que les intérêts de cette obligation sont payés en mai à tous les porteurs."
)


def select(tmp_path, rows, *flags):
    """(texts kept, {reason: texts dropped}) of curate.py select."""
    data = write_rows(tmp_path / "in.jsonl", rows)
    out = tmp_path / "out.jsonl"
    for old in tmp_path.glob("out.*"):
        old.unlink()
    curate.main(["select", "--data", data, "--out", str(out), *map(str, flags)])
    kept = [json.loads(line) for line in open(out, encoding="utf-8")]
    reasons = {}
    for line in open(tmp_path / "out.dropped.jsonl", encoding="utf-8"):
        record = json.loads(line)
        reasons.setdefault(record["reason"], []).append(int(record["where"].rpartition(":")[2]) - 1)
    return [rows.index(row) for row in kept], reasons


@pytest.mark.parametrize(
    "url, found",
    [
        ("https://www.sec.gov/edgar", True),
        ("http://sec.gov", True),
        ("data.sec.gov/x", True),
        ("HTTPS://SEC.GOV/X", True),
        ("https://notsec.gov/", False),
        ("https://sec.gov.example.com/", False),
        ("https://example.com/?u=sec.gov", False),
        ("https://reuters.com/markets/us", True),
        ("https://www.reuters.com/sports", False),
        ("https://reuters.com/markets", True),
        ("https://reuters.com/marketsquare", False),
        ("http://[half", False),
        ("", False),
    ],
)
def test_a_site_is_a_host_with_all_below_it_and_maybe_the_beginning_of_a_path(url, found):
    assert on_site(url, {"sec.gov": ["/"], "reuters.com": ["/markets/"]}) == found


def test_english_is_told_by_its_common_words():
    assert is_english(words(ENGLISH))
    for other in (GERMAN, DUTCH, FRENCH, "利润 和 收入"):
        assert not is_english(words(other)), other


def test_rows_of_listed_sites_or_with_enough_keywords_are_kept(tmp_path):
    (tmp_path / "sites.txt").write_text(
        "# of the paper\nhttps://www.SEC.gov\nwww.reuters.com/markets/\n\n"
    )
    (tmp_path / "keys.txt").write_text("interest rate\nbond\nYield\n")
    rows = [
        {"text": "anything", "url": "https://www.sec.gov/a"},
        {"text": "anything", "url": "https://reuters.com/markets/b"},
        {"text": "anything", "url": "https://reuters.com/sport"},
        {"text": "The Bond's yield is an interest-rate", "url": "https://blog.example"},
        {"text": "The bonds yielded more than interest rates"},
        {"text": "bond bond bond yield"},
    ]
    flags = ["--sites", tmp_path / "sites.txt", "--keywords", tmp_path / "keys.txt"]
    kept, reasons = select(tmp_path, rows, *flags)
    assert kept == [0, 1, 3] and reasons == {"not of a site, too few keywords": [2, 4, 5]}
    assert select(tmp_path, rows, *flags, "--min_keywords", 2)[0] == [0, 1, 3, 5]
    kept, reasons = select(tmp_path, rows, *flags[:2])
    assert kept == [0, 1] and reasons == {"not of a site": [2, 3, 4, 5]}
    assert select(tmp_path, rows, *flags[2:])[0] == [3]


def test_language_is_what_the_row_says_else_what_its_words_say(tmp_path):
    rows = [{"text": ENGLISH}, {"text": GERMAN}, {"text": GERMAN, "language": "EN"},
            {"text": ENGLISH, "language": "de"}]  # fmt: skip
    kept, reasons = select(tmp_path, rows, "--language", "EN")
    assert kept == [0, 2]
    assert reasons == {"of another language by its words": [1], "of another language": [3]}
    kept, reasons = select(tmp_path, rows, "--language", "de")
    assert kept == [3] and reasons == {"of no language": [0, 1], "of another language": [2]}


def test_lengths_are_words_and_both_bounds_belong_to_what_is_kept(tmp_path):
    rows = [{"text": " ".join(["word"] * n)} for n in (1, 2, 3, 4)]
    kept, reasons = select(tmp_path, rows, "--min_words", 2, "--max_words", 3)
    assert kept == [1, 2]
    assert reasons == {"shorter than --min_words": [0], "longer than --max_words": [3]}


def test_chats_and_pairs_are_read_whole(tmp_path):
    chat = {"messages": [{"role": "user", "content": "one two"},
                         {"role": "assistant", "content": "three"}]}  # fmt: skip
    pair = {"prompt": "one", "chosen": "two", "rejected": "three"}
    assert select(tmp_path, [chat, pair], "--min_words", 3, "--max_words", 3)[0] == [0, 1]


def test_a_missing_column_is_named_with_what_is_there(tmp_path):
    rows = [{"content": "a text", "url": "x"}] * 3
    reason = r"3 of 3 rows cannot be read, the first: .*in.jsonl:1: holds no text.*content, url"
    with pytest.raises(UserError, match=reason):
        select(tmp_path, rows)
    with pytest.raises(UserError, match="in.jsonl:1: holds no text"):
        select(tmp_path, [{"text": 3}])


def test_bad_lists_and_settings_are_one_line(tmp_path):
    (tmp_path / "empty.txt").write_text("# nothing\n")
    for flags, reason in (
        (["--sites", tmp_path / "empty.txt"], "empty.txt: holds no line"),
        (["--keywords", tmp_path / "gone.txt"], "No such file|no such file"),
        (["--min_words", -1], "--min_words must be 0 or more"),
        (["--site", "x"], "unknown setting 'site'; did you mean sites"),
    ):
        with pytest.raises((UserError, FileNotFoundError), match=reason):
            select(tmp_path, [{"text": "a"}], *flags)
    with pytest.raises(UserError, match="usage: python curate.py convert|"):
        curate.main(["sell"])
