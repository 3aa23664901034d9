"""What a run leaves to look at: metrics.jsonl (a line per step), metrics.png, and a description of
itself: run.json (the settings, for --config), environment.json, a copy of the script.
"""

import dataclasses
import json
import math
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
import torch.distributed as dist

from config import UserError
from jsonl import write_text
from parallel import check_same, on_rank0, print0

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bf16, from the data sheets
WINDOW, LEAST, SPIKE = 50, 20, 6.0  # losses looked back at, needed for it, standard deviations
HELDOUT = ("heldout/text", "heldout/chat", "heldout/loss")  # what should be lowest
NO_CURVES = ("step", "epoch", "skipped", "spike", "fading")


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
    """Write run.json, environment.json and the script into cfg.out_dir (rank 0); UserError if
    another rank does not find them there."""
    out, several = Path(cfg.out_dir), dist.is_initialized() and dist.get_world_size() > 1
    if not several or dist.get_rank() == 0:
        write_description(cfg, script, out)
    if several:
        dist.barrier()
        found = (out / "run.json").read_text() if (out / "run.json").exists() else "nothing"
        check_same(found, f"{out}/run.json")


def write_description(cfg, script, out):
    """The files that say what a run is: settings, versions, hardware, its script."""
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
    write_text(out / "run.json", json.dumps(dataclasses.asdict(cfg), indent=1) + "\n")
    write_text(out / "environment.json", json.dumps(environment, indent=1) + "\n")
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


def is_finite(values):
    """Whether a step with these values may reach the weights; the same on every rank."""
    return math.isfinite(values["loss"] + values.get("grad_norm", 0.0))


def is_spike(before, loss):
    """Is a loss more than SPIKE standard deviations above the mean of the losses before it?"""
    before = list(before)[-WINDOW:]
    if len(before) < LEAST:
        return False
    mean = math.fsum(before) / len(before)
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in before) / len(before))
    return loss > mean + SPIKE * deviation


@dataclass
class History:
    """What later steps need of the rows before: made from them, so that a resumed run has it."""

    losses: deque = field(default_factory=lambda: deque(maxlen=WINDOW))  # the last finite ones
    skipped: int = 0  # updates left out
    bad: int = 0  # of them, in a row up to now
    best: dict = field(default_factory=dict)  # held-out series -> (lowest value, its step)

    def add(self, row):
        self.skipped = row.get("skipped", self.skipped)
        self.bad = self.bad + 1 if "skipped" in row else 0
        if "loss" in row:
            self.losses.append(row["loss"])
        for name in HELDOUT:
            if name in row and row[name] < self.best.get(name, (math.inf,))[0]:
                self.best[name] = row[name], row["step"]


class Metrics:
    """metrics.jsonl of one run. A resumed run first drops the lines it is about to write again."""

    def __init__(self, out_dir, start, device, config):
        self.path = Path(out_dir) / "metrics.jsonl"
        self.device, self.config, self.main = device, config, True
        if dist.is_initialized():
            self.main = dist.get_rank() == 0
        self.history = on_rank0(self.keep_before, start)
        self.tokens, self.keys, self.seconds = 0, 0, 0.0
        self.since = time.perf_counter()

    def keep_before(self, start):
        """Drop the lines from a step on -> History of the others."""
        kept, history = [r for r in read_metrics(self.path.parent) if r["step"] < start], History()
        if missing := sorted({*range(start)} - {row["step"] for row in kept}):
            print0(f"{self.path}: {len(missing)} steps are missing, the first is {missing[0]}")
        whole = self.path.with_suffix(".tmp")  # a kill in between must not lose the history
        whole.write_text("".join(json.dumps(row) + "\n" for row in kept))
        whole.rename(self.path)
        for row in kept:
            history.add(row)
        return history

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
        """One line: the values, speed since the line before, memory, and MFU on a known GPU.

        JSON knows no NaN: values that are not finite are left out. A step whose update was left
        out for them says so (`skipped`, counted), and one whose loss is far off (`spike`).
        """
        ranks, past = dist.get_world_size() if dist.is_initialized() else 1, self.history
        row = {"step": step} | {k: v for k, v in values.items() if math.isfinite(v)}
        if not is_finite(values):
            row["skipped"] = past.skipped + 1
            print0(f"\nwarning: step {step}: loss {values['loss']:.4g}, gradient norm "
                   f"{values['grad_norm']:.4g}: no update, {row['skipped']} so far")  # fmt: skip
        elif is_spike(past.losses, row["loss"]):
            row["spike"] = True
            mean = sum(past.losses) / len(past.losses)
            print0(f"\nwarning: step {step}: loss {row['loss']:.4g} is far above the mean of the "
                   f"last {len(past.losses)}, {mean:.4g}")  # fmt: skip
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
        past.add(row)
        self.tokens, self.keys, self.since = 0, 0, time.perf_counter()
        return row

    def check_bad_steps(self, most):
        """UserError after so many steps in a row whose numbers were not finite."""
        if self.history.bad >= most:
            raise UserError(
                f"no finite loss and gradient for {self.history.bad} steps in a row: take a lower "
                "--lr and another --out_dir; or, if it is the data, a higher --max_bad_steps"
            )

    def shown(self, row):
        """What the bar of a run shows."""
        found = {"loss": f"{row.get('loss', math.nan):.3f}"}
        found["tok_s"] = f"{row['tokens_per_second']:.0f}"
        return found | ({"best": self.best()} if self.history.best else {})

    def best(self):
        """Where each held-out loss was lowest: "chat 1.234 at step 199"."""
        return ", ".join(
            f"{name.removeprefix('heldout/')} {value:.4f} at step {step}"
            for name, (value, step) in self.history.best.items()
        )


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
    for name in dict.fromkeys(key for row in rows for key in row if key not in NO_CURVES):
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
