"""The commands: each reads its arguments, calls one function and prints the result.

A command imports what it needs when it runs: --help then takes a fraction of a second, and not several.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from equipoise import __version__
from equipoise.cli.app import app
from equipoise.cli.messages import console, errors, plainly, say
from equipoise.cli.options import Words, stated_settings, takes_settings
from equipoise.errors import MisplacedForkWarning, SettingError
from equipoise.settings import Settings, command_words

__all__ = ["Config", "app", "check_writable", "main", "settings_of"]

Rows = Annotated[int | None, typer.Option(min=1, help="Number of rows, for data sets that come in several sizes.")]
Config = Annotated[
    Path | None,
    typer.Argument(metavar="[FILE]", show_default=False, help="A YAML file with settings; options override it."),
]


def _print_version(asked: bool) -> None:
    if asked:
        import torch

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
    from equipoise.cli.progress_bars import Display
    from equipoise.cli.tables import run_tables
    from equipoise.comparison.runner import train_into
    from equipoise.training import launched, listening
    from equipoise.training.checkpoint import last_checkpoint

    with (
        plainly(partial(_how_to_resume, out), kept=lambda: last_checkpoint(out / "checkpoint") is not None),
        listening() as stop,
        launched(words.get("device", "cpu"), timeout=timedelta(seconds=rank_timeout)) as world,
    ):
        settings = settings_of(config, words, rows)
        check_writable(out)
        if world.rank:
            train_into(out, settings, world=world, resume=resume, stop=stop)
            return
        with Display(console) as display:
            run = train_into(out, settings, world=world, resume=resume, listener=display, stop=stop)
    console.print(run_tables(run))
    say(f"Run and checkpoint: {out}")


@app.command()
@takes_settings("compare")
def compare(
    words: Words,
    *,
    rows: Rows = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Worker processes; by default one per core, one on an accelerator."),
    ] = None,
    config: Config = None,
    out: Annotated[Path, typer.Option(help="Folder for results; finished runs in it are kept.")] = Path(
        "equipoise-compare"
    ),
) -> None:
    """Compare methods: train every method with every seed, then write a report."""
    from equipoise.cli.progress_bars import Display
    from equipoise.cli.tables import summary_table
    from equipoise.comparison.runner import run_comparison
    from equipoise.report.page import write_report
    from equipoise.training.faults import interrupted_by_sigterm

    again = f"Run the same command again to go on from {out}."
    with plainly(lambda: again, kept=(out / "plan.json").exists), interrupted_by_sigterm():
        if "TORCHELASTIC_RUN_ID" in os.environ:
            raise SettingError("compare trains in worker processes of its own: run it without torchrun.")
        settings = settings_of(config, words, rows)
        _check_comparable(settings)
        check_writable(out)
        with Display(console) as display:
            run_comparison(settings, out, jobs=jobs, listener=display)
        report_file = write_report(out)
        console.print(summary_table(out))
    say(f"Report: {report_file}")
    if settings.tune:
        stated = _stated(words, rows) | {"rates_from": str(out)}
        line = ["equipoise", "train", *([] if config is None else [str(config)]), *command_words("train", stated)]
        say(f"Train a method at its tuned rate: {shlex.join(line)} --method METHOD")


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A folder that `equipoise compare` or `evidence` wrote.")],
    *,
    markdown: Annotated[bool, typer.Option("--markdown", help="Write text and tables without charts.")] = False,
) -> None:
    """Write the report of a finished comparison again, or the evidence page of a suite."""
    from equipoise.comparison.suite import SUITE_FILE
    from equipoise.report.page import write_markdown, write_report

    with plainly():
        if (folder / SUITE_FILE).is_file():
            from equipoise.report.evidence import write_evidence, write_evidence_markdown

            say(f"Evidence: {write_evidence_markdown(folder) if markdown else write_evidence(folder)}")
            return
        say(f"Report: {write_markdown(folder) if markdown else write_report(folder)}")


@app.command()
def methods() -> None:
    """List the methods and their options."""
    from equipoise.cli.tables import method_table

    console.print(method_table())


def settings_of(config: Path | None, words: Words, rows: int | None) -> Settings:
    """Return the settings of the file, overridden by those that the options state."""
    return Settings.of(config, **_stated(words, rows))


def _stated(words: Words, rows: int | None) -> dict[str, Any]:
    stated = stated_settings(words)
    return stated if rows is None else {**stated, "data_options": {**stated.get("data_options", {}), "rows": rows}}


def _check_comparable(settings: Settings) -> None:
    given = [name for name in ("sharding", "checkpoint_every") if name in settings.model_fields_set]
    if given:
        raise SettingError(
            f"compare trains every run in one process and without checkpoints, found {' and '.join(given)} in the "
            "settings: leave them out, or train each method with `equipoise train`."
        )


def check_writable(out: Path) -> None:
    """Check that ``out`` is writable, without writing anything yet."""
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise SettingError(f"--out: expected a folder, or none yet, found the file {there}: name another.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise SettingError(f"--out: expected a folder that can be written to, found {there}: name another.")


def _how_to_resume(out: Path) -> str:
    """Return a sentence with the command of this training, with --resume if there is a checkpoint."""
    from equipoise.training.checkpoint import last_checkpoint

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
