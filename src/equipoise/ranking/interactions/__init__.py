"""Interactions of features: what a model reads of its embeddings and numbers, by name and open to others."""

from __future__ import annotations

from equipoise.ranking.interactions.catalogue import INTERACTIONS, InputBuilder, build_input, register
from equipoise.ranking.interactions.dcn_v2 import DCNv2
from equipoise.ranking.interactions.dlrm import DLRM
from equipoise.ranking.interactions.fm import FM
from equipoise.ranking.interactions.interaction import Interaction
from equipoise.ranking.interactions.masknet import MaskNet

__all__ = [
    "DLRM",
    "FM",
    "INTERACTIONS",
    "DCNv2",
    "InputBuilder",
    "Interaction",
    "MaskNet",
    "build_input",
    "register",
]
