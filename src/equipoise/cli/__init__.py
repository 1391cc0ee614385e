"""The command line: commands, their options, progress bars and tables."""

from equipoise.cli import serving_commands  # adds its commands
from equipoise.cli.commands import app, main

__all__ = ["app", "main", "serving_commands"]
