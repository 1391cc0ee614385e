"""A simulated ad auction on the generated funnel: what two rankers would earn there, with the truth known.

Every auction is one person at one moment, and a few ads with bids for a conversion. The ad with the highest
bid × pCTR × pCVR wins and pays its bid if a conversion follows. The generator knows the true probabilities, so the
expected revenue of a choice is exact: only the auctions are drawn. A simulation, not an online experiment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equipoise.data.sets.funnel import Funnel
from equipoise.data.sets.funnel.truth import Truth
from equipoise.errors import SettingError

__all__ = ["Auctions", "Bidding", "EncodedScorer", "Market", "MarketSide", "Measured", "funnel_of", "simulate"]

_OF_ADS: Final = ("ad", "advertiser", "category")
_CANDIDATES: Final = 1 << 16  # rows that are scored at once
_TEST_BEGINS: Final = 0.8
_NORMAL: Final = 1.959963984540054  # the 0.975 quantile

Floats = NDArray[np.float64]


class EncodedScorer(Protocol):
    """A trained ranker on ids and numbers, such as :class:`equipoise.serving.Ranker`."""

    @property
    def schema(self) -> Any:
        """The schema, with the tasks ``click`` and ``conversion``."""

    def predict_encoded(self, categorical: Tensor, numeric: Tensor, /) -> list[Tensor]:
        """Return one prediction per task, shape [B] each."""


@dataclass(frozen=True)
class Market:
    """The auctions.

    Attributes:
        auctions: their number.
        candidates: ads in each.
        bid_spread: the standard deviation of the logarithm of bids, whose mean is 1; at 0 all bid the same.
        seed: draws people, ads and bids.

    Raises:
        SettingError: a value is out of its range.
    """

    auctions: int = 20_000
    candidates: int = 20
    bid_spread: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.auctions < 2 or self.candidates < 2 or not 0 <= self.bid_spread <= 5:
            raise SettingError(
                "Expected at least 2 auctions of at least 2 ads and a spread of bids from 0 to 5; found "
                f"{self.auctions}, {self.candidates} and {self.bid_spread}."
            )


@dataclass(frozen=True)
class MarketSide:
    """Trainings of one kind: their results are averaged.

    Attributes:
        label: the name for readers.
        rankers: by the seed of the training.
    """

    label: str
    rankers: Mapping[int, EncodedScorer]


class Measured(NamedTuple):
    """A mean over auctions, its 95 % interval (normal), and the value for each seed."""

    value: float
    low: float
    high: float
    by_seed: Mapping[int, float]


@dataclass(frozen=True)
class Bidding:
    """Revenue and clicks of one way to choose the winners.

    Attributes:
        ecpm: expected revenue of a thousand auctions, in units of the mean bid for a conversion.
        ctr: expected clicks per auction.
    """

    label: str
    ecpm: Measured
    ctr: Measured


@dataclass(frozen=True)
class Auctions:
    """The result of a simulation.

    Attributes:
        sides: one or two.
        best: the winners chosen by the true probabilities: no ranker earns more.
        random: a winner at random.
        lift: ``ecpm`` and ``ctr`` -> per cent that the second side has more than the first; empty with one side.
    """

    market: Market
    sides: Sequence[Bidding]
    best: Bidding
    random: Bidding
    lift: Mapping[str, Measured]


def funnel_of(settings: Mapping[str, Any], /) -> Funnel:
    """Return the generated funnel that a training has learnt from, by the settings in its record.

    Raises:
        SettingError: it was trained on other data, or from Python, where the record does not name them.

    Example:
        >>> funnel_of({"data": "funnel", "data_options": {"rows": 1000, "seed": 3}}).seed
        3
    """
    if settings.get("data") != "funnel":
        raise SettingError(
            "The auction needs the true probabilities, which only the generated funnel has: expected a run of "
            f"`equipoise train --data funnel`, found one of {settings.get('data', 'data given from Python')!r}."
        )
    return Funnel(**settings.get("data_options", {}))


def simulate(sides: Sequence[MarketSide], funnel: Funnel, market: Market | None = None, /) -> Auctions:
    """Hold auctions among ads of the funnel at the time of its test split, the same for every ranker.

    Args:
        sides: one or two.
        funnel: what the rankers have learnt from.

    Raises:
        SettingError: the funnel has no ads, or a ranker lacks the tasks ``click`` and ``conversion``.

    Example:
        >>> import equipoise
        >>> funnel = Funnel(rows=3000)
        >>> ranker = equipoise.train(equipoise.data.load("funnel", rows=3000), "equal", epochs=1, batch_size=256)
        >>> found = simulate([MarketSide("Equal weights", {0: ranker})], funnel, Market(auctions=50, candidates=5))
        >>> found.random.ecpm.value < found.best.ecpm.value
        True
    """
    market = market or Market()
    names = [field.name for field in funnel.id_fields]
    if "ad" not in names:
        raise SettingError(f"The auction needs a funnel with the id field 'ad', found {', '.join(names)}.")
    for side in sides:
        for ranker in side.rankers.values():
            if missing := {"click", "conversion"} - set(ranker.schema.task_names):
                raise SettingError(
                    f"{side.label}: the auction ranks by click and conversion, found no {missing.pop()}."
                )
    truth, random = Truth(funnel), np.random.default_rng([market.seed, 3])
    tasks = funnel.schema.task_names
    click, conversion = tasks.index("click"), tasks.index("conversion")
    choosers = [(place, number) for place, side in enumerate(sides) for number in side.rankers]
    won: dict[Any, list[Floats]] = {key: [] for key in (*choosers, "best", "random")}
    of_ads = np.isin(names, _OF_ADS)
    size = max(1, _CANDIDATES // market.candidates)
    for start in range(0, market.auctions, size):
        count = min(size, market.auctions - start)
        shape = (count, market.candidates)
        ids, _ = truth.inputs(random, count * market.candidates)
        people, numbers = truth.inputs(random, count)
        ids = np.where(of_ads, ids, np.repeat(people, market.candidates, 0))
        numbers = np.repeat(numbers, market.candidates, 0)
        time = np.repeat(random.uniform(_TEST_BEGINS, 1, count), market.candidates).astype(np.float32)
        bids = np.exp(market.bid_spread * random.standard_normal(shape) - market.bid_spread**2 / 2)
        true = truth.probabilities(ids, numbers, time).astype(np.float64)
        clicks, revenue = true[:, click].reshape(shape), 1000 * bids * true[:, conversion].reshape(shape)
        outcomes = np.stack([revenue, clicks])  # [2, auctions, candidates]
        encoded = torch.from_numpy(ids), torch.from_numpy(numbers)
        for place, number in choosers:
            score = bids * _conversions(sides[place].rankers[number], *encoded).reshape(shape)
            won[place, number].append(_of_winners(outcomes, score))
        won["best"].append(_of_winners(outcomes, revenue))
        won["random"].append(outcomes.mean(2))
    by_auction = {key: np.concatenate(parts, axis=1) for key, parts in won.items()}

    def of_side(place: int, row: int) -> dict[int, Floats]:
        return {number: by_auction[side, number][row] for side, number in choosers if side == place}

    def alone(name: str, label: str) -> Bidding:
        return Bidding(label, *(_measured({0: row}) for row in by_auction[name]))

    lift = {}
    if len(sides) == 2:
        lift = {name: _lift(of_side(1, row), of_side(0, row)) for row, name in enumerate(("ecpm", "ctr"))}
    return Auctions(
        market,
        [Bidding(side.label, *(_measured(of_side(place, row)) for row in (0, 1))) for place, side in enumerate(sides)],
        alone("best", "the true probabilities"),
        alone("random", "a winner at random"),
        lift,
    )


def _conversions(ranker: EncodedScorer, ids: Tensor, numbers: Tensor) -> Floats:
    """Return pCTR × pCVR: the predicted probability of a click and a conversion."""
    found = dict(zip(ranker.schema.task_names, ranker.predict_encoded(ids, numbers), strict=True))
    conversion = found["conversion"].double().numpy()
    task = next(task for task in ranker.schema.tasks if task.name == "conversion")
    given_click = task.after == "click" and task.over == "parent"
    product: Floats = conversion * found["click"].double().numpy() if given_click else conversion
    return product


def _of_winners(outcomes: Floats, score: Floats) -> Floats:
    found: Floats = outcomes[:, np.arange(len(score)), score.argmax(1)]
    return found


def _measured(by_seed: Mapping[int, Floats]) -> Measured:
    each = np.mean(list(by_seed.values()), axis=0)
    half = _NORMAL * each.std(ddof=1) / np.sqrt(len(each))
    value = float(each.mean())
    return Measured(value, value - half, value + half, {number: float(row.mean()) for number, row in by_seed.items()})


def _lift(here: Mapping[int, Floats], there: Mapping[int, Floats]) -> Measured:
    """Return the per cent by which one mean is above another, over the same auctions; its error by linearisation."""
    mine, theirs = (np.mean(list(side.values()), axis=0) for side in (here, there))
    ratio = mine.mean() / theirs.mean()
    half = 100 * _NORMAL * (mine - ratio * theirs).std(ddof=1) / np.sqrt(len(mine)) / theirs.mean()
    paired = {
        number: float(100 * (here[number].mean() / there[number].mean() - 1))
        for number in sorted(here.keys() & there.keys())
    }
    value = float(100 * (ratio - 1))
    return Measured(value, value - half, value + half, paired)
