"""The package is installed by a test, and is none of the suite's own modules."""

collect_ignore = ["package"]
