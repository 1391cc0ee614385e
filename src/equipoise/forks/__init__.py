"""Forks: where the tasks' gradients meet and are balanced, between the shared layers and the towers."""

from equipoise.forks.fork import Fork
from equipoise.forks.multibalance import MultiBalance

__all__ = ["Fork", "MultiBalance"]
