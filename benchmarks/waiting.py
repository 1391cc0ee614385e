"""Share of a training's time that it waits for data, in the training loop of `equipoise.training`.

    python benchmarks/waiting.py --label "gathered ahead" --out benchmarks/results/waiting-cpu.json

The training split is wrapped: the clock runs from the request for a batch to its arrival. The wait is set against the
time from the first request to the end of the last step; evaluation and set-up are left out. The first batch of an
epoch is counted apart too: before it rows are permuted, and of prepared data a window is read.

Data sets: Complete Journey and the slice of KuaiRand in memory, and both prepared and streamed from disk. Trainings of
all of them take turns, `--rounds` times; medians over the rounds. A run replaces what the result holds under its label
and number of threads.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from equipoise.data import Dataset, from_prepared, load
from equipoise.data.dataset import AnySplit
from equipoise.data.stream.manifest import About
from equipoise.data.stream.writing import Content, write_prepared
from equipoise.measuring import cpu_name
from equipoise.schema import Batch
from equipoise.training import train
from result_files import write_result

EPOCHS: Final = {"complete-journey": 1, "kuairand-slice": 4}
"""The data sets, and the epochs of a training."""
BATCHES: Final = (2048, 4096)
METHOD: Final = "multibalance"


class TimedSplit:
    """A training split that notes how long its user waits for each batch.

    Attributes:
        began: when the first batch was asked for.
        first: seconds until the first batch of each epoch came.
        later: seconds until each other batch came.
    """

    def __init__(self, split: AnySplit) -> None:
        self.split = split
        self.began: float | None = None
        self.first: list[float] = []
        self.later: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.split, name)

    def __len__(self) -> int:
        return len(self.split)

    def to(self, device: torch.device | str) -> TimedSplit:
        """See :meth:`AnySplit.to`; only the CPU is measured."""
        assert torch.device(device).type == "cpu"
        return self

    def batches(self, batch_size: int, *, generator: torch.Generator | None = None, skip: int = 0) -> Iterator[Batch]:
        """See :meth:`AnySplit.batches`."""
        waits, batches = self.first, self.split.batches(batch_size, generator=generator, skip=skip)
        while True:
            asked = time.perf_counter()
            self.began = asked if self.began is None else self.began
            batch = next(batches, None)
            if batch is None:
                return
            waits.append(time.perf_counter() - asked)
            waits = self.later
            yield batch


@dataclass(frozen=True)
class Measured:
    """One training.

    Attributes:
        share: the part of its time that it waited for data.
        later_share: the same without the first batch of each epoch.
        first_ms: the mean wait for the first batch of an epoch.
        later_us: the mean wait for another batch.
        step_ms: its time over the number of steps, waiting included.
    """

    share: float
    later_share: float
    first_ms: float
    later_us: float
    step_ms: float


def measure(dataset: Dataset, batch: int, epochs: int) -> Measured:
    """Train once."""
    split = TimedSplit(dataset.train)
    few = slice(0, 256)  # evaluation is not measured
    shortened = replace(
        dataset, train=split, validation=dataset.validation.take(few), test=dataset.test.take(few), group="", slices=(),
        user_groups=(),
    )  # fmt: skip
    ends: list[float] = []
    train(
        shortened, METHOD, epochs=epochs, batch_size=batch, evaluations=1,
        on_step=lambda *_: ends.append(time.perf_counter()),
    )  # fmt: skip
    assert split.began is not None
    return summary(split.first, split.later, ends[-1] - split.began)


def summary(first: Sequence[float], later: Sequence[float], seconds: float) -> Measured:
    """Return the shares of a training that took so many seconds, from its waits in seconds."""
    return Measured(
        share=(sum(first) + sum(later)) / seconds,
        later_share=sum(later) / seconds,
        first_ms=1e3 * statistics.fmean(first),
        later_us=1e6 * statistics.fmean(later),
        step_ms=1e3 * seconds / (len(first) + len(later)),
    )


def prepared(dataset: Dataset, folder: Path) -> Dataset:
    """Write a data set as prepared data, and return it as it is streamed from there."""
    about = About(
        name=f"{dataset.name}, prepared", columns=dataset.schema, importance=dataset.train.importance is not None
    )
    splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    block = {name: replace(split.take(slice(None)), keys={}) for name, split in splits.items()}
    write_prepared(folder, {}, lambda: Content(about, None, lambda first: iter([block][first:])))
    return from_prepared(folder)


def markdown(result: Mapping[str, Any]) -> str:
    """Return the page of a result."""
    lines = [
        f"# Share of a training's time that waits for data: {result['machine']}", "",
        f"`equipoise.training.train` with {METHOD} and the default model, by threads of PyTorch.",
        "Medians over the rounds. The second share leaves out the first batch of each epoch.",
    ]  # fmt: skip
    for label, run in result["runs"].items():
        lines += [
            "", f"## {label}", "",
            f"{run['rounds']} round{'s' * (run['rounds'] > 1)}; torch {run['torch']}; written by", "",
            f"`{run['command']}`", "",
            "| data | batch | waiting | without first batches | first batch, ms | another, µs | step, ms |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]  # fmt: skip
        for row in run["rows"]:
            lines.append(
                f"| {row['data']} | {row['batch']} | {row['share']:.2%} | {row['later_share']:.2%} "
                f"| {row['first_ms']:.1f} | {row['later_us']:.0f} | {row['step_ms']:.1f} |"
            )
    return "\n".join(lines) + "\n"


def medians(trainings: Sequence[Measured]) -> dict[str, float]:
    """Return the median of each number."""
    found = [asdict(training) for training in trainings]
    return {name: statistics.median(each[name] for each in found) for name in found[0]}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--label", required=True, help="a name for the code that is measured")
    arguments.add_argument("--rounds", type=int, default=2)
    arguments.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    arguments.add_argument("--only", nargs="+", choices=list(EPOCHS), default=list(EPOCHS))
    arguments.add_argument("--out", type=Path, help="written with the endings .json and .md")
    chosen = arguments.parse_args()
    torch.set_num_threads(chosen.threads)
    found: dict[tuple[str, int], list[Measured]] = {}
    with tempfile.TemporaryDirectory() as folder:
        data: dict[str, tuple[Dataset, int]] = {}
        for name in chosen.only:
            in_memory = load(name)
            data[f"{name}, in memory"] = in_memory, EPOCHS[name]
            data[f"{name}, streamed"] = prepared(in_memory, Path(folder) / name), EPOCHS[name]
        measure(in_memory, BATCHES[0], 1)  # warms up
        for _ in range(chosen.rounds):
            for words, (dataset, epochs) in data.items():
                for batch in BATCHES:
                    training = measure(dataset, batch, epochs)
                    found.setdefault((words, batch), []).append(training)
                    print(f"{words}, {batch}: {training}", flush=True)
    if chosen.out is None:
        return
    path = chosen.out.with_suffix(".json")
    result = json.loads(path.read_text()) if path.is_file() else {"machine": cpu_name(), "runs": {}}
    result["runs"][f"{chosen.label}, {chosen.threads} thread{'s' * (chosen.threads > 1)}"] = {
        "command": shlex.join(["python", *sys.argv]), "label": chosen.label, "threads": chosen.threads,
        "rounds": chosen.rounds,
        "torch": torch.__version__,
        "rows": [{"data": words, "batch": batch, **medians(each)} for (words, batch), each in found.items()],
    }  # fmt: skip
    write_result(path, result, markdown(result))


if __name__ == "__main__":
    main()
