import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from judging import asked, completion, numbers, rows_of, run_judge, serving, url, write_solutions
from tiny import sentences, write_checkpoint, write_rows

import logs
import reward
from checkpoint import sha_of_weights
from config import UserError
from jsonl import sha
from tokenizer import Tokenizer


@pytest.fixture
def out(tmp_path):
    return write_solutions(tmp_path)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("policy"))


@pytest.fixture
def sampling(tmp_path, policy):
    """Config with six prompts, three samples each."""
    rows = [
        {"id": f"p{i}", "source": "s", "prompt": text, "answer": "4", "solution": "way"}
        for i, text in enumerate(sentences(6))
    ]
    prompts = write_rows(tmp_path / "prompts.jsonl", rows)
    return reward.Sample(
        init_from=str(policy), prompts=prompts, out_dir=str(tmp_path), samples=3, max_new_tokens=20,
        device="cpu",
    )  # fmt: skip


def solutions(cfg):
    return {row["id"]: row for row in rows_of(Path(cfg.out_dir) / "trajectories.jsonl")}


def same_solutions(found, wanted):
    """Equal but for the log-probs, which a batch of another size rounds elsewhere."""
    found, wanted = ({name: dict(row) for name, row in rows.items()} for rows in (found, wanted))
    for name in wanted:
        a, b = (np.array(rows[name].pop("logprobs")) for rows in (found, wanted))
        assert len(a) == len(b) and np.abs(a - b).max() < 1e-3
    return found == wanted


def test_every_solution_gets_its_verdicts_and_equal_ones_are_asked_once(out, capsys):
    with serving() as server:
        run_judge(out, server)
    verdicts = {v["id"]: v for v in rows_of(out / "verdicts.jsonl")}
    assert len(verdicts) == 5 * (4 + 3)
    # of four solutions one is a repetition: three outcomes and two wrong steps are asked
    assert len(server.seen) == len(set(asked(server))) == 5 * (3 + 2)
    assert verdicts["q0/0/outcome/1"]["parsed"]["Correctness"] == "correct"
    assert verdicts["q0/1/outcome/1"]["parsed"]["Correctness"] == "wrong"
    assert [verdicts[f"q0/{k}/stepwise/1"]["first_error"] for k in (1, 2, 3)] == [1, 0, 1]
    assert verdicts["q0/1/stepwise/1"]["correction"] == "Step 2: mended."
    for verdict in verdicts.values():
        assert verdict["judge"] == "http:world" and verdict["attempts"] == 1
        assert json.loads(verdict["raw"]) == verdict["parsed"]
    shared = [verdicts[f"q0/{k}/outcome/1"] for k in (1, 3)]
    assert shared[0]["request_sha"] == shared[1]["request_sha"] and shared[1]["tries"] == 0
    text = capsys.readouterr().out
    assert numbers(text) == {"solutions": (20, 20, 0), "wrong solutions": (15, 15, 0)}
    assert "agree on 20 of 20" in text and "250 tokens read, 75 written" in text


def test_another_judge_needs_another_log(out):
    run_judge(out, judge="exact")
    with serving() as server:
        with pytest.raises(UserError, match="take another --verdicts"):
            run_judge(out, server)
        assert not server.seen
        run_judge(out, server, verdicts="by_world.jsonl")
    assert len(rows_of(out / "by_world.jsonl")) == 35


def test_a_killed_judge_run_goes_on_where_it_was(out):
    """kill -9 in the middle: no verdict is lost, no request that was logged is asked again."""
    code = (
        "import sys, reward\n"
        "reward.judge(reward.Judge(out_dir=sys.argv[1], base_url=sys.argv[2], concurrency=2,"
        " stepwise='wrong'))"
    )
    root = Path(reward.__file__).parent
    log, logged = out / "verdicts.jsonl", []

    def slow(number, body, good):
        time.sleep(0.03)
        return completion(good)

    with serving(slow) as server:
        for kill_at in (4, 12):
            command = [sys.executable, "-c", code, str(out), url(server)]
            process = subprocess.Popen(command, cwd=root, stderr=subprocess.DEVNULL)
            while process.poll() is None:
                if log.exists() and log.read_bytes().count(b"\n") >= kill_at:
                    process.kill()
                    break
                time.sleep(0.01)
            process.wait()
            with open(log, "ab") as file:  # as if it had been killed while writing
                file.write(b'{"id": "half a li')
            whole = log.read_bytes().rpartition(b"\n")[0].splitlines()
            assert whole[: len(logged)] == logged and len(whole) >= kill_at
            logged, before = whole, len(server.seen)
        run_judge(out, server)
        known = {json.loads(line)["request_sha"] for line in logged}
        later = {sha(body) for _, _, body in server.seen[before:]}
    assert later and not known & later
    rows = rows_of(log)
    assert len(rows) == len({row["id"] for row in rows}) == 35


def test_the_reply_on_an_equal_solution_is_not_asked_for_again(out):
    with serving() as server:
        run_judge(out, server)
    rows = rows_of(out / "verdicts.jsonl")
    left = [row for row in rows if not row["trajectory"].endswith("/3")]  # killed before these
    write_rows(out / "verdicts.jsonl", left)
    with serving() as server:
        run_judge(out, server)
    assert not server.seen
    again = {row["id"]: row["parsed"] for row in rows_of(out / "verdicts.jsonl")}
    assert again == {row["id"]: row["parsed"] for row in rows}


def test_two_runs_cannot_write_the_same_log(out):
    with logs.append_to(out / "verdicts.jsonl", logs.VERDICT):
        with pytest.raises(UserError, match="another run"):
            run_judge(out, judge="exact")


def test_samples_carry_all_that_later_stages_need(sampling, policy, capsys):
    reward.sample(sampling)
    found = solutions(sampling)
    assert len(found) == 18
    row = found["p2/1"]
    want = "id source prompt answer sample text final correct finish logprobs seed temperature"
    assert {*want.split(), "policy_sha", "template_sha", "sampler"} <= set(row)
    assert row["policy_sha"] == sha_of_weights(policy) and row["sample"] == 1
    assert row["template_sha"] == Tokenizer(policy).template_sha and row["solution"] == "way"
    assert row["prompt"] == [{"role": "user", "content": sentences(6)[2]}]
    assert numbers(capsys.readouterr().out)["prompts"] == (6, 6, 0)
    assert len({row["text"] for row in found.values()}) == 18


def test_stopped_sampling_goes_on_and_ends_with_the_same_solutions(sampling):
    reward.sample(sampling)
    path, reference = Path(sampling.out_dir) / "trajectories.jsonl", solutions(sampling)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:7]) + lines[7][:20])  # killed while writing the eighth
    sampling.slots = 2
    reward.sample(sampling)
    assert path.read_bytes().startswith(b"".join(lines[:7]))
    assert same_solutions(solutions(sampling), reference)
    before = path.read_bytes()
    reward.sample(sampling)
    assert path.read_bytes() == before


def test_more_samples_can_be_added_later(sampling):
    reward.sample(sampling)
    reference = solutions(sampling)
    sampling.samples = 5
    reward.sample(sampling)
    assert len(solutions(sampling)) == 30 and reference.items() <= solutions(sampling).items()


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"temperature": 0.5}, {"max_new_tokens": 9}, {"dtype": "bfloat16"}]
)
def test_other_settings_need_another_folder(sampling, change):
    reward.sample(sampling)
    for name, value in change.items():
        setattr(sampling, name, value)
    with pytest.raises(UserError, match=f"{next(iter(change))}.*another --out_dir"):
        reward.sample(sampling)


def test_another_policy_or_another_prompt_needs_another_folder(sampling, tmp_path):
    reward.sample(sampling)
    same_prompts, sampling.prompts = sampling.prompts, str(tmp_path / "others.jsonl")
    write_rows(sampling.prompts, [{"id": "p0", "prompt": "another", "answer": "4"}])
    with pytest.raises(UserError, match="another prompt"):
        reward.sample(sampling)
    sampling.prompts = same_prompts
    sampling.init_from = str(write_checkpoint(tmp_path / "policy2", seed=9))
    with pytest.raises(UserError, match="policy_sha"):
        reward.sample(sampling)


def test_an_empty_solution_is_none_and_the_same_command_goes_on(sampling):
    rows = [row | {"solution": ""} for row in rows_of(sampling.prompts)]
    write_rows(sampling.prompts, rows)
    for _ in range(2):
        reward.sample(sampling)
    assert len(solutions(sampling)) == 18


def test_no_prompt_to_sample_is_an_error(sampling, capsys):
    for rows in ([], [{"id": "p", "prompt": "x", "answer": ""}]):
        write_rows(sampling.prompts, rows)
        with pytest.raises(UserError, match="prompts.jsonl: holds no prompt that can be sampled"):
            reward.sample(sampling)
    assert "1 without reference answer" in capsys.readouterr().out


def test_prompts_without_reference_or_too_long_are_counted(sampling, capsys):
    rows = rows_of(sampling.prompts)
    rows[1]["answer"], rows[2]["prompt"] = "", "cost " * 400
    del rows[3]["answer"]
    write_rows(sampling.prompts, rows)
    reward.sample(sampling)
    text = capsys.readouterr().out
    assert numbers(text)["prompts"] == (6, 3, 3)
    assert "2 without reference answer" in text and "1 longer than the context" in text


@pytest.mark.parametrize(
    "row, message",
    [
        ({"id": "a", "answer": "4"}, "prompts.jsonl:2: prompt: missing"),
        ({"id": "p0", "prompt": "x", "answer": "4"}, "prompts.jsonl:2: id: 'p0' is there twice"),
        ({"id": "a", "prompt": "x", "answer": 4}, "prompts.jsonl:2: answer: must be a string"),
        ({"id": "a", "prompt": [{"role": "assistant", "content": "x"}], "answer": "4"},
         "prompts.jsonl:2: prompt"),
    ],
)  # fmt: skip
def test_a_bad_prompt_row_is_named(sampling, row, message):
    write_rows(sampling.prompts, [rows_of(sampling.prompts)[0], row])
    with pytest.raises(UserError, match=re.escape(message)):
        reward.sample(sampling)


def test_the_command_line_names_what_it_does_not_know(tmp_path):
    for words, message in [
        ([], "usage"),
        (["smaple"], "usage"),
        (["judge", "--judge", "oracle"], "trajectories.jsonl: no such file"),
        (["pairs", "--layot", "paper"], "layout"),
        (["pairs", "--layout", "x"], "--layout must be one of paper, continuation, not 'x'"),
        (["pairs", "--scp_per_prompt", "-1"], "--scp_per_prompt must be 0 or more, not -1"),
        (["sample", "--samples", "0"], "--samples must be above 0"),
        (["sample", "--slots", "-2"], "--slots must be above 0"),
        (["sample", "--temperature", "-1"], "--temperature must be 0 or more"),
        (["judge", "--concurrency", "0"], "--concurrency must be above 0"),
        (["judge", "--asks", "0"], "--asks must be above 0"),
        (["judge", "--retries", "-1"], "--retries must be 0 or more"),
        (["judge", "--backoff_s", "-1"], "--backoff_s must be 0 or more"),
    ]:
        place = ["--out_dir", str(tmp_path)] if words[1:] else []
        with pytest.raises(UserError, match=message):
            reward.main([*words, *place])


def test_an_unknown_judge_is_an_error(out):
    for changes in ({"judge": "oracle"}, {"judge": "local"}):
        with pytest.raises(UserError, match="must be http, exact, or local with --judge_from"):
            run_judge(out, **changes)


def test_the_script_exits_with_one_line(tmp_path):
    command = [sys.executable, "reward.py", "judge", "--out_dir", str(tmp_path)]
    done = subprocess.run(
        command, cwd=Path(reward.__file__).parent, capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ") and "no such file" in done.stderr
