"""The data sets of equipoise, one module each."""

__all__: list[str] = []
