"""The advice of an audit follows from its figures, and claims no more than they carry."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from equipoise.comparison.audit import Audit, Probe
from equipoise.comparison.results import LabelCount, PlannedMethod, PlannedRuns, Results
from equipoise.report.audit_findings import STATIC, conclude
from equipoise.report.audit_page import write_audit
from equipoise.training import Run

TASKS = ("click", "buy")
NE = {"click": 0.8, "buy": 0.6}


def run(method: str, seed: int, gains: Mapping[str, float]) -> Run:
    """Return a run whose NE is lower than that of equal weights by so many per cent, with a little noise."""
    noise = np.random.default_rng([seed, len(method)]).normal(0, 0.0002, 2)
    metrics = {
        task: {"ne": NE[task] * (1 - gains.get(task, 0.0) / 100) + noise[place], "auc": 0.7}
        for place, task in enumerate(TASKS)
    }
    return Run(method, seed, 0.01, validation=metrics, test=metrics)


def audited(
    *,
    share: float = 0.5,
    cosine: float = 0.2,
    seeds: int = 5,
    positives: Mapping[str, int] | None = None,
    **gains: Mapping[str, float],
) -> tuple[Audit, Results]:
    """Return an audit in which ``buy`` has so large a share of the lengths, and the ways these gains."""
    named = {name.replace("_", "-"): found for name, found in gains.items()}
    methods = ["equal", "single-task", "multibalance", "pub"]
    runs = [run(method, seed, named.get(method, {})) for method in methods for seed in range(seeds)]
    static = [run(STATIC, seed, gains.get("static", {})) for seed in range(seeds)]
    probes = [
        Probe(
            step=step, lengths={"click": 1 - share, "buy": share}, cosines=[[1, cosine], [cosine, 1]], update=0.4,
            helped={"click": 0.1, "buy": 0.05},
        )
        for step in range(0, 40, 10)
    ]  # fmt: skip
    counts = {task: LabelCount(labelled=5000, positives=count) for task, count in (positives or {}).items()}
    plan = PlannedRuns(
        dataset="made <i>up</i>", model="mmoe", tasks=list(TASKS),
        methods=[PlannedMethod(name=name, label=name) for name in methods], seeds=list(range(seeds)),
        epochs=1, batch_size=256, schedule="linear", label_counts={"validation": counts},
    )  # fmt: skip
    confirmed = [json.loads(found.to_json()) for found in static]
    audit = Audit(probes=probes, weights={"click": 1.0, "buy": 1.0}, confirmed=confirmed)
    return audit, Results(plan, tuple(runs), (), {})


def test_without_any_difference_nothing_is_to_be_done() -> None:
    found = conclude(*audited())
    assert found.advice == "leave"
    assert any("would not have shown" in reason for reason in found.reasons)
    assert "No task suffers clearly from being trained with the others." in found.reasons


def test_a_clear_gain_is_worth_balancing_for() -> None:
    found = conclude(*audited(multibalance={"click": 1.0, "buy": 4.0}))
    assert found.advice == "balance"
    assert "multibalance lowers mean validation NE by" in found.headline


def test_a_clear_gain_that_is_too_small_is_left_alone() -> None:
    assert conclude(*audited(multibalance={"click": 0.15, "buy": 0.15})).advice == "leave"


def test_where_only_models_of_their_own_gain_the_model_is_to_be_split() -> None:
    found = conclude(*audited(single_task={"click": 2.0, "buy": 2.0}))
    assert found.advice == "split"
    assert any("Negative transfer" in reason for reason in found.reasons)


def test_where_training_together_helps_it_is_said() -> None:
    found = conclude(*audited(single_task={"click": -2.0, "buy": -2.0}))
    assert found.advice == "leave"
    assert any("Training together helps" in reason for reason in found.reasons)


def test_a_short_gradient_is_drowned_out_only_if_the_task_is_better_off_otherwise() -> None:
    short = conclude(*audited(share=0.1))
    assert not any(task.drowned_out for task in short.tasks)
    gaining = conclude(*audited(share=0.1, multibalance={"buy": 3.0}))
    assert [task.name for task in gaining.tasks if task.drowned_out] == ["buy"]
    assert any(reason.startswith("buy is drowned out") for reason in gaining.reasons)
    long = conclude(*audited(share=0.5, multibalance={"buy": 3.0}))
    assert not any(task.drowned_out for task in long.tasks)


def test_a_task_with_few_validation_rows_of_a_class_decides_nothing_and_is_named() -> None:
    gains = {"multibalance": {"buy": 9.0}, "single_task": {"buy": 9.0}}
    found = conclude(*audited(share=0.1, positives={"click": 900, "buy": 18}, **gains))
    assert found.advice == "leave"
    assert found.reasons[0].startswith(
        "Fewer than 100 validation rows of one class, too few for a judgement: buy (18)."
    )
    assert not any(task.drowned_out or task.suffers for task in found.tasks)
    assert conclude(*audited(share=0.1, positives={"click": 900, "buy": 100}, **gains)).advice == "balance"


def test_opposed_gradients_are_named_once() -> None:
    found = conclude(*audited(cosine=-0.4))
    (said,) = [reason for reason in found.reasons if reason.startswith("Opposed gradients")]
    assert said.count("cosine −0.40") == 1


def test_two_seeds_advise_nothing() -> None:
    found = conclude(*audited(seeds=2, multibalance={"click": 5.0, "buy": 5.0}))
    assert found.advice == "unclear"
    assert "Too few seeds" in found.headline


@pytest.mark.parametrize("gains", [{}, {"multibalance": {"buy": 3.0}}])
def test_the_page_shows_the_advice_and_escapes_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gains: dict[str, dict[str, float]]
) -> None:
    monkeypatch.setattr("equipoise.report.audit_page.read_audit", lambda _: audited(share=0.1, **gains))
    page = write_audit(tmp_path).read_text()
    assert conclude(*audited(share=0.1, **gains)).headline.partition("%")[0].strip() in page.replace("\xa0", " ")
    assert "<i>up</i>" not in page
