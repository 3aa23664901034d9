import json
import random

import pytest
from judging import asked, completion, numbers, rows_of, run_judge, serving, stepwise, trajectory
from tiny import write_rows

import judge
import reward
from config import UserError
from logs import VERDICT, read_log

RIGHT = "Step 1: fine. Step 2: fine too. Answer: 40"
WRONG = "Step 1: fine. Step 2: BAD . Answer: 41"


def outcome(word):
    return json.dumps({"Justification": "j", "Correctness": word})


NOT = {"correct": "wrong", "wrong": "correct"}


def by_seed(*plans):
    """An endpoint whose reply to a question about outcome depends on the request's seed: "yes"
    tells the truth, "no" the contrary, None is nonsense. The last plan goes on for ever."""

    def reply(number, body, good):
        if "First incorrect step" in body["messages"][0]["content"]:
            return completion(good)
        plan = plans[min(body["seed"], len(plans) - 1)]
        word = json.loads(good)["Correctness"]
        return completion(outcome(word if plan == "yes" else NOT[word]) if plan else "hm")

    return reply


@pytest.fixture
def out(tmp_path):
    """A right and a wrong solution of each of three prompts."""
    rows = [
        trajectory(f"q{i}", k, f"{i} {t}") for i in range(3) for k, t in enumerate((RIGHT, WRONG))
    ]
    write_rows(tmp_path / "trajectories.jsonl", rows)
    return tmp_path


def decided(out):
    return judge.decided(read_log(out / "verdicts.jsonl", VERDICT))


def outcomes(out):
    """{trajectory: correct | wrong | None} as the votes have it."""
    found = decided(out).items()
    return {
        t: v["parsed"] and v["parsed"]["Correctness"] for (t, kind), v in found if kind == "outcome"
    }


TRUTH = {f"q{i}/{k}": word for i in range(3) for k, word in enumerate(("correct", "wrong"))}


# ---- votes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "plans", [("no", "yes", "yes"), ("yes", "no", "yes"), ("yes", "yes", "no")]
)
def test_the_majority_of_the_votes_decides_the_outcome(out, plans, capsys):
    with serving(by_seed(*plans)) as server:
        run_judge(out, server, votes=3, stepwise="none")
    assert outcomes(out) == TRUTH and len(server.seen) == 6 * 3
    for (name, _), verdict in decided(out).items():  # the first that says so
        assert verdict["id"] == f"{name}/outcome/{plans.index('yes') + 1}"
    assert "3 correct + 3 wrong" in capsys.readouterr().out


def test_the_majority_decides_the_first_error_and_its_own_correction_counts(out, capsys):
    quotes = [("", "Step 1: fine.", "first"), ("Step 1: fine.", "Step 2: BAD .", "second"),
              ("Step 1: fine. Step 2:", "BAD .", "third")]  # fmt: skip

    def reply(number, body, good):
        if "First incorrect step" in body["messages"][0]["content"]:
            return completion(stepwise(*quotes[body["seed"]]))
        return completion(good)

    write_rows(out / "trajectories.jsonl", [trajectory("q0", 1, WRONG)])
    with serving(reply) as server:
        run_judge(out, server, votes=3)
    logged = rows_of(out / "verdicts.jsonl")
    # the third quotes the second half of the step that the second quotes whole: the same finding
    assert [v["first_error"] for v in logged if v["kind"] == "stepwise"] == [0, 1, 1]
    verdict = decided(out)["q0/1", "stepwise"]
    assert verdict["first_error"] == 1 and verdict["correction"] == "second"
    reward.pairs(reward.Pairs(out_dir=str(out)))
    assert [row["chosen"] for row in rows_of(out / "pairs.jsonl")] == ["second"]


def test_a_tie_is_no_verdict_counted_and_not_used(out, capsys):
    def reply(number, body, good):
        word = "wrong" if body["seed"] else json.loads(good).get("Correctness")
        return completion(outcome(word) if word else good)  # the right ones: one vote each

    with serving(reply) as server:
        run_judge(out, server, votes=2)
    text = capsys.readouterr().out
    assert numbers(text)["solutions"] == (6, 3, 3) and "3 invalid: votes tied" in text
    assert outcomes(out) == {
        name: word if word == "wrong" else None for name, word in TRUTH.items()
    }
    # a tied outcome asks for no steps
    assert {t for t, kind in decided(out) if kind == "stepwise"} == {f"q{i}/1" for i in range(3)}
    reward.pairs(reward.Pairs(out_dir=str(out)))
    text = capsys.readouterr().out
    assert numbers(text)["solutions"] == (6, 3, 3) and "3 without a valid verdict" in text
    assert {row["kind"] for row in rows_of(out / "pairs.jsonl")} == {"scp"}


def test_three_findings_of_a_step_are_a_tie_two_and_one_are_none():
    def vote(attempt, found):
        parsed = found is not None and {"Justification": ""}
        return {"id": f"t/{attempt}", "kind": "stepwise", "attempts": attempt, "reason": "r",
                "parsed": parsed or None, "first_error": found}  # fmt: skip

    for found, wanted in [
        ([0, 1, 2], None), ([0, 1], None), ([0, 1, 1], 2), ([-1, 1, -1], 1), ([None, 2], 2),
        ([None, None], None), ([0, None, 1, 1], 3), ([0, 0, 1, 1], None), ([None, 1, 2, 2], 3),
    ]:  # fmt: skip
        verdict = judge.decide([vote(k, f) for k, f in enumerate(found, 1)])
        assert bool(verdict["parsed"]) == (wanted is not None), found
        assert wanted is None or verdict["id"] == f"t/{wanted}", found


def test_invalid_replies_have_no_vote_and_are_replaced(out, capsys):
    with serving(by_seed(None, "yes", None, "no", "yes")) as server:
        run_judge(out, server, votes=3, stepwise="none", asks=2)
    assert outcomes(out) == TRUTH
    for name in TRUTH:
        valid = [
            bool(v["parsed"]) for v in rows_of(out / "verdicts.jsonl") if v["trajectory"] == name
        ]
        assert valid == [False, True, False, True, True]  # until three are valid, and no more
    assert len(server.seen) == 6 * 5


@pytest.mark.parametrize("asks", [1, 2])
def test_a_question_is_asked_votes_times_asks_times_at_most(out, asks, capsys):
    with serving(by_seed("yes", None)) as server:
        run_judge(out, server, votes=3, stepwise="none", asks=asks)
    assert len(server.seen) == 6 * 3 * asks
    assert outcomes(out) == TRUTH  # the one valid vote counts
    with serving() as server:
        run_judge(out, server, votes=3, stepwise="none", asks=asks)
    assert not server.seen


@pytest.mark.parametrize("seed", [0, 7])
def test_the_first_request_is_greedy_and_the_others_sample_with_other_seeds(out, seed):
    with serving() as server:
        run_judge(out, server, votes=3, seed=seed)
    questions = {}
    for _, _, body in server.seen:
        found = questions.setdefault(body["messages"][0]["content"], set())
        found.add((body["temperature"], body["seed"]))
    for found in questions.values():
        assert found == {(0.0, seed), (0.7, seed + 1), (0.7, seed + 2)}
    assert len(questions) == 6 + 3


def test_votes_that_are_added_later_reuse_the_first_ones_and_a_resume_asks_nothing(out):
    log = out / "verdicts.jsonl"
    with serving() as server:
        run_judge(out, server)
    before, first = log.read_bytes(), set(asked(server))
    with serving() as server:
        run_judge(out, server, votes=3)
    assert log.read_bytes().startswith(before) and not first & set(asked(server))
    assert len(server.seen) == len(set(asked(server))) == (6 + 3) * 2
    after = log.read_bytes()
    with serving() as server:
        run_judge(out, server, votes=3)
        run_judge(out, server, votes=1)
    assert not server.seen and log.read_bytes() == after


def test_a_run_that_dies_between_the_votes_goes_on_with_the_missing_ones(out):
    def dies(number, body, good):
        return completion(good) if number < 10 else (401, {}, b"")

    with serving(dies) as server, pytest.raises(UserError, match="HTTP 401"):
        run_judge(out, server, votes=3, concurrency=1)
    first = asked(server)[:10]
    with serving() as server:
        run_judge(out, server, votes=3)
    assert not set(first) & set(asked(server)) and len(server.seen) == (6 + 3) * 3 - 10
    assert outcomes(out) == TRUTH


def test_the_order_of_the_log_does_not_matter_to_the_votes(out):
    with serving(by_seed("no", "yes", "yes")) as server:
        run_judge(out, server, votes=3)
    wanted, rows = decided(out), rows_of(out / "verdicts.jsonl")
    for seed in range(3):
        random.Random(seed).shuffle(rows)
        write_rows(out / "verdicts.jsonl", rows)
        assert decided(out) == wanted


# ---- the budget ----------------------------------------------------------------------------------


def test_no_request_is_sent_once_the_budget_is_spent(out, capsys):
    with serving() as server, pytest.raises(UserError, match="the budget of 50 tokens is used up"):
        run_judge(out, server, concurrency=1, token_budget=50)
    assert len(server.seen) == 4  # of 13 tokens each
    assert numbers(capsys.readouterr().out)["solutions"] == (6, 4, 2)
    with serving() as server, pytest.raises(UserError, match="budget of 52 tokens.*raise it"):
        run_judge(out, server, concurrency=1, token_budget=52)
    assert not server.seen  # what an earlier run spent counts


def test_the_budget_is_passed_by_no_more_than_the_requests_in_flight(out):
    with serving() as server, pytest.raises(UserError, match="budget"):
        run_judge(out, server, concurrency=3, votes=3, token_budget=100)
    assert 8 <= len(server.seen) <= 8 + 2  # 7 replies leave some, 8 do not
    assert len(rows_of(out / "verdicts.jsonl")) == len(server.seen)  # all are kept


def test_a_larger_budget_goes_on_where_the_smaller_one_ended(out, tmp_path):
    seen = []
    for budget in (1, 40, 100):
        with serving() as server, pytest.raises(UserError, match=f"budget of {budget} tokens"):
            run_judge(out, server, concurrency=1, token_budget=budget)
        seen += asked(server)
    with serving() as server:
        run_judge(out, server, token_budget=9 * 13 + 1)
    seen += asked(server)
    assert len(seen) == len(set(seen)) == 6 + 3 and outcomes(out) == TRUTH


def test_everybody_who_waits_when_the_budget_is_spent_is_counted(out, capsys):
    # all outcomes and one of three stepwise verdicts
    with serving() as server, pytest.raises(UserError, match="left 2 solutions without a reply"):
        run_judge(out, server, concurrency=1, token_budget=7 * 13)
    text = capsys.readouterr().out
    assert numbers(text) == {"solutions": (6, 6, 0), "wrong solutions": (3, 1, 2)}
    assert "2 unanswered" in text


def test_solutions_whose_next_request_was_not_even_made_are_counted_too(out, capsys):
    # before the last outcome: it is missing, and the steps of the two wrong ones that came
    with serving() as server, pytest.raises(UserError, match="left 3 solutions without a reply"):
        run_judge(out, server, concurrency=1, token_budget=5 * 13)
    text = capsys.readouterr().out
    assert numbers(text)["solutions"] == (6, 5, 1) and "2 unanswered" in text


def test_a_server_without_usage_is_counted_by_the_letters_read_and_written(out):
    costs = []

    def silent(number, body, good):
        costs.append(len(body["messages"][0]["content"]) // 4 + len(good) // 4)
        return {k: v for k, v in completion(good).items() if k != "usage"}

    with serving(silent) as server:
        run_judge(out, server, concurrency=1)
    wanted = costs[:]
    assert min(wanted) > 150  # a request is long
    for sent in (2, 5, 7):
        log = f"{sent}.jsonl"
        with serving(silent) as server, pytest.raises(UserError, match="budget"):
            run_judge(out, server, concurrency=1, verdicts=log, token_budget=sum(wanted[:sent]))
        assert len(server.seen) == sent
        with serving(silent) as server, pytest.raises(UserError, match="budget"):
            run_judge(out, server, concurrency=1, verdicts=log, token_budget=sum(wanted[:sent]))
        assert not server.seen  # the log holds what is needed to count again


def test_an_equal_solution_costs_nothing(tmp_path):
    write_rows(tmp_path / "trajectories.jsonl", [trajectory("q0", k, RIGHT) for k in range(9)])
    with serving() as server:
        run_judge(tmp_path, server, token_budget=26)
        run_judge(tmp_path, server, token_budget=26, stepwise="all", votes=1)
    assert len(server.seen) == 2 and len(rows_of(tmp_path / "verdicts.jsonl")) == 18


# ---- the log -------------------------------------------------------------------------------------


def test_a_reply_is_on_disk_before_the_next_one_is_asked_for(out):
    lines = []

    def counts(number, body, good):
        lines.append((out / "verdicts.jsonl").read_bytes().count(b"\n"))
        return completion(good)

    with serving(counts) as server:
        run_judge(out, server, concurrency=1)
    assert lines == list(range(6 + 3))


def test_equal_solutions_of_which_one_is_ahead_are_not_asked_about_twice(tmp_path):
    write_rows(tmp_path / "trajectories.jsonl", [trajectory("q0", k, WRONG) for k in range(3)])
    with serving() as server:
        run_judge(tmp_path, server)
    rows = rows_of(tmp_path / "verdicts.jsonl")
    write_rows(tmp_path / "verdicts.jsonl", rows[:1])  # killed before the second was written
    with serving() as server:
        run_judge(tmp_path, server)
    assert len(server.seen) == 1  # the steps
    again = {row["id"]: row["parsed"] for row in rows_of(tmp_path / "verdicts.jsonl")}
    assert again == {row["id"]: row["parsed"] for row in rows} and len(rows) == 6


# ---- whose steps are judged ----------------------------------------------------------------------

FLAWED = "Step 1: BAD . Step 2: fine too. Answer: 40"


@pytest.mark.parametrize("which", ["all", "wrong", "none"])
def test_the_steps_of_all_wrong_or_no_solutions_are_judged(out, which, capsys):
    rows = rows_of(out / "trajectories.jsonl")
    write_rows(out / "trajectories.jsonl", [*rows, trajectory("q3", 0, FLAWED)])
    with serving() as server:
        run_judge(out, server, stepwise=which)
    wanted = {"all": {*TRUTH, "q3/0"}, "wrong": {n for n, w in TRUTH.items() if w == "wrong"}}
    judged = {t for t, kind in decided(out) if kind == "stepwise"}
    assert judged == wanted.get(which, set()) and len(server.seen) == 7 + len(judged)
    text = numbers(capsys.readouterr().out)
    assert text.pop("solutions") == (7, 7, 0)
    lines = {"correct solutions": (4, 4, 0), "wrong solutions": (3, 3, 0)}
    shown = {"all": lines, "wrong": {"wrong solutions": (3, 3, 0)}, "none": {}}
    assert text == shown[which]


def test_a_right_answer_on_a_wrong_way_is_counted_and_used_only_on_demand(out, capsys):
    rows = [trajectory("q0", k, text) for k, text in enumerate((FLAWED, WRONG))]
    write_rows(out / "trajectories.jsonl", rows)
    with serving() as server:
        run_judge(out, server, stepwise="all")
    assert "1 correct solutions = 1 with a wrong step" in capsys.readouterr().out
    reward.pairs(reward.Pairs(out_dir=str(out)))
    text = capsys.readouterr().out
    assert numbers(text)["solutions"] == (2, 1, 1) and "1 right with a wrong step" in text
    assert [row["kind"] for row in rows_of(out / "pairs.jsonl")] == ["scp"]
    reward.pairs(reward.Pairs(out_dir=str(out), flawed=True))
    assert numbers(capsys.readouterr().out)["solutions"] == (2, 2, 0)
    fap, scp = rows_of(out / "pairs.jsonl")
    assert fap["chosen"] == FLAWED and scp["from"] == ["q0/1"]


def test_an_unknown_choice_of_steps_is_refused(out):
    with pytest.raises(UserError, match="--stepwise must be one of all, wrong, none, not 'right'"):
        run_judge(out, stepwise="right")


def test_a_budget_is_for_an_endpoint(out):
    with pytest.raises(UserError, match="--token_budget is for --judge http"):
        run_judge(out, judge="exact", token_budget=5)


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("trajectories", {"prompt": ["q"]}, r"trajectories.jsonl: q0/0: prompt\[0\]: must be an"),
        ("trajectories", {"prompt": [{"role": "assistant", "content": "x"}]}, "prompt.*role"),
        ("verdicts", {"attempts": None}, "verdicts.jsonl:1: attempts: must be an integer"),
        ("verdicts", {"tries": "1"}, "verdicts.jsonl:1: tries: must be an integer"),
        ("verdicts", {"finish": 3}, "verdicts.jsonl:1: finish: must be a string"),
    ],
)
def test_a_foreign_log_is_refused_by_line_and_field(out, name, changes, message):
    run_judge(out, judge="exact")
    first, *rest = rows_of(out / f"{name}.jsonl")
    write_rows(out / f"{name}.jsonl", [first | changes, *rest])
    for stage in (lambda: run_judge(out, judge="exact"), lambda: make_pairs(out)):
        with pytest.raises(UserError, match=message):
            stage()


def make_pairs(out):
    reward.pairs(reward.Pairs(out_dir=str(out)))
