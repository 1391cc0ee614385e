"""The ranking models, the registry that is open to others, and the partition of parameters among tasks."""

from __future__ import annotations

from equipoise.ranking.models.aitm import AITM
from equipoise.ranking.models.base import ForkFactory, RankingModel
from equipoise.ranking.models.catalogue import MODELS, ModelBuilder, build_model, name_of, register
from equipoise.ranking.models.escm2 import ESCM2
from equipoise.ranking.models.esmm import ESMM
from equipoise.ranking.models.home import HoME
from equipoise.ranking.models.mmoe import MMoE
from equipoise.ranking.models.own import OwnModel
from equipoise.ranking.models.partition import Partition, partition_of
from equipoise.ranking.models.ple import PLE
from equipoise.ranking.models.presets import PRESETS, Preset
from equipoise.ranking.models.shared_bottom import SharedBottom
from equipoise.ranking.models.star import STAR
from equipoise.ranking.models.stem import STEM
from equipoise.ranking.models.trial import trial_outputs

__all__ = [
    "AITM",
    "ESCM2",
    "ESMM",
    "MODELS",
    "PLE",
    "PRESETS",
    "STAR",
    "STEM",
    "ForkFactory",
    "HoME",
    "MMoE",
    "ModelBuilder",
    "OwnModel",
    "Partition",
    "Preset",
    "RankingModel",
    "SharedBottom",
    "build_model",
    "name_of",
    "partition_of",
    "register",
    "trial_outputs",
]
