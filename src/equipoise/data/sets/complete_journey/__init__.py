"""Complete Journey, the default data set: promotions that households met in a grocer's stores, and their purchases."""

from __future__ import annotations

from equipoise.data.sets.complete_journey.build import SOURCE, load
from equipoise.data.sets.complete_journey.stream import stream_all

__all__ = ["SOURCE", "load", "stream_all"]
