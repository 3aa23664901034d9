"""judged.py: what only a judge can mark, with the judge of reward.py."""

import json

import judging
import pytest
from evaluating import CHAT, run
from judging import completion, serving, url
from tiny import write_rows

import evaluate
import judge
import judged
import results
from config import UserError

FREE = [
    {"id": f"f{i}", "query": f"What was paid in {2010 + i}?", "text": "t", "answer": str(10 * i)}
    for i in range(6)
]


def reply_of(body):
    """The policy: right on even years, empty in 2015."""
    said = body["messages"][-1]["content"]
    year = int(said.removeprefix("What was paid in ").rstrip("?")) if "paid in" in said else 0
    return "" if year == 2015 else f"The answer is {10 * (year - 2010) + year % 2}"


def judge_of(body, rating="[[7]]"):
    said = body["messages"][-1]["content"]
    if "Rating: [[5]]" in said:
        return f"Good enough. Rating: {rating}"
    return json.dumps(judging.answer_of(said))


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """The directory of an evaluation whose replies a server wrote."""
    real = judging.answer_of
    write_rows(tmp_path / "financebench.jsonl", FREE)
    write_rows(tmp_path / "mt_bench.jsonl", CHAT)
    monkeypatch.setattr(judging, "answer_of", lambda prompt: {})
    with serving(lambda n, body, good: completion(reply_of(body))) as server:
        run("none", tmp_path, tmp_path, tasks="financebench,mt_bench", base_url=url(server),
            model="policy", style="direct")  # fmt: skip
    monkeypatch.setattr(judging, "answer_of", real)
    return tmp_path


def decide(out, behave=judge_of, **changes):
    """Run the judge; the number of requests it got."""
    flags = {"out_dir": out, "model": "j", "backoff_s": 0.001} | changes
    with serving(lambda n, body, good: completion(behave(body))) as server:
        words = [f"--{k}={v}" for k, v in ({"base_url": url(server)} | flags).items()]
        judged.main(words)
        return len(server.seen)


def test_before_the_judge_a_rule_scores_and_a_chat_has_no_score(asked):
    tasks = results.read_result(asked)["tasks"]
    assert tasks["financebench"]["metric"] == "em"
    assert tasks["mt_bench"]["metric"] == "judge" and tasks["mt_bench"]["score"] is None


def test_the_judge_marks_every_reply(asked, capsys):
    assert decide(asked) == 5 + 4
    shown = capsys.readouterr().out
    assert "6 financebench replies = 5 judged + 1 skipped [1 empty]" in shown
    tasks = results.read_result(asked)["tasks"]
    assert tasks["financebench"]["metric"] == tasks["mt_bench"]["metric"] == "judge"
    assert tasks["financebench"]["score"] == pytest.approx(50) and tasks["financebench"]["n"] == 6
    assert tasks["mt_bench"]["score"] == pytest.approx(70)
    marks = {k: s["judge"] for k, s in results.read_samples(asked, "financebench").items()}
    assert marks == {"f0": 1, "f1": 0, "f2": 1, "f3": 0, "f4": 1, "f5": 0}
    assert tasks["financebench"]["asked"]["judge"].startswith("http:j ")


def test_nothing_is_judged_twice_and_a_new_reply_is(asked):
    decide(asked)
    assert decide(asked) == 0
    path = asked / "samples_financebench.jsonl"
    path.write_text(path.read_text().replace("The answer is 0", "The answer is 1"))
    assert decide(asked) == 1
    assert results.read_samples(asked, "financebench")["f0"]["judge"] == 0


def test_an_empty_turn_is_rated_lowest_without_a_question(asked):
    path = asked / "samples_mt_bench.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["resps"][1] = [" "]
    write_rows(path, lines)
    assert decide(asked) == 5 + 3
    assert results.read_samples(asked, "mt_bench")["m1"]["judge"] == pytest.approx((0.7 + 0.1) / 2)


@pytest.mark.parametrize("rating", ["[[11]]", "[[0]]", "7", "[[7]] or [[8]]", "[[seven]]"])
def test_a_rating_that_is_none_counts_nothing(asked, rating, capsys):
    decide(asked, lambda body: judge_of(body, rating), asks=1)
    entry = results.read_result(asked)["tasks"]["mt_bench"]
    assert entry["score"] is None and entry["n"] == 2
    assert "4 mt_bench replies = 0 judged + 4 skipped [4 invalid: " in capsys.readouterr().out
    assert all("judge" not in s for s in results.read_samples(asked, "mt_bench").values())


@pytest.mark.parametrize(
    "text, rating",
    [
        ("so. Rating: [[1]]", 1),
        ("[[7.5]] then [[7.5]]", 7.5),
        ("<think>[[2]]</think> Rating: [[ 10 ]]", 10),
    ],
)
def test_a_rating_stands_in_double_brackets(text, rating):
    assert judge.parse_reply(text, "stop", "rating")[0]["Rating"] == rating


def test_the_judge_sees_the_whole_conversation_and_the_reference(asked):
    seen = []

    def behave(body):
        seen.append(body["messages"][-1]["content"])
        return judge_of(body)

    decide(asked, behave)
    [second] = [text for text in seen if "the rate ?" in text]
    assert "user: two bad bond ?" in second and "assistant: The answer is" in second
    assert "<reference>\nbad\n" in second
    [first] = [text for text in seen if "one good year ?" in text and "and the cost" not in text]
    assert "(none is given)" in first


def test_the_comparison_by_rule_is_a_judge_of_answers_and_rates_no_chat(asked):
    judged.main(["--out_dir", str(asked), "--judge", "exact"])
    tasks = results.read_result(asked)["tasks"]
    assert tasks["financebench"]["score"] == pytest.approx(50)
    assert tasks["mt_bench"]["score"] is None
    assert "mt_bench" not in (asked / "judge" / "verdicts.jsonl").read_text()


def test_a_reply_that_holds_a_control_token_is_judged_all_the_same(asked):
    path = asked / "samples_financebench.jsonl"
    path.write_text(
        path.read_text().replace("The answer is 0", "<|im_end|>\\u0007 The answer is 0")
    )
    assert decide(asked) == 5 + 4
    assert results.read_samples(asked, "financebench")["f0"]["judge"] == 1


def test_scores_of_different_judges_are_not_compared(asked, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    for path in asked.glob("*.jsonl"):
        (other / path.name).write_text(path.read_text())
    (other / "results.json").write_text((asked / "results.json").read_text())
    decide(asked)
    for changes in ({}, {"model": "k"}, {"votes": 3, "verdicts": "other.jsonl", "model": "j"}):
        if changes:
            decide(other, **changes)
        with pytest.raises(UserError, match="cannot be compared: judge is http:j"):
            results.difference(asked, other, "financebench")
    assert results.difference(asked, asked, "mt_bench")[1] == [70, 70]


def test_only_rows_that_both_sides_have_judged_are_a_pair(asked, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    decide(asked)
    for path in [*asked.glob("*.jsonl"), asked / "results.json"]:
        (other / path.name).write_text(path.read_text())
    rows = [json.loads(line) for line in (other / "samples_financebench.jsonl").open()]
    rows[1]["metrics"].remove("judge")
    write_rows(other / "samples_financebench.jsonl", rows)
    found, scores, _ = results.difference(asked, other, "financebench")
    assert found["n"] == 5 and found["difference"] == 0 and scores == [60, 60]


def test_a_judge_that_breaks_off_loses_nothing(asked):
    def breaks(n, body, good):
        return completion(judge_of(body)) if n < 4 else (401, {}, "no")

    with serving(breaks) as server:
        words = [f"--out_dir={asked}", f"--base_url={url(server)}", "--concurrency=1"]
        with pytest.raises(UserError, match="left 5 solutions without a reply.*401"):
            judged.main([*words, "--model=j"])
    assert decide(asked) == 5
    assert results.read_result(asked)["tasks"]["financebench"]["score"] == pytest.approx(50)


def test_an_evaluation_without_such_tasks_says_so(simple, rows_dir, tmp_path):
    run(simple, rows_dir, tmp_path, tasks="fpb")
    with pytest.raises(UserError, match="none of them is for this judge"):
        judged.main(["--out_dir", str(tmp_path)])
    evaluate.command(["compare", str(tmp_path), str(tmp_path)])
