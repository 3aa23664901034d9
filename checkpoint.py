"""Hugging Face folders in and out: the hand-over between stages is the path of such a folder.

    out/sft/  config.json  model.safetensors (or an index and shards)  tokenizer.json ...

Tensors move one at a time, so memory holds the model and one tensor more. Every name and shape is
checked against config.json before a weight is read. Nothing is pickled: .bin files are refused.
"""

import hashlib
import json
import shutil
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch.distributed.tensor import DTensor

from config import UserError, read_json
from kernels.adamw import join, split
from parallel import local, on_rank0
from streams import named, stream, sync

SHARD_BYTES = 4 * 2**30  # a file of weights is closed when it would grow beyond this
INDEX = "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")
PICKLES = (".bin", ".pt", ".pth", ".pkl")
OURS = {"written_by": "minfin"}  # in the header of what we export: this may be written over
COPIED = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
          "chat_template.jinja", "generation_config.json")  # fmt: skip


def is_main():
    return not dist.is_initialized() or dist.get_rank() == 0


def barrier():
    if dist.is_initialized():
        dist.barrier()


def named_weights(model):
    """{checkpoint name: parameter}; a tied head is the embedding and has no name of its own."""
    return dict(model.named_parameters())


def read_config(path):
    """config.json of a checkpoint folder. UserError if the folder is not one."""
    if not Path(path).is_dir():
        raise UserError(f"{path}: no such checkpoint folder")
    if not (Path(path) / "config.json").exists():
        raise UserError(f"{path}: not a checkpoint: it has no config.json")
    return read_json(Path(path) / "config.json")


def weight_files(path):
    """{tensor name: file} of a Hugging Face folder. UserError for anything but safetensors."""
    path = Path(path)
    if (path / INDEX).exists():
        where = path / INDEX
        weight_map = read_json(where).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise UserError(f"{where}: weight_map: must map tensor names to files")
        for name, file in weight_map.items():
            if not isinstance(file, str) or Path(file).name != file or file in ("", "..", "."):
                raise UserError(f"{where}: weight_map: {name}: {file!r} is not a plain file name")
            if not (path / file).exists():
                raise UserError(f"{where}: {file} is named here but missing")
        return {name: path / file for name, file in weight_map.items()}
    file = path / "model.safetensors"
    if file.exists():
        return dict.fromkeys(header(file), file)
    if not path.is_dir():
        raise UserError(f"{path}: no such checkpoint folder")
    pickles = sorted(p.name for p in path.iterdir() if p.suffix in PICKLES)
    if pickles:
        raise UserError(f"{path}: {pickles[0]} is a pickle and not read; convert it to safetensors")
    raise UserError(f"{path}: not a checkpoint: neither model.safetensors nor {INDEX}")


def has_weights(path):
    """Is there anything that weight_files would read or refuse? A folder to plan with has none."""
    return any(p.name == INDEX or p.suffix in (".safetensors", *PICKLES)
               for p in Path(path).iterdir())  # fmt: skip


def check_layers(path, layers):
    """UserError if the weights are of fewer blocks: before a model is built by a wrong number."""
    found = {name.split(".")[2] for name in weight_files(path) if name.startswith("model.layers.")}
    if layers > len(found):
        raise UserError(f"{path}/config.json: num_hidden_layers: {layers}, but the weights are of "
                        f"{len(found)} blocks")  # fmt: skip


def sha_of_weights(path):
    """Sixteen hex digits of a checkpoint's config and weights."""
    digest = hashlib.sha256()
    for file in [Path(path) / "config.json", *sorted(Path(path).glob("*.safetensors"))]:
        with open(file, "rb") as f:
            digest.update(hashlib.file_digest(f, "sha256").digest())
    return digest.hexdigest()[:16]


def header(file):
    """{tensor name: shape} of a safetensors file. UserError if it is torn, not one, or of
    anything but floating-point numbers."""
    try:
        with safe_open(file, framework="pt") as f:
            slices = {name: f.get_slice(name) for name in f.keys()}
            kinds = {name: part.get_dtype() for name, part in slices.items()}
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
    except (SafetensorError, OSError) as e:
        raise UserError(f"{file}: not a readable safetensors file: {e}") from None
    for name, kind in kinds.items():
        if kind not in FLOATS:
            raise UserError(
                f"{file}: {name}: dtype {kind} is not supported, only {', '.join(FLOATS)}"
            )
    return shapes


def checked_files(params, path):
    """weight_files(path), after every name and shape agreed with the model's parameters."""
    files = weight_files(path)
    shapes = {file: header(file) for file in set(files.values())}
    if "lm_head.weight" in files and "lm_head.weight" not in params:
        files.pop("lm_head.weight")  # tied by config: the copy in the file is the embedding
    for name, p in params.items():
        if name not in files or name not in shapes[files[name]]:
            hint = " (tie_word_embeddings is false)" if name == "lm_head.weight" else ""
            raise UserError(f"{path}: {name}: missing{hint}")
        found = shapes[files[name]][name]
        if found != tuple(p.shape):
            raise UserError(f"{path}: {name}: shape {found}, config.json asks for {tuple(p.shape)}")
    extra = [
        name for name in files if name not in params and not name.endswith("rotary_emb.inv_freq")
    ]
    if extra:
        raise UserError(f"{path}: {extra[0]}: a tensor this Llama does not have")
    return files


@torch.no_grad()
def load_weights(model, path):
    """Fill a model, sharded or not, from a Hugging Face folder; each rank reads only its rows."""
    params = named_weights(model)
    files = checked_files(params, path)
    for file in sorted(set(files.values())):
        with safe_open(file, framework="pt") as f:
            for name in params:
                if files[name] == file:
                    copy_rows(params[name], f.get_slice(name))


def span(p, writer=False):
    """The rows [begin, end) of p's global shape that this rank holds; as a writer none, if they are
    those of another copy of the model too (HSDP) and the first copy is to write them.

    FSDP shards by rows: of n rows rank r holds ceil(n / ranks), from r * ceil(n / ranks) on.
    """
    begin = 0
    if isinstance(p, DTensor):
        for dim, placement in enumerate(p.placements):
            rank, ranks = p.device_mesh.get_local_rank(dim), p.device_mesh.size(dim)
            if placement.is_shard():
                begin = min(p.shape[0], rank * -(-p.shape[0] // ranks))
            elif writer and rank > 0:
                return 0, 0
    return begin, begin + len(local(p))


def copy_rows(p, source, first=0, rows=None):
    """p <- source, a tensor or safetensors slice that holds rows first .. first + rows (all of
    them) of p's global shape; bf16 in training is exact, as p.low takes what does not fit into p.
    """
    begin, end = span(p)
    low, high = max(begin, first), min(end, first + (p.shape[0] if rows is None else rows))
    if low >= high:
        return
    values, mine = source[low - first : high - first], slice(low - begin, high - begin)
    if hasattr(p, "low"):
        weight, rest = split(values.to(p.device, torch.float32))
        local(p)[mine].copy_(weight)
        local(p.low)[mine].copy_(rest)
    else:
        local(p)[mine].copy_(values)


def held(tensor, count=None):
    """This rank's rows, or the first `count` of them, in place of a bf16 parameter in training
    those of its fp32 master."""
    rows = local(tensor.detach())[:count]
    return join(rows, local(tensor.low)[:count]) if hasattr(tensor, "low") else rows


def whole(tensor, on_cpu=True):
    """The full tensor, in place of a bf16 parameter in training its fp32 master. Every rank must
    call it: the shards are gathered; on_cpu where it is wanted."""
    full = tensor.detach()
    if hasattr(tensor, "low"):
        full = full.float()  # for its shape and sharding
        local(full).copy_(held(tensor))
    full = full.full_tensor() if isinstance(full, DTensor) else full
    return full.cpu().contiguous() if on_cpu else full


def check_out_dir(out):
    """UserError if a folder holds a model that is not one of ours: it would be written over."""
    files = [f for f in sorted(Path(out).glob("*.safetensors")) if f.name[:10] != "reference-"]
    for file in files:
        header(file)
        with safe_open(file, framework="pt") as f:
            if (f.metadata() or {}).get("written_by") != OURS["written_by"]:
                raise UserError(f"{file}: a model that no run wrote here; take another out_dir")
    if not files and (Path(out) / "config.json").exists():
        raise UserError(f"{out}: a model that no run wrote here; take another out_dir")


def shards(params, dtype):
    """[[name]]: which tensors share a file of SHARD_BYTES."""
    found, size = [[]], 0
    for name, p in params.items():
        if found[-1] and size + p.numel() * dtype.itemsize > SHARD_BYTES:
            found.append([])
            size = 0
        found[-1].append(name)
        size += p.numel() * dtype.itemsize
    return found


def write_weights(folder, params, dtype, stem):
    """Rank 0 writes model.safetensors, or shards and their index; all ranks gather."""
    files, weight_map = shards(params, dtype), {}
    for i, names in enumerate(files):
        file = "model.safetensors" if len(files) == 1 else f"{stem}-{i + 1:05d}.safetensors"
        weight_map |= dict.fromkeys(names, file)
        tensors = (whole(params[name], on_cpu=is_main()).to(dtype) for name in names)
        if is_main():
            specs = {name: (dtype, params[name].shape) for name in names}
            stream(folder / file, specs, tensors, OURS)
        else:
            for _ in tensors:  # each takes part in gathering it
                pass
    if is_main() and len(files) > 1:
        total = sum(p.numel() for p in params.values()) * dtype.itemsize
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2))


def free_stem(out):
    """A stem for shards under which the model in the folder has none: both may lie side by side."""
    used = (out / INDEX).read_text(errors="replace") if (out / INDEX).exists() else ""
    return "model.b" if '"model-' in used else "model"


def save_pretrained(model, out, source, dtype=torch.float32):
    """Write a folder that the next stage and transformers load as it is.

    source: the folder the model began from; its tokenizer, generation_config.json and config.json
    are copied, of the last only the dtype changes. The files are written aside, then renamed; a
    model of ours that is there can be loaded at every moment. UserError if one is there that is not
    ours, or what is written does not fit the disk. All ranks must call it.
    """
    out, source = Path(out), Path(source)
    tmp = out / "model.tmp"
    stem = on_rank0(prepare, out, tmp)
    try:
        with named(tmp):
            write_weights(tmp, named_weights(model), dtype, stem)
            if is_main():
                describe(tmp, source, dtype)
                publish(tmp, out)
    except OSError as e:
        shutil.rmtree(tmp, ignore_errors=True)
        where = f"{e.filename}: {e.strerror}"
        raise UserError(f"{where}; not exported; what was in {out} stands") from None
    barrier()


def prepare(out, tmp):
    """Make an empty folder to write to, and choose free_stem(out)."""
    check_out_dir(out)
    try:
        with named(tmp):
            shutil.rmtree(tmp, ignore_errors=True)
            tmp.mkdir(parents=True)
    except OSError as e:
        raise UserError(f"{e.filename}: {e.strerror}") from None
    return free_stem(out)


def describe(tmp, source, dtype):
    """Add what a folder needs besides weights."""
    for file in COPIED:
        if (source / file).exists():
            shutil.copyfile(source / file, tmp / file)
    config = read_config(source)
    config["dtype" if "dtype" in config else "torch_dtype"] = str(dtype).removeprefix("torch.")
    (tmp / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def publish(tmp, out):
    """Move the files of tmp to out, and what is read first last: an index behind its shards,
    config.json behind all. What is left of the model before goes after that, its index first."""
    sync(*tmp.iterdir(), tmp)
    new = {file.name for file in tmp.iterdir()}
    last = (INDEX, "model.safetensors", "config.json")
    for name in sorted(new, key=lambda name: last.index(name) if name in last else -1):
        (tmp / name).rename(out / name)
    sync(out)
    for stale in [out / INDEX, *sorted(out.glob("model*.safetensors"))]:
        if stale.name not in new:
            stale.unlink(missing_ok=True)
    tmp.rmdir()
    sync(out)
