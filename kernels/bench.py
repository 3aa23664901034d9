"""The measurements of `python -m kernels.op`: error against fp64, and on a GPU the speed.

Bandwidth and matrix rate are measured in the same run, so that a result is a share of what this
very device does now. Forward and backward are timed apart, with a cold L2 cache (triton.testing).
Each run adds its rows to benchmarks/results/kernels-<device>.jsonl.
"""

import json
import time
from pathlib import Path

import torch
import triton

import kernels
from metrics import git_commit

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"


def liger(name):
    """{"liger": its function} of Liger-Kernel, if that is installed and there is a GPU."""
    if not ON_GPU:
        return {}
    try:
        from liger_kernel.transformers import functional

        return {"liger": getattr(functional, name)}
    except ImportError as e:
        print(f"liger: not measured: {e}")
        return {}


def milliseconds(function):
    """Median time of function() on the GPU."""
    return triton.testing.do_bench(function, warmup=50, rep=200, return_mode="median")


def copy_bandwidth():
    """Bytes per second read and written by a copy of 4 GB."""
    source = torch.empty(2**31, dtype=torch.int16, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / milliseconds(lambda: target.copy_(source)) * 1e3


def matrix_rate():
    """bf16 FLOP per second of a matrix product of Llama-3-8B's MLP at 8,192 tokens."""
    a = torch.randn(8192, 4096, dtype=torch.bfloat16, device="cuda")
    b = torch.randn(4096, 14336, dtype=torch.bfloat16, device="cuda")
    return 2 * a.numel() * 14336 / milliseconds(lambda: a @ b) * 1e3


def prepared(inputs, dtype, device=DEVICE):
    """Copies of the inputs on the device; floating tensors in dtype, with gradients."""
    out = []
    for x in inputs:
        if isinstance(x, torch.Tensor):
            x = x.to(device, dtype if x.is_floating_point() else None, copy=True)
            x.requires_grad_(x.is_floating_point())
        out.append(x)
    return out


def outputs(op, inputs):
    y = op(*inputs)
    return y if isinstance(y, tuple) else (y,)


def run(op, inputs, upstream):
    """[outputs..., gradients...] of op."""
    y = outputs(op, inputs)
    wanted = [x for x in inputs if isinstance(x, torch.Tensor) and x.requires_grad]
    grads = torch.autograd.grad(y, wanted, [u.to(o) for u, o in zip(upstream, y, strict=True)])
    return [*y, *grads]


def errors(op, ref, inputs, dtype):
    """Largest root mean square error of op, and of ref, over all outputs and gradients in `dtype`,
    relative to the fp64 result of ref."""
    rounded = [x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x
               for x in inputs]  # fmt: skip
    exact = prepared(rounded, torch.float64)
    upstream = [torch.randn_like(y) for y in outputs(ref, exact)]
    exact = run(ref, exact, upstream)
    found = []
    for function in (op, ref):
        got = run(function, prepared(rounded, dtype), upstream)
        found.append(max(((g.double() - e).square().mean() / e.square().mean()).sqrt().item()
                         for g, e in zip(got, exact, strict=True)))  # fmt: skip
    return found


def compare(name, op, ref, inputs, forward, backward, others=None):
    """Print and store one line per implementation: op, ref, ref compiled, and `others` {name: op}.

    forward, backward: numbers that a perfect implementation reads or writes, each once. Without a
    GPU the kernel is interpreted on a few rows, for its error alone.
    """
    shape = "x".join(map(str, inputs[0].shape))
    if not ON_GPU:
        rows = len(inputs[0])
        few = [x[:4] if isinstance(x, torch.Tensor) and len(x) == rows else x for x in inputs]
        kernels.MODE = "triton"
        ours, theirs = errors(op, ref, few, torch.float32)
        print(f"{name} {shape}, 4 rows in fp32, interpreted: error {ours:.1e}, PyTorch's "
              f"{theirs:.1e}; no GPU, so no speed")  # fmt: skip
        return
    ours, theirs = errors(op, ref, inputs, torch.bfloat16)
    print(f"{name} {shape} bf16: error {ours:.2e}, PyTorch's {theirs:.2e}")
    ceiling = copy_bandwidth()
    arms = {"minfin": op, "torch": ref, "torch.compile": torch.compile(ref), **(others or {})}
    for arm, function in arms.items():
        tensors = prepared(inputs, torch.bfloat16)
        wanted = [x for x in tensors if isinstance(x, torch.Tensor) and x.requires_grad]
        y = outputs(function, tensors)
        upstream = [torch.randn_like(o) for o in y]
        ms = {
            "forward": milliseconds(lambda f=function, t=tensors: f(*t)),
            "backward": milliseconds(
                lambda y=y, w=wanted, u=upstream: torch.autograd.grad(y, w, u, retain_graph=True)
            ),
        }
        row = {"op": name, "shape": shape, "arm": arm, "error": ours if arm == "minfin" else None}
        for phase, numbers in (("forward", forward), ("backward", backward)):
            rate = 2 * numbers / ms[phase] * 1e3
            row |= {f"{phase}_ms": ms[phase], f"{phase}_share": rate / ceiling}
            print(f"  {arm:<14} {phase:<9} {ms[phase]:8.3f} ms {rate / 1e9:8.0f} GB/s "
                  f"{rate / ceiling:6.1%}")  # fmt: skip
        store(row | {"ceiling": ceiling})


def store(row):
    """Add a row, with hardware and versions, to benchmarks/results/kernels-<device>.jsonl."""
    device = torch.cuda.get_device_name()
    about = {"device": device, "torch": str(torch.__version__), "triton": triton.__version__,
             "git_commit": git_commit(), "time": time.strftime("%Y-%m-%d %H:%M")}  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    with open(RESULTS / f"kernels-{device.replace(' ', '_')}.jsonl", "a") as f:
        f.write(json.dumps(row | about) + "\n")
