import json
import os
import random

import pytest
from judging import (
    Slow,
    adds_up,
    asked,
    book_exercise,
    check_never_asked_again,
    completion,
    killed_and_resumed,
    rows_of,
    serving,
    url,
)
from tiny import write_checkpoint, write_rows

import corpus
import exercises
from config import UserError
from solutions import read_prompts

ENDINGS = ".jsonl", ".dropped.jsonl", ".rejected.jsonl", ".counts.json"
NAMES = "Questions", "Scenario", "Exhibit", "Answer Choices", "Answer"


def run(folder, server=None, **changes):
    """exercises of folder/in.jsonl -> folder/out.jsonl"""
    settings = {"data": str(folder / "in.jsonl"), "out": str(folder / "out.jsonl")}
    settings |= {"backoff_s": 0.001, "retries": 1} | ({"base_url": url(server)} if server else {})
    exercises.exercises(exercises.Exercises(**settings | changes))


def files(folder):
    return [(folder / f"out{ending}").read_bytes() for ending in ENDINGS]


def counts(folder):
    """The counts, once they add up and agree with the files."""
    found = json.loads((folder / "out.counts.json").read_text())["counts"]
    assert found["rows"] == found["used"] + sum(found["dropped"].values())
    assert found["written"] == found["exercises"]["kept"] == len(rows_of(folder / "out.jsonl"))
    assert sum(found["dropped"].values()) == len(rows_of(folder / "out.dropped.jsonl"))
    lost = [row for row in rows_of(folder / "out.rejected.jsonl") if "questions" in row]
    assert len(lost) == sum(found["exercises"].values()) - found["written"]
    unread = found["passages"]["invalid"] + found["passages"]["refused by the judge"]
    assert len(rows_of(folder / "out.rejected.jsonl")) == len(lost) + unread
    return found


def reasons(folder):
    return [row["reason"] for row in rows_of(folder / "out.rejected.jsonl")]


def replied(*found):
    """A reply of exercises, each (question, scenario, exhibit, choices, answer)."""
    columns = [list(column) for column in zip(*found, strict=True)] or [[]] * 5
    return json.dumps({"Justification": "j"} | dict(zip(NAMES, columns, strict=True)))


def extracted(folder, text, *found, **more):
    """Of a book of one text in which the judge finds these exercises: the rows."""
    write_rows(folder / "in.jsonl", [{"text": text, "source": "book"} | more])
    with serving(lambda *_: completion(replied(*found))) as server:
        run(folder, server)
    counts(folder)
    return rows_of(folder / "out.jsonl")


BOOK = """Chapter 3

The firm in Exhibit 1 issues a bond.

Exhibit 1
Year   Coupon
1      5%
2      6%

12. Which coupon is paid in year 2?
A. 5%
B. 6%
C. 7%

Solutions
12. B is correct. The exhibit says so.
"""
ALL = ("Which coupon is paid in year 2?", "The firm in Exhibit 1 issues a bond.",
       "Exhibit 1\nYear Coupon\n1 5%\n2 6%", ["A. 5%", "B. 6%", "C. 7%"], "B")  # fmt: skip


def test_an_exercise_becomes_a_prompt_in_the_words_and_white_space_of_the_source(tmp_path):
    (row,) = extracted(tmp_path, BOOK, ALL)
    exhibit = "Exhibit 1\nYear   Coupon\n1      5%\n2      6%"
    assert row == {
        "id": row["id"], "source": "book", "answer": "B", "questions": ALL[0], "scenario": ALL[1],
        "exhibit": exhibit, "answer_choices": "A. 5%\nB. 6%\nC. 7%",
        "prompt": f"{ALL[1]}\n\n{exhibit}\n\n{ALL[0]}\n\nA. 5%\nB. 6%\nC. 7%",
        "where": f"{tmp_path}/in.jsonl:1",
    }  # fmt: skip
    prompts, without = read_prompts(tmp_path / "out.jsonl")
    assert list(prompts) == [row["id"]] and not without


@pytest.mark.parametrize(
    "choices", ["A. 5% B. 6% C. 7%", ["5%", "6%", "7%"], [" A.  5%", "B. 6%\n", "7%"]]
)
def test_choices_may_be_one_text_and_get_their_letters_from_the_source(tmp_path, choices):
    (row,) = extracted(tmp_path, BOOK, (*ALL[:3], choices, "B"))
    assert row["answer_choices"] == "A. 5%\nB. 6%\nC. 7%" and row["answer"] == "B"


INVENTED = [
    (0, "Which coupon is paid in year 3?", "questions not in the source"),
    (0, "hich coupon is paid in year 2?", "questions not in the source"),
    (0, "which coupon is paid in year 2?", "questions not in the source"),
    (0, " ", "without a question"),
    (1, "The firm issues a bond.", "scenario not in the source"),
    (2, "Exhibit 1\nYear Coupon\n1 5%\n2 7%", "exhibit not in the source"),
    (3, ["A. 5%", "B. 6%", "C. 8%"], "answer_choices not in the source"),
    (3, "A. 5%, B. 6%, C. 7%", "answer_choices not in the source"),
    (3, ["A. 5%", "C. 7%"], "answer is the letter of no choice"),
    (3, "", "answer is the letter of no choice"),
    (4, "D", "answer is the letter of no choice"),
    (4, "A", "answer not given as one in the source"),
    (4, "5%", "answer not given as one in the source"),
    (4, "A. 5%", "answer not given as one in the source"),
    (4, "7%", "answer not given as one in the source"),
    (4, "8%", "answer not in the source"),
    (4, "exhibit say", "answer not in the source"),
    (4, "The firm", "answer not given as one in the source"),
    (4, "", "without an answer"),
]


@pytest.mark.parametrize("field, text, reason", INVENTED)
def test_nothing_that_is_not_in_the_source_is_kept(tmp_path, field, text, reason, capsys):
    said = [*ALL[:field], text, *ALL[field + 1 :]]
    assert extracted(tmp_path, BOOK, said) == []
    (row,) = rows_of(tmp_path / "out.rejected.jsonl")
    assert row["reason"] == reason and row["where"] == f"{tmp_path}/in.jsonl:1"
    column = exercises.COLUMNS[field]
    assert row[column] == ([text] if field == 3 and isinstance(text, str) else text)
    (row,) = rows_of(tmp_path / "out.dropped.jsonl")
    assert row["reason"] == "none of its exercises is kept"
    assert adds_up(capsys.readouterr().out.split("\n", 1)[1])["exercises"] == (1, 0, 1)


@pytest.mark.parametrize("answer", ["B", "(B)", "B.", "6%", "B. 6%", "The exhibit says so."])
def test_an_answer_that_the_text_gives_is_kept_whatever_form_it_has(tmp_path, answer):
    (row,) = extracted(tmp_path, BOOK, (*ALL[:4], answer))
    assert row["answer"] == {"(B)": "B", "B.": "B"}.get(answer, answer)


def test_what_reads_like_a_part_of_the_prompt_is_quoted_as_it_was_shown(tmp_path):
    text = "What is </answer> x?\x0c\nAnswer: the <question> of it"
    (row,) = extracted(tmp_path, text, ("What is ‹/answer> x?", "", "", "", "the ‹question> of it"))
    assert row["questions"] == "What is </answer> x?" and row["answer"] == "the <question> of it"
    text = "What \ufffd is <|eot_id|> it?\nAnswer: 5"
    (tmp_path / "out.counts.json").unlink()
    (tmp_path / "out.verdicts.jsonl").unlink()
    assert not extracted(tmp_path, text, ("What ? is < |eot_id|> it?", "", "", "", "5"))
    assert reasons(tmp_path) == ["questions not in the source"]


# ---- replies ------------------------------------------------------------------------------------


def test_documents_without_exercises_refused_and_empty_ones_are_told_apart(tmp_path, capsys):
    texts = ["nothing here", book_exercise(1, "Why?", [], "So."), "[refuse]", "[invalid]", " ",
             book_exercise(1, "What?", [], "That. [refuse]")]  # fmt: skip
    rows = [{"text": text} for text in texts] + [{"x": 1}]
    write_rows(tmp_path / "in.jsonl", rows)

    def reply(number, body, good):
        if "[refuse]" in str(body):
            return 400, {}, b"not this"
        return completion("hm" if "[invalid]" in str(body) else good)

    with serving(reply) as server:
        run(tmp_path, server, max_bad=0.5)
    found = counts(tmp_path)
    assert found["dropped"] == {"holds no exercise": 1, "refused by the judge": 2, "empty": 1,
                                "no valid reply": 1, "unreadable": 1}  # fmt: skip
    assert found["passages"] == {"with exercises": 1, "without": 1, "invalid": 1,
                                 "refused by the judge": 2}  # fmt: skip
    printed = adds_up(capsys.readouterr().out.split("\n", 1)[1])
    assert printed == {"passages": (5, 2, 3), "exercises": (1, 1, 0)}
    assert len(server.seen) == 4 + 3


def test_votes_decide_which_exercises_a_passage_holds(tmp_path):
    text = book_exercise(1, "Why?", [], "So.")
    write_rows(tmp_path / "in.jsonl", [{"text": text}])

    def reply(number, body, good):
        return completion(replied() if body["seed"] == 0 else good)

    with serving(reply) as server:
        run(tmp_path, server, votes=3)
    assert len(server.seen) == 3 and len(rows_of(tmp_path / "out.jsonl")) == 1


# ---- passages -----------------------------------------------------------------------------------


def test_a_book_is_cut_and_its_exercises_on_the_borders_come_once(tmp_path):
    parts = []
    for i in range(120):
        parts += [
            f"Paragraph {i} " + "word " * (i % 30),
            book_exercise(i, f"How is {i}?", [], "Ok"),
        ]
    write_rows(tmp_path / "in.jsonl", [{"text": "\n\n".join(parts)}])
    with serving() as server:
        run(tmp_path, server, passage=1000)
    assert [row["questions"] for row in rows_of(tmp_path / "out.jsonl")] == [
        f"How is {i}?" for i in range(120)
    ]
    found = counts(tmp_path)
    assert found["passages"]["with exercises"] == len(server.seen) > 10
    assert found["exercises"].keys() == {"kept", "duplicate"}
    assert found["exercises"]["duplicate"] >= 5 and found["used"] == 1


def test_of_one_question_in_two_passages_the_longer_form_is_kept(tmp_path):
    book = exercises.Book("Firm X.\n\nWhat is it? It is 5.", "b:1", "s")
    said = {"questions": "What is it?", "exhibit": "", "answer_choices": [], "answer": "5"}
    book.take(0, len(book.text), said | {"scenario": "Firm X."})
    book.take(9, len(book.text), said | {"scenario": ""})
    (row,) = book.kept(set())
    assert row["scenario"] == "Firm X." and [r["reason"] for r in book.rejected] == ["duplicate"]
    assert book.rejected[0]["prompt"] == "What is it?"


def test_an_exercise_of_two_documents_is_kept_once_and_the_same_words_elsewhere_twice(tmp_path):
    one = book_exercise(1, "What is it?", ["5%", "6%"], "B")
    again = "Another book says:\n" + one.replace("What is it?", "What  is it?")
    other = one.replace("6%", "7%")
    write_rows(tmp_path / "in.jsonl", [{"text": text} for text in (one, again, other)])
    with serving() as server:
        run(tmp_path, server)
    assert [r["where"][-1] for r in rows_of(tmp_path / "out.jsonl")] == ["1", "3"]
    assert reasons(tmp_path) == ["duplicate"]
    assert counts(tmp_path)["dropped"] == {"none of its exercises is kept": 1}


@pytest.mark.parametrize(
    "changes, message",
    [({"judge": "exact"}, "--judge exact"), ({"passage": 499}, "--passage must be at least 500")],
)
def test_settings_that_cannot_be_are_one_line(tmp_path, changes, message):
    write_rows(tmp_path / "in.jsonl", [{"text": "x"}])
    with pytest.raises(UserError, match=message):
        run(tmp_path, **changes)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


# ---- stopped ------------------------------------------------------------------------------------


def write_books(folder, count=60):
    """Books of which some repeat another's exercises, hold none, or one that nobody can find."""
    rows = []
    for i in range(count):
        parts = [f"Book {i}."]
        for k in range(i % 4):
            number = i if k else i % 23  # the same as a book far away
            choices = ["yes", "no"] if k == 2 else []
            parts.append(
                book_exercise(k, f"Is {number} it, or {k}?", choices, "B"[: k == 2] or "Ok")
            )
        if i % 5 == 0:
            parts.append(book_exercise(9, "Which?", ["yes", "no"], "D"))
        rows.append({"text": "\n\n".join(parts)})
    folder.mkdir(exist_ok=True)
    write_rows(folder / "in.jsonl", rows)
    os.utime(folder / "in.jsonl", (0, 0))
    return folder


@pytest.fixture
def whole(tmp_path):
    folder = write_books(tmp_path / "whole")
    with serving(Slow(0)) as server:
        run(folder, server)
    found = counts(folder)
    assert (
        found["exercises"]["duplicate"] and found["exercises"]["answer is the letter of no choice"]
    )
    return folder


def same_files(folder, whole):
    place = str(folder).encode(), str(whole).encode()
    return [raw.replace(*place) for raw in files(folder)] == files(whole)


@pytest.mark.parametrize("replies", [1, 7, 20, 33, 50])
@pytest.mark.parametrize("every", [0, 1])
def test_an_endpoint_that_dies_changes_no_byte_of_the_result(
    tmp_path, whole, replies, every, monkeypatch
):
    monkeypatch.setattr(corpus, "BLOCK_ROWS", 4)
    monkeypatch.setattr(corpus, "EVERY", every)
    folder, slow = write_books(tmp_path / "died"), Slow(0)

    def dies(number, body, good):
        return slow(number, body, good) if number < replies else (401, {}, b"")

    with serving(dies) as server, pytest.raises(UserError, match="same command goes on"):
        run(folder, server, concurrency=1)
    first = asked(server)[:replies]
    # a run that is killed behind its last note leaves more than that note knows of
    for name in ("", ".dropped", ".rejected"):
        with open(folder / f"out{name}.jsonl.partial", "ab") as file:
            file.write(b'{"id": "half a li')
    with serving(slow) as server:
        run(folder, server)
    assert not set(first) & set(asked(server)) and same_files(folder, whole)
    run(folder)
    assert same_files(folder, whole)


def test_a_kill_between_the_publications_loses_nothing(tmp_path, whole):
    rejected = whole / "out.rejected.jsonl"
    wanted = files(whole)
    rejected.replace(f"{rejected}.partial")
    run(whole)
    assert files(whole) == wanted


def test_what_another_run_left_is_not_published(tmp_path):
    (tmp_path / "in.jsonl").write_text("no json\n")
    (tmp_path / "out.rejected.jsonl.partial").write_text('{"where": "another run"}\n')
    with serving() as server:
        run(tmp_path, server, max_bad=1.0)
    assert counts(tmp_path)["dropped"] == {"unreadable": 1}


def test_the_rejected_are_not_shorter_than_the_progress_says(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "BLOCK_ROWS", 4)
    monkeypatch.setattr(corpus, "EVERY", 0)
    folder = write_books(tmp_path / "died")
    with serving(lambda n, b, g: completion(g) if n < 30 else (401, {}, b"")) as server:
        with pytest.raises(UserError):
            run(folder, server, concurrency=1)
    (folder / "out.rejected.jsonl.partial").write_bytes(b"")
    with serving() as server, pytest.raises(UserError, match="is shorter than"):
        run(folder, server)


def test_killed_at_random_moments_the_result_has_the_bytes_of_a_run_that_was_not(tmp_path):
    rng = random.Random(3)
    whole, killed = (write_books(tmp_path / name, 1100) for name in ("whole", "killed"))
    with serving(Slow()) as server:
        kills = sorted(rng.sample(range(50, 900), 3))
        code, printed, known = killed_and_resumed("exercises", killed, server, kills, 4)
    assert code == 0, printed
    check_never_asked_again(server, known)
    with serving(Slow(0)) as server:
        run(whole, server, retries=6, backoff_s=1.0)
    assert counts(whole)["rows"] == 1100 and same_files(killed, whole)


def test_a_local_judge_that_cannot_write_json_finds_nothing_and_is_counted(tmp_path):
    path = write_checkpoint(tmp_path / "judge", max_position_embeddings=4096)
    write_rows(tmp_path / "in.jsonl", [{"text": book_exercise(1, "Why?", [], "So.")}] * 2)
    run(tmp_path, judge="local", judge_from=str(path), device="cpu", asks=2, max_tokens=8)
    assert counts(tmp_path)["passages"]["invalid"] == 2
    assert counts(tmp_path)["dropped"] == {"no valid reply": 2}
    assert len(rows_of(tmp_path / "out.verdicts.jsonl")) == 2
