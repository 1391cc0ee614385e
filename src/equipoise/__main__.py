"""The command ``equipoise``, also run by ``python -m equipoise``."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

from equipoise.errors import how_to_install

__all__ = ["main"]


def main() -> None:
    """Run the command line; where its packages are missing, print how to install them and exit with code 2."""
    # Last, so that no file hides a package: `model: my_models:MyRanker` finds my_models.py where the command is run.
    sys.path.append(str(Path.cwd()))
    try:
        from equipoise.cli import main as run

        run()
    except ModuleNotFoundError as error:
        if not _is_missing_package(error):
            raise
        sys.stderr.write(f"Error: this command needs {error.name!r}, which is missing: {how_to_install('compare')}.\n")
        raise SystemExit(2) from None


def _is_missing_package(error: ModuleNotFoundError) -> bool:
    """Return whether a file of equipoise imports a package of others; a user's model may lack one of its own."""
    *_, last = traceback.walk_tb(error.__traceback__)
    importing = Path(last[0].f_code.co_filename)
    of_equipoise = importing.is_relative_to(Path(__file__).parent)
    return of_equipoise and error.name is not None and error.name.partition(".")[0] != "equipoise"


if __name__ == "__main__":
    main()
