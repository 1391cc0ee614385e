"""The command line."""

from equipoise.cli.app import app, main

__all__ = ["app", "main"]
