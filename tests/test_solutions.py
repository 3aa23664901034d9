import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import judging
import numpy as np
import pytest
import torch
from judging import completion, rows_of, serving, trajectory, url
from tiny import sentences, write_checkpoint, write_rows

import checkpoint
import reward
import solutions
from config import UserError
from extract import final_answer
from generate import generate
from jsonl import notice
from judge import unusable
from model import Llama
from pairs import prefix_id
from tokenizer import Beginning, Tokenizer

ROOT = Path(reward.__file__).parent


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("policy"))


def prompt_rows(count=7):
    texts = enumerate(sentences(count))
    return [{"id": f"p{i}", "source": "s", "prompt": text, "answer": "4"} for i, text in texts]


@pytest.fixture
def sampling(tmp_path, policy):
    prompts = write_rows(tmp_path / "prompts.jsonl", prompt_rows())
    return reward.Sample(
        init_from=str(policy), prompts=prompts, out_dir=str(tmp_path / "out"), samples=3,
        max_new_tokens=12, device="cpu",
    )  # fmt: skip


def log_of(cfg, name="trajectories.jsonl"):
    rows = rows_of(Path(cfg.out_dir) / name)
    assert len(rows) == len({row["id"] for row in rows})
    return {row["id"]: row for row in rows}


def texts(cfg, name="trajectories.jsonl"):
    return {key: (row["text"], row["finish"]) for key, row in log_of(cfg, name).items()}


def on_ranks(world, stage, cfg):
    flags = [f"--{name}={value}" for name, value in vars(cfg).items() if value != ""]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={world}", "reward.py", stage, *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


# ---- sample --------------------------------------------------------------------------------------


def test_three_ranks_write_what_one_writes_and_each_its_share(sampling, tmp_path):
    reward.sample(sampling)
    alone = texts(sampling)
    sampling.out_dir = str(tmp_path / "ranks")
    out = on_ranks(3, "sample", sampling)
    assert texts(sampling) == alone and len(alone) == 21
    assert "7 prompts = 7 to sample + 0 skipped" in out and out.count("solutions,") == 1
    assert [path.name for path in Path(sampling.out_dir).iterdir()] == ["trajectories.jsonl"]


def test_what_a_stopped_run_of_several_ranks_left_is_taken_over(sampling, tmp_path):
    reward.sample(sampling)
    path, whole = Path(sampling.out_dir) / "trajectories.jsonl", texts(sampling)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:4]))
    part = Path(sampling.out_dir) / "trajectories.rank5.jsonl"
    part.write_text("".join(lines[3:9]) + lines[9][:30])  # one is in both, one is cut
    seen = []
    real = solutions.write_here

    def counting(*args):
        for event in real(*args):
            seen.append(event)
            yield event

    solutions.write_here = counting
    try:
        reward.sample(sampling)
    finally:
        solutions.write_here = real
    assert texts(sampling) == whole and len(seen) == 21 - 9 and not part.exists()


@pytest.mark.parametrize("template", ["llama3", "chatml"])
def test_a_stored_log_prob_is_the_models_own(sampling, tmp_path, template):
    """Every sample's tokens scored again in one packed row, at temperature 1."""
    sampling.init_from = str(write_checkpoint(tmp_path / template, template))
    sampling.temperature = 0.7
    reward.sample(sampling)
    model, tokenizer = Llama.from_pretrained(sampling.init_from), Tokenizer(sampling.init_from)
    rows = prompt_rows()
    prompts = [tokenizer.prompt(row["prompt"]) for row in rows]
    jobs = [solutions.Job(row["id"], []) for row in rows]
    drawn = generate(
        model, prompts, tokenizer.stop_ids, 12, 0.7, n=3, seeds=[job.seed(0) for job in jobs]
    )
    found, stops = log_of(sampling), Counter()
    for row, prompt, samples in zip(rows, prompts, drawn, strict=True):
        for k, out in enumerate(samples):
            ids = torch.tensor(prompt + out.ids)
            with torch.no_grad():
                logits = model(ids, torch.arange(len(ids)), torch.tensor([0, len(ids)]))
            scored = logits.log_softmax(-1)[len(prompt) - 1 : -1]
            scored = scored.gather(1, torch.tensor(out.ids)[:, None])[:, 0]
            stored = found[f"{row['id']}/{k}"]["logprobs"]
            assert np.abs(np.array(stored[: len(out.ids)]) - scored.numpy()).max() < 1e-3
            stops[len(stored) - len(out.ids)] += 1  # the stop token's is there, too
    assert set(stops) <= {0, 1}


def test_a_control_token_in_a_solution_is_shown_and_keeps_it_out(sampling, policy, monkeypatch):
    tokenizer = Tokenizer(policy)
    header = tokenizer.ids["<|start_header_id|>"]

    class Out:
        ids, logprobs, finish = [*tokenizer.encode("good"), header], [-1.0, -1.0], "stop"

    monkeypatch.setattr(solutions, "stream", lambda *args, **_: [(0, 0, Out)])
    job = solutions.Job("p", [{"role": "user", "content": "x"}], missing=(0,))
    ((_, _, written),) = solutions.write_here(None, tokenizer, sampling, [job])
    assert written["text"].endswith("<|start_header_id|>")
    record = trajectory("q", 0, written["text"], finish=written["finish"])
    assert unusable(record) == "ended by control token"


# ---- a server that holds the checkpoint ----------------------------------------------------------


def serve_policy(number, body, good):
    """Answers by the seed, as a server would that samples."""
    tokens = [{"token": "x", "logprob": -0.5}, {"token": "y", "logprob": -0.25}]
    reply = completion(f"Step 1: drawn {body['seed']}. Answer: {body['seed'] % 2 + 3}")
    reply["choices"][0]["logprobs"] = {"content": tokens}
    return reply


@pytest.fixture
def sampler(monkeypatch):
    """The judge's test server, told to answer like a policy."""
    monkeypatch.setattr(judging, "answer_of", lambda prompt: {})

    def answer(number, body, good):
        return answer.behave(number, body, good)

    answer.behave = serve_policy
    with serving(answer) as server:
        server.answer = answer
        yield server


def at(server, cfg):
    cfg.base_url, cfg.model, cfg.backoff_s, cfg.timeout_s = url(server), "policy", 0.001, 5.0
    return cfg


def test_a_server_can_sample_instead(sampling, sampler, policy):
    reward.sample(at(sampler, sampling))
    found = log_of(sampling)
    assert len(found) == len(sampler.seen) == 21
    row = found["p3/2"]
    assert row["logprobs"] == [-0.5, -0.25] and row["sampler"] == "http:policy"
    assert row["policy_sha"] == checkpoint.sha_of_weights(policy)
    assert row["correct"] == (final_answer(row["text"]) == "4")
    bodies = [body for _, _, body in sampler.seen]
    assert len({body["seed"] for body in bodies}) == 21
    assert all(0 <= body["seed"] < 2**31 for body in bodies)
    asked = Counter(body["messages"][0]["content"] for body in bodies)  # they come in any order
    assert asked == dict.fromkeys(sentences(7), 3)
    body = bodies[0]
    assert [message["role"] for message in body["messages"]] == ["user"]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("policy", 1.0, 12)
    reward.sample(sampling)
    assert len(sampler.seen) == 21  # nothing is asked again


def failing(status):
    def behave(number, body, good):
        if body["messages"][-1]["content"] == sentences(7)[2]:
            return status, {}, {"error": {"message": "no"}}
        return serve_policy(number, body, good)

    return behave


def test_what_a_server_refuses_is_kept_as_such_and_not_asked_again(sampling, sampler):
    sampler.answer.behave = failing(400)
    reward.sample(at(sampler, sampling))
    found = log_of(sampling)
    assert {row["id"] for row in found.values() if row["finish"] == "refusal"} == {
        "p2/0", "p2/1", "p2/2"
    }  # fmt: skip
    assert unusable(found["p2/1"]) == "ended by refusal" and len(found) == 21
    reward.sample(sampling)
    assert len(sampler.seen) == 21
    rows = [row for row in found.values() if row["finish"] != "refusal"]  # killed before these
    write_rows(f"{sampling.out_dir}/trajectories.jsonl", rows)
    reward.sample(sampling)
    assert log_of(sampling) == found


def test_a_server_that_refuses_everything_is_an_error(sampling, sampler):
    sampler.answer.behave = lambda *_: (400, {}, {"error": {"message": "no such model"}})
    with pytest.raises(UserError, match="left 21 of 21.*no such model"):
        reward.sample(at(sampler, sampling))
    assert log_of(sampling) == {}


def test_a_failing_server_costs_nothing_that_came(sampling, sampler):
    sampler.answer.behave = failing(503)
    at(sampler, sampling).retries = 0
    with pytest.raises(UserError, match="left 3 of 21 requests without a reply.*503.*no"):
        reward.sample(at(sampler, sampling))
    assert len(log_of(sampling)) == 18
    sampler.answer.behave = serve_policy
    before = len(sampler.seen)
    reward.sample(sampling)
    assert len(log_of(sampling)) == 21 and len(sampler.seen) == before + 3


@pytest.mark.parametrize("logprobs", [float("-inf"), "x", None])
def test_log_probs_that_are_no_numbers_are_no_reply(sampling, sampler, logprobs):
    def odd(number, body, good):
        reply = serve_policy(number, body, good)
        reply["choices"][0]["logprobs"]["content"][0]["logprob"] = logprobs
        return json.dumps(reply).encode()

    sampler.answer.behave = odd
    at(sampler, sampling).retries = 0
    with pytest.raises(UserError, match="not a chat completion"):
        reward.sample(sampling)
    assert log_of(sampling) == {}


def test_a_server_is_asked_by_its_name_and_without_torchrun(sampling, sampler):
    sampling.base_url = url(sampler)
    with pytest.raises(UserError, match="--base_url needs --model"):
        reward.sample(sampling)


def test_samples_of_a_server_and_of_the_checkpoint_do_not_mix(sampling, sampler):
    reward.sample(sampling)
    with pytest.raises(UserError, match="sampler is 'generate.py'.*another --out_dir"):
        reward.sample(at(sampler, sampling))


# ---- correct -------------------------------------------------------------------------------------


def good_judge(body, answer_of=judging.answer_of):
    return answer_of(body["messages"][-1]["content"])


SOLUTIONS = [
    "Step 1: fine. Step 2: fine too. Answer: 40",
    "Step 1: fine. Step 2: BAD . Answer: 41",
    "Step 1: BAD really. Step 2: so so. Answer: 42",
    "Step 1: fine. Step 2: BAD anew. Answer: 43",  # the beginning of the second one
]


@pytest.fixture
def judged(tmp_path, policy):
    """Four solutions of each of two prompts, with their verdicts."""
    rows = [trajectory(f"q{i}", k, text) for i in range(2) for k, text in enumerate(SOLUTIONS)]
    out = tmp_path / "out"
    out.mkdir()
    write_rows(out / "trajectories.jsonl", rows)
    with serving() as server:
        reward.judge(reward.Judge(out_dir=str(out), base_url=url(server), backoff_s=0.001))
    return reward.Correct(init_from=str(policy), out_dir=str(out), samples=3, max_new_tokens=8,
                          device="cpu")  # fmt: skip


def test_equal_beginnings_of_wrong_solutions_are_continued_once(judged, capsys):
    capsys.readouterr()
    reward.correct(judged)
    found = log_of(judged, "continuations.jsonl")
    names = {prefix_id(f"q{i}", prefix) for i in range(2) for prefix in ("Step 1: fine.", "")}
    assert set(found) == {f"{name}/{k}" for name in names for k in range(3)}
    row = found[prefix_id("q1", "Step 1: fine.") + "/2"]
    assert row["prefix"] == "Step 1: fine." and row["prompt_id"] == "q1" and row["sample"] == 2
    text = capsys.readouterr().out
    assert "8 solutions = 4 to continue + 4 skipped" in text
    assert "2 not judged wrong" in text and "2 with a beginning that another has" in text


def test_a_beginning_is_cut_on_ids_not_in_the_text(judged, policy, monkeypatch):
    """Header, then the ids of the prefix: never those of prompt and prefix in one text."""
    seen, prefixes, join = [], [], Tokenizer.join

    def recording(self, rows):
        prefixes.extend(row[-1][0] for row in rows)
        return join(self, rows)

    monkeypatch.setattr(Tokenizer, "join", recording)
    monkeypatch.setattr(solutions, "stream", lambda model, ids, *_, **__: seen.extend(ids) or [])
    with pytest.raises(KeyError):  # nothing was written
        reward.correct(judged)
    monkeypatch.undo()
    tokenizer = Tokenizer(policy)
    assert all(type(piece) is Beginning for piece in prefixes) and len(prefixes) >= 4
    asked = tokenizer.prompt("Question q0?")
    assert asked + tokenizer.encode("Step 1: fine.") in seen and asked in seen


def test_stopped_corrections_go_on_and_several_ranks_write_the_same(judged):
    reward.correct(judged)
    path = Path(judged.out_dir) / "continuations.jsonl"
    whole, lines = texts(judged, path.name), path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:5]))
    on_ranks(2, "correct", judged)
    assert texts(judged, path.name) == whole


def test_a_server_is_asked_to_continue_the_assistants_turn(judged, sampler):
    sampler.answer.behave = lambda number, body, good: completion(" Step 2: mine. Answer: 40")
    reward.correct(at(sampler, judged))
    bodies = [body for _, _, body in sampler.seen]
    mid = [body for body in bodies if body["messages"][-1]["role"] == "assistant"]
    assert len(mid) == 6 and len(bodies) == 12
    assert all(body["messages"][-1]["content"] == "Step 1: fine." for body in mid)
    assert all(body["continue_final_message"] and not body["add_generation_prompt"] for body in mid)
    assert all("continue_final_message" not in body for body in bodies if body not in mid)
    found = log_of(judged, "continuations.jsonl")
    assert all(row["correct"] and row["final"] == "40" for row in found.values())
    assert found[prefix_id("q0", "") + "/0"]["logprobs"] is None


def test_the_answer_is_read_from_beginning_and_continuation_together(judged, sampler):
    """One that has committed itself to 41 before cannot get it right with 40 any more."""
    text = "Step 1: the answer is 41. Step 2: BAD . Answer: 41"
    path = Path(judged.out_dir) / "trajectories.jsonl"
    rows = [row | ({"text": text} if row["text"] == SOLUTIONS[1] else {}) for row in rows_of(path)]
    write_rows(path, rows)
    (path.parent / "verdicts.jsonl").unlink()
    sampler.answer.behave = lambda number, body, good: completion(json.dumps(good_judge(body)))
    reward.judge(reward.Judge(out_dir=judged.out_dir, base_url=url(sampler), backoff_s=0.001))
    sampler.answer.behave = lambda number, body, good: completion("Step 2: so. Answer: 40")
    reward.correct(at(sampler, judged))
    found = log_of(judged, "continuations.jsonl").values()
    assert {(row["prefix"], row["correct"]) for row in found} == {
        ("Step 1: the answer is 41.", False), ("Step 1: fine.", True), ("", True)
    }  # fmt: skip


def test_continuations_of_another_answer_or_prompt_are_not_taken_over(judged):
    reward.correct(judged)
    path = Path(judged.out_dir) / "trajectories.jsonl"
    rows = rows_of(path)
    write_rows(path, [row | {"answer": "41"} for row in rows])
    with pytest.raises(UserError, match="another prompt or answer than trajectories.jsonl"):
        reward.correct(judged)
    write_rows(path, [row | {"answer": ""} for row in rows])
    with pytest.raises(UserError, match="locates no wrong step"):
        reward.correct(judged)


def test_corrections_by_another_policy_are_announced(judged, capsys):
    notice.cache_clear()
    reward.correct(judged)  # the solutions were written by hand: policy_sha "p"
    assert "is not the policy that wrote the solutions" in capsys.readouterr().err


def test_nothing_to_correct_is_an_error(judged):
    rows = rows_of(Path(judged.out_dir) / "verdicts.jsonl")
    write_rows(f"{judged.out_dir}/verdicts.jsonl", [r for r in rows if r["kind"] == "outcome"])
    with pytest.raises(UserError, match="verdicts.jsonl: locates no wrong step"):
        reward.correct(judged)


@pytest.mark.parametrize(
    "prefix, text, want",
    [("a.", "b", "a. b"), ("a.", " b", "a. b"), ("a.\n", "b", "a.\nb"), ("", "b", "b"),
     ("a.", "", "a.")],
)  # fmt: skip
def test_a_dropped_blank_is_put_back(prefix, text, want):
    assert solutions.whole_text(prefix, text) == want


def test_the_seed_belongs_to_prompt_and_sample():
    job, other = solutions.Job("a", []), solutions.Job("b", [])
    numbers = [job.seed(0), job.seed(1), other.seed(0), job.seed(0, 0), job.seed(0, 1)]
    assert len(set(numbers)) == 5 and all(0 <= number < 2**63 for number in numbers)
    assert job.seed(0) == solutions.Job("a", [], "prefix").seed(0)
    assert re.fullmatch(r"q/[0-9a-f]{12}", prefix_id("q", "x"))
