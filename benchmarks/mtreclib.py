"""The MMoE of MTReclib's published configuration: its speed and AUC, re-created, beside equipoise's on the same rows.

    python benchmarks/mtreclib.py --out benchmarks/results/mtreclib

MTReclib (github.com/easezyc/Multitask-Recommendation-Library) publishes for AliExpress: embeddings of 128, 8 experts of
512-256, towers of 128-64, batch normalisation, dropout 0.2, Adam at 1e-3 with an L2 penalty of 1e-6, batches of 2048,
a mean of BCE losses, one row at a time from a ``DataLoader`` with 4 workers. `Recreated` and `Rows` below are written
from reading it. It stops early on the test set; here all contenders train for the same number of epochs instead.

Equipoise trains the preset ``mmoe-aliexpress`` by equal weights, in float32 and in bfloat16; the re-creation is run
under bfloat16 too, which MTReclib does not offer, to tell what precision alone is worth. The rows are generated in the
form of the AliExpress set (16 ids, 63 numbers, click, conversion after a click), which may not be had here, with more
clicks and conversions than its 2 % and 0.05 %, so that few rows tell something. Equipoise's learning rate was chosen on
other rows, of the seed 0.

The contenders take turns, an epoch each, in an order drawn anew. An epoch's ratio is its examples per second over the
re-creation's in the same turn; the median is quoted with an interval by order statistics, which with under 6 turns is
their whole range. The same is given for examples per second of processor time, loading workers included, which hardly
depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.functional.classification import binary_auroc

from equipoise.data import Split
from equipoise.measuring import cpu_name, median_interval
from equipoise.methods import METHODS
from equipoise.schema import Batch, Categorical, Numeric, Schema, Task
from equipoise.settings import Precision, TrainingSettings
from equipoise.training.learner import Learner

CARDINALITIES = (10, 4, 6, 2, 21, 7, 50, 8, 7, 2, 2, 2, 2, 2, 2, 2)  # as in the first rows of the NL set
NUMBERS, BATCH, WORKERS, DIMENSION, EXPERTS = 63, 2048, 4, 128, 8
TASKS = ("click", "conversion")
SCHEMA = Schema(
    [Categorical(f"categorical_{place + 1}", size) for place, size in enumerate(CARDINALITIES)],
    [Numeric(f"numerical_{place + 1}") for place in range(NUMBERS)],
    [Task("click"), Task("conversion", after="click", over="all")],
)


def generated(rows: int, seed: int) -> Split:
    """Rows whose labels follow effects of ids and numbers and products of pairs of numbers, the same for all seeds."""
    truth, generator = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randint(size, (rows,), generator=generator) for size in CARDINALITIES], 1)
    numbers = torch.randn(rows, NUMBERS, generator=generator)
    labels = []
    chosen = torch.ones(rows, dtype=torch.bool)
    for intercept in (-2.0, -0.8):
        effects = sum(torch.randn(size, generator=truth)[ids[:, f]] for f, size in enumerate(CARDINALITIES))
        linear = numbers @ torch.randn(NUMBERS, generator=truth)
        pairs = numbers[:, :10] * numbers[:, 10:20] @ torch.randn(10, generator=truth)
        logit = intercept + 0.25 * effects + 0.12 * linear + 0.25 * pairs
        chosen = chosen & (torch.rand(rows, generator=generator) < logit.sigmoid())
        labels.append(chosen.float())
    return Split(ids.int(), numbers, torch.stack(labels, 1), torch.ones(rows))


class Rows:
    """One row at a time, for a DataLoader."""

    def __init__(self, split: Split) -> None:
        self.ids, self.numbers = split.categorical.numpy().astype(np.int64), split.numeric.numpy()
        self.labels = split.labels.numpy()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.ids[row], self.numbers[row], self.labels[row]


def network(inputs: int, widths: tuple[int, ...], *, last: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2)]
        inputs = width
    return nn.Sequential(*layers, *([nn.Linear(inputs, 1)] if last else []))


class Recreated(nn.Module):
    """MMoE with experts in a loop; gives probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(sum(CARDINALITIES), DIMENSION)
        nn.init.xavier_uniform_(self.table.weight)
        self.starts = np.cumsum((0, *CARDINALITIES[:-1]))
        self.numbers = nn.Linear(NUMBERS, DIMENSION)
        self.inputs = (len(CARDINALITIES) + 1) * DIMENSION
        self.experts = nn.ModuleList(network(self.inputs, (512, 256), last=False) for _ in range(EXPERTS))
        self.gates = nn.ModuleList(nn.Sequential(nn.Linear(self.inputs, EXPERTS), nn.Softmax(dim=1)) for _ in TASKS)
        self.towers = nn.ModuleList(network(256, (128, 64), last=True) for _ in TASKS)

    def forward(self, ids: Tensor, numbers: Tensor) -> list[Tensor]:
        embedded = self.table(ids + ids.new_tensor(self.starts))
        x = torch.cat([embedded, self.numbers(numbers).unsqueeze(1)], 1).view(-1, self.inputs)
        outputs = torch.cat([expert(x).unsqueeze(1) for expert in self.experts], 1)
        mixed = [torch.bmm(gate(x).unsqueeze(1), outputs).squeeze(1) for gate in self.gates]
        return [torch.sigmoid(tower(z).squeeze(1).float()) for tower, z in zip(self.towers, mixed, strict=True)]


class Contender(Protocol):
    def epoch(self) -> int:
        """Train for one epoch; return the number of examples."""

    def scores(self, split: Split) -> Tensor:
        """Return one score per row and task."""


class MTReclib:
    def __init__(self, train: Split, seed: int, precision: Precision) -> None:
        torch.manual_seed(seed)
        self.precision = precision
        self.model = Recreated()
        self.loader = DataLoader(Rows(train), batch_size=BATCH, shuffle=True, num_workers=WORKERS)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3, weight_decay=1e-6)

    def epoch(self) -> int:
        self.model.train()
        criterion, seen, total = nn.BCELoss(), 0, 0.0
        for ids, numbers, labels in self.loader:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bfloat16"):
                found = self.model(ids, numbers)
            loss = sum(criterion(found[task], labels[:, task]) for task in range(len(TASKS))) / len(TASKS)
            self.model.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += loss.item()
            seen += len(labels)
        return seen

    @torch.no_grad()
    def scores(self, split: Split) -> Tensor:
        self.model.eval()
        return torch.cat(
            [torch.stack(self.model(batch.categorical, batch.numeric), 1) for batch in split.batches(4 * BATCH)]
        )


class Equipoise:
    def __init__(self, train: Split, seed: int, precision: Precision, *, lr: float, epochs: int) -> None:
        settings = TrainingSettings.of(model="mmoe-aliexpress", lr=lr, seed=seed, precision=precision)
        steps = epochs * -(-len(train) // BATCH)
        self.learner = Learner(SCHEMA, METHODS["equal"], settings, total_steps=steps, epoch_steps=steps // epochs)
        self.train, self.generator = train, torch.Generator().manual_seed(seed)

    def batches(self) -> Iterator[Batch]:
        return self.train.batches(BATCH, generator=self.generator)

    def epoch(self) -> int:
        seen = 0
        for batch in self.batches():
            self.learner.step(batch)
            seen += len(batch)
        return seen

    def scores(self, split: Split) -> Tensor:
        return torch.cat([self.learner.logits(batch) for batch in split.batches(4 * BATCH)])


def built(name: str, train: Split, seed: int, *, lr: float, epochs: int) -> Contender:
    precision: Precision = "bfloat16" if name.endswith("bfloat16") else "float32"
    if name.startswith("MTReclib"):
        return MTReclib(train, seed, precision)
    return Equipoise(train, seed, precision, lr=lr, epochs=epochs)


BASELINE = "MTReclib, re-created"
CONTENDERS = (BASELINE, f"{BASELINE}, bfloat16", "equipoise", "equipoise, bfloat16")


def processor_seconds() -> float:
    """Return the processor time of this process and of its workers that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def measure(rows: int, epochs: int, seeds: int, lr: float, names: list[str]) -> dict[str, Any]:
    test = generated(8 * BATCH, seed=999)
    order = random.Random(0)
    rates: dict[str, list[float]] = {name: [] for name in names}
    processor: dict[str, list[float]] = {name: [] for name in names}
    aucs: dict[str, list[list[float]]] = {name: [] for name in names}
    for seed in range(seeds):
        train = generated(rows, seed=seed + 1)
        contenders = {name: built(name, train, seed, lr=lr, epochs=epochs) for name in names}
        for _ in range(epochs):
            for name in order.sample(names, len(names)):
                started, worked = time.perf_counter(), processor_seconds()
                seen = contenders[name].epoch()
                rates[name].append(seen / (time.perf_counter() - started))
                processor[name].append(seen / (processor_seconds() - worked))
                print(f"seed {seed} {name}: {rates[name][-1]:.0f} examples per second", flush=True)
        for name, contender in contenders.items():
            scores = contender.scores(test)
            found = [binary_auroc(scores[:, task], test.labels[:, task].int()).item() for task in range(len(TASKS))]
            aucs[name].append(found)
            print(f"seed {seed} {name}: AUC {found}", flush=True)
    return {"rates": rates, "processor": processor, "aucs": aucs, "positive_rates": test.labels.mean(0).tolist()}


def summary(found: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for name, rates in found["rates"].items():
        ratios, of_processor = (
            [own / other for own, other in zip(found[kind][name], found[kind][BASELINE], strict=True)]
            for kind in ("rates", "processor")
        )
        gains = np.array(found["aucs"][name]) - np.array(found["aucs"][BASELINE])
        half = student.ppf(0.975, len(gains) - 1) * gains.std(0, ddof=1) / len(gains) ** 0.5
        rows.append(
            {
                "contender": name, "examples_per_second": statistics.median(rates),
                "ratio": statistics.median(ratios), "interval": median_interval(ratios),
                "processor_ratio": statistics.median(of_processor),
                "processor_interval": median_interval(of_processor),
                "auc": np.mean(found["aucs"][name], 0).tolist(),
                "auc_gain": [[gain - width, gain + width] for gain, width in zip(gains.mean(0), half, strict=True)],
            }
        )  # fmt: skip
    return rows


def markdown(report: dict[str, Any]) -> str:
    head = (
        "contender", "examples per second", "times the re-creation", "by processor time", "AUC click",
        "AUC conversion", "gain click", "gain conversion",
    )  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in report["contenders"]:
        ratios = [
            f"{row[f'{kind}ratio']:.2f} ({row[f'{kind}interval'][0]:.2f} to {row[f'{kind}interval'][1]:.2f})"
            for kind in ("", "processor_")
        ]
        gains = [f"{low:+.4f} to {high:+.4f}" for low, high in row["auc_gain"]]
        speed = [f"{row['examples_per_second']:.0f}", *ratios]
        aucs = [f"{auc:.4f}" for auc in row["auc"]]
        cells = [row["contender"], *speed, *aucs, *(["", ""] if row["contender"] == BASELINE else gains)]
        lines.append(f"| {' | '.join(cells)} |")
    options = {name: report[name] for name in ("rows", "epochs", "seeds", "lr")}
    command = " ".join(f"--{name} {value}" for name, value in options.items())
    only = " ".join(f'"{name}"' for name in report["rates"])
    intro = (
        f"# The MMoE of MTReclib's configuration\n\n`python benchmarks/mtreclib.py {command} --only {only}`\n\n"
        f"{report['cpu']}, {report['threads']} threads, load {report['load']:.1f} at the start. Generated rows in "
        f"AliExpress' form: clicks {report['positive_rates'][0]:.1%}, conversions {report['positive_rates'][1]:.1%}. "
        f"Gains in AUC over the re-creation on the same rows: 95 % intervals over {report['seeds']} seeds "
        "(Student's t).\n\n"
    )
    return intro + "\n".join(lines) + "\n"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--rows", type=int, default=16 * BATCH)
    arguments.add_argument("--epochs", type=int, default=2)
    arguments.add_argument("--seeds", type=int, default=5)
    arguments.add_argument("--lr", type=float, default=3e-3, help="equipoise's learning rate")
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--only", nargs="*", choices=CONTENDERS, default=list(CONTENDERS))
    arguments.add_argument("--out", type=Path, help="written with the endings .json and .md")
    chosen = arguments.parse_args()
    torch.set_num_threads(chosen.threads)
    report = {"cpu": cpu_name(), "torch": torch.__version__, "load": os.getloadavg()[0]}
    report |= {name: getattr(chosen, name) for name in ("rows", "epochs", "seeds", "lr", "threads")}
    found = measure(chosen.rows, chosen.epochs, chosen.seeds, chosen.lr, chosen.only)
    report |= {"contenders": summary(found), **found}
    print(markdown(report))
    if chosen.out is not None:
        chosen.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
        chosen.out.with_suffix(".md").write_text(markdown(report))


if __name__ == "__main__":
    main()
