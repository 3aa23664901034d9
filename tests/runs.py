"""Short runs of the train scripts on tiny data, in this process or on several ranks:

    torchrun --nproc_per_node 2 tests/runs.py jobs.json

runs the jobs of the file one after the other; each holds the arguments of run(), or of copy().
"""

import hashlib
import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from safetensors.torch import load_file, save_file  # noqa: E402
from tiny import sentences, write_checkpoint, write_rows  # noqa: E402

import parallel  # noqa: E402
import resume  # noqa: E402
from checkpoint import load_weights, save_pretrained  # noqa: E402
from metrics import read_metrics  # noqa: E402
from model import Llama  # noqa: E402

STAGES = ("cpt", "sft", "dpo")
VOCAB = 385  # not divisible by two ranks


def write_data(folder, **changes):
    """A checkpoint and rows of every kind, with ragged lengths. Returns the folder."""
    folder = Path(folder)
    write_checkpoint(folder / "base", **{"vocab_size": VOCAB} | changes)
    write_rows(folder / "text.jsonl", [{"text": t} for t in sentences(60, 1, 5, 60)])
    for name, seed, count in (("chat", 2, 60), ("held_chat", 3, 9)):
        turns = sentences(4 * count, seed, 1, 12)
        chats = [turns[i : i + (2 if i % 8 else 4)] for i in range(0, len(turns), 4)]
        roles = ("user", "assistant")
        chats = [[{"role": roles[i % 2], "content": t} for i, t in enumerate(c)] for c in chats]
        write_rows(folder / f"{name}.jsonl", [{"messages": chat} for chat in chats])
    for name, seed, count in (("pairs", 4, 50), ("held_pairs", 5, 9)):
        prompts, good, bad = (sentences(count, seed * 10 + i, 1, 12) for i in range(3))
        rows = zip(prompts, good, bad, strict=True)
        rows = [{"prompt": p, "chosen": f"good {c}", "rejected": f"bad {r}"} for p, c, r in rows]
        write_rows(folder / f"{name}.jsonl", rows)
    return folder


def settings(stage, data, out, **changes):
    """Values of the stage's Config for a small run: six rows of 96 tokens a step."""
    data = Path(data)
    values = {"init_from": str(data / "base"), "out_dir": str(out), "device": "cpu",
              "token_cache": str(data / "tokens"),
              "max_length": 96, "batch_tokens": 6 * 96, "micro_batch_tokens": 2 * 96,
              "epochs": 1.0, "lr": 1e-3}  # fmt: skip
    values |= {
        "cpt": {"text": f"{data}/text.jsonl", "chat": f"{data}/chat.jsonl", "heldout_text": "",
                "heldout_chat": "", "mix": "all"},
        "sft": {"chat": f"{data}/chat.jsonl", "heldout_chat": ""},
        "dpo": {"pairs": f"{data}/pairs.jsonl"},
    }[stage]  # fmt: skip
    return values | changes


def run(stage, data, out, gradients=None, stop_at=None, crash_at=None, fail_at=None, **changes):
    """main(Config(...)) of a train script, without the plot. Returns the rows of metrics.jsonl.

    gradients: file for those of the first step, clipped, whole tensors in the optimizer's order.
    stop_at: a step during which the last rank receives a stop signal. crash_at: a step after which
    all breaks off. fail_at: one after which the last rank meets an error.
    """
    module = importlib.import_module(f"train_{stage}")
    build, log = module.build_optimizer, module.Metrics.log
    handlers = [(s, signal.getsignal(s)) for s in (signal.SIGTERM, signal.SIGINT)]
    seen = []

    def recording(*args):
        optimizer = build(*args)

        def keep(optimizer, args, kwargs):
            if not seen:
                params = [p for group in optimizer.param_groups for p in group["params"]]
                seen.extend(p.grad.full_tensor() * kwargs["scale"] for p in params)

        optimizer.register_step_pre_hook(keep)
        return optimizer

    def breaking(self, step, **values):
        row = log(self, step, **values)
        last = parallel.dist.get_rank() + 1 == parallel.dist.get_world_size()
        if step == stop_at and last:
            parallel.stop_signals.append(signal.SIGTERM)
        if step == crash_at:
            raise KeyboardInterrupt
        if step == fail_at and last:
            raise RuntimeError("a bug on one rank")
        return row

    try:
        with (
            mock.patch.object(module, "build_optimizer", recording if gradients else build),
            mock.patch.object(module.Metrics, "log", breaking),
            mock.patch.object(module, "plot_metrics"),
        ):
            module.main(module.Config(**settings(stage, data, out, **changes)))
    except KeyboardInterrupt:
        pass
    finally:
        for number, handler in handlers:
            signal.signal(number, handler)
        while resume.occupied:  # as the process does that ends with its run
            os.close(resume.occupied.popitem()[1])
    if gradients and parallel.dist.get_rank() == 0:
        save_file({f"{i:03d}": g for i, g in enumerate(seen)}, gradients)
    return read_metrics(out)


def copy(source, out, dtype="float32"):
    """Spread a checkpoint over the ranks, then gather it into another folder."""
    model = parallel.shard(Llama.from_pretrained(source, "meta"), parallel.init("cpu")[2], dtype)
    load_weights(model, source)
    save_pretrained(model, out, source)


def torchrun(ranks, folder, jobs, code=0):
    """The jobs, one after the other, on several ranks: one start-up for all. Returns all output."""
    file = Path(folder) / "jobs.json"
    file.write_text(json.dumps(jobs, default=str))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node",
               str(ranks), __file__, str(file)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr[-3000:]
    return done.stdout + done.stderr


def weights(out):
    """sha256 of the exported weights."""
    return hashlib.sha256((Path(out) / "model.safetensors").read_bytes()).hexdigest()


def series(rows, *names):
    """The columns of metrics.jsonl that depend on nothing but the numbers."""
    names = names or ("step", "loss", "grad_norm", "lr")
    return [tuple(row[name] for name in names) for row in rows]


def by_hand(model, prompt, reply):
    """Log-prob of each token of the reply behind the prompt, by numpy in fp64: (len(reply),)."""
    ids = torch.tensor([*prompt, *reply])
    with torch.no_grad():
        logits = model(ids, torch.arange(len(ids)), torch.tensor([0, len(ids)])).double().numpy()
    logits -= logits.max(-1, keepdims=True)
    scores = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return scores[len(prompt) - 1 : -1][np.arange(len(reply)), reply]


def distance(file, other):
    """Largest relative difference of two files of gradients, over their tensors."""
    a, b = load_file(file), load_file(other)
    assert a.keys() == b.keys() and all(g.norm() > 0 for g in b.values())
    return max(float((a[k] - b[k]).norm() / b[k].norm()) for k in b)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with parallel.clean_exit():
        for job in json.loads(Path(sys.argv[1]).read_text()):
            copy(**job) if "source" in job else run(**job)
