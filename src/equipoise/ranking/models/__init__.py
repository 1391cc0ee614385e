"""The ranking models, the registry that is open to others, and the partition of parameters among tasks."""

from __future__ import annotations

from equipoise.ranking.models.base import ForkFactory, RankingModel
from equipoise.ranking.models.catalogue import MODELS, ModelBuilder, build_model, register, trial_logits
from equipoise.ranking.models.mmoe import MMoE
from equipoise.ranking.models.partition import Partition, partition_of
from equipoise.ranking.models.ple import PLE
from equipoise.ranking.models.shared_bottom import SharedBottom

__all__ = [
    "MODELS",
    "PLE",
    "ForkFactory",
    "MMoE",
    "ModelBuilder",
    "Partition",
    "RankingModel",
    "SharedBottom",
    "build_model",
    "partition_of",
    "register",
    "trial_logits",
]
