"""The commands: each reads its arguments, calls one function and prints the result."""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from rich.console import Console
from rich.text import Text

from equipoise import MisplacedForkWarning, __version__, data
from equipoise.cli.options import Words, stated_settings, takes_settings
from equipoise.cli.progress_bars import DataBar, Display
from equipoise.cli.tables import method_table, run_table, summary_table
from equipoise.comparison.runner import run_comparison, train_into
from equipoise.errors import SettingError
from equipoise.report.page import write_markdown, write_report
from equipoise.serving import Ranker
from equipoise.settings import Settings
from equipoise.training import (
    LostRanksError,
    NonFiniteError,
    StoppedError,
    launched,
    listening,
)
from equipoise.training.checkpoint import last_checkpoint
from equipoise.training.faults import TerminatedError, interrupted_by_sigterm

__all__ = ["app", "main"]

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False, add_completion=False)
data_app = typer.Typer(help="Fetch or build data sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")

console = Console()
errors = Console(stderr=True)

Rows = Annotated[int | None, typer.Option(min=1, help="Number of rows, for data sets that come in several sizes.")]
Config = Annotated[
    Path | None,
    typer.Argument(metavar="[FILE]", show_default=False, help="A YAML file with settings; options override it."),
]


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"equipoise {__version__} (torch {torch.__version__}, Python {platform.python_version()})")
        raise typer.Exit


@app.callback()
def options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Balanced multi-task training for recommenders."""


@app.command()
@takes_settings("train")
def train(
    words: Words,
    *,
    rows: Rows = None,
    config: Config = None,
    out: Annotated[Path, typer.Option(help="Folder for checkpoints and results.")] = Path("equipoise-train"),
    resume: Annotated[bool, typer.Option("--resume", help="Resume from the last checkpoint in --out.")] = False,
    rank_timeout: Annotated[
        float, typer.Option(min=1, max=1e6, help="Seconds that torchrun's processes wait for each other.")
    ] = 600,
) -> None:
    """Train one method once; write checkpoints and run.json to --out.

    Exit codes: 0 done; 1 failed (out of memory, disk full, loss not finite,
    rank lost); 2 wrong input; 130 Ctrl-C; 143 SIGTERM. Unless the input was
    wrong, a message shows the command that continues.

    Several processes: torchrun --nproc-per-node N -m equipoise train ...
    With --max-restarts R they resume from the last checkpoint when one dies.
    torchrun exits with 1 if any process fails, and prints its own summary.
    """
    with (
        _plainly(partial(_how_to_resume, out), kept=lambda: last_checkpoint(out / "checkpoint") is not None),
        listening() as stop,
        launched(words.get("device", "cpu"), timeout=timedelta(seconds=rank_timeout)) as world,
    ):
        settings = _settings(config, words, rows)
        _check_writable(out)
        if world.rank:
            train_into(out, settings, world=world, resume=resume, stop=stop)
            return
        with Display(console) as display:
            run = train_into(out, settings, world=world, resume=resume, listener=display, stop=stop)
    console.print(run_table(run))
    _say(f"Run and checkpoint: {out}")


@app.command()
@takes_settings("compare")
def compare(
    words: Words,
    *,
    rows: Rows = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Number of worker processes; one per core by default.")
    ] = None,
    config: Config = None,
    out: Annotated[Path, typer.Option(help="Folder for results; finished runs in it are kept.")] = Path(
        "equipoise-compare"
    ),
) -> None:
    """Compare methods: train every method with every seed, then write a report."""
    again = f"Run the same command again to go on from {out}."
    with _plainly(lambda: again, kept=(out / "plan.json").exists), interrupted_by_sigterm():
        if "TORCHELASTIC_RUN_ID" in os.environ:
            raise SettingError("compare trains in worker processes of its own: run it without torchrun.")
        settings = _settings(config, words, rows)
        _check_comparable(settings)
        _check_writable(out)
        with Display(console) as display:
            run_comparison(settings, out, jobs=jobs, listener=display)
        report_file = write_report(out)
        console.print(summary_table(out))
    _say(f"Report: {report_file}")


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A folder that `equipoise compare` wrote.")],
    *,
    markdown: Annotated[bool, typer.Option("--markdown", help="Write report.md: text and tables, no charts.")] = False,
) -> None:
    """Write the report of a finished comparison again."""
    with _plainly():
        _say(f"Report: {write_markdown(folder) if markdown else write_report(folder)}")


@app.command()
def methods() -> None:
    """List the methods and their options."""
    console.print(method_table())


@app.command()
def predict(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `equipoise train` wrote.")],
    files: Annotated[list[str], typer.Argument(help="Parquet or CSV files with raw rows.")],
    *,
    out: Annotated[Path, typer.Option(help="The Parquet file for the predictions.")],
) -> None:
    """Predict raw rows with a trained ranker; write one column per task."""
    import polars as pl

    with _plainly():
        ranker = Ranker.load(folder)
        frame = pl.concat([(pl.read_parquet if file.endswith(".parquet") else pl.read_csv)(file) for file in files])
        ranker.predict(frame).write_parquet(out)
    _say(f"Predictions: {out}")


@data_app.command()
def fetch(name: Annotated[Literal["census-income"], typer.Argument(help="The data set.")]) -> None:  # noqa: ARG001 - one so far
    """Download a data set from its publisher and verify it."""
    from equipoise.data.sets.census_income import fetch as fetch_census_income

    with _plainly():
        _say(f"Verified: {fetch_census_income()}")


@data_app.command()
def build(
    name: Annotated[Literal["complete-journey"], typer.Argument(help="The data set.")],
    rows: Rows = None,
    full: Annotated[bool, typer.Option("--full", help="Write all 319 million exposures to --out.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for --full.")] = Path("complete-journey"),
) -> None:
    """Build a data set from its installed package, and cache it for the other commands."""
    options: dict[str, Any] = {} if rows is None else {"rows": rows}
    with _plainly(lambda: "Run the same command again to go on."), DataBar(console) as bar:
        if full:
            from equipoise.data.sets.complete_journey import stream_all

            files = stream_all(out, on_stage=bar.advance, **options)
            _say(f"{len(files)} files in {out}")
        else:
            built = data.load(name, on_stage=bar.advance, **options)
            rows_of = {"train": built.train, "validation": built.validation, "test": built.test}
            _say(f"{built.name}: {', '.join(f'{len(part)} {name}' for name, part in rows_of.items())} rows")


def _settings(config: Path | None, words: Words, rows: int | None) -> Settings:
    """Return the settings of the file, overridden by those that the options state."""
    stated = stated_settings(words)
    if rows is not None:
        stated = {**stated, "data_options": {**stated.get("data_options", {}), "rows": rows}}
    return Settings.of(config, **stated)


def _check_comparable(settings: Settings) -> None:
    given = [name for name in ("sharding", "checkpoint_every") if name in settings.model_fields_set]
    if given:
        raise SettingError(
            f"compare trains every run in one process and without checkpoints, found {' and '.join(given)} in the "
            "settings: leave them out, or train each method with `equipoise train`."
        )


def _check_writable(out: Path) -> None:
    """Check that ``out`` is writable, without writing anything yet."""
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise SettingError(f"--out: expected a folder, or none yet, found the file {there}: name another.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise SettingError(f"--out: expected a folder that can be written to, found {there}: name another.")


def _say(text: str) -> None:
    """Print a text without markup, so that paths keep their square brackets, and without line breaks."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


_NO_MEMORY = "can't allocate memory"  # PyTorch's own error on a CPU is a RuntimeError


@contextmanager
def _plainly(how_to_go_on: Callable[[], str] = str, *, kept: Callable[[], bool] = bool) -> Iterator[None]:
    """Turn an exception into one message and an exit code: 2 wrong input, 1 training failed, 130 Ctrl-C, 143 SIGTERM.

    Args:
        how_to_go_on: returns a sentence that says how to continue.
        kept: returns whether results are kept; a data error then says how to continue, too.
    """
    try:
        yield
    except (SettingError, data.DataError) as error:
        message = f"{error} {how_to_go_on()}" if isinstance(error, data.DataError) and kept() else f"{error}"
        errors.print(Text.assemble(("Error: ", "bold red"), message), soft_wrap=True)
        raise typer.Exit(2) from error
    except StoppedError as error:
        if os.environ.get("RANK", "0") == "0":  # all ranks say the same
            errors.print(f"{error} {how_to_go_on()}", markup=False, soft_wrap=True)
        raise typer.Exit(143) from error
    except (MemoryError, RuntimeError, OSError) as error:
        what = f"{error}"
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or _NO_MEMORY in what:
            what = f"Out of memory ({what}). If no other program took it, start again with a smaller batch or model."
        elif isinstance(error, RuntimeError) and not isinstance(error, NonFiniteError | LostRanksError):
            raise
        elif isinstance(error, OSError):
            what = f"{error}. What was complete before is intact."
        message = " ".join([what, *getattr(error, "__notes__", ()), how_to_go_on()])
        errors.print(Text.assemble(("Error: ", "bold red"), message), soft_wrap=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        message = " ".join(["Stopped; finished work is kept.", *getattr(error, "__notes__", ()), how_to_go_on()])
        errors.print(message, markup=False, soft_wrap=True)
        raise typer.Exit(143 if isinstance(error, TerminatedError) else 130) from None


def _how_to_resume(out: Path) -> str:
    """Return a sentence with the command of this training, with --resume if there is a checkpoint."""
    words = [word for word in sys.argv[1:] if word != "--resume"]
    command = ["equipoise"] if Path(sys.argv[0]).stem == "equipoise" else ["python", "-m", "equipoise"]
    if "TORCHELASTIC_RUN_ID" in os.environ:
        command = ["torchrun", *_nodes(), "--nproc-per-node", os.environ["LOCAL_WORLD_SIZE"]]
        if (restarts := os.environ["TORCHELASTIC_MAX_RESTARTS"]) != "0":
            command += ["--max-restarts", restarts]
        command += ["-m", "equipoise"]
    last = last_checkpoint(out / "checkpoint")
    if last is None:
        return f"There is no checkpoint yet. Begin again with: {shlex.join([*command, *words])}"
    return f"Go on from {last.name} with: {shlex.join([*command, *words, '--resume'])}"


def _nodes() -> list[str]:
    """Return torchrun's options that connect several nodes; none on a single node."""
    if (nodes := os.environ["GROUP_WORLD_SIZE"]) == "1":
        return []
    where = ["--master-addr", os.environ["MASTER_ADDR"], "--master-port", os.environ["MASTER_PORT"]]
    return ["--nnodes", nodes, "--node-rank", os.environ["GROUP_RANK"], *where]


# Warnings between libraries, which a user of the command cannot act on. FSDP2 warns about writes into views; nothing
# writes into the logits here.
_AMONG_LIBRARIES = ("FSDP2-wrapped module", "`torch.distributed.", "`broadcast_buffers` is deprecated")


def _show_warning(
    shown: set[str], others: Callable[..., None], message: Warning | str, category: type[Warning], *place: Any
) -> None:
    """Print a warning about the user's model once, as a sentence, and pass any other warning to ``others``."""
    if not issubclass(category, MisplacedForkWarning):
        others(message, category, *place)
    elif str(message) not in shown:
        shown.add(str(message))
        errors.print(Text.assemble(("Warning: ", "bold yellow"), str(message)), soft_wrap=True)


def main() -> None:
    """Run the command line."""
    for words in _AMONG_LIBRARIES:
        warnings.filterwarnings("ignore", message=re.escape(words))
    warnings.showwarning = partial(_show_warning, set(), warnings.showwarning)
    sys.path.append(str(Path.cwd()))  # so that import paths (package.module:attribute) find what lies here
    try:
        app()
    except SystemExit as end:
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            raise
        # After an error gloo's threads may still wait for Python's lock, and abort an orderly end of the interpreter.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else 0)
