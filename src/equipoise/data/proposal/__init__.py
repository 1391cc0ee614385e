"""Proposals for own tables: the columns of files are looked at, and a commented settings file is written."""

from equipoise.data.proposal.settings_text import propose_settings

__all__ = ["propose_settings"]
