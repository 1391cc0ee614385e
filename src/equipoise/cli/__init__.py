"""The command line: commands, their options, progress bars and tables."""

from equipoise.cli import audit_command, data_commands, replay_commands, serving_commands  # add their commands
from equipoise.cli.commands import app, main

__all__ = ["app", "audit_command", "data_commands", "main", "replay_commands", "serving_commands"]
