"""Two rows compared directly in every setting, paired by seed, such as MultiBalance and searched static weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from equipoise.comparison.tuning import scores_of
from equipoise.report.analysis import Gain, MethodResult, gain_between
from equipoise.report.evidence.suite import Setting, Suite
from equipoise.report.statistics import holm

__all__ = ["Duel", "duels", "outcome_of", "static_duels"]


@dataclass(frozen=True)
class Duel:
    """One method against another in one setting.

    Attributes:
        setting: where.
        opponent: the other method's numbers.
        gain: of the method over the opponent in mean NE, in per cent; p is adjusted for the number of settings (Holm).
        trials: of the opponent in tuning.
    """

    setting: Setting
    opponent: MethodResult
    gain: Gain
    trials: int


def duels(suite: Suite, name: str, is_opponent: Callable[[MethodResult], bool], /) -> list[Duel]:
    """Return the duels of a method with the first opponent of each setting, where both have results."""
    found = []
    for setting in suite.settings:
        entry = setting.analysis.method(name)
        opponent = next((other for other in setting.analysis.joint if is_opponent(other)), None)
        if not setting.has_gains or entry is None or entry.ne is None or opponent is None or opponent.ne is None:
            continue
        gain = gain_between(setting.results, name, opponent.method.name, setting.analysis.means_over)
        found.append(Duel(setting, opponent, gain, len(scores_of(setting.results.tuning, opponent.method.name))))
    adjusted = holm([duel.gain.over_seeds.p for duel in found])
    return [replace(duel, gain=replace(duel.gain, adjusted_p=p)) for duel, p in zip(found, adjusted, strict=True)]


def static_duels(suite: Suite, name: str, /) -> list[Duel]:
    """Return the duels of a method with fixed static weights."""
    return duels(suite, name, lambda entry: entry.is_static)


def outcome_of(found: Sequence[Duel], /) -> tuple[int, int, int]:
    """Return how often the method is clearly better, not told apart, and clearly worse, after Holm's adjustment."""
    clear = [duel.gain for duel in found if duel.gain.firm]
    better, worse = sum(gain.better for gain in clear), sum(gain.worse for gain in clear)
    return better, len(found) - better - worse, worse
