import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import ROOT, STAGES, by_hand, distance, run, settings, torchrun, write_data
from safetensors.torch import load_file
from tiny import write_rows

import parallel
import train_sft
from benchmarks.budget import saved_bytes
from checkpoint import load_weights
from config import UserError, parse
from model import Llama
from tokenizer import Tokenizer


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def base(data):
    return Llama.from_pretrained(data / "base").eval()


@pytest.fixture(scope="module")
def tokenizer(data):
    return Tokenizer(data / "base")


def rows_of(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


# ---- any micro-batches on any ranks give the gradient of one big batch ---------------------------

ROWS = 32  # packed rows of a step
LENGTH = 96
WORLDS = (2, 4)
# name: (rows per step, {ranks: rows per forward on each})
SPLITS = {
    f"{accum} micro-batches": (ROWS, {world: ROWS // world // accum for world in (1, *WORLDS)})
    for accum in (1, 2, 4, 8)
} | {
    "rows that do not divide": (5, {1: 2, 2: 1, 4: 1}),  # the last ranks have an empty micro-batch
    "ranks without rows": (1, {1: 1, 2: 1, 4: 1}),
}


def one_step(stage, data, out, rows, per_forward):
    """Arguments of a run of one step, the gradients of which are kept, unclipped."""
    return {"stage": stage, "data": data, "out": out, "gradients": f"{out}.safetensors",
            "epochs": 0.01, "max_length": LENGTH, "batch_tokens": rows * LENGTH,
            "micro_batch_tokens": per_forward * LENGTH, "grad_clip": 1e9}  # fmt: skip


@pytest.fixture(scope="module")
def ranks(data, tmp_path_factory):
    """All splits of all stages on several ranks, in one start of torchrun for each number."""
    folder = tmp_path_factory.mktemp("ranks")
    for world in WORLDS:
        jobs = [
            one_step(stage, data, folder / f"{stage} {split} {world}", rows, per_forward[world])
            for stage in STAGES
            for split, (rows, per_forward) in SPLITS.items()
        ]
        torchrun(world, folder, jobs)
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_micro_batches_and_ranks_leave_gradient_and_loss_as_they_are(stage, data, ranks, tmp_path):
    whole = {}
    for split, (rows, per_forward) in SPLITS.items():
        one, others = tmp_path / split, [ranks / f"{stage} {split} {world}" for world in WORLDS]
        logged = run(**one_step(stage, data, one, rows, per_forward[1]))
        if rows not in whole:  # the first split of as many rows: all of them in one forward
            whole[rows] = tmp_path / f"whole {rows}"
            run(**one_step(stage, data, whole[rows], rows, rows))
        for out in (one, *others):
            assert distance(f"{out}.safetensors", f"{whole[rows]}.safetensors") <= 1e-5
            (row,), (want,) = rows_of(out / "metrics.jsonl"), rows_of(whole[rows] / "metrics.jsonl")
            for name in want:
                if name.startswith(("loss", "rewards", "logps", "grad_norm")):
                    assert row[name] == pytest.approx(want[name], rel=1e-5, abs=1e-6), name
        assert len(logged) == 1


def test_clipping_measures_the_gradient_of_all_ranks(data, ranks, tmp_path):
    """The logged norm is that of the whole gradient, before clipping, on any number of ranks."""
    for stage in STAGES:
        file = ranks / f"{stage} 1 micro-batches 2"
        (row,) = rows_of(file / "metrics.jsonl")
        squares = sum(g.double().square().sum() for g in load_file(f"{file}.safetensors").values())
        assert row["grad_norm"] == pytest.approx(float(squares.sqrt()), rel=1e-5)
    step = one_step("sft", data, tmp_path / "clipped", ROWS, ROWS) | {"grad_clip": 0.5}
    (row,) = run(**step)
    clipped = load_file(tmp_path / "clipped.safetensors")
    squares = sum(g.double().square().sum() for g in clipped.values())
    assert float(squares.sqrt()) == pytest.approx(0.5, rel=1e-4) and row["grad_norm"] > 1


# ---- the loss, counted by hand -------------------------------------------------------------------


def answers(ids, tokenizer):
    """Where the assistant speaks: from behind its header up to and with the end of its turn."""
    start, end = (tokenizer.ids[f"<|{side}_header_id|>"] for side in ("start", "end"))
    found, i = [False] * len(ids), 0
    while i < len(ids):
        if ids[i] == start and tokenizer.decode(ids[i + 1 : ids.index(end, i)]) == "assistant":
            i = ids.index(end, i) + 1 + len(tokenizer.encode("\n\n"))
            while not found[i - 1] or ids[i - 1] != tokenizer.turn_end_id:
                found[i] = True
                i += 1
        i += 1
    return found


def chat_loss(model, tokenizer, chats):
    """(sum of -log p over answers, number of their tokens), one conversation after the other."""
    total = count = 0
    for row in chats:
        ids = tokenizer.chat(row["messages"])[0]
        spoken = answers(ids, tokenizer)
        assert tokenizer.decode([t for t, s in zip(ids, spoken, strict=True) if s], False) == (
            "".join(
                m["content"] + "<|eot_id|>" for m in row["messages"] if m["role"] == "assistant"
            )
        )
        logps = by_hand(model, ids[:1], ids[1:])
        total -= logps[spoken[1:]].sum()
        count += sum(spoken)
    return total, count


def text_loss(model, tokenizer, texts):
    total = count = 0
    for row in texts:
        ids = [tokenizer.bos_id, *tokenizer.encode(row["text"]), tokenizer.text_end_id]
        total -= by_hand(model, ids[:1], ids[1:]).sum()
        count += len(ids) - 1
    return total, count


WHOLE = {"max_length": 256, "batch_tokens": 100 * 256, "micro_batch_tokens": 4 * 256, "epochs": 1.0}


def test_sft_loss_is_the_mean_over_assistant_tokens_and_turn_ends(data, base, tokenizer, tmp_path):
    (row,) = run("sft", data, tmp_path, heldout_chat=f"{data}/held_chat.jsonl", lr=1e-12, **WHOLE)
    total, count = chat_loss(base, tokenizer, rows_of(data / "chat.jsonl"))
    assert row["loss"] == pytest.approx(total / count, rel=1e-5)
    total, count = chat_loss(base, tokenizer, rows_of(data / "held_chat.jsonl"))
    assert row["heldout/chat"] == pytest.approx(total / count, rel=1e-5)


def test_sft_gradient_is_that_of_the_loss_by_hand(data, base, tokenizer, tmp_path):
    """From plain logits, one conversation after the other; kept in the optimizer's order."""
    file = tmp_path / "gradients.safetensors"
    run("sft", data, tmp_path / "out", gradients=file, grad_clip=1e9, **WHOLE)
    chats, base, total, count = rows_of(data / "chat.jsonl"), base.double(), 0, 0
    for row in chats:
        ids = tokenizer.chat(row["messages"])[0]
        spoken, ids = torch.tensor(answers(ids, tokenizer)[1:]), torch.tensor(ids)
        scores = base(ids, torch.arange(len(ids)), torch.tensor([0, len(ids)])).log_softmax(-1)
        total = total - scores[:-1].gather(1, ids[1:, None])[:, 0][spoken].sum()
        count += int(spoken.sum())
    (total / count).backward()
    want = [p.grad for p in sorted(base.parameters(), key=lambda p: p.ndim < 2)]
    base.float().zero_grad()
    for g, w in zip(load_file(file).values(), want, strict=True):
        assert (g - w).norm() <= 1e-4 * w.norm()


def test_cpt_losses_per_source_are_right_and_add_up(data, base, tokenizer, tmp_path):
    held = {f"heldout_{kind}": f"{data}/{file}.jsonl"
            for kind, file in (("text", "text"), ("chat", "held_chat"))}  # fmt: skip
    (row,) = run("cpt", data, tmp_path, lr=1e-12, **held, **WHOLE)
    text = text_loss(base, tokenizer, rows_of(data / "text.jsonl"))
    chat = chat_loss(base, tokenizer, rows_of(data / "chat.jsonl"))
    assert row["loss/text"] == pytest.approx(text[0] / text[1], rel=1e-5)
    assert row["loss/chat"] == pytest.approx(chat[0] / chat[1], rel=1e-5)
    assert row["loss"] == pytest.approx((text[0] + chat[0]) / (text[1] + chat[1]), rel=1e-5)
    assert row["heldout/text"] == pytest.approx(row["loss/text"], rel=1e-5)  # the same file
    chat = chat_loss(base, tokenizer, rows_of(data / "held_chat.jsonl"))
    assert row["heldout/chat"] == pytest.approx(chat[0] / chat[1], rel=1e-5)


@pytest.mark.parametrize("kind", ["text", "chat"])
def test_cpt_runs_on_one_source_alone(data, base, tokenizer, tmp_path, kind):
    other = {"text": "chat", "chat": "text"}[kind]
    (row,) = run("cpt", data, tmp_path, mix="tokens", **{other: ""}, **WHOLE)
    loss_of = {"text": text_loss, "chat": chat_loss}[kind]
    total, count = loss_of(base, tokenizer, rows_of(data / f"{kind}.jsonl"))
    assert row["loss"] == row[f"loss/{kind}"] == pytest.approx(total / count, rel=1e-5)
    assert f"loss/{other}" not in row


def test_sft_on_pairs_trains_on_the_chosen_side_only(data, base, tokenizer, tmp_path):
    pairs = f"{data}/pairs.jsonl"
    (row,) = run("sft", data, tmp_path, pairs=pairs, **WHOLE)
    chats = [
        {"messages": [{"role": "user", "content": pair["prompt"]},
                      {"role": "assistant", "content": pair["chosen"]}]}
        for pair in rows_of(pairs)
    ]  # fmt: skip
    total, count = chat_loss(base, tokenizer, chats)
    assert row["loss"] == pytest.approx(total / count, rel=1e-5)


def test_measuring_held_out_rows_does_not_change_the_training(data, tmp_path):
    plain = run("sft", data, tmp_path / "plain")
    held = run("sft", data, tmp_path / "held", heldout_chat=f"{data}/held_chat.jsonl", eval_every=2)
    assert [row["loss"] for row in plain] == [row["loss"] for row in held]
    measured = [row["step"] for row in held if "heldout/chat" in row]
    assert measured == sorted({*range(1, len(held), 2), len(held) - 1}) and len(held) > 3
    assert held[-1]["heldout/chat"] < held[1]["heldout/chat"]


# ---- small learning rates, broken gradients, the folder that comes out ---------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_learning_rate_of_5e_7_moves_the_weights(data, base, tmp_path, dtype):
    """In bf16 the step is below half a unit in the last place: masters must be fp32."""
    one_chat = write_rows(tmp_path / "one.jsonl", rows_of(data / "chat.jsonl")[:1])
    rows = run("sft", data, tmp_path / "out", chat=one_chat, epochs=100, dtype=dtype, lr=5e-7,
               warmup=0.0, schedule="constant", weight_decay=0.0)  # fmt: skip
    assert len(rows) == 100
    after = Llama.from_pretrained(tmp_path / "out").parameters()
    steps = torch.cat([(a - b).flatten() for a, b in zip(after, base.parameters(), strict=True)])
    assert (steps != 0).double().mean() > 0.99
    assert steps.abs().max() < 1.5 * 100 * 5e-7  # learnt, not rounded: bf16 is off by 2e-4 here


@pytest.mark.parametrize("stage", STAGES)
def test_a_gradient_that_is_not_finite_never_reaches_the_weights_and_ends_the_run(
    stage, data, tmp_path
):
    with pytest.raises(UserError, match="for 2 steps in a row: take a lower --lr"):
        run(stage, data, tmp_path, lr=1e30, warmup=0.0, max_bad_steps=2)
    rows = rows_of(tmp_path / "metrics.jsonl")
    assert ["skipped" in row for row in rows] == [False, True, True]
    assert not (tmp_path / "model.safetensors").exists()


def test_the_folder_that_comes_out_loads_in_transformers_and_in_the_next_stage(data, tmp_path):
    from transformers import LlamaForCausalLM

    stage_in = data / "base"
    ids = torch.arange(5, 45)
    for stage in STAGES:  # each begins from the one before
        out = tmp_path / stage
        run(stage, data, out, init_from=str(stage_in), epochs=0.2)
        ours = Llama.from_pretrained(out)(ids, torch.arange(40), torch.tensor([0, 40]))
        theirs = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
        with torch.no_grad():
            assert (theirs(ids[None]).logits[0] - ours).abs().max() <= 1e-4
        before = Llama.from_pretrained(stage_in)(ids, torch.arange(40), torch.tensor([0, 40]))
        assert (before - ours).abs().max() > 1e-3  # it has learnt something
        chat = [{"role": "user", "content": "rate <|eot_id|>"}]
        assert Tokenizer(out).prompt(chat) == Tokenizer(data / "base").prompt(chat)
        stage_in = out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_recomputing_activations_changes_nothing(data, dtype, tmp_path):
    plain = run("sft", data, tmp_path / "a", epochs=0.3, dtype=dtype)
    again = run("sft", data, tmp_path / "b", epochs=0.3, dtype=dtype, recompute=True)
    assert len(plain) > 1 and [row["loss"] for row in plain] == [row["loss"] for row in again]


def test_recomputing_keeps_of_a_block_its_input_alone(data):
    ids, kept = torch.arange(90), {}
    for recompute in (False, True):
        model = parallel.shard(
            Llama.from_pretrained(data / "base", "meta"), torch.device("cpu"), recompute=recompute
        )
        load_weights(model, data / "base")
        kept[recompute] = saved_bytes(lambda m=model: m(ids, ids, torch.tensor([0, 90])), [])
    config = model.config
    width = config.hidden_size + 2 * config.intermediate_size  # of what only the plain one keeps
    assert kept[False] - kept[True] > 4 * 90 * width * config.num_hidden_layers


def test_a_run_describes_itself_and_repeats_from_its_own_description(data, tmp_path):
    rows = run("sft", data, tmp_path, epochs=0.3)
    assert (tmp_path / "train_sft.py").read_text() == (ROOT / "train_sft.py").read_text()
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__ and environment["ranks"] == 1
    again = parse(train_sft.Config, ["--config", f"{tmp_path}/run.json"])
    assert again == train_sft.Config(**settings("sft", data, tmp_path, epochs=0.3))
    assert {"step", "loss", "grad_norm", "lr", "tokens_per_second", "memory_gb"} <= {*rows[0]}


def test_shared_modules_know_no_stage():
    """No loop over steps turned inside out: gradients are made in the train scripts alone."""
    files = [f for folder in (".", "kernels", "sample") for f in (ROOT / folder).glob("*.py")]
    code = {f.name: f.read_text().partition("if __name__ ==")[0] for f in files}
    marks = (".backward()", "optimizer.step(")
    found = {name for name, text in code.items() if any(mark in text for mark in marks)}
    assert found == {f"train_{stage}.py" for stage in STAGES}


def test_large_tensors_get_huge_pages_where_the_system_has_them():
    """64 MB are 16,384 small pages, or 32 huge ones and a few more."""
    system = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not system.exists() or "[never]" in system.read_text():
        pytest.skip("this system has no huge pages")
    code = """if True:
        import os, resource, parallel, torch
        parallel.init("cpu")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, flush=True)
        os._exit(0)"""
    faults = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert int(faults.stdout) < 4000
