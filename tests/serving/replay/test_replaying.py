"""Replays agree with brute force and, over many logs, with the truth; what a log cannot say is refused."""

from collections.abc import Sequence
from dataclasses import replace as changed
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from equipoise.errors import DataError, SettingError
from equipoise.serving.replay import BanditLog, RankedSide, RankingPolicy, Replay, replay
from equipoise.serving.replay.reward_model import FOLDS, PRIOR_ROUNDS
from tests.serving.replay.bandits import (
    CONTEXTS,
    ITEMS,
    LOGGING,
    QUALITY,
    REWARD,
    FakeRanker,
    items,
    log,
    rounds,
    true_value,
)

OTHER = 1 - QUALITY  # a bad ranker
SOFT = RankingPolicy(temperature=0.5, epsilon=0.1)


def side(*qualities: np.ndarray, label: str = "A") -> RankedSide:
    return RankedSide(label, {seed: FakeRanker(quality) for seed, quality in enumerate(qualities)})


def run(sides: Sequence[RankedSide], found: BanditLog, **options: Any) -> Replay:
    return replay(sides, found, **{"tasks": "click", "policy": SOFT, "draws": 200, **options})


def policy_of(quality: np.ndarray, policy: RankingPolicy = SOFT) -> np.ndarray:
    """Return the policy of a ranker, shape [contexts, items], written anew with torch."""
    scores = torch.from_numpy(quality.astype(np.float32)).double().logit()
    best = torch.softmax(scores / policy.temperature, 1) if policy.temperature else torch.nn.functional.one_hot(
        scores.argmax(1), ITEMS
    ).double()  # fmt: skip
    return ((1 - policy.epsilon) * best + policy.epsilon / ITEMS).numpy()


@pytest.mark.parametrize("policy", [SOFT, RankingPolicy(), RankingPolicy(epsilon=0.3)])
def test_estimates_equal_sums_written_as_loops(policy: RankingPolicy) -> None:
    table, share = rounds(300, 1), policy_of(QUALITY, policy)
    rows = list(table.iter_rows(named=True))
    at = [(row["context"], row["position"], int(row["item_id"][1:])) for row in rows]

    def modelled(number: int, position: int, item: int) -> float:
        others = [j for j in range(len(rows)) if j % FOLDS != number % FOLDS and at[j][1] == position]
        mean = np.mean([rows[j]["click"] for j in others])
        here = [rows[j]["click"] for j in others if at[j][2] == item]
        return float((sum(here) + PRIOR_ROUNDS * mean) / (len(here) + PRIOR_ROUNDS))

    weights = [share[context, item] / LOGGING[context, position, item] for context, position, item in at]
    clicks = [row["click"] for row in rows]
    robust = [
        sum(share[context, k] * modelled(number, position, k) for k in range(ITEMS))
        + weights[number] * (clicks[number] - modelled(number, position, item))
        for number, (context, position, item) in enumerate(at)
    ]
    weighted = [weight * click for weight, click in zip(weights, clicks, strict=True)]
    found = run([side(QUALITY)], BanditLog.of(table, items(), position="position"), policy=policy)
    assert found.logged.value == pytest.approx(np.mean(clicks))
    (own,) = found.sides
    expected = {"IPS": np.mean(weighted), "SNIPS": sum(weighted) / sum(weights), "DR": np.mean(robust)}
    assert {name: entry.value for name, entry in own.value.items()} == pytest.approx(expected, rel=1e-6)
    assert own.effective == pytest.approx(sum(weights) ** 2 / sum(weight**2 for weight in weights), rel=1e-6)
    assert own.matched == sum(weight > 0 for weight in weights)
    assert own.rewarded == sum(weight > 0 and click > 0 for weight, click in zip(weights, clicks, strict=True))
    assert own.largest == pytest.approx(max(weights), rel=1e-6)
    assert own.over_logged["DR"].value == pytest.approx(np.mean(robust) - np.mean(clicks), rel=1e-5)


def test_blocks_of_candidates_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run([side(QUALITY)], log(300))
    monkeypatch.setattr("equipoise.serving.replay.replaying._CANDIDATES", 2 * ITEMS)
    assert run([side(QUALITY)], log(300)) == whole


def test_a_ranker_that_reads_items_alone_shows_the_same_one_to_all() -> None:
    class ByPrice(FakeRanker):
        def predict(self, table: pl.DataFrame, /) -> pl.DataFrame:
            assert table.height == ITEMS  # scored once, not in every round
            return table.select(click=pl.col("price") / 100)

    found = log(500)
    ranker = ByPrice(QUALITY, columns=("price",))
    both = run([RankedSide("A", {0: ranker})], found, policy=RankingPolicy())
    weights = np.where(found.action == ITEMS - 1, 1 / found.propensity, 0)
    assert both.sides[0].value["IPS"].value == pytest.approx(np.mean(weights * found.reward))


@pytest.fixture(scope="module")
def repeated() -> list[Replay]:
    """Replay two rankers on 250 logs of 300 rounds each."""
    sides = [side(QUALITY), side(OTHER, label="B")]
    return [run(sides, log(300, 100 + seed), seed=seed) for seed in range(250)]


TRUTH = {"A": true_value(policy_of(QUALITY)), "B": true_value(policy_of(OTHER))}


@pytest.mark.parametrize(("name", "bias"), [("IPS", 0.0), ("DR", 0.0), ("SNIPS", 0.005)])
def test_estimates_are_right_on_average(repeated: list[Replay], name: str, bias: float) -> None:
    for place, label in enumerate("AB"):
        values = np.array([found.sides[place].value[name].value for found in repeated])
        error = values.std(ddof=1) / np.sqrt(len(values))
        assert abs(values.mean() - TRUTH[label]) < 3.5 * error + bias, label
    assert abs(TRUTH["A"] - TRUTH["B"]) > 10 * error  # or else the test could not fail


@pytest.mark.parametrize("name", ["IPS", "SNIPS", "DR"])
def test_intervals_cover_the_truth_as_often_as_they_say(repeated: list[Replay], name: str) -> None:
    def share(estimates: list[Any], truth: float) -> float:
        return float(np.mean([estimate.interval.low <= truth <= estimate.interval.high for estimate in estimates]))

    value = share([found.sides[0].value[name] for found in repeated], TRUTH["A"])
    difference = share([found.difference[name] for found in repeated], TRUTH["B"] - TRUTH["A"])
    logging = float((LOGGING * REWARD).sum(2).mean())
    over_logged = share([found.sides[0].over_logged[name] for found in repeated], TRUTH["A"] - logging)
    assert all(0.9 <= found <= 0.985 for found in (value, difference, over_logged)), (value, difference, over_logged)
    assert 0.9 <= share([found.logged for found in repeated], logging) <= 0.985


def test_the_doubly_robust_estimate_varies_less_than_the_weighted_one(repeated: list[Replay]) -> None:
    spread = {name: np.std([found.sides[0].value[name].value for found in repeated]) for name in ("IPS", "DR")}
    assert spread["DR"] < 0.9 * spread["IPS"]


def test_a_ranker_against_itself_differs_by_nothing_and_has_no_interval() -> None:
    found = run([side(QUALITY), side(QUALITY, label="B")], log(200))
    assert found.difference["DR"].value == 0
    assert found.difference["DR"].interval is None


def test_a_pair_is_compared_on_the_same_draws() -> None:
    paired = run([side(QUALITY), side(QUALITY + 0.02, label="B")], log(2000))
    low, high = paired.difference["IPS"].interval
    own_low, own_high = paired.sides[0].value["IPS"].interval
    assert high - low < 0.2 * (own_high - own_low)


def test_seeds_of_a_side_are_averaged_and_kept() -> None:
    each = [run([side(quality)], log(400)).sides[0].value["DR"].value for quality in (QUALITY, OTHER)]
    both = run([side(QUALITY, OTHER), side(OTHER, QUALITY, label="B")], log(400))
    assert both.sides[0].value["DR"].value == pytest.approx(np.mean(each))
    assert list(both.sides[0].value["DR"].by_seed.values()) == pytest.approx(each)
    assert both.difference["DR"].by_seed == pytest.approx({0: each[1] - each[0], 1: each[0] - each[1]})


def test_a_unit_is_drawn_with_all_its_rounds() -> None:
    once = rounds(300, 5).with_columns(user=pl.int_range(300))
    thrice = BanditLog.of(pl.concat([once] * 3), items(), position="position", unit="user")
    tripled = run([side(QUALITY)], thrice, draws=4000)
    alone = run([side(QUALITY)], BanditLog.of(once, items(), position="position"), draws=4000)
    assert (tripled.rounds, tripled.units) == (900, 300)
    width = [np.diff(found.sides[0].value["IPS"].interval)[0] for found in (tripled, alone)]
    assert width[0] == pytest.approx(width[1], rel=0.05)  # three copies hold no more than one


def test_each_position_is_ranked_by_its_task() -> None:
    class TwoTasks(FakeRanker):
        @property
        def schema(self) -> Any:
            task = super().schema.tasks[0]
            return type("S", (), {"task_names": ("left", "right"), "tasks": [
                type("T", (), {"name": name, "binary": task.binary}) for name in ("left", "right")
            ]})  # fmt: skip

        def predict(self, table: pl.DataFrame, /) -> pl.DataFrame:
            left = super().predict(table)["click"]
            return pl.DataFrame({"left": left, "right": 1 - left})

    found = log(500)
    both = replay([RankedSide("A", {0: TwoTasks(QUALITY)})], found, tasks={"0": "left", "1": "right"}, draws=100)
    at_left = found.position == 0
    share = np.where(at_left[:, None], policy_of(QUALITY, RankingPolicy())[found.context["context"]],
                     policy_of(1 - QUALITY, RankingPolicy())[found.context["context"]])  # fmt: skip
    taken = share[np.arange(500), found.action]
    assert both.sides[0].value["IPS"].value == pytest.approx(np.mean(taken / found.propensity * found.reward), rel=1e-6)
    with pytest.raises(SettingError, match="Expected a task for each position of the log, found none for '1'"):
        replay([RankedSide("A", {0: TwoTasks(QUALITY)})], found, tasks={"0": "left"})


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("propensity_score", 0.0, r"row 3 .* above 0 and at most 1; found 0 in 1 of 20 rows"),
        ("propensity_score", 1.5, r"row 3 .* above 0 and at most 1; found 1.5"),
        ("propensity_score", None, r"row 3 .* expected a propensity, a number, in the column 'propensity_score'"),
        ("propensity_score", float("nan"), r"row 3 .* expected a propensity, a number"),
        ("click", None, r"row 3 .* expected a reward, a number, in the column 'click', found None"),
        ("position", None, r"row 3 .* expected a position in the column 'position', found none"),
        ("item_id", "i9", r"row 3 .* the item table has no 'i9', which the log shows in 'item_id' \(1 of 20 rows\)"),
        ("item_id", None, r"row 3 .* the item table has no None"),
    ],
)
def test_bad_rows_of_the_log_are_named(column: str, value: object, message: str) -> None:
    table = rounds(20, 0)
    cell = pl.when(pl.int_range(20) == 3).then(pl.lit(value)).otherwise(column).alias(column)
    with pytest.raises(DataError, match=message):
        BanditLog.of(table.with_columns(cell), items(), position="position")


def test_bad_tables_are_refused() -> None:
    with pytest.raises(DataError, match=r"The log lacks the column 'p' \(propensity\)"):
        log(20, propensity="p")
    with pytest.raises(DataError, match="The item table lacks the column 'item_id'"):
        BanditLog.of(rounds(20, 0), items().rename({"item_id": "id"}))
    with pytest.raises(DataError, match="name each item once in 'item_id', found 'i0' more than once"):
        BanditLog.of(rounds(20, 0), pl.concat([items(), items()[:1]]))
    with pytest.raises(DataError, match="at least one logged round"):
        BanditLog.of(rounds(20, 0)[:0], items())


def test_rankers_that_cannot_rank_the_items_are_refused() -> None:
    found, ranker = log(50), FakeRanker(QUALITY)
    with pytest.raises(DataError, match="A reads the column 'colour', which neither the log nor the item table has"):
        run([RankedSide("A", {0: changed(ranker, columns=("context", "item_id", "colour"))})], found)
    with pytest.raises(SettingError, match="A reads no column of the item table"):
        run([RankedSide("A", {0: changed(ranker, columns=("context",))})], found)
    with pytest.raises(SettingError, match="A predicts the same for every item in every round"):
        run([side(np.full((CONTEXTS, ITEMS), 0.5))], found)
    with pytest.raises(SettingError, match="expected a task that ranks, out of click; found 'like'"):
        run([side(QUALITY)], found, tasks="like")


def test_a_policy_that_never_picks_a_logged_item_is_refused() -> None:
    only_first = rounds(400, 0).filter(pl.col("item_id") == "i0")
    never_first = np.concatenate([np.full((CONTEXTS, 1), 0.01), QUALITY[:, 1:]], axis=1)
    found = BanditLog.of(only_first, items())
    with pytest.raises(DataError, match=r"In none of the \d+ rounds does A pick the item that was logged"):
        run([side(never_first)], found, policy=RankingPolicy())
    assert run([side(never_first)], found).sides[0].matched == len(found)  # a softer one is replayed


def test_without_a_reward_there_is_no_interval() -> None:
    table = rounds(100, 0).with_columns(click=0)
    found = run([side(QUALITY)], BanditLog.of(table, items()))
    assert found.sides[0].value["IPS"].value == 0
    assert found.sides[0].value["IPS"].interval is None
