import json
from pathlib import Path

import pytest
import torch
from runs import run, write_data
from safetensors.torch import load_file, save_file
from tiny import WORDS, write_rows

import reference
from config import UserError
from data import load_pairs
from metrics import read_metrics
from model import Llama
from packing import collate
from tokenizer import Tokenizer


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data")


@pytest.fixture
def scored(monkeypatch):
    """How many pairs each forward of the reference scored, training left out."""
    seen, score = [], reference.pair_logps

    def counted(model, batch):
        logps, tokens = score(model, batch)
        seen.append(len(logps))
        return logps, tokens

    monkeypatch.setattr(reference, "pair_logps", counted)
    return seen


def begun(data, out, **changes):
    """A run broken off after its first step, before anything but the reference was kept."""
    run("dpo", data, out, crash_at=0, **changes)
    return {file.name: file for file in Path(out).glob("reference-*.safetensors")}


def test_log_probs_stay_in_the_order_of_the_data(data, tmp_path):
    """Packing shuffles pairs over rows and steps; the stored table follows the file."""
    (file,) = begun(data, tmp_path / "out").values()
    families, _ = load_pairs(f"{data}/pairs.jsonl", Tokenizer(data / "base"), 96)
    base = Llama.from_pretrained(data / "base")
    with torch.no_grad():
        want = torch.cat([reference.pair_logps(base, collate([f]))[0] for f in families])
    got = load_file(file)["logps"]
    assert got.shape == (50, 2) and (got - want).abs().max() < 1e-4
    assert got.unique().numel() > 90  # a mix-up would show


def test_under_the_same_key_they_are_read_back_and_a_few_are_checked(data, tmp_path, scored):
    first = begun(data, tmp_path / "out")
    assert sum(scored) == 50
    stamp = next(iter(first.values())).stat().st_mtime_ns
    scored.clear()
    again = begun(data, tmp_path / "out")
    assert again.keys() == first.keys() and sum(scored) == 8
    assert next(iter(again.values())).stat().st_mtime_ns == stamp


def same_length(text, data):
    """The text with one word changed, in as many tokens."""
    encode, words = Tokenizer(data / "base").encode, text.split()
    others = (
        " ".join([*words[:i], word, *words[i + 1 :]])
        for i in range(len(words))
        for word in WORDS
        if word != words[i]
    )
    return next(other for other in others if len(encode(other)) == len(encode(text)))


def test_weights_data_template_length_dtype_and_code_make_another_key(data, tmp_path, monkeypatch):
    out = tmp_path / "out"
    keys = set(begun(data, out))

    def changed(**changes):
        found = set(begun(data, out, **changes))
        assert len(found - keys) == 1, "a new key was due"
        keys.update(found)

    changed(max_length=100, batch_tokens=600, micro_batch_tokens=600)
    changed(dtype="bfloat16")
    rows = [json.loads(line) for line in (data / "pairs.jsonl").read_text().splitlines()]
    write_rows(data / "pairs.jsonl", [*rows[:-1], rows[-1] | {"chosen": "good good"}])
    changed()
    other = same_length(rows[-1]["rejected"], data)
    write_rows(data / "pairs.jsonl", [*rows[:-1], rows[-1] | {"rejected": other}])
    changed()
    tensors = load_file(data / "base" / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 1.01
    save_file(tensors, data / "base" / "model.safetensors", metadata={"format": "pt"})
    changed()
    (data / "base" / "chat_template.jinja").write_text("Cutting Knowledge Date")  # more ids
    changed(max_length=200, batch_tokens=800, micro_batch_tokens=800)
    (data / "base" / "chat_template.jinja").unlink()
    changed(max_length=200, batch_tokens=800, micro_batch_tokens=800)
    monkeypatch.setattr(reference, "CODE", reference.CODE[1:])  # as if model.py were another
    changed()
    run("dpo", data, out, crash_at=0, lr=1.0, beta=0.3, seed=1)  # on these they do not depend
    assert {file.name for file in out.glob("reference-*")} == keys


def test_held_out_pairs_have_a_key_of_their_own(data, tmp_path):
    """As many of them as are trained on, or others in the same file: never the same table."""
    rows = (data / "pairs.jsonl").read_text().splitlines(keepends=True)
    (data / "held_pairs.jsonl").write_text("".join(rows[::-1]))
    held = {"heldout_pairs": f"{data}/held_pairs.jsonl"}
    first = begun(data, tmp_path / "out", **held)
    assert len(first) == 2
    (data / "held_pairs.jsonl").write_text("".join(rows[10:] + rows[:10]))
    assert len(begun(data, tmp_path / "out", **held)) == 3


def test_a_table_of_another_model_and_a_changed_or_torn_file_are_refused(data, tmp_path):
    (file,) = begun(data, tmp_path / "out").values()
    whole, logps = file.read_bytes(), load_file(file)["logps"]
    other = logps + 0.01 * torch.eye(50, 2)  # one number, by little
    save_file({"logps": other}, file, metadata={"sha256": reference.digest(other)})
    with pytest.raises(UserError, match=f"{file.name}: is not of this model and data; delete it"):
        begun(data, tmp_path / "out")
    for place in (-1, -200, -400 + 1):  # a bit of any number, also of pairs that are not checked
        changed = bytearray(whole)
        changed[place] ^= 1
        file.write_bytes(changed)
        with pytest.raises(UserError, match=f"{file.name}: is not as it was written; delete it"):
            begun(data, tmp_path / "out")
    save_file({"other": logps}, file)
    with pytest.raises(UserError, match=f"{file.name}: is not as it was written; delete it"):
        begun(data, tmp_path / "out")
    file.write_bytes(whole[:-40])
    with pytest.raises(UserError, match=f"{file.name}: not a readable safetensors file"):
        begun(data, tmp_path / "out")
    file.unlink()
    assert torch.equal(load_file(*begun(data, tmp_path / "out").values())["logps"], logps)


def test_a_resumed_run_has_the_reference_of_its_first_step(data, tmp_path):
    """Not the policy it goes on with: the first logged margin would be 0 again."""
    run("dpo", data, tmp_path / "whole", lr=1e-2, save_every=2)
    run("dpo", data, tmp_path / "stopped", lr=1e-2, save_every=2, crash_at=2)
    (file,) = (tmp_path / "stopped").glob("reference-*.safetensors")
    for change in (lambda: None, file.unlink):  # read back, and computed once more
        change()
        rows = run("dpo", data, tmp_path / "stopped", lr=1e-2, save_every=2, crash_at=3)
        whole = read_metrics(tmp_path / "whole")[: len(rows)]
        assert [row["rewards/margins"] for row in rows] == [r["rewards/margins"] for r in whole]
        assert abs(rows[2]["rewards/margins"]) > 1e-3
