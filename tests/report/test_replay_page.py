"""The words about a replay claim no more than its intervals and its number of rewards allow."""

from dataclasses import replace

import pytest

from equipoise.report.replay_page import replay_cautions, replay_findings, replay_markdown, replay_table
from equipoise.serving.replay import ESTIMATORS, Estimate, Interval, RankingPolicy, Replay, Replayed


def estimate(value: float, low: float, high: float, **by_seed: float) -> Estimate:
    return Estimate(value, Interval(low, high), {int(seed[1:]): found for seed, found in by_seed.items()})


def replayed(label: str, over_logged: Estimate, *, rewarded: int = 50, effective: float = 900.0) -> Replayed:
    value = estimate(0.051, 0.04, 0.06, s0=0.051)
    return Replayed(
        label, dict.fromkeys(ESTIMATORS, value), dict.fromkeys(ESTIMATORS, over_logged), effective, 950.0, rewarded,
        4.5, estimate(1.01, 0.97, 1.05),
    )  # fmt: skip


CLEAR, UNCLEAR = estimate(0.004, 0.001, 0.007), estimate(0.004, -0.001, 0.009)
FOUND = Replay(
    1000, 1000, 8, 1, True, RankingPolicy(), 2000, estimate(0.047, 0.04, 0.054),
    [replayed("Equal weights", UNCLEAR), replayed("MultiBalance", CLEAR)],
    dict.fromkeys(ESTIMATORS, estimate(-0.003, -0.005, -0.001, s0=-0.002, s1=-0.004, s2=-0.003)), ["age"], ["price"],
)  # fmt: skip


def test_a_difference_is_called_only_where_its_interval_excludes_zero() -> None:
    assert [text.replace("\N{NO-BREAK SPACE}", " ") for text in replay_findings(FOUND)] == [
        "Equal weights instead of the policy that wrote the log: no clear difference (+0.400 points, 95 % interval "
        "−0.100 to +0.900 points).",
        "MultiBalance instead of the policy that wrote the log: more reward (+0.400 points, 95 % interval +0.100 to "
        "+0.700 points).",
        "MultiBalance instead of Equal weights: less reward (−0.300 points, 95 % interval −0.500 to −0.100 points).",
    ]
    assert not replay_cautions(FOUND)


def test_few_rewards_make_nothing_clear_and_are_named() -> None:
    few = replace(FOUND, sides=[FOUND.sides[0], replayed("MultiBalance", CLEAR, rewarded=1, effective=30.0)])
    assert all("no clear difference" in text for text in replay_findings(few))
    cautions = " ".join(replay_cautions(few))
    assert "MultiBalance: only 1 round with a reward could have been its own" in cautions
    assert "its weights are worth 30 rounds of 1,000" in cautions
    assert "## Before relying on it" in replay_markdown(few, title="T")


def test_weights_that_do_not_average_one_are_named() -> None:
    off = replace(FOUND.sides[0], mean_weight=estimate(0.7, 0.65, 0.75))
    (text,) = replay_cautions(replace(FOUND, sides=[off]))
    assert "where 1 is expected: propensities are wrong, or the log never shows some items" in text


def test_no_interval_means_no_statement() -> None:
    unknown = Estimate(0.0, None, {0: 0.0})
    side = replace(FOUND.sides[0], over_logged=dict.fromkeys(ESTIMATORS, unknown))
    (text,) = replay_findings(replace(FOUND, sides=[side], difference={}))
    assert text.endswith("no statement is possible.")


@pytest.mark.parametrize(("is_rate", "shown"), [(True, "5.100\N{NO-BREAK SPACE}%"), (False, "0.05100")])
def test_rates_are_shown_in_per_cent_and_other_rewards_as_they_are(is_rate: bool, shown: str) -> None:
    table = replay_table(replace(FOUND, is_rate=is_rate))
    assert [row.cells[0].text for row in table.rows] == [
        "the log itself", "Equal weights", "Equal weights minus the log", "MultiBalance", "MultiBalance minus the log",
        "MultiBalance minus Equal weights",
    ]  # fmt: skip
    assert table.rows[1].cells[1].text == shown


def test_the_page_says_that_nobody_was_asked_and_how_seeds_differ() -> None:
    page = replay_markdown(FOUND, title="Replay", command="equipoise replay a b")
    assert page.startswith("# Replay\n\nAn estimate from a log: nobody was shown what these rankers pick.")
    assert "Over 3 pairs of trainings with the same seed" in page
    assert "equipoise replay a b" in page
