"""The command line: commands, their options, progress bars and tables."""

from equipoise.cli import (  # add their commands
    audit_command,
    data_commands,
    evidence_command,
    replay_commands,
    serving_commands,
)
from equipoise.cli.commands import app, main

__all__ = ["app", "audit_command", "data_commands", "evidence_command", "main", "replay_commands", "serving_commands"]
