import json

import pytest
from judging import completion, numbers, rows_of, run_judge, serving, trajectory, write_solutions
from tiny import write_checkpoint, write_rows

import reward
from config import UserError
from data import load_pairs
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
    ]
    judged(out, rows)
    reward.pairs(reward.Pairs(out_dir=str(out), layout="continuation"))
    rows = {row["from"][0]: row for row in rows_of(out / "pairs.jsonl")}
    assert rows["q0/0"]["ends_turn"] == {"chosen": True, "rejected": True}
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
        "prompts for pairs by outcome (FAP)": (4, 1, 3),
        "wrong solutions for pairs by process (SCP)": (3, 1, 2),
    }
    for reason in ("1 all correct", "1 all wrong", "1 not judged", "1 without a wrong step"):
        assert reason in text
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
