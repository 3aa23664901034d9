"""Means over seeds, with 95% intervals of Student's t."""

import math

import numpy as np

FEWEST = 5  # seeds below which nothing is decided
# Two-sided 95% quantiles of Student's t for 1 to 9 degrees of freedom
T = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]


def mean(values):
    """{"mean", "low", "high", "seeds"} of numbers, one a seed; a single one has no interval."""
    n, middle = len(values), float(np.mean(values))
    if n < 2:
        return {"mean": middle, "low": None, "high": None, "seeds": n}
    t = T[n - 2] if n < len(T) + 2 else 1.96 + 2.4 / (n - 1)
    half = t * float(np.std(values, ddof=1)) / math.sqrt(n)
    return {"mean": middle, "low": middle - half, "high": middle + half, "seeds": n}
