"""The published data sets, one module each."""

__all__: list[str] = []
