"""Several processes that train one model: their ranks, and the engines that spread the model over them."""

from equipoise.training.ranks.parallel import parallelize
from equipoise.training.ranks.world import LostRanksError, World, launched

__all__ = ["LostRanksError", "World", "launched", "parallelize"]
