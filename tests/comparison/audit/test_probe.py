"""The look at the gradients gives what a plain computation gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from equipoise.comparison.audit.probe import probe
from equipoise.data import Dataset, Split
from equipoise.schema import Batch, Numeric, Schema, Task
from equipoise.settings import TrainingSettings

ROWS = 600
SCHEMA = Schema([], [Numeric(f"x{place}") for place in range(3)], [Task("one"), Task("same"), Task("opposite")])


class Linear(nn.Module):
    """One shared weight vector that all tasks read as it is; the third reads its negative."""

    def __init__(self, schema: Schema, fork: object) -> None:
        super().__init__()
        self.shared = nn.Linear(3, 1, bias=False)
        self.own = nn.ParameterList([torch.zeros(1) for _ in schema.tasks])

    def forward(self, categorical: Tensor, numeric: Tensor) -> list[Tensor]:
        score = self.shared(numeric).squeeze(1)
        return [sign * score + bias for sign, bias in zip((1, 1, -1), self.own, strict=True)]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    numeric = torch.randn(ROWS, 3, generator=generator)
    click = (torch.rand(ROWS, generator=generator) < numeric[:, 0].sigmoid()).float()
    split = Split(torch.empty(ROWS, 0, dtype=torch.int32), numeric, torch.stack([click] * 3, 1), torch.ones(ROWS))
    return Dataset("made up", SCHEMA, split, split, split, batch_size=100)


def test_lengths_and_cosines_are_those_of_the_gradients(dataset: Dataset) -> None:
    settings = TrainingSettings.of(model=f"{__name__}:Linear", lr=1e-9)
    first = probe(dataset, settings)[0]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weight = Linear(SCHEMA, None).shared.weight.detach().double().squeeze()
    x, y = dataset.train.numeric.double(), dataset.train.labels[:, 0].double()
    gradient = ((x @ weight).sigmoid() - y) @ x / ROWS
    opposite = -((-(x @ weight)).sigmoid() - y) @ x / ROWS
    assert first.lengths["one"] == pytest.approx(float(gradient.norm()), rel=1e-5)
    assert first.lengths["opposite"] == pytest.approx(float(opposite.norm()), rel=1e-5)
    cosine = float(gradient @ opposite / gradient.norm() / opposite.norm())
    assert first.cosines[0][2] == pytest.approx(cosine, abs=1e-5)
    assert first.cosines[0][1] == pytest.approx(1, abs=1e-5)


def test_adams_first_update_is_the_sign_of_the_joint_gradient(dataset: Dataset) -> None:
    first = probe(dataset, TrainingSettings.of(model=f"{__name__}:Linear", lr=1e-2))[0]
    # a vector of signs has a cosine of at least 1/√3 with its own vector in three dimensions
    assert 3**-0.5 - 1e-6 <= first.update <= 1
    assert first.helped["one"] > 0


def test_the_probe_trains_to_the_end(dataset: Dataset) -> None:
    found = probe(dataset, TrainingSettings.of(model=f"{__name__}:Linear", epochs=3))
    assert [found[0].step, found[-1].step] == [0, 17]
    assert len(found) == 12
    assert len({reading.lengths["one"] for reading in found}) == len(found)


def test_the_sample_and_every_batch_go_to_the_device_of_the_learner(dataset: Dataset, monkeypatch) -> None:
    moved = []

    def to(batch: Batch, device: torch.device) -> Batch:
        moved.append((len(batch.labels), device))
        return batch

    monkeypatch.setattr(Batch, "to", to)
    probe(dataset, TrainingSettings.of(model=f"{__name__}:Linear", epochs=1))
    cpu = torch.device("cpu")
    assert moved == [(ROWS, cpu), *[(dataset.batch_size, cpu)] * (ROWS // dataset.batch_size)]
