"""The generated funnel: labels follow its probabilities, options have their effect, the best NE is reached."""

import hashlib
import inspect
import itertools
import math
import os
import subprocess
import sys
import tracemalloc
from dataclasses import fields

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from equipoise.data import DataError
from equipoise.data.sets.funnel import TASKS, Chunk, Funnel, IdField, chunks, generate, load

CLICK, LIKE, LONG_VIEW, CONVERSION = range(4)
# few ids and frequent labels, so that averages per id say something
FREQUENT = Funnel(
    rows=200_000,
    click_rate=0.3, like_rate=0.3, long_view_rate=0.3, conversion_rate=0.1,
    id_fields=(IdField("ad", 300, 1.0), IdField("hour", 24, 0.2)),
)  # fmt: skip


def frequent(**knobs: float) -> Funnel:
    return Funnel(**{field.name: getattr(FREQUENT, field.name) for field in fields(Funnel)} | knobs)


def whole(funnel: Funnel) -> Chunk:
    return Chunk(*(np.concatenate(parts) for parts in zip(*chunks(funnel), strict=True)))


def true_logits(chunk: Chunk) -> NDArray[np.float64]:
    """Return the logits of the latent events: click, like, long view, and conversion given a click, by surface."""
    p = chunk.probabilities.astype(np.float64)
    conversions = np.arange(CONVERSION, p.shape[1], 4)
    p[:, conversions] /= p[:, conversions - CONVERSION]
    return np.log(p / (1 - p))


def entropy(p: float) -> float:
    return -(p * math.log(p) + (1 - p) * math.log(1 - p))


def log_loss(p: NDArray[np.float64], labels: NDArray[np.float32]) -> float:
    return float(-np.where(labels == 1, np.log(p), np.log1p(-p)).mean())


def digest(funnel: Funnel) -> str:
    sha = hashlib.sha256()
    for chunk in chunks(funnel):
        for part in chunk:
            sha.update(part.tobytes())
    return sha.hexdigest()


def test_the_seed_decides_everything() -> None:
    same = [digest(Funnel(rows=20_000, seed=seed, drift=0.5)) for seed in (1, 1, 2)]
    assert same[0] == same[1]
    assert same[0] != same[2]


def test_the_number_of_threads_changes_nothing() -> None:
    code = """
import hashlib
from equipoise.data.sets.funnel import Funnel, chunks

sha = hashlib.sha256()
for chunk in chunks(Funnel(rows=30_000, seed=3, drift=0.5)):
    for part in chunk:
        sha.update(part.tobytes())
print(sha.hexdigest())
"""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "3")
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | threads
    )
    assert ran.stdout.strip() == digest(Funnel(rows=30_000, seed=3, drift=0.5))


@pytest.mark.parametrize("exponent", [0.0, 0.8, 1.2])
def test_ids_follow_zipf_with_the_given_exponent(exponent: float) -> None:
    funnel = Funnel(rows=400_000, id_fields=(IdField("ad", 1000, exponent),), numerics=0)
    counts = np.bincount(whole(funnel).categorical[:, 0], minlength=1001)
    assert counts[0] == 0  # kept for missing and unseen ids
    assert len(counts) == 1001
    rank = np.arange(1, 1001)
    slope = np.polyfit(np.log(rank[:100]), np.log(counts[1:101]), 1)[0]
    assert slope == pytest.approx(-exponent, abs=0.03)
    mass = rank**-exponent / (rank**-exponent).sum()
    chi_square = ((counts[1:] - mass * funnel.rows) ** 2 / (mass * funnel.rows)).sum()
    assert chi_square < 999 + 5 * math.sqrt(2 * 999)  # five standard deviations


def test_numbers_have_mean_zero_and_variance_one() -> None:
    numeric = whole(Funnel(rows=100_000, numerics=20)).numeric  # more numbers than latents
    assert numeric.shape == (100_000, 20)
    np.testing.assert_allclose(numeric.mean(0), 0, atol=0.02)
    np.testing.assert_allclose(numeric.std(0), 1, atol=0.01)


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"conflict": -1.0, "signal": 3.0},
        {"conflict": 1.0, "drift": 1.0},
        {"loss_imbalance": 5.0},
        {"click_rate": 0.5, "like_rate": 1e-3, "long_view_rate": 0.3, "conversion_rate": 0.3, "seed": 9},
    ],
)
def test_labels_are_as_frequent_as_asked(knobs: dict[str, float]) -> None:
    funnel = Funnel(rows=400_000, **knobs)
    chunk = whole(funnel)
    for task, rate, labels, p in zip(TASKS, funnel.rates, chunk.labels.T, chunk.probabilities.T, strict=True):
        assert p.mean(dtype=np.float64) == pytest.approx(rate, rel=0.05), task.name
        noise = math.sqrt(rate * (1 - rate) / funnel.rows)
        assert labels.mean(dtype=np.float64) == pytest.approx(p.mean(dtype=np.float64), abs=5 * noise), task.name


def test_labels_occur_with_the_true_probabilities() -> None:
    chunk = whole(FREQUENT)
    for labels, p in zip(chunk.labels.T, chunk.probabilities.T, strict=True):
        for group in np.array_split(np.argsort(p), 20):  # calibrated from the least to the most probable
            noise = math.sqrt(p[group].mean() / len(group))
            assert labels[group].mean() == pytest.approx(p[group].mean(), abs=4.5 * noise)


def test_nothing_converts_without_a_click() -> None:
    chunk = whole(FREQUENT)
    assert chunk.labels[:, CONVERSION].sum() > 0
    assert (chunk.labels[:, CONVERSION] <= chunk.labels[:, CLICK]).all()
    assert (chunk.probabilities[:, CONVERSION] < chunk.probabilities[:, CLICK]).all()


def test_the_truth_reaches_best_ne_and_nothing_beats_it() -> None:
    funnel = Funnel(rows=500_000, conversion_rate=0.03)
    dataset = generate(funnel)
    truth = whole(funnel).probabilities[400_000:].astype(np.float64)
    rng = np.random.default_rng(0)
    for m, task in enumerate(TASKS):
        p, labels, best = truth[:, m], dataset.test.labels[:, m].numpy(), dataset.best_ne[task.name]
        base = entropy(float(labels.mean(dtype=np.float64)))
        assert log_loss(p, labels) / base == pytest.approx(best, rel=1e-6)
        assert 0.6 < best < 0.95

        # in expectation it is the entropy of the truth; the labels' luck moves it by their log losses' spread
        expected = -(p * np.log(p) + (1 - p) * np.log1p(-p)).mean()
        luck = math.sqrt((p * (1 - p) * np.log(p / (1 - p)) ** 2).mean() / len(p))
        assert abs(log_loss(p, labels) - expected) < 4 * luck

        odds = p / (1 - p) * np.exp(rng.normal(0, 0.5, len(p)))
        worse = {
            "noisy": odds / (1 + odds),
            "too high": p**0.8,
            "too low": p**1.25,
            "constant": np.full_like(p, p.mean()),
        }
        for name, q in worse.items():
            assert log_loss(q, labels) / base > best * 1.01, (task.name, name)


def test_more_signal_means_a_lower_bound() -> None:
    bounds = [generate(frequent(rows=50_000, signal=signal)).best_ne["click"] for signal in (0.1, 1.0, 3.0)]
    assert 1 > bounds[0] > 0.995
    assert bounds[0] > bounds[1] > bounds[2]
    assert bounds[2] < 0.6


def test_a_task_without_positives_in_the_test_split_has_no_bound() -> None:
    dataset = generate(Funnel(rows=100, conversion_rate=1e-5))
    assert dataset.test.labels[:, CONVERSION].sum() == 0
    assert "conversion" not in dataset.best_ne


@pytest.mark.parametrize("conflict", [-1.0, -0.4, 0.0, 0.4, 1.0])
@pytest.mark.parametrize("drift", [0.0, 1.0])
def test_conflict_is_the_correlation_of_the_true_logits(conflict: float, drift: float) -> None:
    logits = true_logits(whole(frequent(conflict=conflict, drift=drift)))
    np.testing.assert_allclose(logits.std(0), FREQUENT.signal, rtol=0.05)
    correlation = np.corrcoef(logits.T)
    for i, j in itertools.combinations(range(4), 2):
        one_side = {i, j} in ({CLICK, CONVERSION}, {LIKE, LONG_VIEW})
        expected = abs(conflict) if one_side else -conflict
        assert correlation[i, j] == pytest.approx(expected, abs=0.06), (i, j)


@pytest.mark.parametrize(("conflict", "low", "high"), [(-1.0, 0.8, 1.0), (0.0, -0.5, 0.5), (1.0, -1.0, -0.8)])
def test_labels_pull_shared_parameters_apart_under_conflict(conflict: float, low: float, high: float) -> None:
    # of a logistic regression on the ad's id alone, whose one weight per id serves all tasks
    chunk = whole(frequent(conflict=conflict))
    labels = chunk.labels.astype(np.float64)
    gradient = [np.bincount(chunk.categorical[:, 0], column.mean() - column) for column in labels.T]
    click, like = (gradient[task] / np.linalg.norm(gradient[task]) for task in (CLICK, LIKE))
    assert low < click @ like < high


def effect_of_ids(logits: NDArray[np.float64], ids: NDArray[np.int32]) -> NDArray[np.float64]:
    return np.bincount(ids, logits, minlength=301)[1:51] / np.bincount(ids, minlength=301)[1:51]


@pytest.mark.parametrize(("drift", "low", "high"), [(0.0, 0.95, 1.0), (0.5, 0.5, 0.9), (1.0, -0.4, 0.4)])
def test_drift_turns_what_ids_mean_from_the_first_rows_to_the_last(drift: float, low: float, high: float) -> None:
    chunk = whole(frequent(drift=drift))
    logits, ids = true_logits(chunk)[:, LIKE], chunk.categorical[:, 0]
    first, last = (effect_of_ids(logits[part], ids[part]) for part in (slice(20_000), slice(-20_000, None)))
    assert low < np.corrcoef(first, last)[0, 1] < high


def test_sudden_drift_comes_at_once_and_nothing_drifts_before_or_after() -> None:
    chunk = whole(frequent(drift=1.0, drift_at=0.5))
    logits, ids = true_logits(chunk)[:, LIKE], chunk.categorical[:, 0]
    parts = (slice(20_000), slice(80_000, 100_000), slice(100_000, 120_000), slice(-20_000, None))
    first, before, after, last = (effect_of_ids(logits[part], ids[part]) for part in parts)
    assert np.corrcoef(first, before)[0, 1] > 0.95
    assert abs(np.corrcoef(before, after)[0, 1]) < 0.4
    assert np.corrcoef(after, last)[0, 1] > 0.95


def test_fewer_tasks_are_the_first_of_the_four() -> None:
    some, four = whole(Funnel(rows=20_000, tasks=3)), whole(Funnel(rows=20_000))
    np.testing.assert_array_equal(some.probabilities, four.probabilities[:, :3])
    assert generate(Funnel(rows=1000, tasks=3)).schema.tasks == TASKS[:3]


def test_more_tasks_are_the_events_on_further_surfaces() -> None:
    funnel = frequent(tasks=11, conflict=0.5, latents=64)
    schema, chunk = funnel.schema, whole(funnel)
    assert schema.task_names[3:] == (
        "conversion", "click_2", "like_2", "long_view_2", "conversion_2", "click_3", "like_3", "long_view_3",
    )  # fmt: skip
    assert [task.after for task in schema.tasks if task.after] == ["click", "click_2"]
    np.testing.assert_allclose(chunk.labels.mean(0), funnel.rates, rtol=0.05)
    for click, conversion in ((0, 3), (4, 7)):
        assert (chunk.labels[:, conversion] <= chunk.labels[:, click]).all()


def test_one_event_on_many_surfaces_is_correlated_as_asked() -> None:
    funnel = frequent(tasks=20, latents=64, surface_correlation=0.6, drift=0.5, rows=40_000)
    logits = true_logits(whole(funnel))
    np.testing.assert_allclose(logits.std(0), FREQUENT.signal, rtol=0.06)
    correlation = np.corrcoef(logits.T)
    event = np.arange(20) % 4
    same = (event[:, None] == event) & ~np.eye(20, dtype=bool)
    assert correlation[same].mean() == pytest.approx(0.6, abs=0.04)
    assert correlation[event[:, None] != event].mean() == pytest.approx(0, abs=0.04)


@pytest.mark.parametrize("imbalance", [1.0, 3.0, 100.0])
def test_loss_imbalance_divides_initial_losses_step_by_step(imbalance: float) -> None:
    plain, scaled = Funnel().rates, Funnel(loss_imbalance=imbalance).rates
    for m in range(4):
        assert entropy(plain[m]) / entropy(scaled[m]) == pytest.approx(imbalance ** (m / 3), rel=1e-6)


def test_a_million_rows_pass_in_memory_that_does_not_grow() -> None:
    peaks = []
    for rows in (50_000, 1_000_000):
        tracemalloc.start()
        count = sum(len(chunk.labels) for chunk in chunks(Funnel(rows=rows)))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert count == rows
    assert peaks[1] < 1.05 * peaks[0] + 2**20


def test_the_data_set_holds_the_rows_of_the_chunks_in_the_order_of_time() -> None:
    funnel = Funnel(rows=20_000, seed=5)
    dataset, chunk = generate(funnel), whole(funnel)
    splits = [dataset.train, dataset.validation, dataset.test]
    assert [len(split) for split in splits] == [14_000, 2_000, 4_000]
    for name in ("categorical", "numeric", "labels"):
        joined = torch.cat([getattr(split, name) for split in splits])
        torch.testing.assert_close(joined, torch.from_numpy(getattr(chunk, name)))


def test_every_reader_learns_that_it_is_generated_and_how() -> None:
    dataset = load(rows=1000, conflict=0.5)
    assert "generated" in dataset.name
    assert dataset.notes[0].startswith("Generated data")
    assert "rows=1000, conflict=0.5" in dataset.notes[0]


def test_the_signature_of_load_lists_every_knob() -> None:
    assert list(inspect.signature(load).parameters) == [field.name for field in fields(Funnel)]


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"rows": 9}, "rows should be a whole number from 10 .*, found 9"),
        ({"rows": 1e6}, "rows should be a whole number .* found 1000000.0"),
        ({"seed": -1}, "seed .* found -1"),
        ({"conflict": 1.5}, "conflict should be a number from -1 to 1, found 1.5"),
        ({"conflict": "high"}, "conflict .* found 'high'"),
        ({"conflict": math.nan}, "conflict .* found nan"),
        ({"drift": True}, "drift .* found True"),
        ({"drift_at": 1.5}, "drift_at .* from 0 to 1, found 1.5"),
        ({"loss_imbalance": 0.5}, "loss_imbalance .* from 1 to 1000, found 0.5"),
        ({"like_rate": 0}, "like_rate .* found 0"),
        ({"conversion_rate": 0.2}, r"conversion_rate should be at most click_rate \(0.08\).* found 0.2"),
        ({"signal": 0.0}, "signal .* found 0.0"),
        ({"tasks": 1}, "tasks should be a whole number from 2 to 128, found 1"),
        ({"surface_correlation": 1.5}, "surface_correlation .* found 1.5"),
        ({"latents": 9}, "latents .* from 10 .* found 9"),
        ({"id_fields": ()}, r"id_fields should be at least one IdField, found \(\)"),
    ],
)
def test_bad_knobs_are_refused(knobs: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(**knobs)


@pytest.mark.parametrize(("size", "exponent"), [(0, 1.0), (5, -1.0), (5, 99.0)])
def test_bad_id_fields_are_refused(size: int, exponent: float) -> None:
    with pytest.raises(DataError, match="of id field 'ad' should be"):
        IdField("ad", size, exponent)


def test_it_says_that_it_is_generated_and_how_to_train_on_it() -> None:
    dataset = generate(Funnel(rows=1000))
    assert (dataset.epochs, dataset.batch_size) == (1, 2048)
    assert "generated" in dataset.licence
    assert dataset.source
