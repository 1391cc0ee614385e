"""A simulated auction in words and tables: for the terminal and as Markdown."""

from __future__ import annotations

from typing import Final

from equipoise.report.cells import PERCENT, Cell, Column, Row, Table, number, percent, signed
from equipoise.report.markdown import markdown_table, no_tags
from equipoise.report.phrases import counted
from equipoise.report.statistics import interval
from equipoise.serving.auction import Auctions, Measured

__all__ = ["SIMULATED", "auction_findings", "auction_markdown", "auction_table"]

SIMULATED: Final = "A simulation on generated data: no ad was shown and nothing was paid."


def auction_table(found: Auctions, /) -> Table:
    """Return eCPM and CTR: a row for each side, their difference, and the best and a random choice."""
    columns = [
        Column("", numeric=False),
        Column("eCPM", "Expected revenue of 1,000 auctions; the mean bid for a conversion is 1."),
        Column("CTR", "Expected clicks per auction."),
    ]
    ways = [*found.sides, found.best, found.random]
    rows = [
        Row(
            [Cell(way.label), _value(way.ecpm, 1, 3), _value(way.ctr, 100, 3, PERCENT)],
            "" if way in found.sides else "aside",
        )
        for way in ways
    ]
    if found.lift:
        first, second = found.sides
        title = f"{second.label} over {first.label}"
        rows.insert(
            2, Row([Cell(title), *(Cell(percent(lift.value, 2), _between(lift)) for lift in found.lift.values())])
        )
    return Table(columns, rows)


def auction_findings(found: Auctions, /) -> list[str]:
    """Say what the second side earns more than the first, as far as the seeds of the trainings allow."""
    if not found.lift:
        return []
    first, second = found.sides
    said = []
    for name, lift in found.lift.items():
        title = {"ecpm": "eCPM", "ctr": "CTR"}[name]
        seeds = interval(list(lift.by_seed.values()))
        over_auctions = f"{percent(lift.value, 2)}, {_between(lift)} over auctions"
        what = f"{second.label} against {first.label}, {title}"
        if seeds.low is None or seeds.high is None:
            said.append(
                f"{what}: {over_auctions}. That holds for these two trainings alone: other seeds may turn it around."
            )
            continue
        ends = f"{signed(seeds.low, 2)} to {percent(seeds.high, 2)} over {counted(seeds.pairs, 'pair')} of seeds"
        clear = {"above": "higher", "below": "lower"}.get(seeds.verdict, "no clear difference")
        said.append(f"{what}: {clear} ({percent(seeds.mean, 2)} on average, 95{PERCENT} interval {ends}).")
    return said


def auction_markdown(found: Auctions, /, *, title: str, command: str = "") -> str:
    """Return the simulation as a page of Markdown."""
    market = found.market
    lines = [
        f"# {title}", "", f"**{SIMULATED}**", "",
        f"{market.auctions:,} auctions among {market.candidates} ads each, bids log-normal with spread "
        f"{market.bid_spread:g}. The highest bid × pCTR × pCVR wins, and pays its bid if a conversion follows. What is "
        "expected of a winner comes from the generator's true probabilities.", "",
        *markdown_table(auction_table(found)), "",
        "In brackets 95 % normal intervals over auctions, of the mean over seeds.", "",
        *(f"- {no_tags(text)}" for text in auction_findings(found)),
    ]  # fmt: skip
    for side in found.sides:
        share = 100 * (side.ecpm.value - found.random.ecpm.value) / (found.best.ecpm.value - found.random.ecpm.value)
        lines.append(
            f"- {side.label} earns {number(share, 1)}{PERCENT} of what is between a random winner and the best."
        )
    if command:
        lines += ["", "```sh", command, "```"]
    return "\n".join([*lines, ""])


def _value(measured: Measured, factor: float, digits: int, unit: str = "") -> Cell:
    low, high = (number(factor * end, digits) for end in (measured.low, measured.high))
    return Cell(f"{number(factor * measured.value, digits)}{unit}", f"{low} to {high}{unit}")


def _between(measured: Measured) -> str:
    return f"{signed(measured.low, 2)} to {percent(measured.high, 2)}"
