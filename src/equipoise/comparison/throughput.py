"""Cost of a method: its training throughput relative to equal weights, and the memory of its steps."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice

import torch
from torch.profiler import ProfilerActivity, profile

from equipoise.comparison.results import Throughput
from equipoise.measuring import median_interval
from equipoise.schema import Batch
from equipoise.training import Learner

__all__ = ["peak_memory", "throughput_ratio"]

_LEAST_PAIRS = 6
_MEMORY_STEPS = 2  # the second one holds the optimizer's state beside the gradients


def throughput_ratio(
    learner: Learner,
    reference: Learner,
    batches: Sequence[Batch],
    *,
    pairs: int = 15,
    steps: int = 10,
    seconds: float = 10.0,
) -> Throughput:
    """Measure the throughput (QPS) of a learner over that of a reference, by interleaved blocks of steps.

    A pair is ``steps`` steps of both, one after the other, in alternating order, so that slow drifts of the
    machine cancel; a block covers whole periods of methods that do more in every tenth step. The first block
    of both warms up and is not counted.

    Args:
        pairs: the largest number of pairs.
        seconds: no pair begins after that time, once there are six, the fewest that give a 95 % interval.

    Returns:
        the median over pairs, and its interval by order statistics, of at least 95 % where there are six pairs.

    Raises:
        ValueError: there are fewer than one pair or step, or no batch.
    """
    if pairs < 1 or steps < 1 or not batches:
        raise ValueError(f"Expected pairs, steps and batches; found {pairs}, {steps} and {len(batches)}.")
    stream = cycle(batches)
    _seconds(learner, stream, steps)
    _seconds(reference, stream, steps)
    ratios: list[float] = []
    spent = 0.0
    while len(ratios) < pairs and (spent < seconds or len(ratios) < _LEAST_PAIRS):
        if len(ratios) % 2:
            own = _seconds(learner, stream, steps)
            other = _seconds(reference, stream, steps)
        else:
            other = _seconds(reference, stream, steps)
            own = _seconds(learner, stream, steps)
        ratios.append(other / own)
        spent += own + other
    low, high = median_interval(ratios)
    return Throughput(ratio=statistics.median(ratios), low=low, high=high, pairs=len(ratios))


def peak_memory(build: Callable[[], Learner], batch: Batch) -> int:
    """Return the peak bytes of tensors while a learner is built and makes its first steps.

    Counts weights, gradients, optimizer state and activations, and nothing else: neither the data nor the
    libraries. On a CPU from the allocations that PyTorch's profiler records, which are the same in every
    repetition.
    """
    if batch.labels.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        _first_steps(build, batch)
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler announces itself on stderr otherwise
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
        _first_steps(build, batch)
    results = recorded.profiler.kineto_results if recorded.profiler else None
    alive = peak = 0
    for event in sorted(results.events(), key=lambda entry: entry.start_ns()) if results else ():
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    return peak


def _first_steps(build: Callable[[], Learner], batch: Batch) -> None:
    learner = build()
    for _ in range(_MEMORY_STEPS):
        learner.step(batch)


def _seconds(learner: Learner, batches: Iterator[Batch], steps: int) -> float:
    chosen = list(islice(batches, steps))
    _synchronize(learner)
    started = time.perf_counter()
    for batch in chosen:
        learner.step(batch)
    _synchronize(learner)
    return time.perf_counter() - started


def _synchronize(learner: Learner) -> None:
    if learner.device.type == "cuda":
        torch.cuda.synchronize(learner.device)
