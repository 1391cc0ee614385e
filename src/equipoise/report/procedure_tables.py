"""Tables about how a comparison was made: its data, the choice of rates, and the methods."""

from __future__ import annotations

import math
import statistics

from equipoise.comparison.results import LabelCount, PlannedTask, Results
from equipoise.comparison.tuned_rates import Rate, rate_of
from equipoise.comparison.tuning import mean_ne, scores_of, tasks_with_ne
from equipoise.report.cells import NONE, PERCENT, Cell, Column, Row, Table, in_unit, number

__all__ = ["data_table", "methods_table", "tuning_table"]


def tuning_table(results: Results) -> Table:
    """Validation mean NE of every method at every rate and table decay that was tried; the chosen one is marked.

    Where each method was searched at rates of its own, the best, median and worst of them.
    """
    if results.plan.searched:
        return _search_table(results)
    rates = sorted({run.lr for run in results.tuning})
    decays = sorted({run.table_decay for run in results.tuning})
    tasks = tasks_with_ne(results.tuning)
    columns = [Column("Method", numeric=False), *(Column(f"{lr:g}") for lr in rates), Column("Chosen")]
    if len(decays) > 1:
        columns.insert(1, Column("Table decay", "Decoupled weight decay of the embedding tables, times the rate."))
    rows = []
    for method in results.plan.methods:
        chosen = results.plan.rate(method.name)
        own = [run for run in results.tuning if run.method == method.name]
        for decay in sorted({run.table_decay for run in own}):
            cells = [Cell(method.label)]
            if len(decays) > 1:
                cells.append(Cell(f"{decay:g}"))
            for lr in rates:
                mean = mean_ne([run for run in own if rate_of(run) == Rate(lr, decay)], tasks)
                text = "diverged" if mean is not None and math.isinf(mean) else number(mean, 4)
                cells.append(Cell(text, tone="best" if chosen == Rate(lr, decay) else ""))
            is_chosen = chosen is not None and chosen.table_decay == decay
            edge = "edge of the grid" if is_chosen and results.at_edge(method.name) else ""
            cells.append(Cell(f"{chosen.lr:g}" if chosen and is_chosen else "", edge))
            rows.append(Row(cells))
    return Table(columns, rows)


def _search_table(results: Results) -> Table:
    columns = [
        Column("Method", numeric=False),
        Column("Trials", "Below: diverged ones."),
        Column("Best"),
        Column("Median"),
        Column("Worst", "Of the trials that ended well."),
        Column("Chosen rate"),
        Column("Table decay"),
        Column("Option", "The method's main option, where its paper tunes one.", numeric=False),
    ]
    rows = []
    for method in results.plan.methods:
        chosen = results.plan.rate(method.name)
        scores = [score for score in scores_of(results.tuning, method.name).values() if score is not None]
        ended = sorted(score for score in scores if math.isfinite(score))
        diverged = len(scores) - len(ended)
        spread = [ended[0], statistics.median(ended), ended[-1]] if ended else [None] * 3
        edge = "edge of the range" if results.at_edge(method.name) else ""
        rows.append(
            Row(
                [
                    Cell(method.label),
                    Cell(f"{len(scores)}", f"{diverged} diverged" if diverged else ""),
                    *(Cell(number(value, 4)) for value in spread),
                    Cell(f"{chosen.lr:g}" if chosen else NONE, edge),
                    Cell(f"{chosen.table_decay:g}" if chosen else NONE),
                    Cell(chosen.options if chosen else ""),
                ]
            )
        )
    return Table(columns, rows)


def data_table(results: Results) -> Table:
    """Build a table of tasks: meaning, mean label, share of labelled rows, and the best reachable NE."""
    plan = results.plan
    columns = [
        Column("Task", numeric=False),
        Column("Positive", "Share of positive labels among the training rows that have one; of a regression the mean."),
        Column("Labelled", "Share of training rows that have this label."),
    ]
    counts = plan.label_counts.get("test", {})
    if plan.about_tasks:
        columns.insert(1, Column("Meaning", numeric=False))
    if counts:
        columns.append(Column("Positive test rows", "Test rows with a positive label; of a regression, with a label."))
    if plan.groups:
        meaning = f"Groups by {plan.groups.key} that make up GAUC. Below: those of one class, which are left out."
        columns.append(Column("Groups", meaning))
    if plan.best_ne:
        columns.append(Column("Best reachable NE", "NE of the true probabilities, on the test rows."))
    rows = []
    for task in plan.tasks:
        labels, about = plan.label_rates.get(task), plan.about(task)
        rate = labels.rate if labels else None
        cells = [
            Cell(task),
            Cell(_percent(rate)) if about.kind == "binary" else Cell(in_unit(rate), "mean"),
            Cell(_percent(labels.labelled if labels else None)),
        ]
        if plan.about_tasks:
            cells.insert(1, Cell(about.description, _kind(about)))
        if counts:
            cells.append(_count(counts.get(task)))
        if plan.groups:
            left_out = plan.groups.left_out.get(task)
            below = f"{left_out:,} of one class" if left_out else ""
            cells.append(Cell(_thousands(plan.groups.counted.get(task)), below))
        if plan.best_ne:
            cells.append(Cell(number(plan.best_ne.get(task), 4)))
        rows.append(Row(cells))
    return Table(columns, rows)


def _kind(about: PlannedTask) -> str:
    """Say in a few words over which rows a task is learned and measured."""
    said = "a number" if about.kind == "regression" else ""
    if about.after:
        rows = f"measured where {about.after} is 1" if about.over == "parent" else "over all rows"
        said += f"{', ' if said else ''}after {about.after}, {rows}"
    return said


def _count(count: LabelCount | None) -> Cell:
    if count is None:
        return Cell(NONE)
    return (
        Cell(_thousands(count.labelled), "labelled") if count.positives is None else Cell(_thousands(count.positives))
    )


def _thousands(count: int | None) -> str:
    return NONE if count is None else f"{count:,}"


def methods_table(results: Results) -> Table:
    """Build a table of methods: what each does, and its options."""
    columns = [
        Column("Method", numeric=False),
        Column("Acts on", numeric=False),
        Column("What it does", numeric=False),
        Column("Built as", numeric=False),
    ]
    rows = [
        Row(
            [
                Cell(method.label, method.name),
                Cell(method.family),
                Cell(method.summary),
                Cell(method.settings),
            ]
        )
        for method in results.plan.methods
    ]
    return Table(columns, rows)


def _percent(share: float | None) -> str:
    if share is None:
        return NONE
    return f"{100 * share:.{2 if share < 0.1 else 1}f}{PERCENT}"
