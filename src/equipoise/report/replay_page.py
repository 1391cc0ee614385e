"""A replay on logged data, in words and tables: for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from equipoise.report.cells import NONE, PERCENT, Cell, Column, Row, Table, in_unit, number, signed
from equipoise.report.markdown import markdown_table, no_tags
from equipoise.report.phrases import counted, listed
from equipoise.report.statistics import interval as over_seeds
from equipoise.serving.replay import ESTIMATORS, Estimate, Interval, Replay, Replayed

__all__ = ["replay_cautions", "replay_findings", "replay_markdown", "replay_table"]

_FEW_ROUNDS: Final = 100  # effective ones
_FEW_REWARDED: Final = 20
_DIGITS: Final = 3  # of a rate in per cent


def replay_table(found: Replay, /) -> Table:
    """Return the estimates: a row for the log's own policy, each side, and their difference."""
    said, change = _formats(found)
    columns = [Column("", numeric=False), *(Column(name, text) for name, text in ESTIMATORS.items())]
    rows = [Row([Cell("the log itself"), *(said.cell(found.logged) for _ in ESTIMATORS)], "reference")]
    for side in found.sides:
        rows.append(Row([Cell(side.label), *(said.cell(side.value[name]) for name in ESTIMATORS)]))
        title = f"{side.label} minus the log"
        rows.append(Row([Cell(title), *(change.cell(side.over_logged[name]) for name in ESTIMATORS)]))
    if found.difference:
        first, second = found.sides
        title = f"{second.label} minus {first.label}"
        rows.append(Row([Cell(title), *(change.cell(found.difference[name]) for name in ESTIMATORS)]))
    return Table(columns, rows)


def replay_findings(found: Replay, /) -> list[str]:
    """Say what the doubly robust estimates support: of each side against the log's policy, and of the sides."""
    _, change = _formats(found)
    said = [
        _finding(f"{side.label} instead of the policy that wrote the log", side.over_logged["DR"], side, change)
        for side in found.sides
    ]
    if found.difference:
        first, second = found.sides
        worse = min(found.sides, key=lambda side: side.rewarded)
        said.append(_finding(f"{second.label} instead of {first.label}", found.difference["DR"], worse, change))
    return said


def replay_cautions(found: Replay, /) -> list[str]:
    """Return what a reader should know before relying on the numbers."""
    said = []
    for side in found.sides:
        if side.rewarded < _FEW_REWARDED:
            said.append(
                f"{side.label}: only {counted(side.rewarded, 'round')} with a reward could have been its own (of the "
                f"seed with the fewest). Intervals from fewer than {_FEW_REWARDED} are too narrow, and no difference "
                "is called clear."
            )
        if side.effective < _FEW_ROUNDS:
            said.append(
                f"{side.label}: its weights are worth {side.effective:,.0f} rounds of {found.rounds:,}: the log says "
                "little about it."
            )
        weight = side.mean_weight
        if weight.interval and not weight.interval.low <= 1 <= weight.interval.high:
            said.append(
                f"{side.label}: its weights average {number(weight.value, 3)} (95{PERCENT} interval "
                f"{_PLAIN.ends(weight.interval)}), where 1 is expected: propensities are "
                "wrong, or the log never shows some items that it picks."
            )
    return said


def replay_markdown(found: Replay, /, *, title: str, command: str = "") -> str:
    """Return the replay as a page of Markdown."""
    lines = [
        f"# {title}",
        "",
        f"An estimate from a log: nobody was shown what these rankers pick. {_setting(found)}",
        "",
    ]
    lines += [*markdown_table(replay_table(found)), ""]
    lines += [f"In brackets 95 % intervals: a bootstrap over {_units(found)}, {found.draws:,} draws, the same for all."]
    lines += ["", *(f"- {no_tags(text)}" for text in [*replay_findings(found), *_of_seeds(found)])]
    if cautions := replay_cautions(found):
        lines += ["", "## Before relying on it", "", *(f"- {no_tags(text)}" for text in cautions)]
    lines += ["", "## How it was done", ""]
    lines += [f"- {name}: {text}." for name, text in ESTIMATORS.items()]
    lines += [
        f"- Same for every item: {listed(_shown(found.context)) if found.context else 'nothing'}. From the item table: "
        f"{listed(_shown(found.item_columns))}. A column that depends on the item belongs into the item table.",
        "- The mean rewards by item and position come from other rounds than those that they are applied to.",
        "- Positions are judged one by one: what else is on the page does not matter to the estimate.",
        "- The rounds must not be among those that a ranker has learnt from: it would rank what it has seen clicked.",
    ]
    lines += ["", "## What the log says about each policy", "", *markdown_table(_support(found))]
    if command:
        lines += ["", "```sh", command, "```"]
    return "\n".join([*lines, ""])


def _support(found: Replay) -> Table:
    titles = (
        "seeds", "rounds it could have been", "with a reward", "effective rounds", "largest weight", "mean weight",
    )  # fmt: skip
    columns = [Column("", numeric=False), *map(Column, titles)]
    rows = [
        Row([Cell(text) for text in (
            side.label, f"{len(side.value['DR'].by_seed)}", f"{side.matched:,.0f}", f"{side.rewarded:,}",
            f"{side.effective:,.0f}", f"{side.largest:,.1f}",
            f"{number(side.mean_weight.value, 3)} ({_PLAIN.ends(side.mean_weight.interval)})",
        )])
        for side in found.sides
    ]  # fmt: skip
    return Table(columns, rows)


def _setting(found: Replay) -> str:
    places = f" at {counted(found.positions, 'position')}" if found.positions > 1 else ""
    return f"{found.rounds:,} rounds, {found.items:,} items{places}; shown is {found.policy}."


def _units(found: Replay) -> str:
    return "rounds" if found.units == found.rounds else f"{found.units:,} units, each with all its rounds"


def _of_seeds(found: Replay) -> list[str]:
    """Return the spread over seeds of the difference between two sides, which the table leaves out."""
    if not found.difference or len(found.difference["DR"].by_seed) < 2:
        return []
    paired = over_seeds(list(found.difference["DR"].by_seed.values()))
    if paired.low is None or paired.high is None or paired.mean is None:
        return []
    _, change = _formats(found)
    return [
        f"Over {counted(paired.pairs, 'pair')} of trainings with the same seed, on these same rounds, the difference "
        f"(DR) is {change.one(paired.mean)} (95{PERCENT} Student-t interval "
        f"{change.ends(Interval(paired.low, paired.high))})."
    ]


def _finding(what: str, estimate: Estimate, side: Replayed, change: _Format) -> str:
    between = estimate.interval
    if between is None:
        return f"{what}: no statement is possible."
    detail = f"{change.one(estimate.value)}, 95{PERCENT} interval {change.ends(between)}"
    if side.rewarded < _FEW_REWARDED or between.low <= 0 <= between.high:
        return f"{what}: no clear difference ({detail})."
    return f"{what}: {'more' if between.low > 0 else 'less'} reward ({detail})."


class _Format(NamedTuple):
    """A number and an interval in one unit."""

    text: Callable[[float], str]
    unit: str = ""

    def one(self, value: float) -> str:
        return f"{self.text(value)}{self.unit}"

    def ends(self, between: Interval | None) -> str:
        return NONE if between is None else f"{self.text(between.low)} to {self.text(between.high)}{self.unit}"

    def cell(self, estimate: Estimate) -> Cell:
        return Cell(self.one(estimate.value), self.ends(estimate.interval))


_PLAIN: Final = _Format(lambda value: number(value, 3))


def _formats(found: Replay) -> tuple[_Format, _Format]:
    """Return the formats of a mean reward and of a difference: per cent and its points where rewards are 0 or 1."""
    if not found.is_rate:
        return _Format(in_unit), _Format(lambda value: f"{'+' if value > 0 else ''}{in_unit(value)}")
    return (
        _Format(lambda value: number(100 * value, _DIGITS), PERCENT),
        _Format(lambda value: signed(100 * value, _DIGITS), " points"),
    )


def _shown(columns: Sequence[str]) -> list[str]:
    names = [f"`{name}`" for name in columns]
    return names if len(names) <= 6 else [*names[:5], f"{len(names) - 5} more"]
