"""`benchmarks/waiting.py`: the waits of a training are measured, and the page has them."""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

from equipoise.data import load

SCRIPTS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("waiting")


def test_shares_are_waits_over_the_time_of_the_training(waiting: ModuleType) -> None:
    found = waiting.summary([0.2, 0.4], [0.01, 0.02, 0.03], 6.0)
    assert found.share == pytest.approx(0.11)
    assert found.later_share == pytest.approx(0.01)
    assert found.first_ms == pytest.approx(300)
    assert found.later_us == pytest.approx(20_000)
    assert found.step_ms == pytest.approx(1200)


def test_the_time_until_a_batch_comes_is_waiting_and_the_time_of_a_step_is_not(
    waiting: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    class Slow:
        def batches(self, batch_size: int, **_: object):
            nonlocal now
            for batch in range(batch_size):
                now += 1 + batch
                yield batch

    split = waiting.TimedSplit(Slow())
    for _ in range(2):
        for _ in split.batches(3):
            now += 100
    assert (split.began, split.first, split.later) == (0.0, [1, 1], [2, 3, 2, 3])


def test_a_training_of_each_kind_of_data_is_measured(waiting: ModuleType, tmp_path: Path) -> None:
    in_memory = load("funnel", rows=2000)
    streamed = waiting.prepared(in_memory, tmp_path / "funnel")
    for dataset in (in_memory, streamed):
        found = waiting.measure(dataset, 256, 2)
        assert 0 < found.later_share < found.share < 1


def test_a_run_is_kept_beside_those_of_other_labels(
    waiting: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = waiting.Measured(0.031, 0.004, 12.34, 56.0, 7.89)
    monkeypatch.setattr(waiting, "load", lambda name: name)
    monkeypatch.setattr(waiting, "prepared", lambda *_: "prepared")
    monkeypatch.setattr(waiting, "measure", lambda *_: measured)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    out = tmp_path / "waiting.json"
    for label in ("before", "after", "after"):
        monkeypatch.setattr(sys, "argv", ["waiting.py", "--label", label, "--out", str(out)])
        waiting.main()
    assert list(json.loads(out.read_text())["runs"]) == ["before, 2 threads", "after, 2 threads"]
    page = out.with_suffix(".md").read_text()
    assert "| complete-journey, in memory | 2048 | 3.10% | 0.40% | 12.3 | 56 | 7.9 |" in page
    assert page.index("## before") < page.index("## after")
    assert "kuairand-slice, streamed, 4096: Measured" in capsys.readouterr().out
