"""evaluate.py and results.py on tiny random checkpoints."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import WORDS, sentences, write_checkpoint, write_rows

import ask
import evaluate
import results
from config import UserError
from evaluate import Config
from model import Llama
from tasks import TASKS
from tokenizer import Tokenizer

ROOT = Path(evaluate.__file__).parent
CHOICES = [["good", "bad"], ["one", "two", "one two of the year"], ["profit", "cost of the bond"]]


def arc_rows(count):
    rows = []
    for i, text in enumerate(sentences(count, seed=1)):
        choices = CHOICES[i % 3]
        gold = i % len(choices)
        rows.append({"id": f"r{i}", "query": f"Question: {text}\nAnswer:", "text": text,
                     "answer": choices[gold], "choices": choices, "gold": gold})  # fmt: skip
    return rows


def label_rows(count):
    labels = ["good", "bad", "two"]
    return [{"id": f"l{i}", "query": f"{text} ?\nAnswer:", "text": text, "answer": labels[i % 3],
             "choices": labels, "gold": i % 3}
            for i, text in enumerate(sentences(count, seed=2))]  # fmt: skip


def exam_rows(count):
    return [{"id": f"e{i}", "query": text, "answer": str(i), "choices": [], "gold": -1,
             "solution": f"Step 1: a = {i}. Answer: {i}"}
            for i, text in enumerate(sentences(count, seed=3))]  # fmt: skip


@pytest.fixture(scope="module", params=["llama3", "chatml"])
def folder(request, tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp(request.param) / "ck", request.param)


@pytest.fixture(scope="module")
def simple(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("plain") / "ck")


@pytest.fixture(scope="module")
def rows_dir(tmp_path_factory):
    out = tmp_path_factory.mktemp("rows")
    write_rows(out / "arc.jsonl", arc_rows(30))
    write_rows(out / "fpb.jsonl", label_rows(24))
    write_rows(out / "reasoning.jsonl", exam_rows(8))
    return out


def config(folder, rows_dir, out, **changes):
    settings = {"tasks": "arc,fpb,reasoning", "max_new_tokens": 8, "device": "cpu"} | changes
    return Config(init_from=str(folder), data=str(rows_dir), out_dir=str(out), **settings)


def run(*args, **changes):
    cfg = config(*args, **changes)
    evaluate.main(cfg)
    return results.read_result(cfg.out_dir)["tasks"]


def loglikelihood(model, ids, n):
    """Log-prob of the last n of ids, one plain forward over all of them."""
    ids = torch.tensor(ids)
    cu_seqlens = torch.tensor([0, len(ids) - 1], dtype=torch.int32)
    logits = model(ids[:-1], torch.arange(len(ids) - 1), cu_seqlens)
    logprobs = logits.double().log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    return logprobs[-n:].sum().item()


# Log-likelihoods


@torch.no_grad()
@pytest.mark.parametrize("chat", [True, False])
def test_log_likelihoods_equal_scoring_each_choice_alone(folder, rows_dir, tmp_path, chat):
    run(folder, rows_dir, tmp_path, tasks="arc", chat_template=chat, batch_tokens=300)
    tokenizer, model = Tokenizer(folder), Llama.from_pretrained(folder).eval()
    head = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    for sample in results.read_samples(tmp_path, "arc").values():
        row = sample["doc"]
        for choice, [[got, _]] in zip(row["choices"], sample["resps"], strict=True):
            if chat:
                context = tokenizer.prompt(row["query"])
                ids = context + tokenizer.encode(choice)
                # the white space that ends the header is scored with the choice
                space = "\n\n" if tokenizer.template == "llama3" else "\n"
                n = len(ids) - len(context) + len(tokenizer.encode(space))
            else:
                ids = head + tokenizer.encode(f"{row['query']} {choice}")
                n = len(ids) - len(head + tokenizer.encode(row["query"]))
            assert got == pytest.approx(loglikelihood(model, ids, n), abs=1e-4)


def test_trailing_spaces_of_the_context_move_to_the_choice(folder):
    tokenizer, task = Tokenizer(folder), TASKS["arc"]
    row = {"id": "0", "query": "the cost  \n", "choices": ["good", "bad"]}
    cfg = Config(chat_template=False)
    context, choices = ask.encode_choices(tokenizer, cfg, task, row)
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    assert context == bos + tokenizer.encode("the cost")
    assert tokenizer.decode(choices[0]) == "  \n good"
    joint = tokenizer.encode("the cost  \n good")
    assert choices[0] == joint[len(tokenizer.encode("the cost")) :]


def test_one_bos_or_none(folder):
    tokenizer, row = Tokenizer(folder), {"id": "0", "query": "the cost", "choices": ["a", "b"]}
    for chat in (True, False):
        cfg = Config(chat_template=chat, system="be good")
        for ids in (ask.encode_prompt(tokenizer, cfg, TASKS["arc"], row),
                    ask.encode_choices(tokenizer, cfg, TASKS["arc"], row)[0]):  # fmt: skip
            assert "be good" in tokenizer.decode(ids)
            if tokenizer.bos_id is not None:
                assert ids[0] == tokenizer.bos_id and ids.count(tokenizer.bos_id) == 1


def test_a_long_context_is_cut_from_the_left_per_choice():
    context, choices = list(range(100, 120)), [[1, 2], [3, 4, 5]]
    whole = ask.choice_families(context, choices, 64)
    assert len(whole) == 1 and len(whole[0]) == 3  # a parent and two children
    cut = ask.choice_families(context, choices, 10)
    assert len(cut) == 2
    for family, choice in zip(cut, choices, strict=True):
        assert family[0].input_ids.tolist() == (context + choice)[-11:-1]
        assert family[0].labels[-len(choice) :].tolist() == choice
        assert (family[0].labels[: -len(choice)] == -100).all()
    with pytest.raises(UserError, match="exceeds the model's context of 2"):
        ask.choice_families(context, choices, 2)


def test_a_context_of_one_token_is_scored_too():
    families = ask.choice_families([7], [[1, 2], [3]], 64)
    assert [family[0].input_ids.tolist() for family in families] == [[7, 1], [7]]


# Runs


def test_scores_do_not_depend_on_batch_size_or_task_order(folder, rows_dir, tmp_path):
    one = run(folder, rows_dir, tmp_path / "a", tasks="arc,fpb,reasoning")
    two = run(folder, rows_dir, tmp_path / "b", tasks="reasoning,fpb,arc", batch_tokens=64, slots=2)
    assert one == two
    for name in one:
        a, b = (results.read_samples(tmp_path / d, name) for d in "ab")
        assert [s["prediction"] for s in a.values()] == [s["prediction"] for s in b.values()]


def test_a_result_names_everything_that_was_asked(folder, rows_dir, tmp_path):
    found = run(folder, rows_dir, tmp_path)
    for name, entry in found.items():
        assert entry["low"] <= entry["score"] <= entry["high"]
        assert entry["n"] == len(results.read_samples(tmp_path, name))
        assert set(entry["asked"]) >= {"mode", "chat_template_sha", "system_instruction_sha", "bos"}
        assert entry["metric"] in entry["metrics"] and 0 <= entry["missing"] <= 100
    assert set(found["fpb"]["metrics"]) >= {"acc", "weighted_f1", "macro_f1", "mcc", "balanced_acc"}
    assert found["fpb"]["baseline"]["acc"] == pytest.approx(100 / 3, abs=1e-3)
    sample = json.loads((tmp_path / "samples_fpb.jsonl").read_text().splitlines()[0])
    names = "doc_id doc target arguments resps filtered_resps filter metrics doc_hash prompt_hash"
    assert set(sample) >= {*names.split(), "target_hash", "acc"}
    assert sample["doc_id"] == 0 and sample["doc"]["id"] == "l0"


def test_replies_are_the_greedy_ones(folder, rows_dir, tmp_path):
    run(folder, rows_dir, tmp_path, tasks="fpb", slots=5)
    tokenizer, model = Tokenizer(folder), Llama.from_pretrained(folder).eval()
    for sample in list(results.read_samples(tmp_path, "fpb").values())[:5]:
        ids, reply = tokenizer.prompt(sample["doc"]["query"]), []
        for _ in range(8):
            row = torch.tensor(ids + reply)
            cu_seqlens = torch.tensor([0, len(row)], dtype=torch.int32)
            with torch.no_grad():
                token = model(row, torch.arange(len(row)), cu_seqlens)[-1].argmax().item()
            if token in tokenizer.stop_ids:
                break
            reply.append(token)
        assert sample["resps"] == [[tokenizer.decode(reply)]]


def test_limit_is_a_fixed_sample(folder, rows_dir, tmp_path):
    run(folder, rows_dir, tmp_path / "a", tasks="arc", limit=7)
    run(folder, rows_dir, tmp_path / "b", tasks="arc", limit=7, batch_tokens=50)
    a, b = (list(results.read_samples(tmp_path / d, "arc")) for d in "ab")
    assert a == b and len(a) == 7 and a != [f"r{i}" for i in range(7)]


def test_a_prompt_beyond_the_context_is_cut_and_counted(tmp_path):
    folder = write_checkpoint(tmp_path / "ck", max_position_embeddings=64)
    long = {"id": "x", "query": " ".join(WORDS * 6), "answer": "good", "choices": ["good", "bad"]}
    write_rows(tmp_path / "fpb.jsonl", [long | {"gold": 0}])
    for mode in ("generate", "loglikelihood"):
        found = run(folder, tmp_path, tmp_path / mode, tasks="fpb", mode=mode)
        assert found["fpb"]["truncated"] == 1


def test_a_diverged_checkpoint_is_named_as_such(tmp_path, rows_dir):
    folder = write_checkpoint(tmp_path / "ck")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for name in ("arc", "fpb"):
        with pytest.raises(UserError, match="diverged"):
            run(folder, rows_dir, tmp_path, tasks=name)


def test_missing_answers_are_warned_about(folder, rows_dir, tmp_path, capsys):
    found = run(folder, rows_dir, tmp_path, tasks="reasoning")
    assert found["reasoning"]["missing"] == 100
    assert "warning: reasoning: no answer found in 100.0%" in capsys.readouterr().out


# Comparing


def other_checkpoint(folder, path):
    template = "chatml" if "chatml" in str(folder) else "llama3"
    return write_checkpoint(path, template, seed=5)


def test_compare_pairs_the_same_rows(folder, rows_dir, tmp_path, capsys):
    a = run(folder, rows_dir, tmp_path / "a")
    b = run(other_checkpoint(folder, tmp_path / "ck"), rows_dir, tmp_path / "b")
    capsys.readouterr()
    results.compare(tmp_path / "a", tmp_path / "b")
    shown = capsys.readouterr().out
    for name in a:
        found, scores, draws = results.difference(tmp_path / "a", tmp_path / "b", name)
        assert scores == pytest.approx([a[name]["score"], b[name]["score"]], abs=1e-3)
        assert found["difference"] == pytest.approx(scores[1] - scores[0], abs=1e-3)
        assert found["low"] <= found["difference"] <= found["high"] and len(draws) == 1000
        assert re.search(rf"^{name} .*{found['difference']:+.1f}".replace("+", r"\+"), shown, re.M)
    assert "mean of the tasks" in shown


def test_a_result_compared_with_itself_differs_by_nothing(folder, rows_dir, tmp_path):
    run(folder, rows_dir, tmp_path, tasks="arc")
    found = results.difference(tmp_path, tmp_path, "arc")[0]
    assert found == {"difference": 0, "low": 0, "high": 0, "n": 30}


@pytest.mark.parametrize(
    "change",
    [
        {"chat_template": False},
        {"system": "be brief"},
        {"mode": "loglikelihood"},
        {"max_new_tokens": 4},  # the prompts are the same, the room for the reply is not
    ],
)
def test_compare_refuses_rows_asked_in_another_way(folder, rows_dir, tmp_path, change):
    run(folder, rows_dir, tmp_path / "a", tasks="fpb")
    run(folder, rows_dir, tmp_path / "b", tasks="fpb", **change)
    with pytest.raises(UserError, match="cannot be compared"):
        results.compare(tmp_path / "a", tmp_path / "b")


def test_compare_refuses_other_questions_under_the_same_id(folder, rows_dir, tmp_path):
    run(folder, rows_dir, tmp_path / "a", tasks="fpb")
    rows = label_rows(24)
    rows[3]["query"] += " now"
    write_rows(tmp_path / "fpb.jsonl", rows)
    run(folder, tmp_path, tmp_path / "b", tasks="fpb")
    with pytest.raises(UserError, match="prompt_hash of row l3"):
        results.compare(tmp_path / "a", tmp_path / "b")


# Bad input


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tasks": "fbp"}, "did you mean fpb?"),
        ({"tasks": "fomc"}, r"no .*fomc\.jsonl\. Get gtfintechlab/fomc"),
        ({"tasks": ","}, "is empty"),
        ({"mode": "guess"}, "must be loglikelihood or generate"),
        ({"tasks": "reasoning", "mode": "loglikelihood"}, "choices: some rows have none"),
        ({"limit": -5}, "--limit must be 0 or more, not -5"),
        ({"max_new_tokens": -1}, "--max_new_tokens must be 0 or more"),
        ({"batch_tokens": 0}, "--batch_tokens must be above 0"),
        ({"slots": 0}, "--slots must be above 0"),
    ],
)
def test_what_cannot_be_run_says_why(folder, rows_dir, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        run(folder, rows_dir, tmp_path, **change)


def test_a_choice_beyond_the_context_is_named_by_file_and_row(simple, tmp_path):
    row = arc_rows(1)[0] | {"id": "r7", "choices": ["good", "bad " * 300], "answer": "good"}
    write_rows(tmp_path / "arc.jsonl", [row])
    message = (
        r"arc.jsonl: row r7: choices: a choice of \d+ tokens exceeds the model's context of 256"
    )
    with pytest.raises(UserError, match=message):
        run(simple, tmp_path, tmp_path, tasks="arc")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda r: r["tasks"]["fpb"].pop("asked"), "tasks: fpb: asked: missing"),
        (lambda r: r["tasks"].update(fpb=3), "tasks: fpb: asked: missing"),
        (lambda r: r.pop("tasks"), "tasks: missing"),
        (lambda r: r.pop("init_from"), "init_from: missing"),
        (lambda r: r.update(tasks={"xyz": r["tasks"]["fpb"]}), "no task in common"),
    ],
)
def test_a_result_that_is_none_is_named(simple, rows_dir, tmp_path, change, message):
    run(simple, rows_dir, tmp_path, tasks="fpb", limit=4)
    path = tmp_path / "results.json"
    result = json.loads(path.read_text())
    change(result)
    path.write_text(json.dumps(result))
    with pytest.raises(UserError, match=message):
        results.compare(tmp_path, tmp_path)


def test_a_task_without_data_is_named_and_the_others_run(folder, rows_dir, tmp_path, capsys):
    found = run(folder, rows_dir, tmp_path, tasks="fomc,arc")
    assert list(found) == ["arc"]
    assert "warning: fomc was not run: no " in capsys.readouterr().out
    assert "fomc" in results.read_result(tmp_path)["skipped"]


def command(*words, launcher=(sys.executable,)):
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*launcher, str(ROOT / "evaluate.py"), *map(str, words)],
        capture_output=True, text=True, env=env, cwd=ROOT,
    )  # fmt: skip


def test_every_task_is_listed(capsys):
    evaluate.main(Config(list=True))
    listed = capsys.readouterr().out
    assert all(f"{name} " in listed and task.source in listed for name, task in TASKS.items())


def test_the_command_line_runs_and_compares_and_fails_in_one_line(simple, rows_dir, tmp_path):
    done = command("--init_from", simple, "--data", rows_dir, "--tasks", "fpb", "--device", "cpu",
                   "--max_new_tokens", "4", "--out_dir", tmp_path)  # fmt: skip
    assert done.returncode == 0 and "fpb" in done.stdout, done.stderr
    same = command("--compare", tmp_path, tmp_path)
    assert same.returncode == 0 and "+0.0" in same.stdout
    alone = command("--compare", tmp_path)
    assert alone.returncode == 1 and alone.stderr.startswith("error: usage")


def test_two_ranks_give_the_log_of_one(simple, rows_dir, tmp_path):
    one = run(simple, rows_dir, tmp_path / "a", tasks="arc,fpb")
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    flags = [
        "--init_from",
        simple,
        "--data",
        rows_dir,
        "--tasks",
        "arc,fpb",
        "--device",
        "cpu",
    ]
    flags += ["--max_new_tokens", "8", "--out_dir", tmp_path / "b"]
    done = command(*flags, launcher=torchrun)
    assert done.returncode == 0, done.stderr
    assert results.read_result(tmp_path / "b")["tasks"] == one
