"""Optimizers that balance the tasks' updates, each around an ordinary torch.optim optimizer."""

from equipoise.optim.adatask import AdaTask
from equipoise.optim.clippy import Clippy
from equipoise.optim.consistent_towers import ConsistentTowers
from equipoise.optim.metabalance import MetaBalance
from equipoise.optim.pub import PUB

__all__ = ["PUB", "AdaTask", "Clippy", "ConsistentTowers", "MetaBalance"]
