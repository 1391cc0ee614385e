"""The command that audits a data set and model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from equipoise.cli.app import app
from equipoise.cli.commands import Config, check_writable, settings_of
from equipoise.cli.messages import console, plainly, say
from equipoise.cli.options import Words, takes_settings

__all__ = ["audit"]


@app.command()
@takes_settings("audit")
def audit(
    words: Words,
    *,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each method; under 3 nothing is advised.")] = 5,
    trials: Annotated[int, typer.Option(min=1, help="Trainings of the search for static loss weights.")] = 16,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Worker processes; by default one per core, one on an accelerator.")
    ] = None,
    config: Config = None,
    out: Annotated[Path, typer.Option(help="Folder for the audit; finished trainings in it are kept.")] = Path(
        "equipoise-audit"
    ),
) -> None:
    """Say whether balancing pays on a data set: leave it, balance, or split the model."""
    from equipoise.cli.progress_bars import Display
    from equipoise.comparison.audit import audit as run_audit
    from equipoise.report.audit_page import audit_in_words, write_audit
    from equipoise.training.faults import interrupted_by_sigterm

    again = f"Run the same command again to go on from {out}."
    with plainly(lambda: again, kept=(out / "runs" / "plan.json").exists), interrupted_by_sigterm():
        settings = settings_of(config, words, None)
        check_writable(out)
        with Display(console) as display:
            run_audit(settings, out, seeds=seeds, trials=trials, jobs=jobs, listener=display)
        page = write_audit(out)
        headline, *reasons = audit_in_words(out)
    say(headline)
    for reason in reasons:
        say(f"- {reason}")
    say(f"Page: {page}")
