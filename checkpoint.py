"""Hugging Face folders in and out: the hand-over between stages is the path of such a folder.

    out/sft/  config.json  model.safetensors (or an index and shards)  tokenizer.json ...

Tensors move one at a time, so memory holds the model and little more. Every name and shape is
checked against config.json before a weight is read. Nothing is pickled: .bin files are refused.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from config import UserError, read_json
from kernels.adamw import join, split
from parallel import local

SHARD_BYTES = 4 * 2**30  # a file of weights is closed when it would grow beyond this
INDEX = "model.safetensors.index.json"


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
    pickles = sorted(p.name for p in path.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".pkl"))
    if pickles:
        raise UserError(f"{path}: {pickles[0]} is a pickle and not read; convert it to safetensors")
    raise UserError(f"{path}: not a checkpoint: neither model.safetensors nor {INDEX}")


def sha_of_weights(path):
    """Sixteen hex digits of a checkpoint's config and weights."""
    digest = hashlib.sha256()
    for file in [Path(path) / "config.json", *sorted(Path(path).glob("*.safetensors"))]:
        with open(file, "rb") as f:
            digest.update(hashlib.file_digest(f, "sha256").digest())
    return digest.hexdigest()[:16]


def header(file):
    """{tensor name: shape} of a safetensors file. UserError if it is torn or not one."""
    try:
        with safe_open(file, framework="pt") as f:
            return {name: tuple(f.get_slice(name).get_shape()) for name in f.keys()}
    except (SafetensorError, OSError) as e:
        raise UserError(f"{file}: not a readable safetensors file: {e}") from None


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


def copy_rows(p, source):
    """p <- source, a tensor or safetensors slice of p's global shape; bf16 in training is exact,
    as p.low takes what does not fit into p.

    FSDP shards by rows: of n rows rank r holds ceil(n / ranks), from r * ceil(n / ranks) on.
    """
    begin = 0
    if isinstance(p, DTensor):
        begin = p.device_mesh.get_local_rank() * -(-p.shape[0] // p.device_mesh.size())
    rows = len(local(p))
    if rows and hasattr(p, "low"):
        weight, low = split(source[begin : begin + rows].to(p.device, torch.float32))
        local(p).copy_(weight)
        local(p.low).copy_(low)
    elif rows:
        local(p).copy_(source[begin : begin + rows])


def whole(tensor):
    """The full tensor on the CPU, in place of a bf16 parameter in training its fp32 master. Every
    rank must call it: the shards are gathered."""
    full = tensor.detach()
    if hasattr(tensor, "low"):
        full = full.float()  # for its shape and sharding
        local(full).copy_(join(local(tensor.detach()), local(tensor.low)))
    return (full.full_tensor() if isinstance(full, DTensor) else full).cpu().contiguous()


def write_tensors(folder, stem, tensors, dtype=None):
    """Stream (name, tensor) pairs into safetensors files of SHARD_BYTES; rank 0 writes.

    Memory beyond the model: one file's tensors. Returns {name: file name}.
    """
    shard, size, shards = {}, 0, []
    for name, tensor in tensors:
        full = whole(tensor)
        full = full.to(dtype or full.dtype)
        if not is_main():
            continue
        if shard and size + full.nbytes > SHARD_BYTES:
            shards.append(write_shard(folder, stem, len(shards), shard))
            shard, size = {}, 0
        shard[name], size = full, size + full.nbytes
    if shard:
        shards.append(write_shard(folder, stem, len(shards), shard))
    return {name: file for names, file in shards for name in names}


def write_shard(folder, stem, index, tensors):
    file = f"{stem}-{index + 1:05d}.safetensors"
    save_file(tensors, folder / file, metadata={"format": "pt"})
    return list(tensors), file


def sync_folder(folder):
    """Flush every file of a folder, then the folder itself, to the disk."""
    for path in [*(p for p in folder.rglob("*") if p.is_file()), folder]:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


def save_pretrained(model, out, source, dtype=torch.float32):
    """Write a folder that the next stage and transformers load as it is.

    source: the folder the model began from; its tokenizer, generation_config.json and config.json
    are copied, of the last only the dtype changes. The files are written aside, then renamed one by
    one over those of `out`, config.json last. All ranks must call it.
    """
    out, source = Path(out), Path(source)
    tmp = out / "model.tmp"
    if is_main():
        shutil.rmtree(tmp, ignore_errors=True)
        tmp.mkdir(parents=True)
    barrier()
    weight_map = write_tensors(tmp, "model", named_weights(model).items(), dtype)
    if is_main():
        if len(set(weight_map.values())) == 1:
            (tmp / "model-00001.safetensors").rename(tmp / "model.safetensors")
        else:
            total = sum(p.numel() for p in model.parameters()) * dtype.itemsize
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (tmp / INDEX).write_text(json.dumps(index, indent=2))
        for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                     "chat_template.jinja", "generation_config.json"):  # fmt: skip
            if (source / file).exists():
                shutil.copyfile(source / file, tmp / file)
        config = read_config(source)
        config["dtype" if "dtype" in config else "torch_dtype"] = str(dtype).removeprefix("torch.")
        (tmp / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        sync_folder(tmp)
        for stale in [*out.glob("model*.safetensors"), out / INDEX]:
            stale.unlink(missing_ok=True)
        for file in sorted(tmp.iterdir(), key=lambda p: p.name == "config.json"):
            file.rename(out / file.name)
        tmp.rmdir()
        sync_folder(out)
    barrier()
