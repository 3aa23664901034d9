"""What a run needs, told before it starts."""

import dataclasses
import json
import os
import re
import subprocess
from types import SimpleNamespace

import pytest
import torch
from runs import ROOT, STAGES, run, settings, write_data

import dry_run
import train_cpt
import train_dpo
import train_sft
from benchmarks.budget import LLAMA_8B, NARROW, nothing_launched, our_block
from benchmarks.dry_run import SETTINGS, foretold
from benchmarks.measure import fresh
from config import UserError
from model import Llama
from packing import family

SCRIPTS = {"cpt": train_cpt, "sft": train_sft, "dpo": train_dpo}
# The published shapes: hidden, ffn, layers, heads, parameters
SHAPES = {
    "8b": (4096, 14_336, 32, 32, 8_030_261_248),
    "70b": (8192, 28_672, 80, 64, 70_553_706_496),
}
GROUP1 = str(ROOT / "recipes" / "group1.json")


@pytest.fixture(scope="module")
def llama3(tmp_path_factory):
    """{size: a folder with the config.json of Llama 3 and nothing else}"""
    folders = {}
    for name, (hidden, ffn, layers, heads, _) in SHAPES.items():
        folders[name] = folder = tmp_path_factory.mktemp(name)
        config = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": 128_256,
            "hidden_size": hidden,
            "intermediate_size": ffn,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": 8,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500_000.0,
            "tie_word_embeddings": False,
            "hidden_act": "silu",
        }
        (folder / "config.json").write_text(json.dumps(config))
    return folders


def plan(stage, ranks, **changes):
    """The stage's settings for a dry run; --replicas if the script has none yet."""
    defaults = dataclasses.asdict(SCRIPTS[stage].Config())
    return SimpleNamespace(**defaults | {"replicas": 1} | changes | {"dry_run": ranks})


def shown(capsys, cfg, **named):
    """(all that is printed, {part of the memory: GB})"""
    dry_run.show(cfg, **named)
    text = capsys.readouterr().out
    return text, {k: float(n) for k, n in re.findall(r"^  (\w[\w ]*\w) +([\d.]+)", text, re.M)}


def meta(config):
    with torch.device("meta"):
        return Llama(config)


def needed(config, shards=8, tokens=8192, micro=1, recompute=False, common=True):
    model = meta(config)
    return dry_run.memory(
        model, shards, tokens, micro, torch.bfloat16, "cuda", recompute, common
    )  # fmt: skip


def test_live_counts_each_storage_while_it_lives_and_what_was_there_before_not_at_all():
    w, x = torch.ones(100, 50, requires_grad=True), torch.ones(20, 50)
    with dry_run.Live(w, x) as live:
        y = x @ w.T  # 2,000 numbers; w.T is a view of what is known
        assert live.now == live.peak == 8000
        z = y.sin()  # keeps y
        del y
        assert live.now == 16_000
        few = z.view(-1)[:3]
        del z
        assert live.now == 16_000
        few.sum().backward()
        peak = live.peak
        del few
        assert live.now == 100 * 50 * 4 < peak  # w.grad


def test_a_block_keeps_what_the_budget_counts():
    kept, working = dry_run.block_bytes(LLAMA_8B, 8192, torch.bfloat16, "cuda")
    with nothing_launched():
        assert kept == 8192 * our_block(LLAMA_8B, 8192, torch.bfloat16, "meta")
    weights = 218_112_000 * 2
    assert weights < working < weights + 8192 * 14_336 * 2 * 4
    kept, _ = dry_run.block_bytes(NARROW, 250, torch.float32, "cpu")
    # The budget's row of two documents is padded a little on its way through attention
    assert kept == pytest.approx(250 * our_block(NARROW, 250, torch.float32, "cpu"), rel=0.05)


def test_recompute_keeps_the_input_of_a_block_and_makes_the_rest_again():
    kept, working = dry_run.block_bytes(LLAMA_8B, 8192, torch.bfloat16, "cuda")
    again_kept, again = dry_run.block_bytes(LLAMA_8B, 8192, torch.bfloat16, "cuda", True)
    assert again_kept == 8192 * 4096 * 2
    assert working < again <= working + kept


def test_the_head_takes_a_tile_of_logits_and_the_gradient_of_its_weight():
    table, logits = 128_256 * 4096 * 2, 8192 * 128_256 * 4
    for common in (True, False):
        forward, between, backward = dry_run.head_bytes(
            LLAMA_8B, 8192, torch.bfloat16, "cuda", common
        )
        assert (between > table) is common  # taken in the forward pass already
        assert table < backward < table + 0.4 * logits
        assert 0 < forward < common * table + 0.4 * logits


def test_weights_masters_and_moments_are_12_bytes_a_parameter_over_the_shards():
    for shards in (1, 8, 64):
        parts, _ = needed(LLAMA_8B, shards)
        always = parts["weights"] + parts["low halves"] + parts["Adam moments"]
        assert always == 12 * SHAPES["8b"][4] / shards
    # Rows that do not divide: the first rank holds the most
    odd = dataclasses.replace(NARROW, vocab_size=4099)
    mine = dry_run.rows_of(meta(odd).parameters(), 8)
    assert mine == (sum(p.numel() for p in meta(NARROW).parameters()) - 2 * 4096 * 256) / 8 + (
        2 * 513 * 256
    )


def test_each_moment_holds_what_fsdp_holds_then():
    block, root, table = 218_112_000, 2 * 128_256 * 4096 + 4096, 2 * 128_256 * 4096
    settings = torch.bfloat16, "cuda", True, True
    for micro, new, waiting in ((1, 2, 0), (2, 0, 4)):  # bytes of a gradient: own, or accumulated
        found = dry_run.moments_of(meta(LLAMA_8B), 8, 8192, micro, *settings)
        gathered = {name: parts["gathered weights"] for name, parts in found.items()}
        gradients = {name: parts["gradients"] for name, parts in found.items()}
        assert gathered["the head, forward"] == gathered["the head, backward"] == 2 * root
        assert gathered["the head, gathered again"] == 4 * root
        assert gathered["block 31"] == 2 * root + 3 * 2 * block
        assert gathered["block 0, reduced"] == 2 * root + 2 * 2 * block
        assert gathered["embedding"] == 2 * root and gathered["embedding, reduced"] == 0
        assert gradients["the head, forward"] == waiting * (root + 32 * block)
        assert gradients["block 31"] == table + waiting * (root + 32 * block)
        before = table + waiting * (root + 31 * block) + 2 * block / 8
        assert gradients["block 30"] == before + 4 * block
        assert gradients["block 30, reduced"] == before + (new + 4 + 4 / 8) * block
        mine = 32 * 2 * block / 8
        assert gradients["embedding"] == mine + 4 * block + 2 * table + waiting * root
        assert gradients["embedding, reduced"] == mine + (waiting + new + 4 + 4 / 8) * root
    row = 8192 * 4096 * 2
    assert found["block 31"]["activations"] == 33 * row
    assert found["block 31, reduced"]["activations"] == found["block 30"]["activations"] == 32 * row


def test_activations_grow_with_layers_and_tokens_and_shrink_with_recompute():
    half = dataclasses.replace(LLAMA_8B, num_hidden_layers=16)
    whole, less, short = needed(LLAMA_8B), needed(half), needed(LLAMA_8B, tokens=4096)
    row = 8192 * 4096 * 2
    kept, _ = dry_run.block_bytes(LLAMA_8B, 8192, torch.bfloat16, "cuda")
    blocks = (whole[0]["activations"] - row) / kept
    assert blocks in (32, 31) and whole[1] == f"block {blocks - 1:.0f}"
    assert (less[0]["activations"] - row) / kept in (16, 15)
    assert short[0]["activations"] == pytest.approx(whole[0]["activations"] / 2, rel=0.05)
    parts, _ = needed(LLAMA_8B, recompute=True)
    assert parts["activations"] <= 33 * row and parts.total() < whole[0].total() - 20e9


def test_several_micro_batches_cost_4_bytes_a_parameter_on_every_rank():
    for shards in (8, 64):
        one, two = (needed(LLAMA_8B, shards, micro=n)[0] for n in (1, 2))
        assert two.total() - one.total() == pytest.approx(4 * SHAPES["8b"][4], rel=0.05)
        assert two == needed(LLAMA_8B, shards, micro=5)[0]


def test_a_single_rank_gathers_nothing_ahead():
    one, eight = (needed(LLAMA_8B, shards)[0]["gathered weights"] for shards in (1, 8))
    assert eight - one == 2 * 218_112_000 * 2  # two blocks more


@pytest.mark.parametrize("ranks", [8, 16, 64, 512])
@pytest.mark.parametrize("name", SHAPES)
def test_a_config_json_is_enough_to_plan_the_recipe(llama3, capsys, monkeypatch, name, ranks):
    monkeypatch.delenv("DATA", raising=False)
    cfg = plan("cpt", ranks, init_from=str(llama3[name]), mixture=GROUP1, epochs=1.0,
               max_length=8192, batch_tokens=131_072, micro_batch_tokens=8192)  # fmt: skip
    text, gb = shown(capsys, cfg)
    assert f"{SHAPES[name][4]:,} parameters" in text and "without data" in text
    assert sum(gb.values()) == pytest.approx(2 * gb["total"], abs=0.01)
    assert gb["weights"] == pytest.approx(2 * SHAPES[name][4] / ranks / 1e9, abs=1e-3)
    assert f"{gb['total'] / 80:.0%} of 80 GB, {gb['total'] / 141:.0%} of 141 GB" in text
    assert "in all: 29,297 steps, 3,840,000,000 tokens" in text
    assert ("never have a row" in text) == (ranks > 16)
    assert ("2 micro-batches" in text) == (ranks == 8)


def test_hours_are_true_work_at_the_stated_share_of_the_peak_of_ranks_that_have_rows(
    llama3, capsys
):
    base = {"init_from": str(llama3["8b"]), "mixture": GROUP1, "epochs": 1.0, "max_length": 8192,
            "batch_tokens": 131_072, "micro_batch_tokens": 8192}  # fmt: skip

    def hours(ranks, **changes):
        text, _ = shown(capsys, plan("cpt", ranks, **base | changes))
        return float(re.search(r"([\d.]+) hours, ", text)[1])

    work = 51.47e9 * 3.84e9  # 51.47 GFLOP a token: causal, 8,192 keys in a row
    assert hours(16) == pytest.approx(work / (0.40 * 989e12 * 16) / 3600, rel=0.01)
    assert hours(8) == pytest.approx(2 * hours(16), abs=0.11)
    assert hours(64) == hours(16)  # the others have no rows
    assert hours(12) == hours(8)  # some have two rows, and are waited for
    assert hours(16, recompute=True) == pytest.approx(4 / 3 * hours(16), rel=0.01)


def test_uneven_rows_are_told(llama3, capsys):
    base = {"init_from": str(llama3["8b"]), "mixture": GROUP1, "max_length": 8192}
    text, _ = shown(capsys, plan("cpt", 12, **base, batch_tokens=2**17, micro_batch_tokens=8192))
    assert "16 rows over 12 ranks: up to 2 each, 33% of the time is idle" in text
    text, _ = shown(capsys, plan("cpt", 2, **base, batch_tokens=6 * 8192, micro_batch_tokens=16384))
    assert "3 rows a rank, 2 at a time: the last micro-batch is smaller" in text
    assert "--micro_batch_tokens 24576 saves them" in text
    text, _ = shown(capsys, plan("cpt", 8, **base, batch_tokens=2**16, micro_batch_tokens=2**20))
    assert "warning" not in text


def test_copies_of_the_model_share_fewer_ranks_each(llama3, capsys):
    base = {"init_from": str(llama3["8b"]), "pairs": "none.jsonl", "max_length": 2048,
            "batch_tokens": 32_768, "micro_batch_tokens": 2048}  # fmt: skip
    _, eight = shown(capsys, plan("dpo", 8, **base, recompute=True), common_gradient=False)
    text, gb = shown(
        capsys, plan("dpo", 16, **base, recompute=True, replicas=2), common_gradient=False
    )
    assert gb["weights"] == eight["weights"] and "2 x 8 shards" in text
    assert "steps: not known without data; 1,000 take" in text


@pytest.mark.parametrize("stage", STAGES)
def test_with_data_the_steps_are_those_of_the_run(stage, tmp_path, capsys):
    data = write_data(tmp_path)
    rows = run(stage, data, tmp_path / "out", epochs=2.0)
    cfg = plan(stage, 2, **settings(stage, data, tmp_path / "out", epochs=2.0))
    text, _ = shown(capsys, cfg, common_gradient=stage != "dpo")
    assert f"in all: {len(rows):,} steps, " in text and "without data" not in text
    if stage == "cpt":
        counted = sum(value for name, value in rows[-1].items() if name.startswith("tokens/"))
        assert f" steps, {counted:,} tokens" in text


def test_of_pairs_sft_counts_the_chosen_side(tmp_path):
    data = write_data(tmp_path)
    base = settings("sft", data, tmp_path / "out", epochs=1.0)
    cfg = plan("sft", 1, **base | {"pairs": f"{data}/pairs.jsonl"})
    chosen, both = (dry_run.planned(cfg, common) for common in (True, False))
    assert chosen[1] < 0.8 * both[1]
    assert chosen[0] == len(run("sft", data, tmp_path / "out", pairs=cfg.pairs, epochs=1.0))


def test_a_reply_sees_itself_and_its_prompt():
    sizes = family(list(range(5)), [[1, 2, 3], [4, 5]])  # a prompt of 4, replies of 3 and 2
    assert dry_run.keys_of(sizes) == (4 * 5 + 3 * 4 + 2 * 3) / 2 + 4 * (3 + 2)


@pytest.mark.parametrize(
    "mixture", [{"groups": [{"total": 100}, {}]}, {"unit": "rows", "groups": [{"total": 9}]}]
)
def test_a_mixture_without_all_totals_in_tokens_leaves_the_steps_open(tmp_path, mixture):
    (tmp_path / "m.json").write_text(json.dumps(mixture))
    assert dry_run.stated(plan("cpt", 1, mixture=str(tmp_path / "m.json")))[:2] == (0, 0)


@pytest.mark.parametrize(
    "ranks, changes, message",
    [
        (6, {"replicas": 4}, "6 ranks cannot share 4 copies"),
        (-1, {}, "--dry_run must be 0 or more, not -1"),
        (8, {"replicas": 0}, "--replicas must be above 0, not 0"),
        (8, {"micro_batch_tokens": 100}, "must take a row"),
        (8, {"batch_tokens": 100}, "must take a row"),
        (8, {"init_from": "/nowhere"}, "/nowhere: no such checkpoint folder"),
        (8, {"schedule": "none"}, "--schedule"),
    ],
)
def test_settings_that_cannot_run_are_refused(ranks, changes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        dry_run.show(plan("cpt", ranks, **changes))


@pytest.mark.parametrize("name", ["two micro-batches", "short row"])
def test_a_step_on_a_cpu_takes_what_was_foretold_within_a_tenth(name, monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(2**17))
    took = fresh(ROOT / "benchmarks" / "dry_run.py", name)["bytes"]
    assert foretold(*SETTINGS[name])[0] == pytest.approx(took, rel=0.10)


def test_the_recipe_of_the_paper_plans_every_stage_and_starts_none(llama3, tmp_path):
    environment = os.environ | {"PLAN": "1", "NNODES": "2", "GPUS": "8"}
    environment.pop("DATA", None)
    command = [ROOT / "recipes" / "llama3_8b.sh", llama3["8b"], "/nowhere", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    steps = re.findall(r"in all: ([\d,]+) steps, ([\d,]+) tokens", done.stdout)
    assert steps == [("29,297", "3,840,000,000"), ("12,665", "1,660,000,000")]
    assert done.stdout.count("memory of a rank in GB") == 3
    assert done.stdout.count("16 ranks") == 3 and "warning" not in done.stdout
    assert not (tmp_path / "out").exists()
