"""Is the memory that a dry run foretells what a training step takes? Measured on a CPU.

    python benchmarks/dry_run.py

Two steps of a Llama of 33M parameters in fp32 on one rank, as the train scripts make them, in a
fresh process for each setting: its peak of resident memory beyond what it held after the imports,
against dry_run.memory. The same for a model of 25,000 parameters is what libraries take at their
first use: no part of what is foretold. Written to benchmarks/results/dry_run.json.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import dry_run
import parallel
from benchmarks.measure import RESULTS, about, forget_peak, fresh, peak_resident
from model import Llama, LlamaConfig
from optim import build_optimizer

CONFIG, TINY = LlamaConfig(8192, 512, 1536, 8, 8, 4, 64), LlamaConfig(128, 64, 64, 1, 1, 1, 64)
# tokens of a micro-batch, micro-batches, recompute, common gradient
SETTINGS = {
    "long row": (4096, 1, False, True),
    "long row, per-token head": (4096, 1, False, False),
    "recompute": (4096, 1, True, True),
    "two micro-batches": (512, 2, False, True),
    "short row": (256, 1, False, True),
}


def meta_model(config=CONFIG):
    with torch.device("meta"):
        return Llama(config)


def foretold(tokens, micro, recompute, common):
    """Bytes, and the moment at which they are needed."""
    found, moment = dry_run.memory(
        meta_model(), 1, tokens, micro, torch.float32, "cpu", recompute, common
    )
    return found.total(), moment


def measured(config, tokens, micro, recompute, common):
    """Bytes: the peak of two steps beyond what the process held before."""
    device = parallel.init("cpu")[2]
    ids = torch.zeros(tokens, dtype=torch.int64)
    row = ids, torch.arange(tokens), torch.tensor([0, tokens], dtype=torch.int32)
    before = forget_peak()
    model = parallel.shard(meta_model(config), device, "float32", recompute)
    for p in model.parameters():
        torch.nn.init.normal_(parallel.local(p), std=0.02)
    optimizer = build_optimizer(model, 1e-4, 0.1)
    for _ in range(2):
        for i in range(micro):
            model.set_requires_gradient_sync(i == micro - 1)
            logprobs = model(*row, labels=ids, common_gradient=common)
            (-logprobs.sum() / tokens / micro).backward()
        grad_norm = optimizer.grad_norm()
        optimizer.step(scale=(1 / grad_norm).clamp(max=1))
        optimizer.zero_grad()
    return peak_resident() - before


def main():
    if len(sys.argv) > 1:
        name = sys.argv[1]
        setting = (CONFIG, *SETTINGS[name]) if name in SETTINGS else (TINY, 16, 1, False, True)
        return print(json.dumps({"bytes": measured(*setting)}))
    # Freed memory goes back to the system at once; glibc else learns to keep it, and it counts
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**17)
    result, libraries = {}, fresh(__file__, "tiny")["bytes"]
    for name, setting in SETTINGS.items():
        says, moment = foretold(*setting)
        took = fresh(__file__, name)["bytes"]
        shares = says / took, says / (took - libraries)
        result[name] = {"foretold_bytes": says, "moment": moment, "measured_bytes": took,
                        "foretold_of_measured": round(shares[0], 3),
                        "without_libraries": round(shares[1], 3)}  # fmt: skip
        print(f"{name:<26}{says / 1e6:6.0f} MB foretold ({moment}), {took / 1e6:.0f} MB measured: "
              f"{shares[0]:.3f}, {shares[1]:.3f} without libraries")  # fmt: skip
    parameters = sum(p.numel() for p in meta_model().parameters())
    whole = {"parameters": parameters, "dtype": "float32", "libraries_bytes": libraries,
             "settings": result}  # fmt: skip
    (RESULTS / "dry_run.json").write_text(json.dumps(whole | about(), indent=1) + "\n")


if __name__ == "__main__":
    with parallel.clean_exit():
        main()
