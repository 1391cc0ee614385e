"""Files that an export takes along; each needs Python's standard library alone, and is copied as it is."""
