"""What measurements share: a fresh process for each arm, what it used, and on what machine.

Arms that run one after another in one process inherit its memory and its warm caches; arms that run
in one fixed order inherit the drift of the clock. So each measurement is a process of its own, and
the order is there and back again: A B C C B A.
"""

import json
import os
import platform
import resource
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from metrics import git_commit

RESULTS = Path(__file__).resolve().parent / "results"


def there_and_back(names):
    return [*names, *reversed(names)]


def fresh(script, *words):
    """Run `python script words...`; what it prints is seen, its last line is the json returned."""
    command = [sys.executable, script, *map(str, words)]
    last = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if last:
                print(last, end="", flush=True)
            last = line
    if process.returncode:
        return {"error": f"exit code {process.returncode}: {last.strip()}"}
    return json.loads(last)


def forget_peak():
    """Let the peak of resident memory start anew. Returns the bytes that are resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def peak_resident():
    """Largest resident memory of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024


def quantiles(values):
    """[p20, p50, p80]"""
    values = torch.tensor(values, dtype=torch.float64)
    return values.quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)).tolist()


def about():
    """Hardware and versions, for the result."""
    packages = {"torch": str(torch.__version__)}
    for name in ("triton", "transformers", "liger-kernel"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    return {
        "device": device_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "packages": packages,
        "git_commit": git_commit(),
        "time": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
    }


def device_name():
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def store(name, result):
    """Write benchmarks/results/<name>-<device>.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{device_name().replace(' ', '_')}.json"
    path.write_text(json.dumps(result | about(), indent=1) + "\n")
    print(f"written to {path.relative_to(RESULTS.parent.parent)}")
