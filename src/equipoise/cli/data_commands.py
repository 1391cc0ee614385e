"""Commands on data: propose settings, check and describe a data set, fetch and build the published ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from equipoise.cli.app import app, data_app
from equipoise.cli.messages import console, plainly, say
from equipoise.settings import Settings

if TYPE_CHECKING:
    from equipoise.data import Dataset

__all__ = ["build", "check", "describe", "fetch", "init", "prepare", "show"]

config_app = typer.Typer(help="Look at settings.", no_args_is_help=True)
app.add_typer(config_app, name="config")

Source = Annotated[str, typer.Argument(metavar="FILE|NAME", help="A YAML file with settings, or a data set's name.")]


@app.command()
def init(
    files: Annotated[list[str], typer.Argument(help="Parquet, CSV or TSV files: paths, globs, folders or URLs.")],
) -> None:
    """Propose a settings file for own tables: equipoise init FILES > ranker.yaml."""
    from equipoise.data.proposal import propose_settings

    with plainly():
        typer.echo(propose_settings(files), nl=False)


@config_app.command()
def show(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", show_default=False, help="A YAML file with settings.")
    ] = None,
) -> None:
    """Print all settings with their meanings: those of FILE, and the defaults of the rest."""
    from equipoise.data.tables.in_full import settings_in_full

    with plainly():
        typer.echo(settings_in_full(None if file is None else Settings.of(file)), nl=False)


@data_app.command()
def check(source: Source) -> None:
    """Read a data set whole; print its features, its labels in each split, and warnings."""
    from equipoise.cli.tables import feature_table, label_table
    from equipoise.data.summary import summarise

    with plainly():
        found = summarise(_load(source))
    say(f"{found.name}: {len(found.features)} features, {len(found.tasks) // 3} tasks")
    console.print(feature_table(found))
    console.print(label_table(found))
    for note in found.notes:
        say(f"Note: {note}")
    for warning in found.warnings:
        say(f"Warning: {warning}")


@data_app.command()
def describe(
    source: Source,
    *,
    out: Annotated[Path, typer.Option(help="The HTML page to write.")] = Path("data.html"),
) -> None:
    """Write a page about a data set: labels and their overlap, features, drift by day, possible leaks."""
    from equipoise.report.data_page import write_data_page

    with plainly(lambda: f"{out} was not written."):
        page = write_data_page(_load(source), out)
    say(f"Page: {page}")


@data_app.command()
def prepare(
    file: Annotated[Path, typer.Argument(help="A YAML file whose `data` section describes own tables.")],
    *,
    out: Annotated[Path, typer.Option(help="The folder to write; train on it with --data.")],
) -> None:
    """Write own tables, encoded, for training beyond memory: equipoise train FILE --data OUT.

    Run it again after an interruption: whole parts are kept.
    """
    from equipoise import data
    from equipoise.cli.progress_bars import DataBar

    with plainly(lambda: "Run the same command again to go on."), DataBar(console) as bar:
        manifest = data.prepare(file, out, on_stage=bar.advance)
        announced = ", ".join(f"{rows:,} {name}" for name, rows in manifest.rows().items())
    say(f"{manifest.about.name}: {announced} rows in {out}")


@data_app.command()
def fetch(name: Annotated[Literal["census-income"], typer.Argument(help="The data set.")]) -> None:  # noqa: ARG001 - one so far
    """Download a data set from its publisher and verify it."""
    from equipoise.data.sets.census_income import fetch as fetch_census_income

    with plainly():
        say(f"Verified: {fetch_census_income()}")


@data_app.command()
def build(
    name: Annotated[Literal["complete-journey"], typer.Argument(help="The data set.")],
    rows: Annotated[int | None, typer.Option(min=1, help="Number of rows.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Write all 319 million exposures to --out.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for --full.")] = Path("complete-journey"),
) -> None:
    """Build a data set from its installed package, and cache it for the other commands."""
    from equipoise import data
    from equipoise.cli.progress_bars import DataBar

    options: dict[str, Any] = {} if rows is None else {"rows": rows}
    with plainly(lambda: "Run the same command again to go on."), DataBar(console) as bar:
        if full:
            from equipoise.data.sets.complete_journey import stream_all

            files = stream_all(out, on_stage=bar.advance, **options)
            say(f"{len(files)} files in {out}")
        else:
            built = data.load(name, on_stage=bar.advance, **options)
            rows_of = {"train": built.train, "validation": built.validation, "test": built.test}
            say(f"{built.name}: {', '.join(f'{len(part)} {name}' for name, part in rows_of.items())} rows")


def _load(source: str) -> Dataset:
    """Return the data set that a settings file names or describes, or that has this name."""
    from equipoise import data

    if source in data.DATASETS or not (source.endswith((".yaml", ".yml")) or Path(source).is_file()):
        return data.load(source)
    settings = Settings.of(Path(source))
    return data.load(settings.data, **settings.data_options)
