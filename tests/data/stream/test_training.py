"""A training on prepared data is that on the same rows in memory, and resumes to the bit in the middle of an epoch."""

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from equipoise.data import Dataset, Split, from_prepared
from equipoise.data.stream import About, write_prepared
from equipoise.schema import Batch, Categorical, Numeric, Schema, Task
from equipoise.training import METHODS, CheckpointError, Run, StoppedError, train
from tests.data.stream.made_up import content_of

SETTINGS = {"epochs": 3, "batch_size": 16, "lr": 1e-2, "evaluations": 4, "evaluation_rows": 50}
SCHEMA = Schema(
    [Categorical("user", 20), Categorical("item", 20)], [Numeric("price")], [Task("click"), Task("like")]
)  # fmt: skip
ABOUT = About(name="learnable", columns=SCHEMA)


def learnable_rows(rows: int, seed: int) -> Split:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 20, (rows, 2), generator=generator, dtype=torch.int32)
    price = torch.randn(rows, 1, generator=generator)
    labels = torch.cat([price > 0.5, ids[:, :1] > 10], 1).float()
    labels[::7, 1] = torch.nan
    return Split(ids, price, labels, torch.where(labels[:, 0] == 1, 1.0, 3.0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    blocks = [
        {"train": learnable_rows(10, i), "validation": learnable_rows(4, 100 + i), "test": learnable_rows(5, 200 + i)}
        for i in range(20)
    ]
    found = tmp_path_factory.mktemp("learnable") / "prepared"

    write_prepared(found, {}, lambda: content_of(blocks, ABOUT))
    return found


def comparable(run: Run) -> dict[str, object]:
    return json.loads(run.to_json()) | {"seconds": 0, "examples_per_second": 0}


def stop_at(step: int) -> tuple[Callable[[int, int], None], Callable[[], bool]]:
    done: list[int] = []
    return lambda now, _: done.append(now), lambda: done[-1:] == [step]


def test_a_training_is_that_of_the_same_batches_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    streamed = from_prepared(folder)
    in_memory = replace(
        streamed,
        **{name: getattr(streamed, name).take(slice(None)) for name in ("train", "validation", "test")},
    )
    unshuffled = Split.batches

    def in_the_order_of_the_stream(
        split: Split, batch_size: int, *, generator: torch.Generator | None = None, skip: int = 0
    ) -> Iterator[Batch]:
        if generator is None:
            return unshuffled(split, batch_size, skip=skip)
        return streamed.train.batches(batch_size, generator=generator, skip=skip)

    monkeypatch.setattr(Split, "batches", in_the_order_of_the_stream)
    runs = [comparable(train(dataset, "multibalance", **SETTINGS)) for dataset in (streamed, in_memory)]
    assert runs[0] == runs[1]
    assert runs[0]["test"]["click"]["auc"] > 0.8
    assert runs[0]["test_natural"]


@pytest.mark.parametrize("at", [5, 12, 13, 30])  # 12 steps make an epoch
@pytest.mark.parametrize("method", ["multibalance", "pub"])
def test_a_resumed_training_is_the_uninterrupted_one_to_the_bit(
    folder: Path, tmp_path: Path, method: str, at: int
) -> None:
    dataset = from_prepared(folder)
    whole = train(dataset, METHODS[method], **SETTINGS, checkpoint=tmp_path / "whole")
    on_step, stop = stop_at(at)
    with pytest.raises(StoppedError):
        train(dataset, METHODS[method], **SETTINGS, checkpoint=tmp_path / "parts", on_step=on_step, stop=stop)
    resumed = train(dataset, METHODS[method], **SETTINGS, checkpoint=tmp_path / "parts", resume=True)
    assert comparable(resumed) == comparable(whole)


def test_a_training_is_not_resumed_on_other_rows(folder: Path, tmp_path: Path) -> None:
    on_step, stop = stop_at(5)
    with pytest.raises(StoppedError):
        train(from_prepared(folder), "equal", **SETTINGS, checkpoint=tmp_path / "run", on_step=on_step, stop=stop)
    blocks = [{name: learnable_rows(200, 7 + i) for i, name in enumerate(("train", "validation", "test"))}]
    write_prepared(tmp_path / "other", {}, lambda: content_of(blocks, ABOUT))
    with pytest.raises(CheckpointError, match="data"):
        train(from_prepared(tmp_path / "other"), "equal", **SETTINGS, checkpoint=tmp_path / "run", resume=True)


def test_worker_processes_get_the_path_and_no_rows(folder: Path) -> None:
    dataset = from_prepared(folder)
    assert len(dataset.train.labels) == 200  # read, as a comparison's description does
    file = io.BytesIO()
    torch.save(dataset, file)
    assert len(file.getvalue()) < 20_000
    file.seek(0)
    received: Dataset = torch.load(file, weights_only=False)
    assert received.fingerprint() == dataset.fingerprint()
    assert [len(batch) for batch in received.test.batches(60)] == [60, 40]
