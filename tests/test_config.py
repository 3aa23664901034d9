import json
import os
import runpy
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch.distributed as dist
from runs import ROOT, STAGES, settings, write_data
from tiny import write_checkpoint, write_rows, write_tokenizer

import train_cpt
import train_dpo
import train_sft
from config import UserError, parse, read_json


@dataclass
class Config:
    init_from: str = "base"  # folder of the model
    steps: int = 10  # optimizer steps
    lr: float = 5e-6  # peak learning rate
    norm: str = "tokens"  # what the mean is taken over
    compile: bool = False  # compile each block
    shuffle: bool = True  # order of the rows


def refused(*words):
    with pytest.raises(UserError) as e:
        parse(Config, words)
    assert "\n" not in str(e.value)
    return str(e.value)


@pytest.fixture
def run_json(tmp_path):
    def write(content):
        file = tmp_path / "run.json"
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(file)

    return write


# ---- flags ---------------------------------------------------------------------------------------


def test_flags_of_every_type_are_read():
    words = "--steps 1_000 --lr=1e-3 --init-from out/x --compile --no-shuffle".split()
    assert parse(Config, words) == Config("out/x", 1000, 1e-3, "tokens", True, False)
    assert parse(Config, ["--compile", "--steps", "3"]) == Config(steps=3, compile=True)
    assert parse(Config, ["--shuffle=false", "--compile=True"]) == Config(
        shuffle=False, compile=True
    )
    assert parse(Config, ["--steps", "-3", "--init_from", ""]) == Config(steps=-3, init_from="")
    assert parse(Config, []) == Config()


@pytest.mark.parametrize(
    "words, line",
    [
        (["--step", "3"], "unknown setting 'step'; did you mean steps?"),
        (["--learning_rte", "3"], "unknown setting 'learning_rte'; "),
        (["--inti_from", "x"], "did you mean init_from?"),
        (["--zzzzzz", "x"], "see --help"),
        (["--no-steps"], "unknown setting 'no_steps'"),
        (["--steps", "many"], "steps takes a int, not 'many'"),
        (["--steps", "1.5"], "steps takes a int, not '1.5'"),
        (["--lr", "fast"], "lr takes a float, not 'fast'"),
        (["--lr", "nan"], "lr takes a float, not 'nan'"),
        (["--lr", "-inf"], "lr takes a float, not '-inf'"),
        (["--steps", "inf"], "steps takes a int, not 'inf'"),
        (["--compile=maybe"], "compile takes a bool, not 'maybe'"),
        (["--steps"], "--steps needs a value"),
        (["--steps", "--lr", "1"], "--steps needs a value"),
        (["--lr", "1", "--lr", "1"], "--lr is given twice"),
        (["--compile", "--no-compile"], "--compile is given twice"),
        (["steps", "3"], "'steps' is not a flag"),
        (["-steps", "3"], "'-steps' is not a flag"),
        (["--config"], "--config needs a value"),
    ],
)
def test_what_does_not_fit_is_one_line_that_names_it(words, line):
    assert line in refused(*words)


def test_a_config_file_is_read_and_the_command_line_wins(run_json):
    file = run_json({"steps": 7, "lr": 1, "compile": True, "norm": "sequence"})
    want = Config(steps=7, lr=1.0, compile=True, norm="sequence")
    assert parse(Config, ["--config", file]) == want
    want.steps, want.compile = 9, False
    assert parse(Config, ["--steps", "9", f"--config={file}", "--no-compile"]) == want


@pytest.mark.parametrize(
    "content, line",
    [
        ({"setps": 3}, ": unknown setting 'setps'; did you mean steps?"),
        ({"steps": "many"}, ": steps takes a int, not 'many'"),
        ({"steps": True}, ": steps takes a int, not True"),
        ({"compile": 1}, ": compile takes a bool, not 1"),
        ({"lr": None}, ": lr takes a float, not None"),
        ({"lr": True}, ": lr takes a float, not True"),
        ({"norm": None}, ": norm takes a str, not None"),
        ({"norm": ["mean"]}, ": norm takes a str, not ['mean']"),
        ('{"steps": 3, "steps": 4}', ": steps: the key is there twice"),
        ('{"steps": ' + "9" * 5000 + "}", ": Exceeds the limit"),
        ('{"steps": ' + "[" * 90_000 + "]" * 90_000 + "}", ": nested too deep"),
        ('{"steps": 3,\n "lr": }\n', ":2: not valid json"),
        ("[1]", ": must hold a json object, not a list"),
        ("", ":1: not valid json"),
    ],
)
def test_a_bad_config_file_is_named_with_its_line(run_json, content, line):
    file = run_json(content)
    assert f"{file}{line}" in refused("--config", file)


def test_a_config_file_that_is_missing_or_not_text_is_named(tmp_path):
    assert refused("--config", f"{tmp_path}/no.json") == f"{tmp_path}/no.json: no such file"
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe{}")
    assert f"{tmp_path}/bytes.json: cannot be read" in refused("--config", f"{tmp_path}/bytes.json")
    with pytest.raises(UserError, match="cannot be read"):
        read_json(tmp_path)  # a folder


@pytest.mark.parametrize("config", [Config, *(m.Config for m in (train_cpt, train_sft, train_dpo))])
def test_help_names_every_flag_with_its_comment_and_default(config, capsys):
    with pytest.raises(SystemExit) as e:
        parse(config, ["--help"])
    assert e.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    for name, field in config.__dataclass_fields__.items():
        (line,) = [line for line in lines if line.startswith(f"  --{name} ")]
        flag = f"--{name} / --no-{name}" if field.type is bool else f"--{name}"
        comment = line.removeprefix(f"  {flag}").removesuffix(f"({field.default!r})").strip()
        assert len(comment) > 8 and line.endswith(f"({field.default!r})"), line
    assert any(line.startswith("  --config FILE") for line in lines)


# ---- through the command line of the train scripts -----------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


class Exit(BaseException):
    """In place of os._exit, which would take pytest with it."""


@pytest.fixture
def command(monkeypatch, capfd):
    """command(stage, values) -> (exit code, lines on stderr) of its `if __name__ == "__main__"`."""

    def leave(code):
        raise Exit(code)

    def call(stage, values):
        words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
        monkeypatch.setattr(sys, "argv", [f"train_{stage}.py", *words])
        monkeypatch.setattr(os, "_exit", leave)
        capfd.readouterr()
        with pytest.raises(Exit) as e:
            runpy.run_path(str(ROOT / f"train_{stage}.py"), run_name="__main__")
        return e.value.args[0], capfd.readouterr().err.splitlines()

    return call


def spoilt(file, number, **changes):
    """A copy of a jsonl file in which one row is changed; a key set to ... is removed."""
    rows = [json.loads(line) for line in open(file, encoding="utf-8")]
    rows[number - 1] = {k: v for k, v in (rows[number - 1] | changes).items() if v is not ...}
    return write_rows(str(file).replace(".jsonl", "_bad.jsonl"), rows)


@pytest.mark.parametrize("stage", STAGES)
def test_a_missing_data_file_is_one_line(stage, data, command, tmp_path):
    name = {"cpt": "text", "sft": "chat", "dpo": "pairs"}[stage]
    code, lines = command(
        stage, settings(stage, data, tmp_path / "out", **{name: "no/where.jsonl"})
    )
    assert code == 1 and lines == ["error: no/where.jsonl: no such file"]


@pytest.mark.parametrize(
    "stage, name, changes, reason",
    [
        ("cpt", "text", {"text": 3}, "text: must be a string"),
        ("cpt", "text", {"text": "  "}, "text: is empty"),
        ("cpt", "chat", {"messages": ...}, "messages: missing"),
        ("sft", "chat", {"messages": []}, "messages: is empty"),
        ("sft", "chat", {"messages": [{"role": "assistant", "content": "x"}]}, "messages[0]: role"),
        ("sft", "chat", {"messages": [{"role": "user", "content": "x"}]}, "messages: must end"),
        ("dpo", "pairs", {"rejected": ...}, "rejected: missing"),
        ("dpo", "pairs", {"prefix": "x"}, "ends_turn: missing"),
    ],
)
def test_a_malformed_row_is_named_by_file_line_and_field(
    stage, name, changes, reason, data, command, tmp_path
):
    file = spoilt(data / f"{name}.jsonl", 7, **changes)
    code, lines = command(stage, settings(stage, data, tmp_path / "out", **{name: file}))
    assert code == 1 and len(lines) == 1
    assert lines[0].startswith(f"error: {file}:7: {reason}")


def test_folders_that_are_no_checkpoints_are_one_line(data, command, tmp_path):
    cases = {}
    cases[tmp_path / "nowhere"] = "no such checkpoint folder"
    (tmp_path / "empty").mkdir()
    cases[tmp_path / "empty"] = "not a checkpoint"
    other = write_checkpoint(tmp_path / "other")
    raw = json.loads((other / "config.json").read_text()) | {"architectures": ["GPT2LMHeadModel"]}
    (other / "config.json").write_text(json.dumps(raw))
    cases[other] = "architectures"
    deaf = write_checkpoint(tmp_path / "deaf")
    (deaf / "tokenizer.json").unlink()
    cases[deaf] = "tokenizer.json: no such file"
    small = write_checkpoint(tmp_path / "small", vocab_size=300)  # the tokenizer has 330 ids
    cases[small] = "do not fit an embedding of 300 rows"
    torn = write_checkpoint(tmp_path / "torn")
    (torn / "model.safetensors").write_bytes((torn / "model.safetensors").read_bytes()[:-9])
    cases[torn] = "not a readable safetensors file"
    plain = write_checkpoint(tmp_path / "plain")
    tokenizer = json.loads((plain / "tokenizer.json").read_text())
    for token in tokenizer["added_tokens"]:
        token["content"] = token["content"].replace("|", "_")
    (plain / "tokenizer.json").write_text(json.dumps(tokenizer))
    cases[plain] = "neither chat format fits"
    for folder, complaint in cases.items():
        code, lines = command("sft", settings("sft", data, tmp_path / "o", init_from=folder))
        assert code == 1 and len(lines) == 1, lines
        assert lines[0].startswith(f"error: {folder}") and complaint in lines[0]


@pytest.mark.parametrize(
    "stage, changes, line",
    [
        ("sft", {"batch_tokens": 10}, "batch_tokens 10 is less than one row of max_length 96"),
        ("sft", {"micro_batch_tokens": 95}, "micro_batch_tokens 95 is less than one row"),
        ("sft", {"max_length": 20}, "60 rows cannot be used"),
        ("sft", {"schedule": "sometimes"}, "--schedule must be one of linear, cosine, constant"),
        ("sft", {"dtype": "float8"}, "--dtype must be one of auto, float32, bfloat16"),
        ("sft", {"device": "tpu"}, "device: 'tpu' is not auto, cpu or cuda"),
        ("cpt", {"mix": "half"}, "--mix must be one of tokens, rows, all"),
        ("cpt", {"text": "", "chat": ""}, "nothing to train on"),
        ("dpo", {"nll_norm": "words"}, "--nll_norm must be one of tokens, sequence"),
        ("dpo", {"chosen": "x"}, "unknown setting 'chosen'"),
        ("sft", {"lr": 1e30}, "no finite loss and gradient for 3 steps in a row: take a lower"),
        ("sft", {"lr": -1.0}, "--lr must be above 0"),
        ("sft", {"eval_every": 0}, "--eval_every must be above 0"),
        ("sft", {"warmup": 2.0}, "--warmup is a share of the steps"),
        ("cpt", {"max_length": 10_000}, "beyond the model's context of 256"),
        ("dpo", {"beta": 0.0}, "--beta must be above 0"),
    ],
)
def test_settings_that_cannot_work_are_one_line_and_no_traceback(
    stage, changes, line, data, command, tmp_path
):
    code, lines = command(stage, settings(stage, data, tmp_path) | changes)
    assert code == 1 and lines[-1].startswith("error: ") and line in lines[-1]
    assert not any("Traceback" in x for x in lines) and not (tmp_path / "done.json").exists()


def test_any_other_failure_names_the_rank_and_ends_with_1(data, command, tmp_path, monkeypatch):
    def fail(*args):
        raise RuntimeError("a bug")

    monkeypatch.setattr("model.check_row", fail)
    code, lines = command("sft", settings("sft", data, tmp_path))
    text = "\n".join(lines)
    assert code == 1 and "rank 0 failed:" in text and "RuntimeError: a bug" in text


def test_a_run_without_fault_ends_with_0(data, command, tmp_path):
    code, _ = command("sft", settings("sft", data, tmp_path, epochs=0.2))
    assert code == 0 and (tmp_path / "done.json").exists()
    assert not dist.is_initialized()  # left in order; the next run joins anew


def test_the_real_command_prints_one_line_and_ends_with_1(data, tmp_path):
    """The whole way, as a process: what the tests above replace is os._exit."""
    write_tokenizer(tmp_path)
    command = [sys.executable, str(ROOT / "train_sft.py"), "--chat", "no.jsonl", "--init_from",
               str(data / "base"), "--out_dir", str(tmp_path / "out")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == "error: no.jsonl: no such file\n"
    assert not (tmp_path / "out").exists()
