"""Other libraries, each trained by its own loop on its own data pipeline, for `benchmarks/side_by_side.py`."""
