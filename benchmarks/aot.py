"""Every Triton kernel of kernels/, compiled for A100 (sm_80) and for H100, H200 (sm_90). Needs no
GPU.

    python benchmarks/aot.py

Training steps of true Llama shapes run on meta tensors, which have shapes and no data. So each
kernel is asked for just as in training, with its dtypes, strides and block sizes; instead of being
launched it is compiled, and ptxas says what a thread of it takes. Exit code 1 if a kernel spills
more than a few registers, needs more shared memory than the chip has, widens no offset to 64 bits,
or was not reached.
"""

import os
import sys
import tempfile
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "0"  # heard only before triton is first imported
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import importlib
import inspect
import re
import subprocess

import torch
import triton
from torch.fx.experimental import _config as meta_config
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

import kernels
from model import Llama, LlamaConfig
from optim import build_optimizer

SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}  # of one program, at most
# Bytes a thread may write out and read back, in a whole kernel. Attention's blocks are sized for
# sm_90, where it uses up to all 255 registers; one or two go over, depending on the compiler.
SPILLED_BYTES = {80: 256, 90: 16}
TOKENS = 8192
LLAMA_8B = LlamaConfig(128_256, 4096, 14_336, 2, 32, 8, 128)  # two layers: all are alike
SHAPES = {
    "8b bf16": (LLAMA_8B, torch.bfloat16),
    "1b bf16": (LlamaConfig(128_256, 2048, 8192, 2, 32, 8, 64), torch.bfloat16),
    "8b fp32": (LLAMA_8B, torch.float32),
    "dim 32": (LlamaConfig(32_000, 256, 704, 2, 8, 2, 32), torch.bfloat16),
    "dim 16": (LlamaConfig(32_000, 128, 352, 2, 8, 2, 16), torch.bfloat16),
}


class Chip:
    """Stands in for the GPU driver: names the chip to compile for, launches nothing."""

    def __init__(self, capability):
        self.capability = capability

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return self.capability  # Triton keeps what it compiled by device

    def get_current_stream(self, device):
        return 0

    def get_active_torch_device(self):
        return torch.device("meta")

    def map_python_to_cpp_type(self, kind):
        return kind


def training_steps(config, dtype):
    """Forward, backward and update with everything that a training script calls."""
    with torch.device("meta"):
        model = Llama(config).to(dtype)
    if dtype == torch.bfloat16:
        for p in model.parameters():
            p.low = torch.empty_like(p, dtype=torch.int16)
    optimizer = build_optimizer(model, lr=1e-5, weight_decay=0.1)
    # N of a real row is any number, and a multiple of 16 makes another kernel: so one of each
    rows = (
        ([0, 4000, 4800, 6001, TOKENS - 1], [-1, 0, 0, -1], False),
        ([0, 5000, TOKENS], None, True),
    )
    for cu_seqlens, parent, common_gradient in rows[: 2 if config is LLAMA_8B else 1]:
        ids = torch.empty(cu_seqlens[-1], dtype=torch.long, device="meta")
        parent = parent and torch.tensor(parent)
        logprobs = model(ids, ids, torch.tensor(cu_seqlens), labels=ids, parent=parent,
                         common_gradient=common_gradient)  # fmt: skip
        logprobs.sum().backward()
        optimizer.step(scale=torch.empty((), device="meta"))


def kernels_of_the_package():
    """{"rms_norm._forward": its function} of all kernels that are launched, in all files."""
    functions = {}
    for path in sorted(Path(kernels.__file__).parent.glob("*.py")):
        module = importlib.import_module(f"kernels.{path.stem}")
        found = {n: f for n, f in vars(module).items() if isinstance(f, JITFunction)}
        code = "\n".join(inspect.getsource(f.fn) for f in found.values())
        for name, function in found.items():
            inlined = re.search(rf"(?<!def )\b{name}\(", code)  # a part of other kernels
            if function.fn.__module__ == module.__name__ and not inlined:
                functions[f"{path.stem}.{name}"] = function
    return functions


def resources(compiled):
    """(registers of a thread, bytes it spills) of a compiled kernel, as ptxas reports them."""
    code = compiled.asm["ptx"]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(code)
        chip = re.search(r"^\.target (\w+)", code, re.M)[1]
        command = [triton.knobs.nvidia.ptxas.path, "-v", f"--gpu-name={chip}", source]
        report = subprocess.run(
            [*command, "-o", f"{folder}/cubin"], capture_output=True, text=True, check=True
        ).stderr
    spilled = sum(int(n) for n in re.findall(r"(\d+) bytes spill", report))
    return int(re.search(r"Used (\d+) registers", report)[1]), spilled


def compile_all(report):
    """Compile the kernels of all shapes for all chips; report(row) each once. Returns the names."""
    launch, seen, where = JITFunction.run, set(), {}

    def compile_only(function, *args, grid, warmup, **options):
        compiled = launch(function, *args, grid=grid, warmup=True, **options)
        name = f"{function.fn.__module__.removeprefix('kernels.')}.{function.fn.__name__}"
        if compiled.hash not in seen:
            seen.add(compiled.hash)
            registers, spilled = resources(compiled)
            report({"kernel": name, **where, "warps": compiled.metadata.num_warps,
                    "registers": registers, "spilled": spilled,
                    "shared": compiled.metadata.shared,
                    "int64": "arith.extsi" in compiled.asm["ttir"]})  # fmt: skip
        return compiled

    JITFunction.run = compile_only
    kernels.MODE = "triton"  # the kernels for meta tensors too
    meta_config.meta_nonzero_assume_all_nonzero = True  # choosing rows by a mask keeps all
    for capability in SHARED_BYTES:
        triton.runtime.driver.set_active(Chip(capability))
        for shape, (config, dtype) in SHAPES.items():
            where.update(chip=f"sm_{capability}", shape=shape)
            training_steps(config, dtype)


def main():
    rows = []
    columns = ("kernel", "chip", "shape", "warps", "registers", "spilled", "shared")
    print(f"{'kernel':<32}" + "".join(f"{c:>10}" for c in columns[1:]), flush=True)

    def report(row):
        if row in rows:
            return
        rows.append(row)
        print(f"{row['kernel']:<32}" + "".join(f"{row[c]:>10}" for c in columns[1:]), flush=True)

    compile_all(report)
    wrong = []
    for r in rows:
        capability = int(r["chip"].removeprefix("sm_"))
        for what, most in (("spilled", SPILLED_BYTES), ("shared", SHARED_BYTES)):
            if r[what] > most[capability]:
                wrong.append(f"{r['kernel']} {r['chip']} {r['shape']}: {r[what]} bytes {what}")
        if not r["int64"]:  # a row's number times the width, in 32 bits, ends at 2^31
            wrong.append(f"{r['kernel']}: no offset is widened to 64 bits")
    for capability in SHARED_BYTES:
        reached = {r["kernel"] for r in rows if r["chip"] == f"sm_{capability}"}
        wrong += [f"{name}: not compiled for sm_{capability}"
                  for name in kernels_of_the_package() if name not in reached]  # fmt: skip
    print(f"{len(rows)} kernels compiled for {' and '.join(f'sm_{c}' for c in SHARED_BYTES)}")
    if wrong:
        sys.exit("error: " + "\nerror: ".join(wrong))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        main()
