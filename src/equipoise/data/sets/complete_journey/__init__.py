"""Complete Journey, the default data set: real, comes by pip; who met which promotion and what came of it."""

from __future__ import annotations

from equipoise.data.sets.complete_journey.build import load
from equipoise.data.sets.complete_journey.stream import stream_all

__all__ = ["load", "stream_all"]
