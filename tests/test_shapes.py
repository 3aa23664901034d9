"""shapes.py, turns.py: every published schema becomes a row that our readers take, or says why."""

import datetime
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from foreign import CHAT, FOREIGN, ODD, OURS, USELESS, assistant, system, user
from tiny import write_rows, write_tokenizer

import curate
from config import UserError
from data import load_chat, load_pairs, load_text
from jsonl import check_fields, check_messages, read_jsonl
from shapes import SHAPES, Convert, Unusable, convert, converted
from solutions import read_prompts
from tokenizer import Tokenizer
from turns import as_turns


def passed(out):
    """[(kept rows), (reasons of the others)] of a finished pass, whose counts must add up."""
    kept = [row for _, row in read_jsonl(out, {})]
    dropped = [row for _, row in read_jsonl(out.with_name(f"{out.stem}.dropped.jsonl"), {})]
    counts = json.loads(out.with_name(f"{out.stem}.counts.json").read_text())["counts"]
    assert counts["rows"] == len(kept) + len(dropped) and counts["used"] == len(kept)
    return kept, [row.get("detail") or row["reason"] for row in dropped]


def run(tmp_path, rows, to="auto", max_bad=1.0, data=None):
    out = tmp_path / f"out_{random.random()}.jsonl"
    data = data or write_rows(tmp_path / "rows.jsonl", rows)
    convert(Convert(data=str(data), out=str(out), to=to, max_bad=max_bad))
    return passed(out)


def one(row, to="auto", where="folder/rows.jsonl:1"):
    """The row that another becomes, when it is what the readers of training rows take; without the
    source that rows get for want of their own, but for prompts."""
    made = converted(row, where, to)
    check_fields(made, {"source": str}, where)
    if "source" not in row and "answer" not in made:
        assert made.pop("source") == Path(where).stem
    if "text" in made or "messages" in made:
        check_fields(made, {"text": str} if "text" in made else {"messages": list}, where)
        check_messages(made.get("messages", CHAT["messages"]), where, "assistant")
        return made
    check_fields(made, {"prompt": (str, list)}, where)
    check_messages(as_turns(made["prompt"]), where, "user")
    if "chosen" not in made:
        check_fields(made, {"id": str, "source": str, "answer": str, "solution?": str}, where)
        return made
    for name in ("chosen", "rejected"):
        check_fields(made, {name: (str, list)}, where)
        reply = [assistant(made[name])] if isinstance(made[name], str) else made[name]
        assert len(reply) == 1 and not check_messages([user("q"), *reply], where, "assistant")
    check_fields(made, {"prefix?": str, "ends_turn?": dict}, where)
    return made


def reason(row, to="auto"):
    with pytest.raises(Unusable) as error:
        converted(row, "rows.jsonl:1", to)
    return str(error.value)


def refused(row):
    with pytest.raises(UserError) as error:
        converted(row, "rows.jsonl:1", "auto")
    return str(error.value)


# ---- published schemas


@pytest.mark.parametrize("name", OURS)
def test_rows_of_ours_come_out_as_they_went_in(name):
    assert one(OURS[name]) == OURS[name]


@pytest.mark.parametrize("row, wanted", FOREIGN)
def test_a_row_of_a_published_schema_becomes_the_row_of_ours_that_says_the_same(row, wanted):
    made = one(row)
    if "answer" in wanted and "id" not in wanted:
        made.pop("id")
    assert json.dumps(made, sort_keys=True) == json.dumps(wanted, sort_keys=True)


@pytest.mark.parametrize("row", [*(row for row, _ in FOREIGN), *OURS.values()])
def test_what_was_converted_stays_as_it_is_when_converted_again(row):
    made = one(row)
    assert one(made) == made


def test_the_strict_readers_take_every_converted_row(tmp_path):
    write_tokenizer(tmp_path / "tokenizer")
    tokenizer = Tokenizer(tmp_path / "tokenizer")
    rows = [*OURS.values(), *(row for row, _ in FOREIGN)]
    made = run(tmp_path, rows)[0] + run(tmp_path, rows, "chat")[0] + run(tmp_path, rows, "text")[0]
    kinds = {key: [row for row in made if key in row] for key in ("text", "messages", "chosen")}
    readers = {"text": load_text, "messages": load_chat, "chosen": load_pairs}
    for key, load in readers.items():
        path = write_rows(tmp_path / f"{key}.jsonl", kinds[key])
        counts = load(path, tokenizer, 1000, max_skipped=0)[1]
        assert counts.used == counts.rows == len(kinds[key]) > 5
    prompts, _ = run(tmp_path, [row for row in rows if "chosen" not in row], "prompts")
    read, skipped = read_prompts(write_rows(tmp_path / "prompts.jsonl", prompts))
    assert len(read) == len(prompts) > 15 and not skipped


def test_every_shape_in_the_list_is_met_by_a_row_here():
    rows = [*OURS.values(), *(row for row, _ in FOREIGN), {"prompt": "q"}, {"input_ids": [1]}]
    met = {next(make for make, names in SHAPES if row.keys() >= {*names.split()}) for row in rows}
    assert met == {make for make, _ in SHAPES}


# ---- what cannot be used


@pytest.mark.parametrize("row, phrase", USELESS)
def test_a_row_that_cannot_be_trained_on_is_dropped_by_a_fixed_phrase(row, phrase):
    assert reason(row) == phrase


@pytest.mark.parametrize("row, phrase", ODD)
def test_a_row_of_no_known_shape_is_refused_with_what_is_wrong(row, phrase):
    assert refused(row).startswith(phrase)


def test_each_row_is_kept_or_dropped_once_and_shapes_may_be_mixed_in_a_file(tmp_path):
    rows = [OURS["text"], *(row for row, _ in USELESS), OURS["chat"], *(row for row, _ in ODD),
            *(row for row, _ in FOREIGN)]  # fmt: skip
    kept, dropped = run(tmp_path, rows)
    assert len(kept) == 2 + len(FOREIGN) and kept[1] == OURS["chat"] | {"source": "rows"}
    assert dropped[: len(USELESS)] == [phrase for _, phrase in USELESS]
    rest = zip(dropped[len(USELESS) :], ODD, strict=True)
    assert all(detail.startswith(phrase) for detail, (_, phrase) in rest)


def test_too_many_rows_of_no_known_shape_stop_the_run(tmp_path):
    rows = [{"input_ids": [1, 2]}] + [{"text": "x"}] * 9
    with pytest.raises(UserError, match="1 of 10 rows cannot be read.*get the text that they were"):
        run(tmp_path, rows, max_bad=0.05)


def test_any_value_in_any_known_column_is_taken_or_refused_never_a_crash():
    rng = random.Random(0)
    good = ["q", "a", [user("q")], [assistant("b")], [user("q"), assistant("b")], assistant("a")]
    odd = [None, "", 3, 2.5, True, [], ["a"], [["q", "a"]], {}, {"role": "user"}, [None], user({})]
    odd += [[{"from": "gpt", "value": ["x"]}], [{"role": []}], {"messages": [user("q")]}]
    outcomes = set()
    for _ in range(20000):
        names = rng.choice(SHAPES)[1].split() + rng.choices(["prompt", "system", "history"], k=1)
        row = {name: rng.choice(good if rng.random() < 0.7 else odd) for name in names}
        try:
            outcomes.add(tuple(one(row, rng.choice(["auto", "chat", "prompts", "text"]))))
        except (Unusable, UserError) as e:
            assert "folder/rows" not in str(e)  # else it is a reader that refuses
            outcomes.add(type(e))
    assert {Unusable, UserError} < outcomes and len(outcomes) > 5


# ---- other kinds, ids, columns

GSM = {"question": "How many?", "answer": "6 * 3 = 18\n#### 18"}


def test_a_chat_becomes_a_prompt_without_its_last_reply_which_is_the_answer():
    made = one(OURS["chat"], "prompts")
    assert made["prompt"] == [system("s"), user("q"), assistant("a"), user("r")]
    assert made["answer"] == "b" and "messages" not in made
    alpaca = one({"instruction": "q", "input": "i", "output": "a"}, "prompts")
    assert alpaca["prompt"] == [user("q\ni")] and alpaca["answer"] == "a"


def test_a_prompt_becomes_a_chat_whose_reply_is_the_solution_or_else_the_answer():
    assert one(GSM, "chat") == {"messages": [user("How many?"), assistant("6 * 3 = 18\n#### 18")]}
    assert one(OURS["asked"], "chat")["messages"] == [system("s"), user("q"), assistant("2")]
    assert one(OURS["asked"], "chat").keys() == {"messages", "id", "source"}


def test_all_but_pairs_become_text_of_turns_with_blank_lines_between():
    assert one(OURS["text"], "text") == OURS["text"]
    assert one(GSM, "text") == {"text": "How many?\n\n6 * 3 = 18\n#### 18"}
    assert one(OURS["chat"], "text") == {"text": "s\n\nq\n\na\n\nr\n\nb", "id": 7}
    assert one({"instruction": "q", "output": "a"}, "text") == {"text": "q\n\na"}
    assert reason(OURS["pair"], "text") == "a pair cannot become --to text"


def test_what_cannot_become_the_wanted_kind_is_dropped(tmp_path):
    for to in ("chat", "prompts"):
        rows = [OURS["text"], OURS["pair"], OURS["chat"], GSM]
        kept, dropped = run(tmp_path, rows, to)
        wanted = [f"a {kind} cannot become --to {to}" for kind in ("text", "pair")]
        assert len(kept) == 2 and dropped == wanted
    with pytest.raises(UserError, match="--to must be one of auto, chat, prompts, text, not 'pai"):
        run(tmp_path, rows, "pairs")


def test_a_prompt_without_an_id_gets_one_that_is_the_same_in_every_run_and_of_no_other_row(
    tmp_path,
):
    first, _ = run(tmp_path, [GSM, GSM, GSM | {"id": None}, GSM | {"id": " "}])
    again, _ = run(tmp_path, [GSM, GSM, GSM | {"id": None}, GSM | {"id": " "}])
    assert first == again and len({row["id"] for row in first}) == 4
    there, other = (one(GSM, where=f"{place}/rows.jsonl:1") for place in ("a/b", "a/c"))
    assert there["id"] != other["id"] and len(there["id"]) == 16
    assert one(GSM, where="x/b/rows.jsonl:1")["id"] == there["id"]


def test_numbered_ids_of_several_files_do_not_meet_and_the_source_is_the_file(tmp_path):
    folder = tmp_path / "flare"
    folder.mkdir()
    for name in ("german", "polish"):
        rows = [{"id": i, "query": f"{name} {i}", "answer": "good"} for i in range(3)]
        write_rows(folder / f"{name}.jsonl", rows)
    kept, _ = run(tmp_path, None, "prompts", data=folder)
    assert [row["id"] for row in kept[2:4]] == ["flare_german_2", "flare_polish_0"]
    assert [row["source"] for row in kept[2:4]] == ["german", "polish"]
    places = ("a/german.jsonl:12", "a/german.parquet: row 7", "german.txt", "a/german:12")
    assert {one(GSM, where=where)["source"] for where in places} == {"german"}
    said = one(GSM | {"source": "GSM8K", "id": "g-1"})
    assert said["source"] == "GSM8K" and said["id"] == "g-1"


def test_columns_of_one_value_are_kept_and_those_that_would_say_the_row_twice_are_not():
    row = {"text": "t", "id": "<urn:1>", "dump": "CC", "language_score": 0.9, "token_count": 3,
           "ok": True, "licence": None, "tags": ["x"], "meta": {"a": 1},
           "prompt": "write t"}  # fmt: skip
    made = one(row)
    assert made == {k: v for k, v in row.items() if k not in ("tags", "meta", "prompt")}
    chat = one({"messages": CHAT["messages"], "prompt": "q", "text": "q a", "url": "u"})
    assert chat == CHAT | {"url": "u"}


def test_a_news_text_with_the_address_of_its_picture_is_a_text():
    assert one({"text": "t", "image": "https://a.b/c.png"})["text"] == "t"


# ---- files


def test_parquet_of_fineweb_and_of_conversations_with_null_filled_columns(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    date = datetime.datetime(2024, 5, 6, 7, 8, 9)
    web = {"text": "a bond", "id": "<urn:1>", "dump": "CC-MAIN-2024", "url": "https://a.b",
           "date": date, "file_path": "s3://x", "language": "en", "language_score": 0.98,
           "token_count": 2}  # fmt: skip
    turns = [{"role": "user", "content": "q", "weight": None, "tool_calls": None},
             {"role": "assistant", "content": "a", "weight": 1, "tool_calls": None}]  # fmt: skip
    folder = tmp_path / "parquet"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist([web]), folder / "a.parquet")
    pq.write_table(pa.Table.from_pylist([{"messages": turns}] * 2), folder / "b.parquet")
    kept, dropped = run(tmp_path, None, data=folder)
    chat = {"messages": [user("q"), assistant("a", weight=1)]}
    web |= {"date": "2024-05-06T07:08:09", "source": "a"}
    assert kept == [web, chat | {"source": "b"}, chat | {"source": "b"}] and not dropped


def test_an_alpaca_list_and_plain_text_and_csv_are_read_by_one_command(tmp_path, capsys):
    folder = tmp_path / "mixed"
    folder.mkdir()
    rows = [{"instruction": "q", "input": "", "output": o} for o in ("a", "", "b")]
    (folder / "a_alpaca.json").write_text(json.dumps(rows))
    (folder / "b.csv").write_text("query,answer\nq,a\n")
    (folder / "c.md").write_text("# Bonds\n\nA bond is a loan.\n")
    out = tmp_path / "out" / "all.jsonl"
    curate.main(["convert", "--data", str(folder), "--out", str(out), "--to", "text"])
    kept, dropped = passed(out)
    assert [row["text"] for row in kept] == [
        "q\n\na",
        "q\n\nb",
        "q\n\na",
        "# Bonds\n\nA bond is a loan.\n",
    ]
    assert kept[3]["source"] == "c.md" and dropped == ["an empty reply"]
    assert "5 rows = 4 kept + 1 skipped [1 an empty reply]" in capsys.readouterr().out


def test_killed_at_any_moment_convert_ends_with_the_same_bytes(tmp_path):
    def results(name):
        return {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}

    rows = [row for row, _ in FOREIGN] * 2 + [GSM] * 30
    for name in ("a", "b"):  # two files: a place in one is none in the other
        write_rows(tmp_path / f"{name}.jsonl", rows)
    data = f"{tmp_path}/a.jsonl,{tmp_path}/b.jsonl"
    words = ["convert", "--data", data, "--max_bad", "1", "--out"]
    curate.main([*words, f"{tmp_path}/whole/o.jsonl"])
    command = [sys.executable, str(Path(__file__).with_name("killing.py")), "3", *words]
    command.append(f"{tmp_path}/killed/o.jsonl")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-2]) > 3
    assert results("killed") == results("whole")
