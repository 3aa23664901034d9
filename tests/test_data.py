import json

import numpy as np
import pytest
from tiny import sentences, write_rows, write_tokenizer

import data
from config import UserError
from data import Families, load_chat, load_pairs, load_text
from packing import IGNORE, size, targets
from tokenizer import Tokenizer


def ask(question, answer, **more):
    user = {"role": "user", "content": question}
    return {"messages": [user, {"role": "assistant", "content": answer, **more}]}


def trained_ids(family):
    return [i for s in family for i in s.labels.tolist() if i != IGNORE]


# ---- text


@pytest.mark.parametrize("max_length", [7, 8, 9, 10, 25, 26, 27, 28, 29, 1000])
def test_chunks_open_with_bos_train_each_token_once_and_only_the_last_ends(
    tokenizer, tmp_path, max_length
):
    text = "the of profit revenue cost rate bond share price year"
    families, counts = load_text(
        write_rows(tmp_path / "t.jsonl", [{"text": text}]), tokenizer, max_length
    )
    whole = tokenizer.text(text)
    for (segment,) in families:
        assert 0 < len(segment.input_ids) <= max_length
        assert IGNORE not in segment.labels
        assert tokenizer.bos_id in (None, segment.input_ids[0])
    assert sum((trained_ids(f) for f in families), []) == whole[1:]
    last = [f[0].labels.tolist() for f in families]
    assert [tokenizer.text_end_id in labels for labels in last] == [False] * (len(last) - 1) + [
        True
    ]
    assert len(last[-1]) > 1 or len(families) == 1  # never BOS -> end alone
    assert counts.rows == counts.used == 1 and counts.trained == len(whole) - 1


def test_without_bos_a_chunk_goes_on_from_the_last_token_of_the_one_before(tmp_path):
    write_tokenizer(tmp_path, "chatml")
    path = write_rows(tmp_path / "t.jsonl", [{"text": "profit revenue cost rate bond " * 3}])
    families, _ = load_text(path, Tokenizer(tmp_path), 3)
    assert len(families) > 2
    for (before,), (after,) in zip(families[:-1], families[1:], strict=True):
        assert after.input_ids[0] == before.labels[-1]


def test_a_document_that_spells_control_tokens_stays_one_document(tokenizer, tmp_path):
    text = "profit<|end_of_text|><|endoftext|><|begin_of_text|><|im_start|>cost"
    ((segment,),), _ = load_text(
        write_rows(tmp_path / "t.jsonl", [{"text": text}]), tokenizer, 1000
    )
    shown = [*segment.input_ids.tolist(), tokenizer.text_end_id]
    assert tokenizer.decode(shown) == text
    assert segment.labels.tolist().count(tokenizer.text_end_id) == 1


# ---- chat


def test_a_loaded_chat_is_the_ids_of_chat_with_labels_from_its_spans(tokenizer, tmp_path):
    row = ask("what is the profit?", "the cost")
    ((segment,),), _ = load_chat(write_rows(tmp_path / "c.jsonl", [row]), tokenizer, 1000)
    ids, trained = tokenizer.chat(row["messages"])
    assert segment.input_ids.tolist() == ids[:-1]
    wanted = [i if mark else IGNORE for i, mark in zip(ids, trained, strict=True)]
    assert segment.labels.tolist() == wanted[1:]
    assert trained_ids([segment]) == [*tokenizer.encode("the cost"), tokenizer.turn_end_id]


def test_long_and_untrained_rows_are_skipped_counted_and_listed(tokenizer, tmp_path, capsys):
    rows = [ask(q, "one") for q in sentences(60)]
    rows[2] = ask("profit " * 200, "one")
    rows[7] = ask("profit", "one", weight=0)
    path = write_rows(tmp_path / "c.jsonl", rows)
    families, counts = load_chat(path, tokenizer, 150)
    assert counts.rows == 60 and counts.used == len(families) == 58
    assert counts.skipped == {
        "longer than 150 tokens": [f"{path}:3"],
        "without a trained token": [f"{path}:8"],
    }
    assert counts.tokens == sum(map(size, families))
    assert counts.trained == sum(map(targets, families)) > 0
    out = capsys.readouterr().out
    assert (
        "60 rows = 58 used + 2 skipped" in out and f"[1 without a trained token: {path}:8]" in out
    )


def test_more_than_the_limit_of_skipped_rows_is_a_hard_error(tokenizer, tmp_path, capsys):
    rows = [ask(q, "one") for q in sentences(99)]
    long = ask("profit " * 200, "one")
    path = write_rows(tmp_path / "c.jsonl", rows[:95] + [long] * 5)
    assert load_chat(path, tokenizer, 150)[1].used == 95
    path = write_rows(tmp_path / "c.jsonl", rows[:94] + [long] * 6)
    with pytest.raises(UserError, match="6 of 100 rows cannot be used; at most 5%"):
        load_chat(path, tokenizer, 150)
    assert "[6 longer than 150 tokens: " in capsys.readouterr().out  # said before it stops
    assert load_chat(path, tokenizer, 150, max_skipped=0.06)[1].used == 94
    with pytest.raises(UserError, match="holds no rows"):
        load_chat(write_rows(tmp_path / "empty.jsonl", []), tokenizer, 150)
    with pytest.raises(UserError, match="1 of 1 rows"):
        load_chat(write_rows(tmp_path / "one.jsonl", [long]), tokenizer, 150, max_skipped=1.0)


def test_rows_that_are_neither_used_nor_skipped_are_caught():
    with pytest.raises(AssertionError):
        str(data.Counts("x", rows=3, used=1, skipped={"reason": ["x:1"]}))


def test_several_files_are_read_in_order_and_a_bad_row_names_its_own(tokenizer, tmp_path):
    a = write_rows(tmp_path / "a.jsonl", [ask(q, "one") for q in sentences(300)])
    b = write_rows(tmp_path / "b.jsonl", [ask("cost", "two")])
    families, counts = load_chat(f"{a},{b}", tokenizer, 400)
    assert counts.rows == 301 and load_chat([a, b], tokenizer, 400)[1] == counts
    assert trained_ids(families[-1]) == [*tokenizer.encode("two"), tokenizer.turn_end_id]
    write_rows(b, [ask("cost", "two"), {"messages": ask("a", "b")["messages"][:1]}])
    with pytest.raises(UserError, match="b.jsonl:2: messages: must end with a turn of the assis"):
        load_chat(f"{a},{b}", tokenizer, 400)


def test_an_empty_list_of_files_is_named_as_such_and_a_trailing_comma_is_no_file(llama3, tmp_path):
    path = write_rows(tmp_path / "a.jsonl", [ask("cost", "two")])
    assert load_chat(f" {path}, ", llama3, 1000)[1].used == 1
    for nothing in ("", ",", []):
        with pytest.raises(UserError, match="list of training files is empty"):
            load_chat(nothing, llama3, 1000)
    with pytest.raises(UserError, match="a.jsonl: holds no rows"):
        load_chat(write_rows(path, []), llama3, 1000)


def test_a_second_bos_stops_the_start(llama3, tmp_path):
    path = write_rows(tmp_path / "c.jsonl", [ask("cost", "two")])
    llama3.head = lambda: [(llama3.bos_id, False)] * 2
    with pytest.raises(UserError, match="c.jsonl:1: BOS .id .* must stand once"):
        load_chat(path, llama3, 100)


def test_no_bos_a_late_one_or_one_in_a_reply_names_its_row(llama3, tmp_path):
    path = write_rows(tmp_path / "c.jsonl", [ask("cost", "two"), ask("rate", "one")])
    whole, bos = llama3.chat_parts, (llama3.bos_id, False)
    for odd in (lambda parts: parts[1:], lambda parts: [*parts[1:2], bos, *parts[2:]],
                lambda parts: [*parts, bos]):  # fmt: skip
        llama3.chat_parts = lambda messages, odd=odd: (
            odd(whole(messages)) if messages[0]["content"] == "rate" else whole(messages)
        )
        with pytest.raises(UserError, match="c.jsonl:2: BOS"):
            load_chat(path, llama3, 100)


# ---- families


def test_sizes_and_targets_are_those_of_the_families_themselves(tokenizer, tmp_path):
    texts = write_rows(tmp_path / "t.jsonl", [{"text": t} for t in sentences(40, 1, 1, 60)])
    chats = write_rows(tmp_path / "c.jsonl", [ask(t, "one two") for t in sentences(30, 2)])
    rows = [{"prompt": t, "chosen": t, "rejected": "two"} for t in sentences(20, 3)]
    pairs = write_rows(tmp_path / "p.jsonl", rows)
    for load, path in ((load_text, texts), (load_chat, chats), (load_pairs, pairs)):
        families, counts = load(path, tokenizer, 90)
        assert families.sizes.tolist() == list(map(size, families))
        assert families.targets.tolist() == list(map(targets, families))
        assert counts.tokens == sum(map(size, families)) and len(families) >= counts.used > 0


def test_families_are_taken_repeated_sliced_and_joined_in_the_order_asked_for(llama3, tmp_path):
    def ids(families):
        return [trained_ids(f) for f in families]

    rows = [[{"text": t} for t in sentences(9, n)] for n in (1, 2)]
    paths = [write_rows(tmp_path / f"{n}.jsonl", part) for n, part in enumerate(rows)]
    a, b = (load_text(path, llama3, 99)[0] for path in paths)
    both = a + b
    assert ids(both) == ids(a) + ids(b) and len(both) == 18
    assert ids(both.take([17, 0, 0])) == [ids(b)[8], ids(a)[0], ids(a)[0]]
    assert both.take([17, 0, 0]).sizes.tolist() == both.sizes[[17, 0, 0]].tolist()
    assert ids(both[7:11]) == ids(a)[7:] + ids(b)[:2]
    nothing = Families([])
    assert len(nothing) == 0 and ids(nothing + a) == ids(a) == ids(a + nothing)
    assert np.array_equal((nothing + a).sizes, a.sizes)


def test_the_ids_of_a_family_are_a_copy_that_may_be_changed(llama3, tmp_path):
    path = write_rows(tmp_path / "t.jsonl", [{"text": "profit revenue cost"}])
    families, _ = load_text(path, llama3, 99, token_cache=str(tmp_path / "cache"))
    families[0][0].input_ids[1] = 7
    assert families[0][0].input_ids[1] != 7


# ---- pairs


def pair(tokenizer, tmp_path, **row):
    row = {"prompt": "what is the rate?", "chosen": "one", "rejected": "two"} | row
    path = write_rows(tmp_path / "p.jsonl", [row])
    (family,), _ = load_pairs(path, tokenizer, 500)
    prompt, chosen, rejected = family
    assert chosen.parent == rejected.parent == 0
    assert chosen.input_ids[0] == rejected.input_ids[0]
    ids = [*prompt.input_ids.tolist(), int(chosen.input_ids[0])]
    return ids, chosen.labels.tolist(), rejected.labels.tolist()


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"prompt": [{"role": "user", "content": "what is the rate?"}]},
        {"chosen": [{"role": "assistant", "content": "one"}]},
        {"kind": "fap", "prefix": "", "ends_turn": {"chosen": True, "rejected": True}},
    ],
)
def test_fap_and_trl_rows_are_whole_turns_after_the_same_prompt(tokenizer, tmp_path, more):
    prompt, chosen, rejected = pair(tokenizer, tmp_path, **more)
    assert prompt == tokenizer.prompt("what is the rate?")
    end = [tokenizer.turn_end_id]
    assert chosen == tokenizer.encode("one") + end and rejected == tokenizer.encode("two") + end
    chat = tokenizer.chat(ask("what is the rate?", "one")["messages"])[0]
    assert chat[: len(prompt) + len(chosen)] == prompt + chosen


def test_a_step_that_continues_a_prefix_is_cut_on_ids_and_ends_only_if_it_says_so(
    tokenizer, tmp_path
):
    # "profit" is one token, so text that is split inside it shows where the ids were cut.
    assert len(tokenizer.encode("profit")) < len(tokenizer.encode("pro") + tokenizer.encode("fit"))
    prompt, chosen, rejected = pair(
        tokenizer,
        tmp_path,
        kind="scp",
        prefix="step one : pro",
        chosen="fit",
        rejected="fits \n",
        ends_turn={"chosen": False, "rejected": True},
    )
    start = tokenizer.prompt("what is the rate?")
    assert prompt == start + tokenizer.encode("step one : pro")
    assert chosen == tokenizer.encode("fit")
    assert rejected == tokenizer.encode("fits \n") + [tokenizer.turn_end_id]
    assert prompt.count(tokenizer.turn_end_id) == start.count(tokenizer.turn_end_id)


def test_the_paper_s_step_layout_asks_for_the_next_step_and_need_not_end_the_turn(
    tokenizer, tmp_path
):
    question = "what is the rate?\nstep one\nWhat is the next step?"
    off = {"chosen": False, "rejected": False}
    prompt, chosen, rejected = pair(tokenizer, tmp_path, prompt=question, prefix="", ends_turn=off)
    assert prompt == tokenizer.prompt(question)
    assert chosen == tokenizer.encode("one") and rejected == tokenizer.encode("two")


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"prefix": "step", "chosen": "two"}, "ends_turn: missing"),
        ({"ends_turn": {"chosen": True}}, "ends_turn: rejected must be true or false"),
        ({"ends_turn": {"chosen": 1, "rejected": 1}}, "ends_turn: chosen must be true or false"),
        ({"prompt": [{"role": "assistant", "content": "x"}]}, r"prompt\[0\]: role"),
        ({"prompt": ask("a", "b")["messages"]}, "prompt: must end with a turn of the user"),
        ({"prompt": " "}, "prompt: is empty"),
        ({"chosen": ""}, "chosen: is empty"),
        ({"chosen": [{"role": "user", "content": "x"}]}, r"chosen\[1\]: role: 'user'"),
        ({"chosen": ask("a", "b")["messages"]}, "chosen: must hold one assistant message, not 2"),
        ({"rejected": 3}, "rejected: must be a string or a list"),
    ],
)
def test_a_bad_pair_is_one_error_with_file_line_and_field(llama3, tmp_path, row, reason):
    with pytest.raises(UserError, match="p.jsonl:1: " + reason):
        pair(llama3, tmp_path, **row)


def test_pairs_that_differ_only_in_ending_the_turn_are_pairs(llama3, tmp_path):
    ends = {"chosen": True, "rejected": False}
    _, chosen, rejected = pair(llama3, tmp_path, rejected="one", ends_turn=ends)
    assert chosen == rejected + [llama3.turn_end_id]


def test_pairs_of_equal_tokens_are_skipped_and_counted(llama3, tmp_path):
    rows = [{"prompt": "a", "chosen": "one", "rejected": "two"}] * 20
    rows.append({"prompt": "a", "chosen": " one", "rejected": "one"})
    families, counts = load_pairs(path := write_rows(tmp_path / "p.jsonl", rows), llama3, 200)
    reason = "with chosen and rejected of the same tokens"
    assert len(families) == 20 and counts.skipped == {reason: [f"{path}:21"]}


def test_long_pairs_are_skipped_whole_never_cut(llama3, tmp_path):
    rows = [{"prompt": "a", "chosen": q, "rejected": "two"} for q in sentences(40)]
    rows[4]["rejected"] = "profit " * 300
    path = write_rows(tmp_path / "p.jsonl", rows)
    families, counts = load_pairs(path, llama3, 200)
    assert counts.skipped == {"longer than 200 tokens": [f"{path}:5"]}
    assert len(families) == 39 and max(map(size, families)) <= 200


# ---- show


def show(tokenizer, tmp_path, row, *flags):
    path = write_rows(tmp_path / "s.jsonl", [{"text": "first"}, row])
    data.main(["show", path, "--tokenizer", str(tokenizer.path), "--row", "2", *flags])


def test_show_marks_the_trained_tokens_of_a_chat(llama3, tmp_path, capsys):
    show(llama3, tmp_path, ask("the rate", "one"))
    out = capsys.readouterr().out
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    assert (
        f"<|begin_of_text|>{header.format('user')}the rate<|eot_id|>"
        f"{header.format('assistant')}⟦one<|eot_id|>⟧\n" in out
    )
    ids, trained = llama3.chat(ask("the rate", "one")["messages"])
    ends = [i for i, t in enumerate(ids) if t == llama3.turn_end_id]
    assert f"{len(ids)} ids, {sum(trained)} trained; BOS at [0]" in out
    assert f"turn ends at {ends}, trained {ends[1:]}" in out


def test_show_prints_the_chunks_of_a_text_and_both_sides_of_a_pair(llama3, tmp_path, capsys):
    show(llama3, tmp_path, {"text": "profit"})
    assert "<|begin_of_text|>⟦profit<|end_of_text|>⟧" in capsys.readouterr().out
    show(llama3, tmp_path, {"text": "profit revenue cost"}, "--max_length", "3")
    assert capsys.readouterr().out.count("<|begin_of_text|>⟦") > 1
    show(llama3, tmp_path, {"prompt": "rate", "chosen": "one", "rejected": "two"})
    chosen, rejected = capsys.readouterr().out.split(" rejected: ")
    assert "rate<|eot_id|>" in chosen and chosen.count("⟦one<|eot_id|>⟧") == 1
    assert "rate<|eot_id|>" in rejected and rejected.count("⟦two<|eot_id|>⟧") == 1
    show(llama3, tmp_path, ask("rate " * 100, "one"), "--max_length", "50")
    assert "s.jsonl:2: skipped, longer than 50 tokens" in capsys.readouterr().out


def test_show_colours_the_trained_tokens_on_a_terminal(llama3, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    show(llama3, tmp_path, {"text": "profit"})
    assert "\033[32mprofit<|end_of_text|>\033[0m" in capsys.readouterr().out


def test_show_says_what_it_cannot_show(llama3, tmp_path):
    with pytest.raises(UserError, match="usage: python data.py show FILE"):
        data.main(["list"])
    with pytest.raises(UserError, match="s.jsonl:2: text: missing; the row has words"):
        show(llama3, tmp_path, {"words": "x"})
    with pytest.raises(UserError, match="has no row on line 9"):
        data.main(
            ["show", str(tmp_path / "s.jsonl"), "--tokenizer", str(llama3.path), "--row", "9"]
        )
    with pytest.raises(UserError, match="unknown setting 'rows'; did you mean row"):
        show(llama3, tmp_path, {"text": "x"}, "--rows", "1")
    with pytest.raises(UserError, match="--max_length must be above 0"):
        show(llama3, tmp_path, {"text": "x"}, "--max_length", "0")


def test_a_text_row_may_carry_other_keys_and_json_escapes(llama3, tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"text": "½ 🦙", "licence": "x", "n": [1]}) + "\n")
    ((segment,),), _ = load_text([path], llama3, 100)
    assert llama3.decode(segment.labels.tolist()) == "½ 🦙"
