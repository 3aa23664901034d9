"""What the figures of --dry_run are made of: heads, tables, keys, epochs, hours, shards."""

# ruff: noqa: F811  (llama3 is a fixture)
import dataclasses
import json
import re

import pytest
import torch
from runs import settings, write_data
from test_dry_run import GROUP1, llama3, meta, plan, shown  # noqa: F401

import dry_run
from benchmarks.budget import LLAMA_8B, NARROW
from data import load_chat
from tokenizer import Tokenizer


def test_the_cpu_head_uses_the_tiles_of_a_cpu():
    cpu, gpu = (
        dry_run.head_bytes(LLAMA_8B, 8192, torch.float32, d, True)[0] for d in ("cpu", "cuda")
    )
    assert cpu < gpu


def test_a_tied_table_counts_once(tmp_path, capsys):
    tied = dataclasses.replace(LLAMA_8B, tie_word_embeddings=True)
    found = dry_run.moments_of(meta(tied), 8, 8192, 1, torch.bfloat16, "cuda", True, True)
    assert found["the head, forward"]["gathered weights"] == 2 * (128_256 * 4096 + 4096)
    text, _ = shown(capsys, plan("sft", 1, chat="none.jsonl"))
    raw = json.load(open("sample/base/config.json"))
    assert f"{raw['vocab_size'] * raw['hidden_size']:,} of them in embedding and head" in text


def test_keys_are_the_mean_over_tokens_of_families_from_all_over_the_data(tmp_path, monkeypatch):
    data = write_data(tmp_path)
    base = settings("sft", data, tmp_path / "out")
    cfg = plan("sft", 1, **base)
    families, _ = load_chat(
        cfg.chat, Tokenizer(cfg.init_from), cfg.max_length, cfg.max_skipped, cfg.token_cache
    )
    monkeypatch.setattr(dry_run, "SAMPLE", 20)
    some = families[::3]
    want = sum(map(dry_run.keys_of, some)) / sum(len(s.input_ids) for f in some for s in f)
    assert dry_run.planned(cfg, True)[2] == pytest.approx(want)


def test_what_a_mixture_states_in_epochs_and_whole_rows(tmp_path):
    (tmp_path / "m.json").write_text(json.dumps({"groups": [{"total": 1000}, {"total": 410}]}))
    cfg = plan(
        "cpt", 1, mixture=str(tmp_path / "m.json"), max_length=100, batch_tokens=250, epochs=2.0
    )
    assert dry_run.stated(cfg) == (2 * 5 + 2 * 3, 2820, 50)


def test_work_of_dpo_and_hours_of_all_ranks():
    cfg = plan("dpo", 4, max_length=2048, batch_tokens=4 * 2048)

    def flops(common):
        return [
            float(n.replace(",", ""))
            for n in re.findall(
                r"([\d.,]+) (?:PFLOP|hours|GPU hours)",
                list(dry_run.work_lines(LLAMA_8B, cfg, 4, 10**6, 8_192_000_000, 1000, common))[1],
            )
        ]

    sft, dpo = flops(True), flops(False)
    assert [b / a for a, b in zip(sft, dpo, strict=True)] == pytest.approx([4 / 3] * 3, rel=0.05)
    assert dpo[2] == pytest.approx(4 * dpo[1], rel=0.01)
    unknown = list(dry_run.work_lines(LLAMA_8B, cfg, 4, 0, 0, 1000, True))[1]
    assert float(re.search(r"take ([\d.]+) hours", unknown)[1]) == pytest.approx(
        sft[1] / 1000, abs=0.006
    )


@pytest.mark.parametrize(
    "ranks, rows, per, want",
    [(2, 6, 2, (2, 2 * 8192, 2)), (8, 16, 64, (8, 2 * 8192, 1)), (1, 5, 2, (1, 2 * 8192, 3))],
)
def test_shards_tokens_and_micro_batches_are_those_of_the_run(
    llama3, monkeypatch, ranks, rows, per, want
):
    seen = []
    monkeypatch.setattr(dry_run, "memory", lambda *a: seen.append(a) or (dry_run.Counter(x=1), ""))
    base = {"init_from": str(llama3["8b"]), "mixture": GROUP1, "max_length": 8192}
    for device in ("cpu", "auto"):
        dry_run.show(
            plan(
                "cpt",
                ranks,
                **base,
                device=device,
                batch_tokens=rows * 8192,
                micro_batch_tokens=per * 8192,
            )
        )
    assert [a[1:4] for a in seen] == [want, want] and [a[5] for a in seen] == ["cpu", "cuda"]


def test_fp32_has_no_low_halves_and_a_block_holds_the_row_too():
    parts, _ = dry_run.memory(meta(NARROW), 1, 256, 1, torch.float32, "cpu", False, True)
    assert parts["low halves"] == 0
    found = dry_run.moments_of(meta(LLAMA_8B), 8, 8192, 1, torch.bfloat16, "cuda", False, True)
    _, working = dry_run.block_bytes(LLAMA_8B, 8192, torch.bfloat16, "cuda")
    assert found["block 31"]["working memory"] == working + 8192 * 4096 * 2
