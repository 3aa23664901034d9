import json
from collections import Counter

import pytest
from judging import (
    adds_up,
    completion,
    numbers,
    rows_of,
    run_judge,
    serving,
    trajectory,
    write_solutions,
)
from tiny import write_checkpoint, write_rows, write_tokenizer

import reward
from config import UserError
from data import FileFamilies, load_pairs
from pairs import select
from token_files import encode_rows
from tokenizer import Tokenizer


def judged(out, rows=None):
    if rows:
        write_rows(out / "trajectories.jsonl", rows)
    with serving() as server:
        run_judge(out, server)


@pytest.fixture
def out(tmp_path):
    return write_solutions(tmp_path)


@pytest.mark.parametrize("layout", ["paper", "continuation"])
def test_every_pair_can_be_traced_to_solution_verdict_and_raw_reply(out, layout):
    judged(out)
    reward.pairs(reward.Pairs(out_dir=str(out), layout=layout))
    solutions = {t["id"]: t for t in rows_of(out / "trajectories.jsonl")}
    verdicts = {v["id"]: v for v in rows_of(out / "verdicts.jsonl")}
    rows = rows_of(out / "pairs.jsonl")
    assert len({row["id"] for row in rows}) == len(rows) == 5 * (2 + 2)
    for row in rows:
        source, verdict = [solutions[name] for name in row["from"]], verdicts[row["verdict"]]
        assert verdict["trajectory"] == row["from"][0]
        if row["kind"] == "fap":
            good, bad = source
            assert (row["chosen"], row["rejected"]) == (good["text"], bad["text"])
            assert row["prompt"] == good["prompt"] == bad["prompt"] and row["prefix"] == ""
            assert row["ends_turn"] == {"chosen": True, "rejected": True}
            assert verdict["parsed"]["Correctness"] == "correct"
            other = verdicts[row["verdict_rejected"]]
            assert other["trajectory"] == bad["id"] and other["parsed"]["Correctness"] == "wrong"
        else:
            raw = json.loads(verdict["raw"])
            assert row["chosen"].strip() == raw["Step correction"]
            assert row["rejected"].strip() == raw["First incorrect step"]
            if layout == "continuation":
                joined = row["prefix"] + row["rejected"]
                assert source[0]["text"].startswith(joined) and row["prompt"] == source[0]["prompt"]


def test_the_paper_layout_asks_for_the_next_step(out):
    judged(out)
    reward.pairs(reward.Pairs(out_dir=str(out), fap_per_prompt=0))
    rows = {row["from"][0]: row for row in rows_of(out / "pairs.jsonl")}
    second = rows.get("q0/1") or rows["q0/3"]
    (message,) = second["prompt"]
    assert message["content"] == "Question q0? Step 1: fine. What is the next step?"
    assert rows["q0/2"]["prompt"][0]["content"] == "Question q0? What is the next step?"
    for row in rows.values():
        assert row["prefix"] == "" and row["ends_turn"] == {"chosen": True, "rejected": True}


def test_a_continuation_ends_the_turn_only_with_the_last_step(out):
    rows = [
        trajectory("q0", 0, "Step 1: fine. Step 2: BAD Answer: 41"),  # the step goes to the end
        trajectory("q0", 1, "Step 1: fine.\nStep 2: BAD . Step 3: no. Answer: 41"),
        trajectory("q0", 2, "Step 1: fine, too. Step 2: BAD . Step 3: no. Answer: 41"),
    ]

    def finishes(number, body, good):  # the answer should have come where the third goes wrong
        return completion(
            good.replace("Step 2: mended.", "Answer: 40")
            if ", too." in body["messages"][0]["content"]
            else good
        )

    write_rows(out / "trajectories.jsonl", rows)
    with serving(finishes) as server:
        run_judge(out, server)
    reward.pairs(reward.Pairs(out_dir=str(out), layout="continuation", scp_per_prompt=3))
    rows = {row["from"][0]: row for row in rows_of(out / "pairs.jsonl")}
    assert rows["q0/0"]["ends_turn"] == {"chosen": False, "rejected": True}  # no answer is in it
    assert rows["q0/2"]["ends_turn"] == {"chosen": True, "rejected": False}
    assert rows["q0/1"]["ends_turn"] == {"chosen": False, "rejected": False}
    # the space before a step belongs to it, as tokens do; a line break stays with the prefix
    assert rows["q0/0"]["prefix"] == "Step 1: fine."
    assert rows["q0/0"]["chosen"] == " Step 2: mended."
    assert rows["q0/1"]["prefix"] == "Step 1: fine.\n"
    assert rows["q0/1"]["chosen"] == "Step 2: mended."


def test_train_scripts_read_the_pairs_of_both_layouts(out, tmp_path):
    judged(out)
    tokenizer = Tokenizer(write_checkpoint(tmp_path / "model"))
    for layout in ("paper", "continuation"):
        reward.pairs(reward.Pairs(out_dir=str(out), layout=layout))
        families, counts = load_pairs(str(out / "pairs.jsonl"), tokenizer, 1000)
        assert counts.used == 20 and all(len(f) == 3 for f in families)


def test_pairs_are_the_same_for_a_seed_and_for_any_order_of_the_logs(out):
    judged(out)

    def made(seed):
        reward.pairs(reward.Pairs(out_dir=str(out), fap_per_prompt=1, scp_per_prompt=1, seed=seed))
        return (out / "pairs.jsonl").read_bytes()

    reference = made(0)
    for name in ("trajectories", "verdicts"):
        lines = (out / f"{name}.jsonl").read_text().splitlines(keepends=True)
        (out / f"{name}.jsonl").write_text("".join(lines[::-1]))
    assert made(0) == reference
    for kind in (b'"fap"', b'"scp"'):
        chosen = [[r for r in made(seed).splitlines() if kind in r] for seed in range(6)]
        assert len(set(map(tuple, chosen))) > 1


def test_equal_texts_and_useless_corrections_make_no_pair_and_are_counted(out, capsys):
    rows = [
        trajectory("q0", 0, "Step 1: fine. Answer: 40"),
        trajectory("q0", 1, "Step 1:  fine. Answer: 40"),  # equal but for white space
        trajectory("q0", 2, "Step 1: BAD . Step 2: x. Answer: 41"),
        trajectory("q0", 3, "Step 1: BAD . Step 2: y. Answer: 42"),  # the same wrong step
        trajectory("q1", 0, "Answer: 40"),
        trajectory("q2", 0, "no wrong step. Answer: 41"),
        trajectory("q3", 0, "cut", finish="length"),
    ]
    judged(out, rows)
    capsys.readouterr()
    reward.pairs(reward.Pairs(out_dir=str(out), fap_per_prompt=9))
    text = capsys.readouterr().out
    assert numbers(text) == {
        "solutions": (7, 6, 1),
        "prompts for pairs by outcome (FAP)": (4, 1, 3),
        "wrong solutions for pairs by process (SCP)": (3, 1, 2),
        "pairs": (3, 3, 0),
    }
    for reason in ("1 cut off", "1 all correct", "1 all wrong", "1 no usable solution"):
        assert reason in text
    assert "1 without a wrong step" in text
    assert "1 with a step that another pair has" in text
    fap = [row for row in rows_of(out / "pairs.jsonl") if row["kind"] == "fap"]
    assert len(fap) == 2 and len({(row["chosen"], row["rejected"]) for row in fap}) == 2


def test_a_correction_that_changes_nothing_is_no_pair(out, capsys):
    def repeats(number, body, good):
        return completion(good.replace("Step 1: mended.", "Step 1:  BAD really."))

    with serving(repeats) as server:
        run_judge(out, server)
    reward.pairs(reward.Pairs(out_dir=str(out), fap_per_prompt=0))
    assert "5 with a correction that changes nothing" in capsys.readouterr().out
    assert all(row["from"][0][-1] in "13" for row in rows_of(out / "pairs.jsonl"))


@pytest.mark.parametrize("correct, wrong", [(1, 5), (4, 6), (3, 3), (6, 4)])
def test_combinations_are_distinct_and_spread_evenly(tmp_path, correct, wrong):
    rows = [trajectory("q0", k, f"way {k}. Answer: 40") for k in range(correct)]
    rows += [trajectory("q0", correct + k, f"way {k}. Answer: 41") for k in range(wrong)]
    write_rows(tmp_path / "trajectories.jsonl", rows)
    run_judge(tmp_path, judge="exact")
    for limit in (1, 3, 100):
        reward.pairs(reward.Pairs(out_dir=str(tmp_path), fap_per_prompt=limit))
        made = [(row["chosen"], row["rejected"]) for row in rows_of(tmp_path / "pairs.jsonl")]
        assert len(set(made)) == len(made) == min(limit, correct * wrong)
        for side in zip(*made, strict=True):
            uses = [side.count(text) for text in set(side)]
            assert max(uses) - min(uses) <= 1


def test_no_pair_at_all_is_an_error(out):
    judged(out, [trajectory("q0", 0, "Answer: 40")])
    with pytest.raises(UserError, match="no pair"):
        reward.pairs(reward.Pairs(out_dir=str(out)))
    assert not (out / "pairs.jsonl").exists()


def test_a_second_reply_can_be_valid(out):
    def first_odd(number, body, good):
        return completion("what?" if body["seed"] == 0 else good)

    with serving(first_odd) as server:
        run_judge(out, server)
    assert len(rows_of(out / "verdicts.jsonl")) == 70 and len(server.seen) == 50
    reward.pairs(reward.Pairs(out_dir=str(out)))
    assert all(row["verdict"].endswith("/2") for row in rows_of(out / "pairs.jsonl"))


# ---- which pairs are kept ------------------------------------------------------------------------


def test_agreed_uses_only_what_judge_and_rule_say_alike(out, capsys):
    rows = rows_of(out / "trajectories.jsonl")
    rows[0]["correct"] = rows[4]["correct"] = False  # the judge holds q0/0 and q1/0 for right
    rows[9]["correct"] = True  # and q2/1 for wrong
    rows[12]["correct"] = None  # q3/0: the rule says nothing
    judged(out, rows)
    capsys.readouterr()
    reward.pairs(reward.Pairs(out_dir=str(out)))
    assert numbers(capsys.readouterr().out)["solutions"] == (20, 20, 0)
    reward.pairs(reward.Pairs(out_dir=str(out), agreed=True))
    text = capsys.readouterr().out
    assert adds_up(text)["solutions"] == (20, 17, 3)
    assert "3 on which judge and rule disagree" in text and "2 all wrong" in text
    used = {name for row in rows_of(out / "pairs.jsonl") for name in row["from"]}
    assert not used & {"q0/0", "q1/0", "q2/1"} and "q3/0" in used


def pair_of(name, chosen, rejected, kind="fap", prompt="Question?"):
    pair = {"id": name, "kind": kind, "prompt": [{"role": "user", "content": prompt}]}
    pair |= {"prefix": "", "chosen": chosen, "rejected": rejected}
    return pair | {"ends_turn": {"chosen": True, "rejected": True}}


def kept_of(rows, **settings):
    kept, counts = select(rows, reward.Pairs(**settings))
    assert len(rows) == len(kept) + counts.total()
    return [row["id"] for row in kept], {reason: n for reason, n in counts.items() if n}


def test_length_ratio_counts_words_on_either_side_and_keeps_its_boundary():
    words = "one two three four five six seven".split()
    rows = [pair_of(f"{n}{side}", *[" ".join(words[:n]), "a  b"][::step])
            for n in (1, 2, 5, 6) for side, step in (("chosen", 1), ("rejected", -1))]  # fmt: skip
    assert kept_of(rows, length_ratio=0.0) == ([row["id"] for row in rows], {})
    lost = {"beyond --length_ratio": 2}
    assert kept_of(rows, length_ratio=2.5) == ([row["id"] for row in rows[:6]], lost)
    lost = {"beyond --length_ratio": 6}
    assert kept_of(rows, length_ratio=1.0) == ([row["id"] for row in rows[2:4]], lost)


@pytest.mark.parametrize("template", ["llama3", "chatml"])
@pytest.mark.parametrize("layout", ["paper", "continuation"])
def test_max_length_leaves_out_exactly_what_training_would_skip(out, tmp_path, template, layout):
    rows = rows_of(out / "trajectories.jsonl")
    rows[2]["text"] = "Step 1: BAD 利润 = 45 📉. Answer: 42"
    rows[3]["text"] = "Step 1: fine and much longer. Step 2: BAD . Answer: 41"
    judged(out, rows)
    reward.pairs(reward.Pairs(out_dir=str(out), layout=layout))
    rows = rows_of(out / "pairs.jsonl")
    write_tokenizer(tmp_path / "model", template)
    tokenizer = Tokenizer(tmp_path / "model")

    tokens = encode_rows("pair", rows, range(len(rows)), "pairs", tokenizer)

    def trained(limit):
        kept = FileFamilies("pair", tokens, limit, tokenizer.bos_id).rows
        return [rows[i]["id"] for i in kept.tolist()]

    sizes = {limit: len(trained(limit)) for limit in range(40, 300)}
    steps = [n for n in sizes if n - 1 in sizes and sizes[n] > sizes[n - 1]]
    assert sizes[40] == 0 and sizes[299] == len(rows) and len(steps) > 3
    for limit in {n + d for n in steps for d in (-1, 0, 1)}:
        settings = {"max_length": limit, "tokenizer": str(tmp_path / "model")}
        ids, lost = kept_of(rows, **settings)
        assert ids == trained(limit), limit
        assert set(lost) <= {"beyond --max_length"}


def test_max_length_needs_a_tokenizer_and_training_skips_nothing_behind_it(out, tmp_path, capsys):
    judged(out)
    with pytest.raises(UserError, match="--max_length counts tokens.*--tokenizer"):
        reward.pairs(reward.Pairs(out_dir=str(out), max_length=50))
    path = str(write_checkpoint(tmp_path / "model"))
    capsys.readouterr()
    reward.pairs(reward.Pairs(out_dir=str(out), max_length=100, tokenizer=path))
    made, used, lost = adds_up(capsys.readouterr().out)["pairs"]
    assert made == 20 and 0 < used < 20 and lost == 20 - used
    _, counts = load_pairs(str(out / "pairs.jsonl"), Tokenizer(path), 100)
    assert counts.used == counts.rows == used


@pytest.mark.parametrize("fap, scp", [(2, 1), (1, 2), (2, 2), (1, 1)])
def test_balance_leaves_out_pairs_of_the_more_frequent_kind_by_seed(out, fap, scp, capsys):
    judged(out)
    made = set()
    for seed in range(4):
        settings = {"fap_per_prompt": fap, "scp_per_prompt": scp, "balance": True, "seed": seed}
        capsys.readouterr()
        reward.pairs(reward.Pairs(out_dir=str(out), **settings))
        text = capsys.readouterr().out
        found, fewer = adds_up(text), 5 * min(fap, scp)
        assert found["pairs"] == (5 * (fap + scp), 2 * fewer, 5 * (fap + scp) - 2 * fewer)
        assert ("left out by --balance" in text) == (fap != scp)
        rows = rows_of(out / "pairs.jsonl")
        assert Counter(row["kind"] for row in rows) == {"fap": fewer, "scp": fewer}
        before = (out / "pairs.jsonl").read_bytes()
        reward.pairs(reward.Pairs(out_dir=str(out), **settings))
        assert (out / "pairs.jsonl").read_bytes() == before
        made.add(tuple(row["id"] for row in rows))
    assert len(made) > 1 or fap == scp


def test_balance_without_pairs_of_one_kind_is_an_error_that_says_so(out, capsys):
    judged(out)
    with pytest.raises(UserError, match="no pair can be made"):
        reward.pairs(reward.Pairs(out_dir=str(out), scp_per_prompt=0, balance=True))
    text = capsys.readouterr().out
    assert adds_up(text)["pairs"] == (10, 0, 10) and "10 left out by --balance" in text
    assert not (out / "pairs.jsonl").exists()


def test_the_same_pair_of_two_prompts_is_used_once(out, capsys):
    rows = rows_of(out / "trajectories.jsonl")
    for row in rows[4:8]:  # q1 asks word for word what q0 asks
        row["prompt"] = rows[0]["prompt"]
    judged(out, rows)
    capsys.readouterr()
    reward.pairs(reward.Pairs(out_dir=str(out), fap_per_prompt=9))
    text = capsys.readouterr().out
    assert adds_up(text)["pairs"] == (20, 16, 4) and "4 the same as another" in text
    texts = [[row[k] for k in ("prompt", "chosen", "rejected")]
             for row in rows_of(out / "pairs.jsonl")]  # fmt: skip
    assert len({json.dumps(text) for text in texts}) == len(texts) == 16
    # equal words under another question, or behind another prefix, are another pair
    rows = [pair_of("a", "x", "y"), pair_of("b", "x", "y", prompt="Why?")]
    rows += [rows[0] | {"id": "c", "prefix": "z"}, rows[0] | {"id": "d", "kind": "scp"}]
    assert kept_of(rows) == (["a", "b", "c"], {"the same as another": 1})
