"""The command line: commands, their options, progress bars and tables."""

from equipoise.cli import data_commands, serving_commands  # add their commands
from equipoise.cli.commands import app, main

__all__ = ["app", "data_commands", "main", "serving_commands"]
