"""What a run leaves to look at: metrics.jsonl (a line per step), metrics.png, and a description of
itself: run.json (the settings, for --config), environment.json, a copy of the script.
"""

import dataclasses
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
import torch.distributed as dist

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bf16, from the data sheets


def git_commit():
    """The commit of this code, "+changes" if it was changed since, or why it is not known."""

    def git(*words):
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "*.py")
        return (git("rev-parse", "HEAD") or "no commit") + ("+changes" if changed else "")
    except OSError:
        return "git is not installed"


def describe_run(cfg, script):
    """Write run.json, environment.json and the script into cfg.out_dir (rank 0)."""
    if dist.is_initialized() and dist.get_rank() != 0:
        return
    out = Path(cfg.out_dir)
    out.mkdir(parents=True, exist_ok=True)
    environment = {
        "command": sys.argv,
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "packages": {"torch": str(torch.__version__)}  # with its build, such as +cu130
        | {p: version(p) for p in ("tokenizers", "safetensors", "numpy")},
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor(),
        "cores": os.cpu_count(),
        "ranks": dist.get_world_size() if dist.is_initialized() else 1,
        "started": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
    }
    (out / "run.json").write_text(json.dumps(dataclasses.asdict(cfg), indent=1) + "\n")
    (out / "environment.json").write_text(json.dumps(environment, indent=1) + "\n")
    shutil.copyfile(script, out / Path(script).name)


def flops_per_token(config, mean_context):
    """True work of forward and backward: 6 per matrix weight, and attention over the keys that
    are seen, 12 L H Dh for each; mean_context = mean number of keys a query sees."""
    c, head_dim = config, config.head_dim
    attention = c.hidden_size * head_dim * 2 * (c.num_attention_heads + c.num_key_value_heads)
    block = attention + 3 * c.hidden_size * c.intermediate_size
    matrices = c.num_hidden_layers * block + c.hidden_size * c.vocab_size
    keys = 12 * c.num_hidden_layers * c.num_attention_heads * head_dim * mean_context
    return 6 * matrices + keys


def memory_gb(device):
    """Peak memory so far: of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


class Metrics:
    """metrics.jsonl of one run. A resumed run first drops the lines it is about to write again."""

    def __init__(self, out_dir, start, device, config):
        self.path = Path(out_dir) / "metrics.jsonl"
        self.device, self.config, self.main = device, config, True
        if dist.is_initialized():
            self.main = dist.get_rank() == 0
        if self.main:
            old = read_metrics(out_dir)
            kept = [row for row in old if row["step"] < start]
            whole = self.path.with_suffix(".tmp")  # a kill in between must not lose the history
            whole.write_text("".join(json.dumps(row) + "\n" for row in kept))
            whole.rename(self.path)
        self.tokens, self.keys, self.seconds = 0, 0, 0.0
        self.since = time.perf_counter()

    def count(self, families):
        """Count the work of a step on all ranks: its tokens, and the keys that its queries see."""
        for family in families:
            for segment in family:
                n = len(segment.input_ids)
                context = len(family[segment.parent].input_ids) if segment.parent >= 0 else 0
                self.tokens += n
                self.keys += n * (n + 1) / 2 + n * context
        self.seconds = time.perf_counter() - self.since  # held-out losses come later: not counted

    def log(self, step, **values):
        """One line: the values, speed since the line before, memory, and MFU on a known GPU."""
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        row = {"step": step, **values}
        if self.tokens:
            row["tokens_per_second"] = round(self.tokens / self.seconds, 1)
            name = torch.cuda.get_device_name() if self.device.type == "cuda" else ""
            for gpu, peak in PEAK_FLOPS.items():
                if gpu in name:
                    work = flops_per_token(self.config, self.keys / self.tokens) * self.tokens
                    row["mfu"] = round(work / self.seconds / ranks / peak, 4)
        row["memory_gb"] = round(memory_gb(self.device), 3)
        if self.main:
            with open(self.path, "a") as f:
                f.write(json.dumps(row) + "\n")
        self.tokens, self.keys, self.since = 0, 0, time.perf_counter()
        return row


def read_metrics(out_dir):
    """The rows of metrics.jsonl; a torn last line, from a killed run, is left out."""
    path, rows = Path(out_dir) / "metrics.jsonl", []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def plot_metrics(out_dir):
    """Draw metrics.png: each logged series over the steps, one panel per kind. Needs matplotlib,
    without it nothing is drawn and the jsonl stands alone."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return None
    rows = read_metrics(out_dir)
    panels = {}  # {panel: [series]}
    for name in dict.fromkeys(key for row in rows for key in row if key not in ("step", "epoch")):
        panels.setdefault(name.split("/")[0], []).append(name)
    columns = min(3, max(1, len(panels)))
    lines = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(
        lines, columns, figsize=(4.2 * columns, 2.6 * lines), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (panel, names) in zip(axes.flat, panels.items(), strict=False):
        for name in names:
            points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
            sparse = len(points) < 20
            axis.plot(*zip(*points, strict=True), label=name.partition("/")[2] or name,
                      marker="o" if sparse else None, markersize=3, linewidth=1)  # fmt: skip
        axis.set_title(panel, fontsize=10)
        axis.grid(alpha=0.3)
        if len(names) > 1:
            axis.legend(fontsize=7)
    path = Path(out_dir) / "metrics.png"
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path
