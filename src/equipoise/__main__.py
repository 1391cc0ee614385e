"""The command ``equipoise``, which is ``python -m equipoise`` too."""

from __future__ import annotations

import sys

from equipoise.errors import how_to_install

__all__ = ["main"]


def main() -> None:
    """Run the command line. Without its packages, say in one line how to install them and end with exit code 2."""
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
