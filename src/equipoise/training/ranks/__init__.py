"""Several processes that train one model: who they are, and how the model is spread over them."""

__all__: list[str] = []
