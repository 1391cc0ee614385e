"""What may go wrong in a training: values that are not finite, and requests to stop."""

__all__: list[str] = []
