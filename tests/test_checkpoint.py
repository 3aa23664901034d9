import errno
import hashlib
import json
import struct
import weakref
from pathlib import Path

import pytest
import torch
from runs import torchrun
from safetensors.torch import load_file, save_file
from tiny import write_checkpoint

import checkpoint
import streams
from checkpoint import INDEX, load_weights, save_pretrained
from config import UserError
from model import Llama
from tokenizer import Tokenizer


@pytest.fixture
def source(tmp_path):
    return write_checkpoint(tmp_path / "source", tie_word_embeddings=False)


def equal(model, other):
    pairs = zip(model.named_parameters(), other.named_parameters(), strict=True)
    return all(a == b and torch.equal(p, q) for (a, p), (b, q) in pairs)


def edit(path, **tensors):
    """Replace, add or (None) remove tensors of a folder with a single file."""
    found = load_file(path / "model.safetensors") | tensors
    found = {k: v.contiguous() for k, v in found.items() if v is not None}
    save_file(found, path / "model.safetensors", metadata={"format": "pt"})


def refused(path):
    """The one line with which a folder is refused."""
    with pytest.raises(UserError) as e:
        Llama.from_pretrained(path)
    assert "\n" not in str(e.value) and str(path) in str(e.value)
    return str(e.value)


def sharded(source, out, monkeypatch, size=20_000):
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", size)
    save_pretrained(Llama.from_pretrained(source), out, source)
    return out


# ---- folders that load ---------------------------------------------------------------------------


def test_an_index_with_shards_loads_as_the_single_file_does(source, tmp_path, monkeypatch):
    out = sharded(source, tmp_path / "out", monkeypatch)
    files = sorted(out.glob("*.safetensors"))
    assert len(files) > 3 and not (out / "model.safetensors").exists()
    assert equal(Llama.from_pretrained(out), Llama.from_pretrained(source))
    index = json.loads((out / INDEX).read_text())
    held = {name: f.name for f in files for name in load_file(f)}
    assert index["weight_map"] == held
    total = sum(t.nbytes for f in files for t in load_file(f).values())
    assert index["metadata"]["total_size"] == total


def test_no_shard_is_larger_than_the_limit_unless_one_tensor_is(source, tmp_path, monkeypatch):
    for file in sharded(source, tmp_path / "out", monkeypatch).glob("*.safetensors"):
        tensors = load_file(file).values()
        assert len(tensors) == 1 or sum(t.nbytes for t in tensors) <= 20_000


def test_transformers_loads_our_shards(source, tmp_path, monkeypatch):
    from transformers import LlamaForCausalLM

    out = sharded(source, tmp_path / "out", monkeypatch)
    theirs, report = LlamaForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ours = load_file(source / "model.safetensors")
    assert all(torch.equal(ours[name], p) for name, p in theirs.named_parameters())


def test_a_head_in_the_file_of_a_tied_model_is_the_embedding(tmp_path):
    path = write_checkpoint(tmp_path / "tied")
    embedding = load_file(path / "model.safetensors")["model.embed_tokens.weight"]
    edit(path, **{"lm_head.weight": embedding.clone()})
    model = Llama.from_pretrained(path)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_the_frequencies_that_old_checkpoints_store_are_passed_over(source):
    edit(source, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    Llama.from_pretrained(source)


# ---- folders that do not -------------------------------------------------------------------------


def test_a_missing_head_is_an_error_when_it_is_not_tied(source):
    edit(source, **{"lm_head.weight": None})
    assert "lm_head.weight: missing (tie_word_embeddings is false)" in refused(source)


@pytest.mark.parametrize(
    "name, tensor, complaint",
    [
        ("model.norm.weight", None, "model.norm.weight: missing"),
        ("model.layers.1.mlp.up_proj.weight", None, "missing"),
        ("model.norm.weight", torch.ones(31), "shape (31,), config.json asks for (32,)"),
        ("model.layers.0.self_attn.k_proj.weight", torch.ones(32, 32), "shape (32, 32)"),
        ("model.layers.0.self_attn.q_proj.bias", torch.ones(32), "does not have"),
        ("model.layers.2.mlp.up_proj.weight", torch.ones(48, 32), "does not have"),
    ],
)
def test_every_name_and_every_shape_is_checked(source, name, tensor, complaint):
    edit(source, **{name: tensor})
    line = refused(source)
    assert name in line and complaint in line


@pytest.mark.parametrize("file", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..",
                                  "", 3, None])  # fmt: skip
def test_an_index_cannot_point_outside_its_folder(source, tmp_path, monkeypatch, file):
    out = sharded(source, tmp_path / "out", monkeypatch)
    index = json.loads((out / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = file
    (out / INDEX).write_text(json.dumps(index))
    assert "weight_map: model.norm.weight" in refused(out)


def test_an_index_that_names_the_wrong_file_or_none_is_refused(source, tmp_path, monkeypatch):
    out = sharded(source, tmp_path / "out", monkeypatch)
    text = (out / INDEX).read_text()
    index = json.loads(text)
    other = next(
        f for f in index["weight_map"].values() if f != index["weight_map"]["lm_head.weight"]
    )
    index["weight_map"]["lm_head.weight"] = other  # there, but without this tensor
    (out / INDEX).write_text(json.dumps(index))
    assert "lm_head.weight: missing" in refused(out)
    (out / INDEX).write_text(json.dumps({"weight_map": {}}))
    assert "weight_map" in refused(out)
    (out / INDEX).write_text(text[: len(text) // 2])
    assert f"{out / INDEX}:" in refused(out) and "not valid json" in refused(out)
    (out / INDEX).write_text(text)
    (out / other).unlink()
    assert f"{other} is named here but missing" in refused(out)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "weights.pt"])
def test_a_pickle_is_refused_by_name(source, name):
    (source / "model.safetensors").rename(source / name)
    line = refused(source)
    assert name in line and "safetensors" in line


def test_a_torn_or_foreign_file_is_refused_by_name(source):
    file = source / "model.safetensors"
    whole = file.read_bytes()
    header = struct.unpack("<Q", whole[:8])[0]
    for content in (
        whole[:-100],
        whole[: 8 + header // 2],
        b"",
        b"version https://git-lfs.github.com/spec/v1\n",
        struct.pack("<Q", 2**40) + whole[8:],  # a header larger than the file
    ):
        file.write_bytes(content)
        assert f"{file}: not a readable safetensors file" in refused(source)


def test_a_folder_that_is_no_checkpoint_is_refused(source, tmp_path):
    assert "no such checkpoint folder" in refused(tmp_path / "nowhere")
    model = Llama.from_pretrained(source)
    for path in (tmp_path / "nowhere", source / "config.json"):
        with pytest.raises(UserError, match="no such checkpoint folder"):
            load_weights(model, path)
    (source / "model.safetensors").unlink()
    assert "neither model.safetensors nor" in refused(source)


# ---- what is written -----------------------------------------------------------------------------


def test_the_exported_folder_differs_from_its_source_in_weights_and_dtype_only(source, tmp_path):
    for extra in ("special_tokens_map.json", "chat_template.jinja"):
        (source / extra).write_text("{}\n")
    raw = json.loads((source / "config.json").read_text()) | {"a key of theirs": [1, {"b": None}]}
    (source / "config.json").write_text(json.dumps(raw))
    out = tmp_path / "out"
    save_pretrained(Llama.from_pretrained(source), out, source, dtype=torch.bfloat16)
    assert {p.name for p in out.iterdir()} == {p.name for p in source.iterdir()}
    for file in source.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            assert (out / file.name).read_bytes() == file.read_bytes()
    assert json.loads((out / "config.json").read_text()) == raw | {"torch_dtype": "bfloat16"}
    assert {t.dtype for t in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    chat = [{"role": "user", "content": "the rate"}, {"role": "assistant", "content": "good"}]
    assert Tokenizer(out).chat(chat) == Tokenizer(source).chat(chat)
    assert Tokenizer(out).stop_ids == Tokenizer(source).stop_ids


def test_the_newer_spelling_of_dtype_is_kept(source, tmp_path):
    raw = json.loads((source / "config.json").read_text())
    del raw["torch_dtype"]
    (source / "config.json").write_text(json.dumps(raw | {"dtype": "float32"}))
    save_pretrained(Llama.from_pretrained(source), tmp_path / "out", source, torch.bfloat16)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == raw | {"dtype": "bfloat16"}


def test_a_tied_head_is_written_once(tmp_path):
    source = write_checkpoint(tmp_path / "source")
    save_pretrained(Llama.from_pretrained(source), tmp_path / "out", source)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert "lm_head.weight" not in tensors and "model.embed_tokens.weight" in tensors
    assert equal(Llama.from_pretrained(tmp_path / "out"), Llama.from_pretrained(source))


def test_an_export_over_shards_leaves_none_of_them(source, tmp_path, monkeypatch):
    out = sharded(source, tmp_path / "out", monkeypatch)
    monkeypatch.undo()
    model = Llama.from_pretrained(source)
    with torch.no_grad():
        model.model.norm.weight.add_(1)
    save_pretrained(model, out, source)
    assert [p.name for p in out.glob("model*")] == ["model.safetensors"]
    assert equal(Llama.from_pretrained(out), model)


@pytest.mark.parametrize("owner, name", [(checkpoint, "stream"), (checkpoint, "sync"),
                                         (Path, "write_text"), (Path, "mkdir")])  # fmt: skip
def test_an_export_that_breaks_off_leaves_the_old_folder_as_it_was(
    source, tmp_path, monkeypatch, owner, name
):
    out = tmp_path / "out"
    model = Llama.from_pretrained(source)
    save_pretrained(model, out, source)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    write = getattr(owner, name)

    def full_disk(*args, **named):
        write(*args, **named)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(owner, name, full_disk)
    with pytest.raises(UserError) as e:
        save_pretrained(model, out, source)
    assert str(e.value).startswith(f"{out / 'model.tmp'}: No space left on device")
    assert {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()} == before
    assert not (out / "model.tmp").exists() or name == "mkdir"
    monkeypatch.undo()
    save_pretrained(model, out, source)  # and what lies about does not disturb the next one
    assert {p.name for p in out.iterdir()} == set(before)


def test_no_more_than_one_tensor_is_held_while_writing(source, tmp_path, monkeypatch):
    """A tensor is gone before the next one is gathered."""
    alive, most, whole = [], [], checkpoint.whole

    def counted(tensor, **named):
        most.append(sum(ref() is not None for ref in alive))
        full = whole(tensor, **named).clone()
        alive.append(weakref.ref(full))
        return full

    monkeypatch.setattr(checkpoint, "whole", counted)
    save_pretrained(Llama.from_pretrained(source), tmp_path / "out", source)
    assert len(most) > 20 and max(most) == 0


@pytest.mark.parametrize("new", [None, 20_000])
@pytest.mark.parametrize("old", [None, 20_000, "twice"])
def test_the_folder_holds_one_whole_model_at_every_moment(source, tmp_path, monkeypatch, old, new):
    """Single files over shards and back, shards over shards: before each call that moves or deletes
    a file, ours and transformers load the model before or the new one, never a mixture."""
    from transformers import LlamaForCausalLM

    out, model = tmp_path / "out", Llama.from_pretrained(source)
    for _ in range(2 if old == "twice" else 1):  # the second time under the other names
        monkeypatch.setattr(checkpoint, "SHARD_BYTES", 20_000 if old else 2**32)
        save_pretrained(model, out, source)
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", new or 2**32)
    after = Llama.from_pretrained(source)
    with torch.no_grad():
        for p in after.parameters():
            p.add_(1)
    seen = []

    def watched(name):
        real = getattr(Path, name)

        def call(path, *args, **named):
            ours = Llama.from_pretrained(out)
            theirs = LlamaForCausalLM.from_pretrained(out)
            for found in (dict(ours.named_parameters()), dict(theirs.named_parameters())):
                assert any(
                    all(torch.equal(found[name], p) for name, p in m.named_parameters())
                    for m in (model, after)
                )
            seen.append(name)
            return real(path, *args, **named)

        monkeypatch.setattr(Path, name, call)

    for name in ("rename", "unlink"):
        watched(name)
    save_pretrained(after, out, source)
    assert len(seen) >= 5 and equal(Llama.from_pretrained(out), after)
    assert {"model.safetensors"} == {p.name for p in out.glob("model*")} or new
    shards = {p.name for p in out.glob("model*.safetensors")}
    assert shards == set(map(lambda f: f.name, checkpoint.weight_files(out).values()))


@pytest.mark.parametrize("left", ["all", "config.json", "model.safetensors", "adapter"])
def test_a_model_that_no_run_wrote_is_not_written_over(source, tmp_path, left):
    out = write_checkpoint(tmp_path / "out", seed=1)
    if left == "adapter":
        (out / "model.safetensors").rename(out / "adapter_model.safetensors")
        (out / "config.json").unlink()
    elif left != "all":
        (out / {"config.json": "model.safetensors"}.get(left, "config.json")).unlink()
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    model = Llama.from_pretrained(source)
    for write in (checkpoint.check_out_dir, lambda out: save_pretrained(model, out, source)):
        with pytest.raises(UserError, match="a model that no run wrote here"):
            write(out)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_log_probs_of_a_reference_are_no_model(source, tmp_path):
    save_file({"logps": torch.ones(3, 2)}, tmp_path / "reference-0123.safetensors")
    save_pretrained(Llama.from_pretrained(source), tmp_path, source)
    checkpoint.check_out_dir(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("block", [4096, 2**24])
def test_a_stream_is_what_safetensors_reads(tmp_path, monkeypatch, dtype, block):
    tensors = {"b": torch.randn(5, 3), "a": torch.randn(7), "none": torch.zeros(0, 4),
               "turned": torch.randn(99, 60).T, "\u00e9\"": torch.randn(1)}  # fmt: skip
    tensors = {name: t.to(dtype) for name, t in tensors.items()}
    file = tmp_path / "x.safetensors"
    monkeypatch.setattr(streams, "BLOCK_BYTES", block)
    specs = {name: (dtype, t.shape) for name, t in tensors.items()}
    note = checkpoint.stream(file, specs, iter(tensors.values()), {"key": "value"})
    raw = file.read_bytes()
    assert note == {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    assert (8 + struct.unpack("<Q", raw[:8])[0]) % 8 == 0
    got = load_file(file)
    assert got.keys() == tensors.keys() and all(torch.equal(got[k], tensors[k]) for k in got)
    with checkpoint.safe_open(file, framework="pt") as f:
        assert f.metadata() == {"format": "pt", "key": "value"}
    with pytest.raises(ValueError, match="announced as"):
        checkpoint.stream(file, {"a": (dtype, (8,))}, [torch.ones(7, dtype=dtype)])


def test_rows_are_split_over_ranks_that_do_not_divide_them(tmp_path):
    """385 rows of vocabulary and norms of 4 on three ranks: 129 + 129 + 127 and 2 + 2 + 0. In fp32,
    and in bf16, where the weights of the file do not fit into a parameter alone."""
    source = write_checkpoint(tmp_path / "source", vocab_size=385, hidden_size=4, head_dim=8)
    dtypes = ("float32", "bfloat16")
    torchrun(3, tmp_path, [{"source": source, "out": tmp_path / d, "dtype": d} for d in dtypes])
    want = load_file(source / "model.safetensors")
    assert any((w != w.bfloat16()).any() for w in want.values())
    for out in dtypes:
        got = load_file(tmp_path / out / "model.safetensors")
        assert want.keys() == got.keys()
        assert all(torch.equal(want[name], got[name]) for name in want)
