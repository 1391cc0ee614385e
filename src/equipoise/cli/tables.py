"""Tables for the terminal, narrow enough for sixty columns."""

from __future__ import annotations

import math
from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from equipoise.data.summary import Summary
from equipoise.report.cells import Table as ReportTable
from equipoise.report.page import headline, result_rows
from equipoise.training import METHODS, Run

__all__ = ["feature_table", "label_table", "method_table", "run_tables", "summary_table", "terminal_table"]

_SHOWN = {
    "Method": "method", "Mean AUC": "AUC", "Mean R²": "R²", "Mean NE": "NE", "Mean NSE": "NSE",
    "NE gain over equal weights": "NE gain", "NSE gain over equal weights": "NSE gain", "Speed": "speed",
}  # fmt: skip
_METRICS = {
    "auc": "AUC", "gauc": "GAUC", "ne": "NE", "log_loss": "log loss", "calibration": "calibration", "rmse": "RMSE",
    "mae": "MAE", "r2": "R²",
}  # fmt: skip
_OF_NUMBERS = {**_METRICS, "ne": "NSE"}  # of regressions


def method_table() -> Table:
    """Return a table of all methods with summary and options."""
    table = Table(title="Methods", title_justify="left", show_lines=True)
    table.add_column("name", no_wrap=True)
    table.add_column("what it does")
    for name, method in METHODS.usable().items():
        options = ", ".join(f"{name}*" if name in method.search else name for name in method.open_options())
        below = [f"options: {options}"] if options else []
        below += [method.published] if method.published else []
        table.add_row(name, Text.assemble(method.summary, ("".join(f"\n{line}" for line in below), "dim")))
    for name, reason in METHODS.broken().items():
        table.add_row(name, Text(reason, "red"))
    table.caption = (
        "Options are given as in multibalance:beta=0.1,direction=gram.\n* the option that --tune-trials tunes"
    )
    return table


def run_tables(run: Run) -> Group:
    """Return a run's test metrics by task: a table of binary tasks, and one of regressions."""
    title = f"{run.method}, seed {run.seed}, rate {run.lr:g}: test split"
    if run.status == "diverged":
        title = f"{run.method}, seed {run.seed}, rate {run.lr:g}: diverged at step {run.steps}"
    regressions = {task: metrics for task, metrics in run.test.items() if "rmse" in metrics}
    binary = {task: metrics for task, metrics in run.test.items() if task not in regressions}
    kinds = [(tasks, names) for tasks, names in ((binary, _METRICS), (regressions, _OF_NUMBERS)) if tasks]
    tables = []
    for tasks, names in kinds or [(binary, _METRICS)]:
        table = Table(title_justify="left")
        table.add_column("task", overflow="fold")
        shown = [name for name in names if any(name in metrics for metrics in tasks.values())]
        rows = {task: [_number(metrics.get(name, math.nan)) for name in shown] for task, metrics in tasks.items()}
        for name, cells in zip(shown, zip(*rows.values(), strict=True), strict=True):
            table.add_column(names[name], justify="right", overflow="fold", min_width=max(map(len, cells)))
        for task, row in rows.items():
            table.add_row(Text(task), *row)
        tables.append(table)
    tables[0].title = Text(title)
    notes = []
    if run.non_finite:
        counts = ", ".join(f"{task} {steps}" for task, steps in run.non_finite.items())
        notes.append(
            f"Steps with a loss or gradient that was not finite: {counts}; {run.skipped_steps} left out whole."
        )
    if run.best_step:
        notes.append(f"Weights of step {run.best_step}, the best evaluation; {run.steps} steps were made.")
    if run.irreproducible:
        notes.append(f"A second run may differ in the last digits: {run.irreproducible}.")
    tables[-1].caption = Text("\n".join(notes)) if notes else None
    return Group(*tables)


def feature_table(found: Summary) -> Table:
    """Return a table of a data set's features and of their missing or unseen values."""
    table = Table("feature", "kind", title="Features", title_justify="left")
    for split in ("train", "test"):
        table.add_column(f"missing or rare, {split}", justify="right")
    for feature in found.features:
        shares = (feature.unknown[split] for split in ("train", "test"))
        cells = ("–" if math.isnan(share) else f"{share:.1%}" for share in shares)
        table.add_row(Text(feature.name), feature.kind, *cells)
    return table


def label_table(found: Summary) -> Table:
    """Return a table of the labels of a data set's tasks in each split."""
    table = Table("task", "split", title="Labels", title_justify="left")
    for name in ("labelled", "positives", "rate or mean"):
        table.add_column(name, justify="right")
    for entry in found.tasks:
        rate = f"{entry.rate:.3%}" if entry.task.binary and math.isfinite(entry.rate) else _number(entry.rate)
        positives = f"{entry.positives:,}" if entry.task.binary else "–"
        table.add_row(Text(entry.task.name), entry.split, f"{entry.labelled:,}", positives, rate)
    return table


def summary_table(folder: Path) -> Table:
    """Return a comparison's outcome in words and its methods, best first, in the columns that fit a terminal.

    Raises:
        FolderError: the folder holds no comparison, or a file in it is damaged.
    """
    table = Table(title="Test split, mean over tasks and seeds", title_justify="left")
    rows = result_rows(folder)
    shown = {column: title for column, title in _SHOWN.items() if column in rows[0]}
    for title in shown.values():
        table.add_column(title, justify="left" if title == "method" else "right", overflow="fold")
    for row in rows:
        cells = {title: row[column] for column, title in shown.items()}
        for title in cells.keys() & {"NE gain", "NSE gain"}:
            cells[title] = cells[title].replace(" (", "\n(")
        cells["speed"] = cells["speed"].partition(" (")[0]
        table.add_row(*map(Text, cells.values()))
    table.caption = Text(headline(folder))
    table.caption_justify = "left"
    return table


def terminal_table(found: ReportTable, title: str) -> Table:
    """Return a table of a report, each cell with its second line below."""
    table = Table(title=title, title_justify="left")
    for column in found.columns:
        table.add_column(column.title, justify="right" if column.numeric else "left", overflow="fold")
    for row in found.rows:
        table.add_row(*(Text(f"{cell.text}\n{cell.below}" if cell.below else cell.text) for cell in row.cells))
    return table


def _number(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "–"
