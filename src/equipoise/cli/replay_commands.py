"""The commands that judge rankers by what they would have shown: on a log, and in a simulation."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from equipoise.cli.app import app
from equipoise.cli.messages import console, errors, plainly, say
from equipoise.errors import SettingError

if TYPE_CHECKING:
    from equipoise.serving import Ranker

__all__ = ["auction", "replay"]

Runs = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN [RUN]",
        help="One or two folders that `equipoise train` wrote, or that hold one such for each seed.",
    ),
]


@app.command()
def replay(
    runs: Runs,
    *,
    log: Annotated[list[str], typer.Option(metavar="FILE", help="Logged rounds: Parquet, CSV, TSV. May be repeated.")],
    items: Annotated[str, typer.Option(metavar="FILE", help="A row for each item, with its features.")],
    action: Annotated[
        str, typer.Option(metavar="COLUMN", help="Column with the item, in log and item table.")
    ] = "item_id",
    propensity: Annotated[
        str, typer.Option(metavar="COLUMN", help="Column with the probability with which the item was shown.")
    ] = "propensity_score",
    label: Annotated[str, typer.Option(metavar="COLUMN", help="Column with the reward, such as a click.")] = "click",
    position: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column with the position. Default: all rounds are alike.")
    ] = None,
    unit: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column with what the bootstrap draws whole, such as the user.")
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK|POSITION=TASK", help="Task that ranks; by position, repeat. Default: --label."),
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0, help="0 shows the best item; above, shares ∝ exp(score / temperature).")
    ] = 0.0,
    epsilon: Annotated[float, typer.Option(min=0, max=1, help="Share of rounds with an item at random.")] = 0.0,
    draws: Annotated[int, typer.Option(min=100, max=100_000, help="Resamples of the bootstrap.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
    out: Annotated[Path | None, typer.Option(metavar="FILE.md", help="Write the result as Markdown, too.")] = None,
) -> None:
    """Estimate from logged rounds how often a ranker's choices would be clicked.

    The log needs the probability with which each item was shown. Estimates by
    inverse propensities (IPS), self-normalised (SNIPS) and doubly robust (DR),
    each with a 95 % interval, beside the log's own rate; with two RUNs also
    their paired difference. Neither may have learnt from these rounds.
    """
    from equipoise.cli.tables import terminal_table
    from equipoise.report.replay_page import replay_cautions, replay_findings, replay_markdown, replay_table
    from equipoise.serving.replay import BanditLog, RankedSide, RankingPolicy
    from equipoise.serving.replay import replay as replay_on
    from equipoise.training.faults import interrupted_by_sigterm
    from equipoise.whole_files import write_whole

    with plainly(), interrupted_by_sigterm():
        sides = [RankedSide(label, rankers) for label, rankers in _sides(runs).items()]
        policy = RankingPolicy(temperature, epsilon)
        logged = BanditLog.read(
            log, items, action=action, propensity=propensity, label=label, position=position, unit=unit
        )
        found = replay_on(sides, logged, tasks=_tasks(task or [label]), policy=policy, draws=draws, seed=seed)
        console.print(terminal_table(replay_table(found), f"An estimate from {found.rounds:,} logged rounds"))
        for text in replay_findings(found):
            say(text)
        for text in replay_cautions(found):
            errors.print(f"Caution: {text}", markup=False, highlight=False, soft_wrap=True)
        if out is not None:
            write_whole(out, replay_markdown(found, title="Replay on logged rounds", command=_command()))
            say(f"Written: {out}")


@app.command()
def auction(
    runs: Runs,
    *,
    auctions: Annotated[int, typer.Option(min=2, max=10_000_000, help="Number of auctions.")] = 20_000,
    candidates: Annotated[int, typer.Option(min=2, max=10_000, help="Ads in each.")] = 20,
    bid_spread: Annotated[float, typer.Option(min=0, max=5, help="Standard deviation of the bids' logarithm.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of people, ads and bids.")] = 0,
    out: Annotated[Path | None, typer.Option(metavar="FILE.md", help="Write the result as Markdown, too.")] = None,
) -> None:
    """Simulate ad auctions on the generated funnel: eCPM and CTR of one or two rankers.

    The ad with the highest bid x pCTR x pCVR wins. The generator knows the true
    probabilities, so what a winner earns is exact. A simulation, no experiment:
    RUNs are trainings on `--data funnel` with the same options.
    """
    from equipoise.cli.tables import terminal_table
    from equipoise.report.auction_page import SIMULATED, auction_findings, auction_markdown, auction_table
    from equipoise.serving.auction import Market, MarketSide, funnel_of, simulate
    from equipoise.training.faults import interrupted_by_sigterm
    from equipoise.whole_files import write_whole

    with plainly(), interrupted_by_sigterm():
        sides = _sides(runs)
        funnels = [funnel_of(ranker.run.settings) for rankers in sides.values() for ranker in rankers.values()]
        if len(set(funnels)) > 1:
            raise SettingError("The runs were trained on funnels with different options: train them on the same one.")
        market = Market(auctions, candidates, bid_spread, seed)
        found = simulate([MarketSide(label, rankers) for label, rankers in sides.items()], funnels[0], market)
        console.print(terminal_table(auction_table(found), "Simulated auctions"))
        for text in (SIMULATED, *auction_findings(found)):
            say(text)
        if out is not None:
            write_whole(out, auction_markdown(found, title="Simulated auctions", command=_command()))
            say(f"Written: {out}")


def _sides(runs: list[Path]) -> dict[str, dict[int, Ranker]]:
    """Load the rankers of one or two sides: label -> seed -> ranker.

    A side is named after its method, and after its folder too where both have the same.
    """
    from equipoise.methods import METHODS
    from equipoise.serving.replay import load_seeds

    if len(runs) > 2:
        raise SettingError(f"Expected one or two folders of runs, found {len(runs)}.")
    found = [load_seeds(folder) for folder in runs]
    methods = [next(iter(rankers.values())).run.method for rankers in found]
    labels = [METHODS[name].label if name in METHODS else name for name in methods]
    if len(set(labels)) < len(labels):
        labels = [f"{label} ({folder.name})" for label, folder in zip(labels, runs, strict=True)]
    return dict(zip(labels, found, strict=True))


def _tasks(given: list[str]) -> str | dict[str, str]:
    """Return the one task that ranks, or one for each position."""
    if len(given) == 1 and "=" not in given[0]:
        return given[0]
    pairs = [entry.partition("=") for entry in given]
    if wrong := [entry for entry, (_, sign, task) in zip(given, pairs, strict=True) if not sign or not task]:
        raise SettingError(f"--task: expected one task, or POSITION=TASK for each position; found {wrong[0]!r}.")
    return {position: task for position, _, task in pairs}


def _command() -> str:
    return shlex.join(["equipoise", *(Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:])])
