"""Forks: where the tasks' gradients meet and are balanced, between the shared layers and the towers."""

from equipoise.forks.bargaining import Bargaining
from equipoise.forks.elementwise import Elementwise, GradDrop
from equipoise.forks.equal_projections import EqualProjections
from equipoise.forks.fork import Fork
from equipoise.forks.gradcraft import GradCraft
from equipoise.forks.metabalance import MetaBalanceFork
from equipoise.forks.min_norm import MinNorm
from equipoise.forks.multibalance import MultiBalance
from equipoise.forks.pause import paused
from equipoise.forks.pivrg import PIVRG
from equipoise.forks.preferring import Preferring
from equipoise.forks.state import TaskState
from equipoise.forks.weighted import Weighted

__all__ = [
    "PIVRG",
    "Bargaining",
    "Elementwise",
    "EqualProjections",
    "Fork",
    "GradCraft",
    "GradDrop",
    "MetaBalanceFork",
    "MinNorm",
    "MultiBalance",
    "Preferring",
    "TaskState",
    "Weighted",
    "paused",
]
