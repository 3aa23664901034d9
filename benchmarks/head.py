"""The output head on a CPU: time and memory of loss and gradients, against plain cross-entropy.

    OMP_NUM_THREADS=2 python benchmarks/head.py

2,048 tokens, hidden size 512, vocabulary 128,256, fp32. Memory is the peak of resident memory
beyond the inputs; the gradient of the weight, 263 MB, is part of it. Times are the shortest of all
runs: whatever else the machine does only adds to them.
"""

import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch.nn import functional as F

from benchmarks.measure import forget_peak, fresh, peak_resident, store, there_and_back
from config import parse
from kernels.cross_entropy import linear_logprobs

ARMS = ("plain", "per token", "common gradient")
CLOCKS = ("seconds", "cpu_seconds")  # of this process alone: on a machine that others use as well


@dataclass
class Config:
    tokens: int = 2048
    hidden: int = 512
    vocabulary: int = 128_256
    repeats: int = 2  # timed runs of a process; there are two processes an arm
    arm: str = ""  # measure this arm in this process; "" = all, each in its own
    keep: str = ""  # with --arm: folder for its loss and gradients


def loss_of(arm, hidden, weight, labels):
    if arm == "plain":
        return F.cross_entropy(F.linear(hidden, weight), labels)
    logprobs = linear_logprobs(hidden, weight, labels, common_gradient=arm == "common gradient")
    return -logprobs.sum() / len(labels)


def measure(cfg):
    """Time and peak memory of one arm in this process."""
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(cfg.tokens, cfg.hidden, generator=g).requires_grad_()
    weight = torch.randn(cfg.vocabulary, cfg.hidden, generator=g).mul_(0.05).requires_grad_()
    labels = torch.randint(cfg.vocabulary, (cfg.tokens,), generator=g)
    loss_of(cfg.arm, hidden[:2], weight[:64], labels[:2] % 64).backward()  # threads and libraries
    hidden.grad = weight.grad = None

    before, seconds, cpu_seconds = forget_peak(), [], []
    for _ in range(cfg.repeats):
        hidden.grad = weight.grad = None
        since, cpu_since = time.perf_counter(), time.process_time()
        loss = loss_of(cfg.arm, hidden, weight, labels)
        loss.backward()
        seconds.append(time.perf_counter() - since)
        cpu_seconds.append(time.process_time() - cpu_since)
    peak = peak_resident() - before
    if cfg.keep:
        found = {"loss": loss.detach(), "hidden": hidden.grad, "weight": weight.grad}
        torch.save(found, Path(cfg.keep) / f"{cfg.arm}.pt")
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "bytes": peak}))


def main(cfg):
    if cfg.arm:
        return measure(cfg)
    found = {arm: {"seconds": [], "cpu_seconds": [], "bytes": 0} for arm in ARMS}
    with tempfile.TemporaryDirectory() as folder:
        for arm in there_and_back(ARMS):
            words = [w for k in ("tokens", "hidden", "vocabulary", "repeats")
                     for w in (f"--{k}", getattr(cfg, k))]  # fmt: skip
            one = fresh(__file__, *words, "--arm", arm, "--keep", folder)
            if "error" in one:
                sys.exit(f"error: {arm}: {one['error']}")
            print(f"{arm:<16}" + "".join(f"{s:8.2f} s" for s in one["seconds"]), flush=True)
            for clock in CLOCKS:
                found[arm][clock] += one[clock]
            found[arm]["bytes"] = max(found[arm]["bytes"], one["bytes"])
        exact = torch.load(Path(folder) / "plain.pt")
        for arm in ARMS[1:]:
            got = torch.load(Path(folder) / f"{arm}.pt")
            found[arm]["error"] = max(
                ((got[k] - exact[k]).norm() / exact[k].norm()).item() for k in exact
            )
    plain, own = found["plain"], cfg.vocabulary * cfg.hidden * 4  # own: the weight's gradient
    print(f"\n{'':<16}{'s':>7}{'share':>7}{'CPU s':>8}{'share':>7}{'MB':>8}{'share':>7}"
          f"{'beyond':>8}{'error':>9}")  # fmt: skip
    for arm, r in found.items():
        for clock in CLOCKS:
            r[f"median_{clock}"] = statistics.median(r[clock])
            r[f"share_of_{clock}"] = r[f"median_{clock}"] / statistics.median(plain[clock])
        r["share_of_bytes"] = r["bytes"] / plain["bytes"]
        r["share_beyond_gradient"] = (r["bytes"] - own) / (plain["bytes"] - own)
        print(f"{arm:<16}{r['median_seconds']:7.2f}{r['share_of_seconds']:7.2f}"
              f"{r['median_cpu_seconds']:8.2f}{r['share_of_cpu_seconds']:7.2f}"
              f"{r['bytes'] / 1e6:8.0f}{r['share_of_bytes']:7.3f}"
              f"{r['share_beyond_gradient']:8.3f}{r.get('error', 0):9.1e}")  # fmt: skip
    store("head", {"shape": [cfg.tokens, cfg.hidden, cfg.vocabulary], "arms": found})


if __name__ == "__main__":
    main(parse(Config))
