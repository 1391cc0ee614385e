"""Forks: where the tasks' gradients meet and are balanced, between the shared layers and the towers."""

from equipoise.forks.elementwise import Elementwise, GradDrop
from equipoise.forks.fork import Fork
from equipoise.forks.multibalance import MultiBalance
from equipoise.forks.pause import paused
from equipoise.forks.weighted import Weighted

__all__ = ["Elementwise", "Fork", "GradDrop", "MultiBalance", "Weighted", "paused"]
