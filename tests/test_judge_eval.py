import json
import re
import threading
from random import Random

import pytest
from judging import completion, rows_of, serving, stepwise, url
from tiny import write_rows

import judge_eval
import reward
from config import UserError
from sample import exam, judge_server


def case(name, steps, label, **changes):
    row = {"id": name, "generator": "g", "problem": f"Problem {name}?", "steps": steps}
    return row | {"final_answer_correct": label < 0, "label": label} | changes


THREE = ["First so.", "Then so.", "The answer is 4."]


def says(plan):
    """A judge that replies by plan: {case: (outcome, index of the step it quotes, -1 or None)}."""

    def reply(number, body, good):
        text = body["messages"][0]["content"]
        outcome, index = plan[re.search(r"Problem (.*?)\?", text)[1]]
        if "First incorrect step" not in text:
            return completion(json.dumps({"Justification": "", "Correctness": outcome}))
        steps = re.search(r"<answer>\n(.*?)\n</answer>", text, re.S)[1].split("\n\n")
        if index is None:
            return completion("hm")
        if index < 0:
            return completion(stepwise("", "", ""))
        return completion(stepwise("\n\n".join(steps[:index]), steps[index], "better"))

    return reply


def run_eval(folder, rows, server, **settings):
    """eval.json of a judge on cases."""
    write_rows(folder / "cases.jsonl", rows)
    settings = {"backoff_s": 0.001, "base_url": url(server), "asks": 1} | settings
    cfg = reward.Eval(cases=str(folder / "cases.jsonl"), out_dir=str(folder / "out"), **settings)
    judge_eval.evaluate(cfg)
    return json.loads((folder / "out" / "eval.json").read_text())


def scores_of(result):
    return {name: (row["score"], row["n"]) for name, row in result["scores"].items()}


# case: (label, what the judge says of the answer, which step it quotes)
TEN = {
    "a": (0, "wrong", 0), "b": (1, "wrong", 1), "c": (1, "correct", 1), "d": (0, "wrong", 1),
    "e": (2, "wrong", 2), "f": (1, "wrong", None), "g": (-1, "correct", -1),
    "h": (-1, "correct", -1), "i": (-1, "wrong", 1), "j": (-1, "correct", -1),
}  # fmt: skip


def test_the_scores_are_those_computed_by_hand(tmp_path, capsys):
    rows = [case(name, THREE, label, answer="4") for name, (label, *_) in TEN.items()]
    with serving(says({name: says for name, (_, *says) in TEN.items()})) as server:
        result = run_eval(tmp_path, rows, server)
    assert scores_of(result) == {
        "outcome accuracy": (80.0, 10),  # all but c and i
        "first error found, wrong solutions": (66.67, 6),  # a b c e
        "no error found, right solutions": (75.0, 4),  # g h j
        "first-error F1": (70.59, 10),  # 2 * 2/3 * 3/4 / (2/3 + 3/4)
        "invalid": (10.0, 10),  # f
        "agreement with the rule": (40.0, 10),  # it holds all ten answers for right: c g h j
    }
    assert result["invalid"] == {"reply is not one JSON object": 1}
    assert result["judge"] == ["http:world"]
    text = capsys.readouterr().out
    assert re.search(r"first-error F1 +70\.6 \[\d+\.\d, \d+\.\d\]  n 10\n", text)
    assert "1 invalid: reply is not one JSON object" in text


def test_intervals_contain_the_score_and_shrink_with_more_cases(tmp_path):
    width = {}
    for many in (10, 200):
        rows = [case(f"c{i}", THREE, i % 4 - 1) for i in range(many)]
        plan = {
            f"c{i}": ("correct" if i % 4 == 0 else "wrong", 0 if i % 5 else 1) for i in range(many)
        }
        (tmp_path / str(many)).mkdir()
        with serving(says(plan)) as server:
            result = run_eval(tmp_path / str(many), rows, server)
        for name, row in result["scores"].items():
            if name == "agreement with the rule":
                assert row == {"score": None, "low": None, "high": None, "n": 0}
                continue
            assert 0 <= row["low"] <= row["score"] <= row["high"] <= 100
        row = result["scores"]["first error found, wrong solutions"]
        width[many] = row["high"] - row["low"]
    assert 0 < width[200] < width[10] / 2


def test_a_judge_that_is_never_valid_finds_nothing(tmp_path, capsys):
    rows = [case("a", THREE, 0), case("b", THREE, -1), case("c", THREE, 2)]
    with serving(lambda *_: completion("hm")) as server:
        result = run_eval(tmp_path, rows, server)
    assert {name: score for name, (score, n) in scores_of(result).items()} == {
        "outcome accuracy": 0, "first error found, wrong solutions": 0,
        "no error found, right solutions": 0, "first-error F1": 0, "invalid": 100,
        "agreement with the rule": None,
    }  # fmt: skip
    assert re.search(r"agreement with the rule +- \(no such case\)", capsys.readouterr().out)
    assert result["invalid"] == {"reply is not one JSON object": 3}


def test_a_case_that_cannot_be_judged_says_why(tmp_path):
    rows = [case("a", ["x \x07", "The answer is 5."], 1), case("b", THREE, -1)]
    rows += [case("c", ["x <|eot_id|>", "Answer: 4"], 0)]
    with serving(says({"b": ("correct", -1)})) as server:
        result = run_eval(tmp_path, rows, server)
    assert result["invalid"] == {"with broken characters": 1, "with a control token": 1}
    assert scores_of(result)["invalid"] == (66.67, 3)


def test_rows_without_an_answer_are_judged_without_a_reference(tmp_path):
    rows = [case("a", THREE, -1), case("b", THREE, -1, answer=None, solution=""),
            case("c", THREE, -1, answer=" 4 ", solution="It is 4.")]  # fmt: skip
    with serving(says(dict.fromkeys("abc", ("correct", -1)))) as server:
        result = run_eval(tmp_path, rows, server)
        texts = [body["messages"][0]["content"] for _, _, body in server.seen]
    for text in texts:
        reference = "It is 4.\n4" if "Problem c" in text else "(none is given)"
        assert f"<reference>\n{reference}\n</reference>" in text
        assert "<answer>\nFirst so.\n\nThen so.\n\nThe answer is 4.\n</answer>" in text
    assert scores_of(result)["agreement with the rule"] == (100.0, 1)
    assert scores_of(result)["first-error F1"] == (None, 3)  # no wrong case: no harmonic mean


LONG = [
    "Let us see.\nIt has two lines, and Step 3: inside.",
    "Step 1: 利润 = 45 📉\n\tStep 2: more\n\n  of it.  ",
    "\nthe answer is 3,\nor is it?",
    "Answer: 4",
]


@pytest.mark.parametrize(
    "quote, index",
    [
        ("Let us see.", 0),
        ("It has two lines, and Step 3: inside.", 0),
        ("Step 3: inside.", 0),
        ("Step 1: 利润 = 45 📉", 1),
        ("利润 = 45", 1),
        ("Step 2: more", 1),
        ("of it.", 1),
        ("of it.  \n\n\nthe answer is 3,", 1),  # where it begins
        ("the answer is 3,", 2),
        ("or is it?", 2),
        ("it?", 2),
        ("Answer: 4", 3),
    ],
)
def test_a_quote_belongs_to_the_paragraph_in_which_it_begins(tmp_path, quote, index):
    text = "\n\n".join(LONG)
    row = case("a", LONG, index, final_answer_correct=False)
    write_rows(tmp_path / "cases.jsonl", [row])
    (record,) = judge_eval.read_cases(tmp_path / "cases.jsonl").values()
    assert record["text"] == text
    before = text[: text.index(quote)]
    parsed = {"Reasoning up to incorrect": before, "First incorrect step": quote}
    verdicts = {("a", "outcome"): {"parsed": {"Correctness": "wrong"}}}
    verdicts["a", "stepwise"] = {"parsed": parsed, "first_error": 0}
    assert judge_eval.found_step(record, verdicts) == index
    for kind in ("outcome", "stepwise"):  # votes that were added later may tie
        invalid = verdicts | {("a", kind): verdicts["a", kind] | {"parsed": None}}
        assert judge_eval.found_step(record, invalid) is None
        assert (
            judge_eval.found_step(record, {k: v for k, v in verdicts.items() if kind not in k})
            is None
        )


@pytest.mark.parametrize("outcome, found", [("correct", -1), ("wrong", 2)])
def test_without_a_quote_a_wrong_answer_is_the_last_step_s(tmp_path, outcome, found):
    for label in (-1, 1, 2):
        folder = tmp_path / str(label)
        folder.mkdir()
        with serving(says({"a": (outcome, -1)})) as server:
            result = run_eval(folder, [case("a", THREE, label)], server)
        name = (
            "no error found, right solutions" if label < 0 else "first error found, wrong solutions"
        )
        assert result["scores"][name]["score"] == 100 * (label == found)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"label": 3}, "label: 3 is no step of 0 to 2, nor -1"),
        ({"label": -2}, "label: -2 is no step of 0 to 2, nor -1"),
        ({"label": "1"}, "label: must be an integer, not a string"),
        ({"label": True}, "label: must be an integer"),
        ({"steps": []}, "steps: is empty"),
        ({"steps": ["x", " \n"]}, "steps: every step must be text"),
        ({"steps": ["x", 1]}, "steps: every step must be text"),
        ({"steps": "x"}, "steps: must be a list"),
        ({"problem": " "}, "problem: is empty"),
        ({"final_answer_correct": 1}, "final_answer_correct: must be true or false"),
        ({"id": "a"}, "id: 'a' is there twice"),
        ({"answer": 4}, "answer: must be a string"),
    ],
)
def test_a_bad_case_is_named_by_file_line_and_field(tmp_path, changes, message):
    rows = [case("a", THREE, -1), case("b", THREE, 0) | changes]
    with serving() as server:
        with pytest.raises(UserError, match=re.escape(f"cases.jsonl:2: {message}")):
            run_eval(tmp_path, rows, server)
    assert not server.seen


def test_no_case_no_file_and_a_judge_that_sees_no_steps_are_errors(tmp_path):
    with serving() as server:
        with pytest.raises(UserError, match="cases.jsonl: holds no case"):
            run_eval(tmp_path, [], server)
        with pytest.raises(UserError, match="--judge exact.*finds no wrong step"):
            run_eval(tmp_path, [case("a", THREE, 0)], server, judge="exact")
        with pytest.raises(UserError, match="--cases: name a file"):
            judge_eval.evaluate(reward.Eval(base_url=url(server)))


def test_a_folder_belongs_to_its_cases_and_a_second_run_asks_nothing(tmp_path):
    rows = [case("a", THREE, 1), case("b", THREE, -1)]
    judge = says({"a": ("wrong", 1), "b": ("correct", -1), "c": ("wrong", 0)})
    with serving(judge) as server:
        first = run_eval(tmp_path, rows, server)
        many = len(server.seen)
        assert run_eval(tmp_path, rows, server) == first and len(server.seen) == many == 4
        for others in (rows[:1], [*rows, case("c", THREE, 0)], [rows[0] | {"label": 0}, rows[1]]):
            with pytest.raises(UserError, match="holds other cases: take another --out_dir"):
                run_eval(tmp_path, others, server)
        assert len(server.seen) == many
    assert {row["id"] for row in rows_of(tmp_path / "out" / "trajectories.jsonl")} == {"a", "b"}


def test_a_judge_that_breaks_off_leaves_no_figures_and_goes_on(tmp_path):
    rows = [case("a", THREE, 1), case("b", THREE, -1)]
    judge = says({"a": ("wrong", 1), "b": ("correct", -1)})

    def dies(number, body, good):
        return judge(number, body, good) if number < 3 else (401, {}, b"")

    with serving(dies) as server, pytest.raises(UserError, match="HTTP 401"):
        run_eval(tmp_path, rows, server, concurrency=1)
    assert not (tmp_path / "out" / "eval.json").exists()
    with serving(judge) as server:
        result = run_eval(tmp_path, rows, server)
    assert len(server.seen) == 1 and scores_of(result)["first-error F1"] == (100.0, 2)


def test_votes_decide_where_the_first_error_is(tmp_path):
    plans = [says({"a": say}) for say in (("correct", 0), ("wrong", 1), ("wrong", 1))]

    def reply(number, body, good):
        return plans[body["seed"]](number, body, good)

    for votes, score in ((1, 0.0), (3, 100.0)):
        (tmp_path / str(votes)).mkdir()
        with serving(reply) as server:
            result = run_eval(tmp_path / str(votes), [case("a", THREE, 1)], server, votes=votes)
        assert len(server.seen) == 2 * votes
        assert scores_of(result)["first error found, wrong solutions"] == (score, 1)
        assert scores_of(result)["outcome accuracy"] == (score, 1)


# ---- the sample world ----------------------------------------------------------------------------


def exam_texts(question, steps, answer, rng):
    """Solutions of one exercise, right and wrong in every way there is."""
    right = [*steps, f"Answer: {answer}"]
    extra = steps[0].replace("Step 1", "Step 2")
    yield right
    yield [*steps, f"Answer: {int(answer) + 1}"]
    for slip in (-2, -1, 1, 2, 3):
        if worked := exam.solve(question, slip):
            yield [*worked[0], f"Answer: {worked[1]}"]
            yield [*worked[0], right[2]]  # and yet the right answer
    if exam.read(question)[0] in exam.MISTAKES and (text := exam.mistake(question)):
        yield [text[a:b] for a, b in exam.split_steps(text)]
    yield [right[0], right[2]]  # a step is missing
    yield [right[1], right[2]]
    yield [right[0], f"Answer: {int(answer) + 1}"]
    yield [right[2]]
    yield [right[0], extra, *right[1:]]  # one is added
    yield [*steps, steps[1].replace("Step 2", "Step 3"), right[2]]
    yield [extra, *right]
    yield [right[1], right[0], right[2]]
    yield [right[0], right[1].replace("= ", "= 1", 1), right[2]]


def test_the_judge_of_the_sample_world_is_perfect_on_its_own_exam(tmp_path):
    rng, rows, labels = Random(0), [], set()
    for formula in sorted({**exam.FINANCE, **exam.GENERAL}):
        question, solution, answer = exam.exercise(formula, rng)
        steps, _ = exam.solve(question)
        for k, written in enumerate(exam_texts(question, steps, answer, rng)):
            label = exam.first_error(" ".join(written), steps, answer)
            final = exam.final_answer(" ".join(written))
            row = case(f"{formula}/{k}", written, label, problem=question, answer=answer)
            rows.append(row | {"final_answer_correct": final == answer, "solution": solution})
            labels.add((label, len(written)))
    assert len(rows) > 200 and {label for label, _ in labels} == {-1, 0, 1, 2}
    server = judge_server.serve()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        result = run_eval(tmp_path, rows, server)
    finally:
        server.shutdown()
        server.server_close()
    perfect = dict.fromkeys(("outcome accuracy", "agreement with the rule", "first-error F1"), 100)
    found = {name: row["score"] for name, row in result["scores"].items()}
    assert found == found | perfect | {"invalid": 0}, result
