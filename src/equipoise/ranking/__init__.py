"""Models, losses and metrics for ranking; each is imported from its own file.

Nothing is imported here, so that the schema can be had without the optional dependency of the metrics.
"""

__all__: list[str] = []
