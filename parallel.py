"""One process or many: `python train_x.py` and `torchrun --nproc_per_node N train_x.py` run the
same code. Weights, gradients and optimizer state are always sharded by rows over the ranks (FSDP2),
over a single one too, so no script has a branch for it. gloo on CPU, NCCL on GPUs.
"""

import contextlib
import functools
import hashlib
import os
import signal
import sys
import traceback
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint as recomputed

from config import UserError

TIMEOUT = timedelta(minutes=10)  # a collective that waits longer is a bug; torchrun ends the rest
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def init(device="auto", timeout=TIMEOUT):
    """Join the other ranks. Returns (rank, world, device); "auto" takes a GPU if there is one."""
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"device: {device!r} is not auto, cpu or cuda")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda is asked for, but torch sees no GPU")
    # Of 4 KB pages every new one costs a fault: huge ones took 8% off a step of a tiny model with
    # 128,256 tokens on a CPU. PyTorch asks for them if this is set before its first large tensor.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device(device, local_rank) if device == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        if "RANK" in os.environ:
            dist.init_process_group(backend, timeout=timeout)
        else:  # plain python: a store in memory, no port
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return dist.get_rank(), dist.get_world_size(), device


def print0(*words):
    """Print on rank 0, at once."""
    if not dist.is_initialized() or dist.get_rank() == 0:
        print(*words, flush=True)


def sum_over_ranks(tensor):
    """The element-wise sum of every rank's tensor, on every rank."""
    total = tensor.clone()
    if dist.is_initialized():
        dist.all_reduce(total)
    return total


def local(tensor):
    """This rank's rows of a sharded tensor, without a copy; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def on_rank0(function, *args):
    """function(*args) on rank 0; its result, or its UserError, on every rank.

    For decisions taken by what is on the disk: ranks that saw different things would part ways and
    wait for each other for ever.
    """
    outcome = [None, None]
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            outcome[0] = function(*args)
        except UserError as e:
            outcome[1] = str(e)
    if dist.is_initialized():
        dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise UserError(outcome[1])
    return outcome[0]


def check_same(value, what):
    """UserError unless every rank has the same value; otherwise they would wait for each other."""
    digests = [None] * dist.get_world_size()
    dist.all_gather_object(digests, hashlib.sha256(repr(value).encode()).hexdigest())
    if len(set(digests)) > 1:
        raise UserError(f"the ranks disagree on {what}: do all machines hold the same files?")


def auto_dtype(name, device):
    """torch dtype of weights and forward pass: "auto" is bfloat16 on a GPU, float32 on a CPU."""
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    if name not in DTYPES:
        raise UserError(f"dtype: {name!r} is not auto, float32 or bfloat16")
    return DTYPES[name]


def shard(model, device, dtype="auto", recompute=False):
    """Spread a model built on the meta device over the ranks; weights are allocated, not filled.

    Weights, activations and gradients are in `dtype`; what is updated is an fp32 master always, as
    at a learning rate of 5e-7 bf16 would round most updates to nothing. In bf16 each parameter p is
    the rounded master and p.low the other half of its bits (kernels/adamw.py). Bytes a parameter:

        dtype      weight   p.low   gradient   Adam moments
        bfloat16      2       2         2         4 + 4        14
        float32       4       -         4         4 + 4        16

    With several micro-batches a step, 4 more on every rank, unsharded: see below.
    recompute: keep only each block's input for the backward pass, and run its forward again there.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    dtype = auto_dtype(dtype, device)
    model.to(dtype)
    # Gradients are added up in fp32 over ranks and micro-batches, and only their sum is rounded to
    # dtype: what is not reduced yet, FSDP keeps in reduce_dtype. So a step of several micro-batches
    # takes 4 more bytes a parameter, of all parameters on every rank.
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for block in model.model.layers:
        if recompute:
            block.forward = functools.partial(recomputed, block.forward, use_reentrant=False)
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # Left to itself FSDP keeps the root's weights gathered after a forward without backward (the
    # reference, held-out losses); a state saved or loaded then would miss the real ones.
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    model.to_empty(device=device)
    model.tie_weights()
    if dtype == torch.bfloat16:
        for p in model.parameters():
            p.low = torch.zeros_like(p, dtype=torch.int16, requires_grad=False)
    return model


stop_signals = []  # SIGTERM or SIGINT received; the loop saves and leaves at its next step


def catch_stop_signals():
    """The first SIGTERM or SIGINT asks for a save at the next step, the second ends at once."""
    stop_signals.clear()

    def on_signal(number, frame):
        if stop_signals:
            os._exit(128 + number)
        stop_signals.append(number)
        os.write(2, b"\nstopping at the next step; a second signal ends at once\n")

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)


def fail():
    """Show rank and traceback of the exception being handled and end this process at once."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    print(f"rank {rank} failed:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
    os._exit(1)


@contextlib.contextmanager
def clean_exit():
    """Wrap a script's main: errors leave one line (UserError) or rank + traceback, and exit code 1.

    Ends with os._exit after a barrier: interpreter teardown with live process groups sometimes
    aborts, and one failed rank must not leave the others waiting (torchrun then ends them).
    """
    try:
        yield
    except UserError as e:
        print(f"error: {e}", file=sys.stderr, flush=True)
        os._exit(1)
    except SystemExit:
        raise
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr, flush=True)
        os._exit(130)
    except BrokenPipeError:  # the reader of our output left, as `| head` does
        os._exit(1)
    except OSError as e:
        if e.filename is None:
            fail()
        print(f"error: {e.filename}: {e.strerror}", file=sys.stderr, flush=True)
        os._exit(1)
    except BaseException:
        fail()
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(128 + stop_signals[0] if stop_signals else 0)
