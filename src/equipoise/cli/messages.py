"""Sentences for the terminal, and exceptions that become one message and an exit code; used by every command."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.text import Text

from equipoise.errors import DataError, SettingError

__all__ = ["console", "errors", "plainly", "say"]

console = Console()
errors = Console(stderr=True)


def say(text: str) -> None:
    """Print a text without markup, so that paths keep their square brackets, and without line breaks."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


_NO_MEMORY = "can't allocate memory"  # PyTorch's own error on a CPU is a RuntimeError


@contextmanager
def plainly(how_to_go_on: Callable[[], str] = str, *, kept: Callable[[], bool] = bool) -> Iterator[None]:
    """Turn an exception into one message and an exit code: 2 wrong input, 1 training failed, 130 Ctrl-C, 143 SIGTERM.

    Args:
        how_to_go_on: returns a sentence that says how to continue.
        kept: returns whether results are kept; a data error then says how to continue, too.
    """
    import torch  # here, since --help need not wait for it

    from equipoise.training import LostRanksError, NonFiniteError, StoppedError
    from equipoise.training.faults import TerminatedError

    try:
        yield
    except (SettingError, DataError) as error:
        message = f"{error} {how_to_go_on()}" if isinstance(error, DataError) and kept() else f"{error}"
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
