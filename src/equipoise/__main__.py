"""The command ``equipoise``, also run by ``python -m equipoise``."""

from __future__ import annotations

import sys
from pathlib import Path

from equipoise.errors import how_to_install

__all__ = ["main"]


def main() -> None:
    """Run the command line; without its packages, print how to install them and exit with code 2."""
    # Last, so that no file hides a package: `model: my_models:MyRanker` finds my_models.py where the command is run.
    sys.path.append(str(Path.cwd()))
    try:
        from equipoise.cli import main as run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "equipoise":
            raise
        sys.stderr.write(f"Error: this command needs {error.name!r}, which is missing: {how_to_install('compare')}.\n")
        raise SystemExit(2) from None
    run()


if __name__ == "__main__":
    main()
