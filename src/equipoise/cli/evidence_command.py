"""The command that runs a suite of comparisons."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from equipoise.cli.app import app
from equipoise.cli.commands import check_writable
from equipoise.cli.messages import console, plainly, say

__all__ = ["evidence"]


@app.command()
def evidence(
    suite: Annotated[
        Path, typer.Argument(help="A YAML file with the comparisons of the suite, as in docs/evidence.md.")
    ],
    *,
    out: Annotated[Path, typer.Option(help="Folder for results; finished runs in it are kept.")] = Path(
        "equipoise-evidence"
    ),
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Run this comparison alone; repeatable.")
    ] = None,
    short: Annotated[
        bool, typer.Option("--short", help="Run the suite's short form, which shows that everything works.")
    ] = False,
    speed: Annotated[bool, typer.Option(help="Measure speed and memory, on a machine that does nothing else.")] = True,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Worker processes; by default one per core, one on an accelerator."),
    ] = None,
) -> None:
    """Compare methods on several data sets and models, each tuned alike, then write a page about all of them.

    Interrupt it at any time: the same command goes on where it was.
    """
    from equipoise.cli.progress_bars import Display
    from equipoise.comparison.suite import SUITE_FILE, Suite, run_suite
    from equipoise.report.evidence import write_evidence
    from equipoise.training.faults import interrupted_by_sigterm

    again = f"Run the same command again to go on from {out}."
    with plainly(lambda: again, kept=(out / SUITE_FILE).exists), interrupted_by_sigterm():
        found = Suite.read(suite)
        check_writable(out)
        with Display(console) as display:
            run_suite(found, out, only=only or (), short=short, speed=speed, jobs=jobs, listener=display)
        page = write_evidence(out)
    say(f"Evidence: {page}")
