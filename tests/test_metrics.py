import json
import subprocess
import sys

import pytest
import torch
from runs import ROOT, run, write_data
from tiny import tiny_config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import metrics as metrics_file
from metrics import Metrics, flops_per_token, plot_metrics, read_metrics
from model import Llama, LlamaConfig
from packing import document, family

CPU = torch.device("cpu")
CONFIG = LlamaConfig.from_dict(tiny_config(head_dim=16, tie_word_embeddings=False))


def metrics(folder, start=0):
    return Metrics(folder, start, CPU, CONFIG)


def test_the_work_of_a_token_is_what_torch_counts():
    """Of a whole forward and backward; with plain matrix products torch counts the hidden keys of
    attention too, so that each of n queries sees n."""
    n, model = 64, Llama(CONFIG)
    ids = torch.arange(n)
    # torch does not count this one by itself
    in_place = {torch.ops.aten.addmm_: lambda _, a, b, **__: 2 * a[0] * a[1] * b[1]}
    counter = FlopCounterMode(display=False, custom_mapping=in_place)
    with sdpa_kernel(SDPBackend.MATH), counter:
        model(ids, ids, torch.tensor([0, n])).sum().backward()
    assert flops_per_token(CONFIG, n) * n == counter.get_total_flops()


def test_attention_counts_the_keys_that_are_seen(tmp_path):
    log = metrics(tmp_path)
    log.count([document(range(11)), family([1, 2, 3, 4], [[5, 6], [7]])])
    # 10 tokens: 1 + ... + 10 keys; prompt of 3: 6; replies of 2 and 1: 3 + 2 * 3 and 1 + 3
    assert log.tokens == 10 + 3 + 2 + 1
    assert log.keys == 55 + 6 + 9 + 4
    more = flops_per_token(CONFIG, 101) - flops_per_token(CONFIG, 100)
    assert more == 12 * 2 * 4 * 16  # layers, heads, their size


def test_a_line_holds_the_values_and_the_speed_since_the_one_before(tmp_path):
    log = metrics(tmp_path)
    log.count([document(range(101))])
    row = log.log(0, loss=2.5)
    assert row["step"] == 0 and row["loss"] == 2.5 and 0 < row["memory_gb"] < 100
    assert row["tokens_per_second"] == pytest.approx(100 / log.seconds, rel=0.01)
    assert "mfu" not in row  # unknown peak
    bare = log.log(1, loss=2.0)
    assert "tokens_per_second" not in bare  # nothing was counted since
    assert read_metrics(tmp_path) == [row, bare]


def test_a_resumed_run_drops_the_lines_it_writes_again_and_a_torn_one(tmp_path):
    log = metrics(tmp_path)
    for step in range(5):
        log.log(step, loss=float(step))
    with open(tmp_path / "metrics.jsonl", "a") as f:
        f.write('{"step": 5, "lo')  # killed while it was written
    assert [row["step"] for row in read_metrics(tmp_path)] == [0, 1, 2, 3, 4]
    log = metrics(tmp_path, start=3)
    log.log(3, loss=30.0)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2, 3]
    assert json.loads(lines[-1])["loss"] == 30.0


def test_without_a_file_there_are_no_rows(tmp_path):
    assert read_metrics(tmp_path / "nowhere") == []


def test_a_plot_is_drawn_of_series_with_and_without_gaps(tmp_path):
    log = metrics(tmp_path)
    for step in range(30):
        held = {"heldout/chat": 2.0 - step / 30} if step % 10 == 9 else {}
        log.log(step, loss=3.0 - step / 30, **{"loss/text": 1.0, "loss/chat": 2.0}, **held)
    path = plot_metrics(tmp_path)
    assert path == tmp_path / "metrics.png"
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000


def test_a_run_of_one_step_is_drawn_too(tmp_path):
    metrics(tmp_path).log(0, loss=1.0)
    assert plot_metrics(tmp_path).exists()


def test_without_matplotlib_a_run_goes_through_and_draws_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    metrics(tmp_path).log(0, loss=1.0)
    assert plot_metrics(tmp_path) is None and not (tmp_path / "metrics.png").exists()


def test_the_description_of_a_run_holds_commit_settings_and_versions(tmp_path):
    run("sft", write_data(tmp_path / "data"), tmp_path / "out", epochs=0.1, lr=0.002)
    described = json.loads((tmp_path / "out" / "environment.json").read_text())
    head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True)
    assert described["git_commit"].removesuffix("+changes") == (head.stdout.strip() or "no commit")
    assert {"torch", "tokenizers", "safetensors", "numpy"} <= {*described["packages"]}
    assert json.loads((tmp_path / "out" / "run.json").read_text())["lr"] == 0.002


def test_the_commit_is_not_named_for_code_that_has_changed_since(tmp_path, monkeypatch):
    def git(*words):
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(["git", "-C", tmp_path, *who, *words], check=True).returncode

    monkeypatch.setattr(metrics_file, "__file__", str(tmp_path / "metrics.py"))
    (tmp_path / "metrics.py").write_text("a = 1\n")
    git("init", "-q"), git("add", "."), git("commit", "-qm", "one")
    clean = metrics_file.git_commit()
    assert len(clean) == 40
    (tmp_path / "out.json").write_text("{}")  # what a run writes changes nothing
    assert metrics_file.git_commit() == clean
    (tmp_path / "metrics.py").write_text("a = 2\n")
    assert metrics_file.git_commit() == clean + "+changes"
