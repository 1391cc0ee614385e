"""Time of a step by its parts, beside the least time of each.

    python benchmarks/step_parts.py --out benchmarks/results/step-parts-cpu.json

Every operation of PyTorch is timed on its own, in processor time on one thread, so that other work of the machine
hardly matters; in between come steps without these clocks, for the time of a whole step. What is left of it is Python,
the starting of operations, and what belongs to no part; it is below 0 where the clocks slow the operations down. The
least times are those of `counting.py` at the rates that this machine has now.

The same steps are measured with a plain ``nn.Embedding``, whose gradient PyTorch adds up row by row, and whole steps of
both in pairs: the ratio is the median over the pairs, with its 95 % interval.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode

import floors_page
import speed
from counting import Rates, Term
from equipoise.measuring import cpu_name, median_interval
from equipoise.methods import parse_method
from equipoise.schema import Batch
from equipoise.settings import TrainingSettings
from equipoise.training.learner import Learner
from floors import WORKLOAD, least, measured_rates, speed_shape, speed_terms, trained_shape, trained_terms
from neighbours.workload import Workload
from result_files import write_result

TASKS: Final = 8
OPTIMIZER: Final = "optimizer"
REST: Final = "everything else"
PART_OF_OPERATION: Final = {
    **dict.fromkeys(("addmm", "mm", "bmm", "baddbmm"), "products of the layers"),
    **dict.fromkeys(("relu", "threshold_backward"), "ReLU and its mask"),
    **dict.fromkeys(("embedding", "index_select", "cat"), "embedding rows read"),
    **dict.fromkeys(("embedding_dense_backward", "index_add", "new_zeros"), "gradient of the table"),
}
PART_OF_TERM: Final = {
    **dict.fromkeys(
        ("bottom, forward", "towers, forward", "towers, backward", "bottom, backward"), "products of the layers"
    ),
    "embedding rows read": "embedding rows read",
    "embedding rows' gradients": "gradient of the table",
    "parameters updated": OPTIMIZER,
    "embedding rows updated": OPTIMIZER,
}
PARTS: Final = (*dict.fromkeys(PART_OF_OPERATION.values()), OPTIMIZER)


class Clocks(TorchDispatchMode):
    """Sums up the processor time of operations by part.

    Attributes:
        seconds: by part; operations of none are left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._in_optimizer = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Time one operation."""
        part = OPTIMIZER if self._in_optimizer else PART_OF_OPERATION.get(func.overloadpacket.__name__)
        started = time.thread_time()
        found = func(*args, **(kwargs or {}))
        if part is not None:
            self.seconds[part] += time.thread_time() - started
        return found

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time what is computed meanwhile; in the step of an optimizer it counts as that."""

        def enter(*_: object) -> None:
            self._in_optimizer = True

        def leave(*_: object) -> None:
            self._in_optimizer = False

        hooks = register_optimizer_step_pre_hook(enter), register_optimizer_step_post_hook(leave)
        try:
            with self:
                yield
        finally:
            for hook in hooks:
                hook.remove()


def parts_of(step: Callable[[Batch], object], batches: Iterable[Batch], steps: int) -> dict[str, float]:
    """Return where the time of a step goes, in milliseconds: the medians over some steps."""
    each: list[dict[str, float]] = []
    whole: list[float] = []
    for place, batch in enumerate(islice(cycle(batches), 2 * steps + 2)):
        clocks = Clocks()
        if place % 2:
            with clocks.running():
                step(batch)
            each.append(clocks.seconds)
        else:
            started = time.thread_time()
            step(batch)
            whole.append(time.thread_time() - started)
    # The first two warm up.
    found = {part: 1e3 * statistics.median(seconds[part] for seconds in each[1:]) for part in PARTS}
    return found | {REST: 1e3 * statistics.median(whole[1:]) - sum(found.values())}


def beside_least(found: Mapping[str, float], terms: Sequence[Term], rates: Rates) -> list[dict[str, Any]]:
    """Return the parts beside the least time of the terms that belong to each."""
    floors = dict.fromkeys(found, 0.0)
    for term in terms:
        floors[PART_OF_TERM.get(term.name, REST)] += least([term], rates)
    return [{"part": part, "measured_ms": ms, "floor_ms": floors[part]} for part, ms in found.items()]


def training_step(workload: Workload) -> Callable[[Batch], object]:
    """Return what makes a step of a training of side_by_side.py."""
    options: dict[str, Any] = {"embedding_dim": workload.dimension, "bottom": [*workload.bottom]}
    settings = TrainingSettings.of(lr=workload.rate, model_options=options | {"tower": [*workload.tower]})
    return Learner(workload.dataset.schema, parse_method("equal"), settings).step


def ratio(
    step: Callable[[Batch], object], former: Callable[[Batch], object], batches: Sequence[Batch], pairs: int
) -> dict[str, float]:
    """Return the time of a step over that of its former form, from pairs on the same batch."""
    ratios = []
    for batch in islice(cycle(batches), pairs):
        times = []
        for each in (step, former):
            started = time.thread_time()
            each(batch)
            times.append(time.thread_time() - started)
        ratios.append(times[0] / times[1])
    low, high = median_interval(ratios)
    return {"ratio": statistics.median(ratios), "low": low, "high": high}


def measure(steps: int) -> list[dict[str, Any]]:
    """Measure a step of speed.py and one of a training of side_by_side.py, both with the plain sum."""
    torch.set_num_threads(1)
    size = speed.WORKLOADS["cpu"]
    of_speed = speed_terms(speed_shape(TASKS), "plain sum")
    of_training = trained_terms(trained_shape(WORKLOAD), "plain sum")
    rates = measured_rates([*of_speed, *of_training], 1)
    shuffled = list(WORKLOAD.dataset.train.batches(WORKLOAD.batch, generator=torch.Generator().manual_seed(0)))
    of_plain = partial(speed.plain, TASKS, size, "cpu")
    found = []
    for name, build, batches, terms in (
        (f"step of speed.py, {TASKS} tasks", of_plain, speed.batches(TASKS, size, "cpu"), of_speed),
        ("step of a training of side_by_side.py, 4 tasks", partial(training_step, WORKLOAD), shuffled, of_training),
    ):
        step = build()
        with patch("equipoise.ranking.embedding.Table", torch.nn.Embedding):
            former = build()
        parts, former_parts = (beside_least(parts_of(each, batches, steps), terms, rates) for each in (step, former))
        pairs = ratio(step, former, batches, 2 * steps)
        found.append({"step": name, "parts": parts, "former_parts": former_parts, **pairs})
    return found


def tables(result: Mapping[str, Any]) -> list[str]:
    """Return where the time of each step goes."""
    lines = []
    for step in result["steps"]:
        whole, floor = (sum(part[kind] for part in step["parts"]) for kind in ("measured_ms", "floor_ms"))
        lines += [f"{step['step']}:", "", "| part | measured, ms | least, ms |", "|---|---:|---:|"]
        lines += [f"| {part['part']} | {part['measured_ms']:.2f} | {part['floor_ms']:.2f} |" for part in step["parts"]]
        lines += [
            f"| whole step | {whole:.2f} | {floor:.2f} |",
            "",
            f"Above the least: {floors_page.above_the_least(step)}.",
            "",
            f"Over the step with `nn.Embedding`: ×{step['ratio']:.3f} ({step['low']:.3f} to {step['high']:.3f}); there",
            f"the gradient of the table takes {floors_page.table_ms(step['former_parts']):.2f} ms.",
            "",
        ]
    return lines


def markdown(result: Mapping[str, Any]) -> str:
    """Return the page of a result."""
    lines = [
        f"# Where the time of a step goes: {result['machine']}, one thread", "",
        f"The plain sum of the losses, in processor time; medians over {result['count']} steps.",
        f"Written by `{result['command']}` with torch {result['torch']}.", "", *tables(result),
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--steps", type=int, default=20)
    arguments.add_argument("--out", type=Path, required=True, help="written with the endings .json and .md")
    chosen = arguments.parse_args()
    result = {
        "command": shlex.join(["python", *sys.argv]), "machine": cpu_name(), "torch": torch.__version__,
        "count": chosen.steps, "steps": measure(chosen.steps),
    }  # fmt: skip
    write_result(chosen.out, result, markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
