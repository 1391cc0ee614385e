"""Records of trainings, one line of JSON each, and intervals in words, for the scripts beside this file."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch

from equipoise import data
from equipoise.data import Dataset
from equipoise.methods import Method
from equipoise.report.statistics import PairedComparison, interval, relative_gain
from equipoise.training import NonFiniteError, Run, train

Record = dict[str, Any]
Tables = dict[str, list[str]]
"""The lines of each table in Markdown, by the name under which a page shows it."""


class Records:
    """The records of a file; a training whose key is there is not made again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Record] = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def get(self, key: Mapping[str, Any], make: Callable[[], Record]) -> Record:
        """Return the record with this key, made and written now if there is none."""
        for row in self.rows:
            if all(row.get(name) == value for name, value in key.items()):
                return row
        row = {**key, **make()}
        self.rows.append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        return row


@dataclass(frozen=True)
class Setting:
    """A data set, and how all variants are trained on it; ``options`` are those of :func:`equipoise.data.load`."""

    title: str
    data: str
    options: dict[str, Any]
    training: dict[str, Any]

    def load(self, rows: int | None) -> Dataset:
        return data.load(self.data, **self.options | ({"rows": rows} if rows and "rows" in self.options else {}))


def arguments(about: str | None, *, rows: int | None, seeds: int) -> argparse.Namespace:
    """Read ``out``, ``rows`` and ``seeds`` from the command line, and take one thread, as all trainings here do."""
    return read(arguments_of_all(about, rows=rows, seeds=seeds))


def arguments_of_all(about: str | None, *, rows: int | None, seeds: int) -> argparse.ArgumentParser:
    """Return what reads ``out``, ``rows`` and ``seeds``; a script may add its own."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=rows, help="fewer rows than those of the result try the script")
    parser.add_argument("--seeds", type=int, default=seeds)
    return parser


def read(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the command line, and take one thread."""
    torch.set_num_threads(1)
    return parser.parse_args()


def train_variants(
    about: str | None, settings: Mapping[str, Setting], variants: Iterable[str], *, seeds: int
) -> list[Record]:
    """Train each variant of a method, as the command line says, in each setting with each seed; return the records."""
    chosen = arguments(about, rows=None, seeds=seeds)
    records = Records(chosen.out)
    for name, setting in settings.items():
        dataset = setting.load(chosen.rows)
        for seed, variant in itertools.product(range(chosen.seeds), variants):
            key = {"setting": name, "variant": variant, "seed": seed}
            records.get(key, partial(tested, dataset, variant, seed, **setting.training))
    return records.rows


@dataclass(frozen=True)
class SettingWithRates(Setting):
    """A setting with pairs of rate and decay, at each of which all variants are trained."""

    rates: tuple[tuple[float, float], ...]


def train_at_rates(
    about: str | None, settings: Mapping[str, SettingWithRates], variants: Mapping[str, str | Method], *, seeds: int
) -> list[Record]:
    """Train each variant as the command line says, at each pair of rate and decay of each setting with each seed."""
    chosen = arguments(about, rows=None, seeds=seeds)
    records = Records(chosen.out)
    for name, setting in settings.items():
        dataset = setting.load(chosen.rows)
        for (lr, decay), seed in itertools.product(setting.rates, range(chosen.seeds)):
            for variant, method in variants.items():
                key = {"setting": name, "variant": variant, "lr": lr, "seed": seed}
                training = setting.training | {"lr": lr, "table_decay": decay}
                records.get(key, partial(tested, dataset, method, seed, **training))
    return records.rows


def by_variant(rows: Sequence[Record], setting: str, variants: Iterable[str]) -> dict[str, list[Record]]:
    """Return the records of a setting by variant, of those that have any."""
    found = {
        variant: [row for row in rows if (row["setting"], row["variant"]) == (setting, variant)] for variant in variants
    }
    return {variant: own for variant, own in found.items() if own}


def mean_ne(rows: Sequence[Record]) -> float:
    """Return the mean test NE over tasks and trainings, without those that diverged."""
    return fmean(fmean(row["test_ne"].values()) for row in rows if row["test_ne"])


def run_of(dataset: Dataset, method: str | Method, seed: int, **settings: Any) -> Run:
    """Return a training, also one that diverged; evaluated once, unless the settings say otherwise."""
    try:
        return train(dataset, method, seed=seed, **{"evaluations": 1, **settings})
    except NonFiniteError as error:
        return error.run


def tested(dataset: Dataset, method: str | Method, seed: int, **settings: Any) -> Record:
    """Return how a training ended, and its test NE by task."""
    run = run_of(dataset, method, seed, **settings)
    return {"status": run.status, "test_ne": ne_of(run)}


def ne_of(run: Run, split: Literal["test", "validation"] = "test") -> dict[str, float]:
    """Return the NE of each task to six digits; empty for a training that diverged."""
    found = run.test if split == "test" else run.validation
    return {} if run.status == "diverged" else {task: round(metrics["ne"], 6) for task, metrics in found.items()}


def gain(rows: Sequence[Record], reference: Sequence[Record], task: str = "") -> PairedComparison:
    """Return the gain in test NE of one task, or of the mean over tasks, in per cent of the reference, by seed."""

    def by_seed(of: Sequence[Record]) -> dict[int, float]:
        scored = {row["seed"]: row["test_ne"] for row in of if row["test_ne"]}
        return {seed: found[task] if task else fmean(found.values()) for seed, found in scored.items()}

    return relative_gain(by_seed(rows), by_seed(reference), higher_is_better=False)


def gain_in_words(found: PairedComparison) -> str:
    """Return a gain with its 95 % interval; the mean alone where one pair gives no interval."""
    if found.mean is None:
        return ""
    ends = "" if found.low is None or found.high is None else f" ({found.low:+.2f} to {found.high:+.2f})"
    return f"{found.mean:+.2f} %{ends}".replace("-", "−")


def mean_in_words(values: Sequence[float], digits: int = 2) -> str:
    """Return a mean over seeds and half its 95 % interval (Student's t)."""
    found = interval(values)
    half = "" if found.low is None or found.mean is None else f" ± {found.mean - found.low:.{digits}f}"
    return f"{found.mean:.{digits}f}{half}".replace("-", "−")


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table: the first column and those of words to the left, numbers to the right."""
    columns = enumerate(zip(heads, *rows, strict=True))
    words = [not place or any(cell[:1].isalpha() for cell in cells) for place, (_, *cells) in columns]
    lines = [f"| {' | '.join(heads)} |", "|" + "".join("---|" if left else "---:|" for left in words)]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]


def show(tables: Tables) -> None:
    """Print tables one below the other."""
    for name, lines in tables.items():
        print("\n".join([f"{name}:", "", *lines, ""]))
