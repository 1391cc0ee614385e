"""Complete Journey, the default data set: real, brought by pip; exposures to promotions and what came of them."""

from __future__ import annotations

from equipoise.data.complete_journey.build import load
from equipoise.data.complete_journey.stream import stream_all

__all__ = ["load", "stream_all"]
