"""Log-probs of replies; and those under the DPO reference, computed once before the first step,
kept in the folder of the run, and checked when read back.

The reference is the checkpoint that the policy starts from. Its log-probs are constants of the run,
so no second model has to stay in memory.
"""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm import tqdm

import parallel
from checkpoint import barrier, header
from config import UserError
from jsonl import sha_of_file
from packing import IGNORE, Plan, micro_batches, size
from parallel import on_rank0

CODE = ("model.py", "packing.py", "reference.py", "kernels/*.py")


def pair_logps(model, batch):
    """Summed log-prob of each reply given its prompt, and its number of tokens.

    batch holds families of prompt, chosen, rejected. Returns (P, 2), (P, 2): chosen and rejected.
    """
    logprobs = model(
        batch.input_ids, batch.position_ids, batch.cu_seqlens, batch.labels, batch.parent
    )  # (N,)
    doc = torch.arange(len(batch.parent), device=logprobs.device)
    doc = doc.repeat_interleave(batch.cu_seqlens.diff())  # (N,): the document of each token
    logps = logprobs.new_zeros(len(batch.parent)).index_add(0, doc, logprobs)  # (B,)
    trained = (batch.labels != IGNORE).to(logps.dtype)
    tokens = torch.zeros_like(logps).index_add(0, doc, trained)
    reply = batch.parent >= 0  # behind each prompt stand its chosen and its rejected reply
    return logps[reply].view(-1, 2), tokens[reply].view(-1, 2)


def pair_index(batch):
    """Which pair of the data each family of a batch is, (P,)."""
    return batch.source[batch.parent >= 0].view(-1, 2)[:, 0]


def tolerance(logps, dtype):
    """How far a log-prob may move when its pair is packed with others: rounding, no more."""
    return 1e-3 if dtype == torch.float32 else 0.02 * logps.abs() + 0.5


def digest(logps):
    return hashlib.sha256(logps.cpu().numpy().tobytes()).hexdigest()


def read_stored(path):
    """The log-probs kept in a file, or None. UserError if one bit of it is not as it was written:
    the pairs that are computed again are only a few."""
    if not path.exists():
        return None
    header(path)
    with safe_open(path, framework="pt") as f:
        logps = f.get_tensor("logps") if "logps" in f.keys() else torch.zeros(0)  # noqa: SIM118
        written = (f.metadata() or {}).get("sha256")
    if digest(logps) != written:
        raise UserError(f"{path}: is not as it was written; delete it")
    return logps


@torch.no_grad()
def reference_logps(model, families, cfg, run, device):
    """(number of pairs, 2) log-probs of chosen and rejected under the model as it is now.

    All ranks share the work. A stored result is used only under the same key, and after some pairs
    were computed again: UserError if they differ.
    """
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    path = Path(cfg.out_dir) / f"reference-{reference_key(cfg, run, families, device)}.safetensors"
    stored = on_rank0(read_stored, path)
    if stored is not None:
        stored = stored.to(device)
        picked = range(0, len(families), -(-len(families) // 8))  # from all over the data
    else:
        picked = range(len(families))
    some = [families[i] for i in picked]
    plan = Plan(list(map(size, some)), cfg.max_length, cfg.batch_tokens, 1, 0)
    logps = torch.zeros(len(some), 2, device=device)
    hidden = rank != 0 or stored is not None
    for step in tqdm(range(plan.steps), "reference", disable=hidden, mininterval=1):
        for batch in micro_batches(
            plan, some, step, rank, world, cfg.micro_batch_tokens, range(len(some))
        ):
            batch = batch.to(device)
            logps[pair_index(batch)] = pair_logps(model, batch)[0].float()
    logps = parallel.sum_over_ranks(logps)
    if stored is not None:
        gap = (logps - stored[list(picked)]).abs()
        if (gap > tolerance(logps, parallel.auto_dtype(cfg.dtype, device))).any():
            raise UserError(f"{path}: is not of this model and data; delete it")
        return stored
    if rank == 0:
        written = path.with_suffix(".tmp")
        save_file({"logps": logps.cpu()}, written, metadata={"sha256": digest(logps)})
        written.rename(path)
    barrier()
    return logps


def reference_key(cfg, run, families, device):
    """Hash of all that the log-probs depend on: weights, token ids of every pair (hence data, chat
    format and tokenizer; run names the training file only), row length, dtype, code."""
    here, config = Path(__file__).parent, Path(cfg.init_from) / "config.json"
    code = [file for pattern in CODE for file in sorted(here.glob(pattern))]
    weights = [value for name, value in run.items() if name.endswith(".safetensors")]
    dtype = str(parallel.auto_dtype(cfg.dtype, device))
    parts = [weights, [sha_of_file(file) for file in [config, *code]], cfg.max_length, dtype]
    key = hashlib.sha256(json.dumps(parts).encode())
    for segment in (segment for members in families for segment in members):
        key.update(len(segment.input_ids).to_bytes(8, "little"))
        key.update(segment.input_ids.tobytes() + segment.labels.tobytes())
    return key.hexdigest()[:16]
