"""Reading measured times: the machine's name, and the interval of a median. Needs nothing but Python."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from math import comb
from pathlib import Path

__all__ = ["cpu_name", "median_interval"]


def cpu_name() -> str:
    """Return the processor's name, which Python does not tell on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def median_interval(values: Sequence[float], /, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the narrowest symmetric pair of order statistics that covers the median with at least that confidence.

    The number of values below the median is binomial with p = 1/2, whatever their distribution. With too few
    values for the confidence, the smallest and the largest.

    Example:
        >>> median_interval([float(value) for value in range(1, 16)])
        (4.0, 12.0)
    """
    ordered, count = sorted(values), len(values)
    rank, tail = 0, 0.5**count
    while 2 * (tail + comb(count, rank + 1) * 0.5**count) <= 1 - confidence:
        rank += 1
        tail += comb(count, rank) * 0.5**count
    return ordered[rank], ordered[count - 1 - rank]
