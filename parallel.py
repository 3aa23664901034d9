"""One process or many: `python train_x.py` and `torchrun --nproc_per_node N train_x.py` run the
same code. Weights, gradients and optimizer state are always sharded by rows over the ranks (FSDP2),
over a single one too, so no script has a branch for it. gloo on CPU, NCCL on GPUs.
"""

import contextlib
import functools
import glob
import hashlib
import os
import select
import signal
import sys
import threading
import time
import traceback
from datetime import timedelta
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint as recomputed

import streams
from config import UserError

TIMEOUT = timedelta(minutes=10)  # a collective that waits longer is a bug, of whatever phase
PATIENCE = timedelta(days=7)  # where ranks do not finish together; one that fails ends the job
SILENCE = 20.0  # seconds without a beat, and 5 of the longest gaps so far: this rank hangs
IDLE = 0.02  # a process that uses less of one core than this waits
GRACE = 15.0  # seconds that a signal's answer may take without a beat; torchrun kills after 30
SAVING = 25.0  # the same while a state is saved on several ranks
COPY = 0.5  # seconds in which the same signal again is a copy of the first
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
        # gloo on a GPU machine too: ranks agree on stopping without waiting for their GPUs
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        if "RANK" in os.environ:
            dist.init_process_group(backend, timeout=timeout)
        else:  # plain python: a store in memory, no port
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    pulse.training = False
    beat(watched=False)
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


def shard(model, device, dtype="auto", recompute=False, replicas=1):
    """Spread a model built on the meta device over the ranks; weights are allocated, not filled.

    Weights, activations and gradients are in `dtype`; what is updated is an fp32 master always, as
    at a learning rate of 5e-7 bf16 would round most updates to nothing. In bf16 each parameter p is
    the rounded master and p.low the other half of its bits (kernels/adamw.py). Bytes a parameter:

        dtype      weight   p.low   gradient   Adam moments
        bfloat16      2       2         2         4 + 4        14
        float32       4       -         4         4 + 4        16

    With several micro-batches a step, 4 more on every rank, unsharded: see below.
    recompute: keep only each block's input for the backward pass, and run its forward again there.
    replicas: copies of the model (HSDP), each spread over world / replicas neighbouring ranks, such
    as those of a node: weights are gathered among these only, gradients averaged over all.
    """
    world = dist.get_world_size()
    if replicas < 1 or world % replicas:
        raise UserError(f"{world} ranks cannot share {replicas} copies of the model evenly")
    mesh = init_device_mesh(device.type, (world,))
    if replicas > 1:
        sizes = replicas, world // replicas
        mesh = init_device_mesh(device.type, sizes, mesh_dim_names=("replicas", "shards"))
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


# ---- how a process ends: stop signals, a watchdog, exit codes ------------------------------------

stop_signals = []  # SIGTERM or SIGINT that this rank received
agreed = []  # one that any rank received, once every rank knows of it
pulse = SimpleNamespace(beats=0, at=0.0, longest=0.0, watched=False, training=False, signal_at=0)
pulse.over = False  # does the watchdog's work end here?


def on_signal(number, frame):
    """The first signal asks a training loop to stop, and interrupts anything else; the second ends
    this process at once."""
    now = time.monotonic()
    if stop_signals:
        # A scheduler signals every process, and torchrun hands on the one that it got itself
        if number == stop_signals[0] and now - pulse.signal_at < COPY:
            return
        os._exit(128 + number)
    stop_signals.append(number)
    pulse.signal_at = now
    if pulse.training:
        os.write(2, b"\nstopping; a second signal ends at once\n")
    else:
        raise KeyboardInterrupt


def catch_stop_signals():
    """From here on the first SIGTERM or SIGINT waits until the loop asks `stopping`."""
    stop_signals.clear()
    agreed.clear()
    pulse.training = True
    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    if "RANK" in os.environ and dist.get_world_size() > 1:
        threading.Thread(target=watch_all, daemon=True).start()


def stopping():
    """Has any rank received a stop signal? All ranks must ask, and get the same answer."""
    number = torch.tensor(max(stop_signals, default=0))
    if dist.is_initialized():
        dist.all_reduce(number, dist.ReduceOp.MAX)
    if number and not agreed:
        agreed.append(int(number))
    return bool(agreed)


def beat(watched=None):
    """Tell the watchdog that this rank goes on. watched: whether silence from here on would be a
    hang; None = as before. In first steps and saves, which may take long, only watch_all sees one.
    """
    now = time.monotonic()
    if pulse.watched:
        pulse.longest = max(pulse.longest, now - pulse.at)
    pulse.watched = pulse.watched if watched is None else watched
    pulse.at, pulse.beats = now, pulse.beats + 1


def who():
    """ "rank 1: " where there are several."""
    several = dist.is_initialized() and dist.get_world_size() > 1
    return f"rank {dist.get_rank()}: " if several else ""


def patience():
    """Seconds without a beat after which a process that got a signal is ended."""
    if not pulse.training:
        return GRACE
    if pulse.watched:
        return max(GRACE, 2 * pulse.longest)
    return SAVING if who() else float("inf")  # alone it waits for nobody: the save will end


def stacks():
    """Where every thread but this one stands, the main thread first."""
    main, frames = threading.main_thread().ident, sys._current_frames()
    frames.pop(threading.get_ident())
    order = sorted(frames, key=lambda thread: thread != main)
    return [traceback.format_stack(frames[thread]) for thread in order]


def watchdog(wakeups):
    """Ends this process where the main thread cannot: in a collective, whose other ranks are gone,
    it runs no signal handler; and when nothing has moved for too long."""
    silent = waited = 0.0  # seconds since the last beat; since then or the signal
    beats, received, launcher, last = 0, None, os.getppid(), time.monotonic()
    first = last  # when the first signal came
    while not pulse.over:
        if select.select([wakeups], [], [], 0.5)[0]:
            for number in os.read(wakeups, 64):
                if number not in (signal.SIGTERM, signal.SIGINT):
                    continue
                if received is None:
                    received, waited, first = number, 0.0, time.monotonic()
                elif number != received or time.monotonic() - first > COPY:
                    os._exit(128 + number)  # the second, and the handler does not run in C++
        if os.getppid() != launcher and "TORCHELASTIC_RUN_ID" in os.environ:
            launcher = os.getppid()
            os.write(2, f"\n{who()}torchrun is gone\n".encode())
            os.kill(os.getpid(), signal.SIGTERM)
        now = time.monotonic()
        passed = min(now - last, 1.0)  # the time in which a process is suspended does not count
        silent, waited, last = silent + passed, waited + passed, now
        if pulse.beats != beats:
            silent, waited, beats = 0.0, 0.0, pulse.beats
        if received and waited > patience():
            os.write(2, f"\n{who()}does not react to signal {received}: ended\n".encode())
            os._exit(128 + received)
        if pulse.watched and silent > max(SILENCE, 5 * pulse.longest):
            hangs("no progress", silent)


def hangs(what, seconds):
    """End this process, and show where its threads stand; not while someone is debugging it."""
    threads = stacks()
    if not any(tool in line for line in threads[0] for tool in ("bdb.py", "pydevd")):
        shown = "\n".join("".join(lines) for lines in threads)
        os.write(2, f"\n{who()}{what} for {seconds:.0f} s; its threads:\n{shown}".encode())
        os._exit(1)


def waits_for_disk():
    """Does a thread flush a file, or sleep until a disk answers (state D of Linux)?"""
    if streams.flushing:
        return True
    for stat in glob.glob("/proc/self/task/*/stat"):
        with contextlib.suppress(OSError), open(stat) as file:  # a thread may just have ended
            if file.read().rpartition(")")[2].split()[0] == "D":
                return True
    return False


def watch_all():
    """Ends this process when every rank has waited for SILENCE: one hangs or is suspended, and the
    others wait for it, in whatever phase. Each rank adds 1 to a counter, which lies in the store
    that they met through, for every second in which it did something."""
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    done, silent = None, 0.0
    with contextlib.suppress(dist.DistError):  # the store is gone: so are other ranks
        store = dist.TCPStore(*place, is_master=False, timeout=timedelta(seconds=SILENCE))
        while not pulse.over:
            beats, used = pulse.beats, time.process_time()
            time.sleep(1.0)
            active = time.process_time() - used > IDLE or pulse.beats != beats or waits_for_disk()
            before, done = done, store.add("seconds in which a rank did something", int(active))
            silent = silent + 1 if done == before else 0.0
            if silent >= SILENCE:
                hangs("no rank does anything", silent)


def start_watchdog():
    """Signals reach it through a pipe that Python's own C handler writes to, whatever the main
    thread is doing."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=watchdog, args=(reader,), daemon=True).start()


def stopped():
    """End a process that a signal has interrupted."""
    number = signal.Signals(max(stop_signals, default=signal.SIGINT))
    print(f"\n{who()}stopped by {number.name}", file=sys.stderr, flush=True)
    os._exit(128 + number)


def fail():
    """Show rank and traceback of the exception being handled and end this process at once."""
    with contextlib.suppress(KeyboardInterrupt):
        time.sleep(0)  # a signal that came in a collective, which broke as others got theirs
    if stop_signals and not pulse.training:
        stopped()
    rank = dist.get_rank() if dist.is_initialized() else 0
    print(f"\nrank {rank} failed:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
    os._exit(1)


@contextlib.contextmanager
def clean_exit():
    """Wrap a script's main: errors leave one line (UserError) or rank + traceback, and exit code 1;
    a signal 128 + its number.

    Ends with os._exit after a barrier: interpreter teardown with live process groups sometimes
    aborts, and one failed rank must not leave the others waiting (torchrun then ends them).
    """
    before = [(n, signal.signal(n, on_signal)) for n in (signal.SIGTERM, signal.SIGINT)]
    pulse.over = False
    start_watchdog()
    try:
        try:
            yield
            stopping()  # a barrier, and one exit code for all
        except UserError as e:
            print(f"error: {e}", file=sys.stderr, flush=True)
            os._exit(1)
        except SystemExit:
            raise
        except KeyboardInterrupt:
            stopped()
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
            dist.destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(128 + max(agreed + stop_signals) if agreed + stop_signals else 0)
    finally:  # reached only where os._exit is not what it is, as in tests
        pulse.over = True
        for number, handler in before:
            signal.signal(number, handler)
