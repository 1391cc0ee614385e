"""Keeps pytest from collecting the package, which a test installs."""

collect_ignore = ["package"]
