"""From a training to predictions: the trained ranker, its folder, predictions on raw rows, and exported programs."""

from equipoise.serving.from_python import train
from equipoise.serving.ranker import Ranker

__all__ = ["Ranker", "train"]
