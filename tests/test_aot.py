"""The kernels compile for the GPUs they are meant for."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_every_kernel_compiles_for_a100_and_h100_with_hardly_a_spill():
    # A process of its own: in this one Triton interprets
    command = [sys.executable, "benchmarks/aot.py"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ)
    assert result.returncode == 0, result.stderr
    for chip in ("sm_80", "sm_90"):
        for name in ("rms_norm", "rope", "swiglu", "cross_entropy", "attention", "adamw"):
            assert any(name in row and chip in row for row in result.stdout.splitlines())
