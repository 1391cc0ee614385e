"""The simulated auction knows the truth: its numbers are the generator's, and the best choice cannot be beaten."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from equipoise.cli import app
from equipoise.data.sets.funnel import Funnel, IdField, chunks
from equipoise.data.sets.funnel.truth import Truth
from equipoise.errors import SettingError
from equipoise.report.auction_page import auction_findings, auction_markdown
from equipoise.serving.auction import Market, MarketSide, Measured, _lift, _measured, funnel_of, simulate

FUNNEL = Funnel(rows=1000, seed=2)
MARKET = Market(auctions=3000, candidates=6)


class Oracle:
    """Predicts the true probabilities, as products or given a click, with noise on their logarithm."""

    def __init__(self, *, noise: float = 0.0, over: str = "all", seed: int = 0) -> None:
        self.truth, self.noise, self.over, self.random = Truth(FUNNEL), noise, over, np.random.default_rng(seed)
        tasks = [SimpleNamespace(name="conversion", after="click", over=over), SimpleNamespace(name="click")]
        self.schema: Any = SimpleNamespace(task_names=("conversion", "click"), tasks=tasks)

    def predict_encoded(self, categorical: Tensor, numeric: Tensor, /) -> list[Tensor]:
        found = self.truth.probabilities(categorical.numpy(), numeric.numpy(), np.zeros(len(numeric), np.float32))
        click, conversion = torch.from_numpy(found[:, 0]).double(), torch.from_numpy(found[:, 3]).double()
        conversion = conversion / click if self.over == "parent" else conversion
        return [conversion * torch.from_numpy(np.exp(self.noise * self.random.standard_normal(len(click)))), click]


def side(label: str = "A", **options: Any) -> MarketSide:
    return MarketSide(label, {0: Oracle(**options)})


def test_true_probabilities_are_those_that_the_rows_were_drawn_from() -> None:
    funnel = Funnel(rows=500, drift=0.7, seed=4)
    (chunk,) = chunks(funnel)
    time = (np.arange(500) / 499).astype(np.float32)
    found = Truth(funnel).probabilities(chunk.categorical, chunk.numeric, time)
    np.testing.assert_array_equal(found, chunk.probabilities)


@pytest.mark.parametrize("over", ["all", "parent"])
def test_the_truth_cannot_be_beaten_and_both_forms_of_a_conversion_mean_the_same(over: str) -> None:
    found = simulate([side(over=over), side("B", noise=2.0)], FUNNEL, MARKET)
    right, noisy = found.sides
    assert right.ecpm.value == pytest.approx(found.best.ecpm.value, rel=1e-6)
    assert found.random.ecpm.value < noisy.ecpm.value < right.ecpm.value
    assert found.lift["ecpm"].high < 0
    # a winner at random earns the mean of all: bids have mean 1
    assert found.random.ecpm.value == pytest.approx(1000 * FUNNEL.conversion_rate, rel=0.25)
    assert found.random.ctr.value == pytest.approx(FUNNEL.click_rate, rel=0.1)


def test_with_equal_bids_the_likeliest_conversion_wins() -> None:
    found = simulate([side()], FUNNEL, Market(auctions=500, candidates=6, bid_spread=0.0))
    assert found.sides[0].ecpm.value == pytest.approx(found.best.ecpm.value)
    assert found.sides[0].ctr.value > found.random.ctr.value


def test_auctions_are_the_same_for_all_and_repeatable() -> None:
    first, second = (simulate([side(noise=1.0), side("B", noise=1.0)], FUNNEL, MARKET) for _ in range(2))
    assert first == second
    assert first.lift["ecpm"] == Measured(0, 0, 0, {0: 0})
    assert simulate([side()], FUNNEL, Market(3000, 6, seed=1)).best != first.best


def test_intervals_are_those_of_a_bootstrap_over_auctions() -> None:
    random = np.random.default_rng(0)
    there = random.exponential(1.0, (2, 2000))
    here = 0.7 * there + random.exponential(0.4, (2, 2000))
    found = _lift({3: here[0], 5: here[1]}, {3: there[0], 5: there[1]})
    rows = random.integers(2000, size=(4000, 2000))
    mine, theirs = here.mean(0)[rows].mean(1), there.mean(0)[rows].mean(1)
    low, high = np.quantile(100 * (mine / theirs - 1), [0.025, 0.975])
    assert found.value == pytest.approx(100 * (here.mean() / there.mean() - 1))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.3)
    assert found.by_seed[3] == pytest.approx(100 * (here[0].mean() / there[0].mean() - 1))
    low, high = np.quantile(mine, [0.025, 0.975])
    alone = _measured({3: here[0], 5: here[1]})
    assert (alone.low, alone.high) == pytest.approx((low, high), abs=0.005)


def test_words_claim_a_difference_only_over_seeds() -> None:
    one = simulate([side(), side("B", noise=2.0)], FUNNEL, MARKET)
    assert all("holds for these two trainings alone" in text for text in auction_findings(one))
    several = simulate(
        [MarketSide("A", {0: Oracle(), 1: Oracle(), 2: Oracle(noise=0.1)}),
         MarketSide("B", {seed: Oracle(noise=2.0, seed=seed) for seed in range(3)})],
        FUNNEL, MARKET,
    )  # fmt: skip
    ecpm, _ = auction_findings(several)
    assert ecpm.startswith("B against A, eCPM: lower (")
    page = auction_markdown(several, title="T", command="equipoise auction a b")
    assert page.startswith("# T\n\n**A simulation on generated data: no ad was shown and nothing was paid.**")
    assert "- A earns 100.0\N{NO-BREAK SPACE}% of what is between" in page or "- A earns 99." in page


def test_what_the_auction_cannot_use_is_refused() -> None:
    with pytest.raises(SettingError, match=r"only the generated funnel has.*found one of 'complete-journey'"):
        funnel_of({"data": "complete-journey"})
    with pytest.raises(SettingError, match="found one of 'data given from Python'"):
        funnel_of({})
    with pytest.raises(SettingError, match="at least 2 auctions of at least 2 ads"):
        Market(auctions=1)
    with pytest.raises(SettingError, match="a funnel with the id field 'ad', found person"):
        simulate([side()], Funnel(rows=100, id_fields=(IdField("person", 5, 1.0),)), MARKET)
    other = side()
    other.rankers[0].schema.task_names = ("click", "like")
    with pytest.raises(SettingError, match="A: the auction ranks by click and conversion, found no conversion"):
        simulate([other], FUNNEL, MARKET)


def test_the_command_reads_two_runs_and_says_that_it_is_a_simulation(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = "train --data funnel --rows 2000 --batch-size 256 --method"
    for run, more in (("a", "equal"), ("b", "multibalance"), ("c", "equal --data-option seed=1")):
        assert CliRunner().invoke(app, [*words.split(), *more.split(), "--out", run]).exit_code == 0
    small = ["--auctions", "200", "--candidates", "5"]
    found = CliRunner().invoke(app, ["auction", "a", "b", *small, "--out", "page.md"])
    assert found.exit_code == 0, found.output
    assert "A simulation on generated data: no ad was shown and nothing was paid." in found.output
    assert "| MultiBalance over Equal weights |" in (tmp_path / "page.md").read_text()
    refused = CliRunner().invoke(app, ["auction", "a", "c"])
    assert refused.exit_code == 2
    assert "funnels with different options" in " ".join(refused.output.split())
