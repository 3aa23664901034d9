"""A training step, ours against Hugging Face's: tokens per second and memory, after a check that
both compute the same.

    python benchmarks/train_step.py --shape tiny-32k
    python benchmarks/train_step.py --shape llama-3.2-1b --arms ours,hf,hf+bf16+compile

An arm is `ours` (the path of the training scripts; ours+recompute as well) or `hf` with options:
liger (its kernels), cudnn (that backend of attention), compile (torch.compile), bf16 (the model
itself in bf16, instead of by autocast). Weights are random, the same in every arm, at true shapes;
so are the tokens, whole documents without padding. On a GPU all compute in bf16 with fp32 master
weights, and each takes as many documents at a time as runs fastest; on a CPU all is fp32.

In the same run: the rate of matrix products and of copies that this machine reaches now, the loss
and gradients of each arm against an fp32 reference, then the timings, every one in a fresh process,
in the order A B C C B A. The result goes to benchmarks/results/.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks import arms
from benchmarks.measure import fresh, quantiles, store, there_and_back
from config import UserError, parse
from metrics import PEAK_FLOPS, flops_per_token

ON_GPU = torch.cuda.is_available()
ARMS = "ours,hf,hf+bf16+liger+cudnn,hf+bf16+compile+cudnn" if ON_GPU else "ours,hf"


@dataclass
class Config:
    shape: str = "tiny-32k"  # model and rows: a name of SHAPES in benchmarks/arms.py
    arms: str = ""  # comma separated; "" = ours,hf and on a GPU tuned forms of hf
    documents: int = 0  # per step; 0 = the shape's own number
    length: int = 0  # tokens of a document; 0 = the shape's own
    micro: int = 0  # documents in one forward pass; 0 = on a GPU the fastest number, on a CPU all
    warmup: int = 10 if ON_GPU else 1  # steps before the timed ones
    steps: int = 30 if ON_GPU else 5  # timed steps of a process; there are two processes an arm
    arm: str = ""  # do one job for this arm in this process and print its result
    job: str = ""  # ceilings, parity or timing
    store: bool = True  # write the result to benchmarks/results/


def gate(arm, parity):
    """Why the loss or the gradients of an arm are wrong; "" = they are right."""
    if "error" in parity:
        return parity["error"]
    if not parity["loss"] <= parity["loss_allowed"]:  # nan, too
        return f"loss off by {parity['loss']:.1e}, {parity['loss_allowed']:.1e} allowed"
    if not parity["angle"] <= parity["angle_allowed"]:
        return f"gradient of {parity['worst']}: cosine {1 - parity['angle']:.6f}"
    return ""


def closeness(parity):
    loss, angle = ([f"{parity[k]:.1e}" for k in (name, f"{name}_allowed")]
                   for name in ("loss", "angle"))  # fmt: skip
    return (f"holds: loss off by {loss[0]} (allowed {loss[1]}), 1 - cosine of gradients at most "
            f"{angle[0]} ({angle[1]})")  # fmt: skip


def summary(cfg, shape, visits, ceilings):
    """One arm's figures, of its two processes together."""
    seconds = [s for visit in visits for s in visit["seconds"]]
    p20, p50, p80 = quantiles(seconds)
    documents, length = cfg.documents or shape.documents, cfg.length or shape.length
    rate = documents * length / p50
    cpu = [s for visit in visits for s in visit["cpu_seconds"]]
    row = {"tokens_per_second": rate, "seconds_p20_p50_p80": [p20, p50, p80],
           "cpu_seconds": quantiles(cpu)[1],
           "medians": [quantiles(visit["seconds"])[1] for visit in visits],
           "memory_gb": max(v["memory_gb"] for v in visits), "visits": visits}  # fmt: skip
    peak = next((f for gpu, f in PEAK_FLOPS.items() if gpu in ceilings["device"]), None)
    for name, keys in (("full", length), ("causal", (length + 1) / 2)):
        flops = rate * flops_per_token(shape.config, keys)
        row[f"mfu_{name}"] = flops / peak if peak else None
        row[f"mfu_{name}_of_ceiling"] = flops / ceilings["flops"]
    return row


def against_hf(results):
    """Add how far each arm's losses are from Hugging Face's; in fp32 more than 1e-5 is an error."""
    measured = {arm: r["visits"][0]["losses"] for arm, r in results.items() if "visits" in r}
    for arm, losses in measured.items() if "hf" in measured else ():
        off = max(abs(a - b) / b for a, b in zip(losses, measured["hf"], strict=True))
        results[arm]["loss_against_hf"] = off
        if not ON_GPU and not off <= 1e-5:
            results[arm] = {"error": f"loss off by {off:.1e} from Hugging Face's"}


def print_table(results, base):
    share = "" if base is None else f"{'of hf':>7}"
    print(f"\n{'arm':<24}{'tok/s':>9}{share}{'step s':>9}{'p20-p80':>16}{'CPU s':>8}{'GB':>8}"
          f"{'MFU full':>10}{'causal':>8}{'ceiling':>9}{'loss off':>10}")  # fmt: skip
    for arm, r in results.items():
        if "error" in r:
            print(f"{arm:<24}{r['error']}")
            continue
        p20, p50, p80 = r["seconds_p20_p50_p80"]
        share = "" if base is None else f"{r['tokens_per_second'] / base:7.2f}"
        of_peak = "".join(
            f"{r[k]:{w}.1%}" if r[k] is not None else f"{'-':>{w}}"
            for k, w in (("mfu_full", 10), ("mfu_causal", 8), ("mfu_full_of_ceiling", 9))
        )
        print(f"{arm:<24}{r['tokens_per_second']:9,.0f}{share}{p50:9.3f}"
              f"{f'{p20:.3f}-{p80:.3f}':>16}{r['cpu_seconds']:8.3f}{r['memory_gb']:8.2f}{of_peak}"
              f"{r.get('loss_against_hf', float('nan')):10.1e}")  # fmt: skip


def main(cfg):
    if cfg.shape not in arms.SHAPES:
        raise UserError(f"--shape must be one of {', '.join(arms.SHAPES)}, not {cfg.shape!r}")
    if cfg.job:
        print(json.dumps(getattr(arms, cfg.job)(cfg)))
        return
    names, shape = (cfg.arms or ARMS).split(","), arms.SHAPES[cfg.shape]
    for name in names:
        arms.check(name)
    words = [w for k in ("shape", "documents", "length", "micro", "warmup", "steps")
             for w in (f"--{k}", getattr(cfg, k))]  # fmt: skip

    def run(job, arm):
        return fresh(__file__, *words, "--job", job, "--arm", arm)

    ceilings = run("ceilings", "ours")
    if "error" in ceilings:
        sys.exit(f"error: ceilings: {ceilings['error']}")
    print(f"{ceilings['device']}: matrix products {ceilings['flops'] / 1e12:.2f} TFLOP/s, "
          f"copies {ceilings['bytes'] / 1e9:.1f} GB/s", flush=True)  # fmt: skip
    results, parities = {}, {}
    for arm in names:
        parities[arm] = run("parity", arm)
        wrong = gate(arm, parities[arm])
        print(
            f"{arm}: parity {'FAILED: ' + wrong if wrong else closeness(parities[arm])}", flush=True
        )
        parities[arm]["failed"] = wrong
    visits = {arm: [] for arm in names}
    for arm in there_and_back(names):
        one = run("timing", arm)
        visits[arm].append(one)
        median = "" if "error" in one else f"{quantiles(one['seconds'])[1]:.3f} s a step"
        print(f"{arm}: {one.get('error', median)}", flush=True)
    for arm in names:
        broken = [v["error"] for v in visits[arm] if "error" in v]
        if broken:
            results[arm] = {"error": broken[0]}
        else:
            results[arm] = summary(cfg, shape, visits[arm], ceilings)
    against_hf(results)
    base = results.get("hf", {}).get("tokens_per_second")
    print_table(results, base)
    for arm, found in parities.items():
        if found["failed"]:
            print(f"{arm}: its speed does not count, parity failed: {found['failed']}")
    if cfg.store:
        store(f"train_step-{cfg.shape}", {"shape": cfg.shape, "settings": vars(cfg),
              "ceilings": ceilings, "parity": parities, "arms": results})  # fmt: skip


if __name__ == "__main__":
    try:
        main(parse(Config))
    except UserError as e:
        sys.exit(f"error: {e}")
