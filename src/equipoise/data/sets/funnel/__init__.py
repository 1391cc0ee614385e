"""A generated ad funnel for controlled experiments, with known true probabilities and best reachable NE."""

from __future__ import annotations

from equipoise.data.sets.funnel.build import SOURCE, generate, load
from equipoise.data.sets.funnel.options import TASKS, Funnel, IdField
from equipoise.data.sets.funnel.truth import Chunk, chunks

__all__ = ["SOURCE", "TASKS", "Chunk", "Funnel", "IdField", "chunks", "generate", "load"]
