"""evaluate.py on tiny random checkpoints."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from evaluating import arc_rows, label_rows, run
from safetensors.torch import load_file, save_file
from tiny import WORDS, write_checkpoint, write_rows

import evaluate
import results
from config import UserError
from evaluate import Config
from model import Llama
from tasks import TASKS
from tokenizer import Tokenizer

ROOT = Path(evaluate.__file__).parent


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
    long = {"id": "x", "query": " ".join(WORDS * 6), "answer": "positive"}
    long |= {"choices": list(TASKS["fpb"].labels), "gold": 0}
    write_rows(tmp_path / "fpb.jsonl", [long])
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


def test_rows_that_cannot_be_asked_are_left_out_and_counted(simple, tmp_path, capsys):
    rows = arc_rows(6)
    rows[2] |= {"choices": ["good", "bad " * 300], "answer": "good", "gold": 0}
    rows[4]["gold"] = 7
    write_rows(tmp_path / "arc.jsonl", rows)
    found = run(simple, tmp_path, tmp_path, tasks="arc")["arc"]
    assert found["rows"] == {"in": 6, "used": 4, "left_out": {"gold": 1, "choices": 1}}
    assert found["n"] == 4 and "arc.jsonl:5: gold: 7 is outside" in capsys.readouterr().out
    mmlu = [{"id": f"m{i}", "query": "one ?\nAnswer:", "answer": "A", "choices": ["A", "B"],
             "gold": 0, "subject": "xy"[i % 2]} for i in range(6)]  # fmt: skip
    write_rows(tmp_path / "mmlu.jsonl", mmlu)
    write_rows(tmp_path / "mmlu_shots.jsonl", [mmlu[0] | {"id": "s"}])
    found = run(simple, tmp_path, tmp_path, tasks="mmlu", fewshot=1)["mmlu"]
    assert found["rows"]["left_out"] == {"examples": 3} and found["n"] == 3
    assert "row m1: examples: 0 about y, not 1" in capsys.readouterr().out


# Bad input


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tasks": "fbp"}, "did you mean fpb?"),
        ({"tasks": "fomc"}, r"no .*fomc\.jsonl\. Get lab-manual-split"),
        ({"tasks": ","}, "is empty"),
        ({"mode": "guess"}, "--mode must be one of"),
        ({"tasks": "reasoning", "mode": "loglikelihood"}, "reasoning: it has no choices"),
        ({"style": "fast"}, "--style must be one of"),
        ({"scorer": "mine"}, "--scorer must be one of"),
        ({"fewshot": -1}, "--fewshot must be 0 or more"),
        ({"tasks": "fpb", "fewshot": 1}, r"no .*fpb_shots\.jsonl; evaluate.py prepare makes it"),
        ({"tasks": "fpb", "fewshot": 1, "style": "cot"}, "its examples hold no reasoning"),
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
    message = r"arc.jsonl: row r7: choices: one of \d+ tokens exceeds the model's context of 256"
    with pytest.raises(UserError, match=message):
        run(simple, tmp_path, tmp_path, tasks="arc")
    write_rows(tmp_path / "fpb.jsonl", label_rows(3))
    assert list(run(simple, tmp_path, tmp_path, tasks="arc,fpb")) == ["fpb"]  # the others go on
    assert "row r7" in results.read_result(tmp_path)["skipped"]["arc"]


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
    same = command("compare", tmp_path, tmp_path)
    assert same.returncode == 0 and "+0.0" in same.stdout
    alone = command("compare", tmp_path)
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
