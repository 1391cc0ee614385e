"""The tables that the terminal shows."""

from rich.console import Console

from equipoise.cli.tables import run_tables, summary_table
from equipoise.training import Run

METRICS = {"auc": 0.7, "ne": 0.9, "log_loss": 0.1, "calibration": 1.0}


def shown(run: Run) -> str:
    console = Console(width=60, record=True, file=None, force_terminal=False)
    with console.capture() as capture:
        console.print(run_tables(run))
    return " ".join(capture.get().split())


def test_what_was_left_out_and_why_a_run_may_differ_stand_below_the_metrics() -> None:
    run = Run("equal", 0, 0.1, test={"click": METRICS}, non_finite={"click": 3, "like": 1}, skipped_steps=2)
    assert "Steps with a loss or gradient that was not finite: click 3, like 1; 2 left out whole." in shown(run)
    run.irreproducible = "on cuda, sums"
    assert "2 left out whole. A second run may differ in the last digits: on cuda, sums." in shown(run)
    assert "finite" not in shown(Run("equal", 0, 0.1, test={"click": METRICS}))


def test_the_error_of_a_regression_is_not_called_entropy() -> None:
    of_number = {"ne": 0.9, "rmse": 2.0, "mae": 1.0, "r2": 0.1}
    assert "NSE" in shown(Run("equal", 0, 0.1, test={"spend": of_number}))
    assert "NSE" not in shown(Run("equal", 0, 0.1, test={"click": METRICS}))


def test_numbers_of_both_kinds_of_tasks_fit_a_narrow_terminal() -> None:
    of_number = {"ne": 0.9, "rmse": 1234.5678, "mae": 123.4567, "r2": -0.1234}
    binary = {**METRICS, "gauc": 0.7}
    said = shown(Run("equal", 0, 0.1, test={"conversion": binary, "spend": of_number}))
    assert "…" not in said
    for number in ("0.7000", "1234.5678", "123.4567", "-0.1234"):
        assert number in said


def test_square_brackets_in_names_are_no_markup() -> None:
    said = shown(Run("multibalance:x[/]", 0, 0.1, test={"click[/red]": METRICS, "a[bold]b": METRICS}))
    assert "multibalance:x[/]" in said
    assert "click[/red]" in said
    assert "a[bold]b" in said


def test_the_summary_in_the_terminal_claims_no_more_than_the_report(comparison) -> None:
    def said(folder) -> str:
        console = Console(width=70, force_terminal=False)
        with console.capture() as capture:
            console.print(summary_table(folder))
        return " ".join(capture.get().split())

    assert "MultiBalance has the lowest mean normalized entropy" in said(comparison())
    assert "Too few seeds to say which method is better" in said(comparison(seeds=2))
    assert "× 1.421" not in said(comparison(speeds={"multibalance": (1.421, 0.9, 4.6)}))
