"""Replay MultiBalance and equal weights on Open Bandit, and let both bid in simulated auctions on the funnel.

    python benchmarks/replay.py open-bandit --folder FOLDER --out benchmarks/results/replay-open-bandit.md
    python benchmarks/replay.py auction --out benchmarks/results/replay-auction.md

FOLDER holds the published files, or a wheel of the package obp, whose sample of 60,000 rows was used. Each method is
trained with five seeds, at the rate with the lowest mean validation NE of another seed: out of three on Open Bandit,
and with a decay of the embedding tables, out of fifteen pairs, on the funnel.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

import equipoise
from equipoise.data import Dataset, from_frame, load
from equipoise.data.sets.funnel import Funnel
from equipoise.data.sets.open_bandit import PLACES, Campaign, read_log
from equipoise.methods import METHODS
from equipoise.report.auction_page import auction_markdown
from equipoise.report.replay_page import replay_markdown
from equipoise.serving import Ranker
from equipoise.serving.auction import Market, MarketSide, simulate
from equipoise.serving.replay import BanditLog, RankedSide, RankingPolicy, replay

SEEDS, TUNING_SEED = range(5), 1000
RATES = [{"lr": lr} for lr in (1e-3, 3e-3, 1e-2)]
AUCTION_RATES = [
    {"lr": lr, "table_decay": decay}
    for lr, decay in itertools.product((1e-2, 1.8e-2, 3.2e-2, 5.6e-2, 1e-1), (0.33, 1.0, 2.33))
]
METHODS_COMPARED = ("equal", "multibalance")
POLICIES = (RankingPolicy(), RankingPolicy(temperature=0.3))
CAMPAIGNS: tuple[Campaign, ...] = ("men", "women", "all")
FUNNELS: dict[str, dict[str, Any]] = {
    "the funnel at its defaults": {},
    "conversions rarer than clicks by a loss of 1 : 10": {"loss_imbalance": 10.0},
}
FUNNEL_ROWS = 300_000


def trained(
    dataset: Dataset, method: str, rates: Sequence[dict[str, float]], **settings: Any
) -> tuple[str, dict[int, Ranker]]:
    """Return the rate that was chosen, in words, and a ranker for each seed."""
    scores = [
        equipoise.train(dataset, method, seed=TUNING_SEED, **rate, **settings).run.mean_validation_ne for rate in rates
    ]
    best = rates[scores.index(min(scores))]
    chosen = ", decay ".join(f"{value:g}" for value in best.values())
    say(f"{dataset.name}, {method}: rate {chosen} out of {list(zip(rates, scores, strict=True))}")
    return chosen, {seed: equipoise.train(dataset, method, seed=seed, **best, **settings) for seed in SEEDS}


def open_bandit(folder: Path) -> str:
    """Train on the log of one policy and replay on that of the other, for each campaign."""
    parts = [
        "# Replay on Open Bandit",
        "",
        "The log of one policy trains, that of the other judges: no round does both. `random` shows items at random, "
        "`bts` by Thompson sampling. Three tasks: the clicks at each position. Features: the item, its own features, "
        "and four of the user (neither the hour nor affinities). The rows are the sample that the package obp holds, "
        "10,000 for each policy and campaign. With some 40 clicks to learn from and as many to judge by, **no "
        "difference between methods can be expected to show**: this page shows how wide an honest interval is. Of "
        "twelve comparisons of two methods one may look clear by chance. Rates are chosen by a noisy NE, on one seed.",
    ]
    for campaign in CAMPAIGNS:
        for teacher, judge in (("bts", "random"), ("random", "bts")):
            dataset, items = open_bandit_dataset(folder, campaign, teacher)
            found = {method: trained(dataset, method, RATES, epochs=1, batch_size=128) for method in METHODS_COMPARED}
            sides = [RankedSide(METHODS[method].label, rankers) for method, (_, rankers) in found.items()]
            rounds = read_log(folder=folder, policy=judge, campaign=campaign).rows.collect()
            log = BanditLog.of(rounds, items, position="position")
            rates = ", ".join(f"{METHODS[method].label} {rate}" for method, (rate, _) in found.items())
            for policy in POLICIES:
                title = f"Campaign {campaign}, trained on {teacher}, replayed on {judge}"
                result = replay(sides, log, tasks={str(at): task for at, task in PLACES.items()}, policy=policy)
                page = replay_markdown(result, title=title)
                parts += ["", lowered(page.split("\n## How it was done")[0].rstrip()), "", f"Rates: {rates}."]
                say(f"{title}: done")
    return "\n".join([*parts, "", f"```sh\n{command()}\n```", ""])


def open_bandit_dataset(folder: Path, campaign: Campaign, policy: Any) -> tuple[Dataset, pl.DataFrame]:
    """Return a campaign's log as a data set with a task for each position, and its items."""
    log = read_log(folder=folder, policy=policy, campaign=campaign)
    clicks = [pl.when(pl.col("position") == at).then("click").alias(task) for at, task in PLACES.items()]
    frame, items = log.shown().with_columns(clicks).collect(), log.items.collect()
    users = [name for name in frame.columns if name.startswith("user_feature_")]
    of_items = [name for name in items.columns if name.startswith("item_feature_")]
    features: dict[str, Any] = {name: {"kind": "category", "min_count": 1} for name in ("item_id", *users, *of_items)}
    features["item_feature_0"] = "number"
    config = {
        "name": f"Open Bandit, {policy}, {campaign}", "features": features, "split": {"by": "random"},
        "tasks": {task: task for task in PLACES.values()},
    }  # fmt: skip
    return from_frame(frame, config), items


def auction() -> str:
    """Train on funnels and simulate auctions among their ads."""
    parts = [
        "# Simulated auctions", "",
        f"Trainings on {FUNNEL_ROWS:,} generated rows, 70 % of them train rows, one epoch; five seeds per method. The "
        "rate and the decay of embedding tables are those with the lowest mean validation NE of another seed, out of "
        f"{len(AUCTION_RATES)} pairs for each method.",
    ]  # fmt: skip
    for title, changes in FUNNELS.items():
        options = {"rows": FUNNEL_ROWS, **changes}
        dataset = load("funnel", **options)
        found = {
            method: trained(dataset, method, AUCTION_RATES, epochs=1, batch_size=2048) for method in METHODS_COMPARED
        }
        sides = [MarketSide(METHODS[method].label, rankers) for method, (_, rankers) in found.items()]
        page = auction_markdown(simulate(sides, Funnel(**options), Market()), title=f"On {title}")
        rates = ", ".join(f"{METHODS[method].label} {rate}" for method, (rate, _) in found.items())
        parts += ["", lowered(page.rstrip()), "", f"Rates: {rates}."]
    return "\n".join([*parts, "", f"```sh\n{command()}\n```", ""])


def lowered(page: str) -> str:
    """Return a page with its headings one level lower."""
    return "\n".join(f"#{line}" if line.startswith("#") else line for line in page.splitlines())


def command() -> str:
    return " ".join(
        ["python benchmarks/replay.py", *(Path(word).name if "/" in word else word for word in sys.argv[1:])]
    )


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("open-bandit", "auction"))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    text = auction() if chosen.what == "auction" else open_bandit(chosen.folder)
    chosen.out.write_text(text, encoding="utf-8")
