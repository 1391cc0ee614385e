"""Models in published sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Final

from torch import nn

from equipoise.ranking.models.aitm import AITM
from equipoise.ranking.models.esmm import ESMM
from equipoise.ranking.models.mmoe import MMoE
from equipoise.ranking.models.ple import PLE
from equipoise.ranking.models.shared_bottom import SharedBottom
from equipoise.ranking.models.stem import STEM

__all__ = ["PRESETS", "Preset"]


@dataclass(frozen=True)
class Preset:
    """A model with the sizes of a publication.

    Attributes:
        model: the model's class.
        options: the options that differ from the model's defaults.
        source: where the sizes were published.
    """

    model: type[nn.Module]
    options: Mapping[str, Any]
    source: str

    def builder(self) -> partial[nn.Module]:
        """Return the model's class with the options as new defaults, which can be overridden."""
        return partial(self.model, **self.options)


_ALIEXPRESS: Final = "MTReclib, `main.py`"
_TIKTOK: Final = "the code of STEM's authors, `config/model_config.yaml`"
_WIDE: Final = (512, 512, 512)

PRESETS: Final[Mapping[str, Preset]] = MappingProxyType(
    {
        "shared-bottom-aliexpress": Preset(
            SharedBottom, {"embedding_dim": 128, "bottom": (512, 256), "tower": (128, 64)}, _ALIEXPRESS
        ),
        "mmoe-aliexpress": Preset(
            MMoE, {"embedding_dim": 128, "experts": 8, "expert": (512, 256), "tower": (128, 64)}, _ALIEXPRESS
        ),
        "aitm-aliexpress": Preset(
            AITM, {"embedding_dim": 128, "bottom": (512, 256), "tower": (128, 64)}, _ALIEXPRESS
        ),
        "shared-bottom-tiktok": Preset(
            SharedBottom, {"embedding_dim": 16, "bottom": _WIDE, "tower": (128, 128)}, _TIKTOK
        ),
        "mmoe-tiktok": Preset(MMoE, {"embedding_dim": 16, "experts": 8, "expert": _WIDE, "tower": (128, 64)}, _TIKTOK),
        "cgc-tiktok": Preset(
            PLE,
            {"embedding_dim": 16, "levels": 1, "shared_experts": 8, "task_experts": 1, "expert": _WIDE,
             "tower": (128, 64)},
            f"{_TIKTOK}, as PLE with one layer",
        ),
        "esmm-tiktok": Preset(ESMM, {"embedding_dim": 16, "tower": _WIDE}, _TIKTOK),
        "aitm-tiktok": Preset(AITM, {"embedding_dim": 16, "bottom": _WIDE, "tower": (128, 128)}, _TIKTOK),
        "stem-tiktok": Preset(
            STEM,
            {"embedding_dim": 16, "shared_experts": 8, "task_experts": 1, "expert": _WIDE, "tower": (128, 64)},
            _TIKTOK,
        ),
        "esmm-paper": Preset(ESMM, {"embedding_dim": 18, "tower": (360, 200, 80)}, "the paper's experiments"),
        "aitm-authors": Preset(
            AITM, {"embedding_dim": 5, "bottom": (128, 64, 32), "tower": ()}, "the authors' code, AITM-torch"
        ),
    }
)  # fmt: skip
"""Presets by name; each name is also that of a model, as in ``model: mmoe-aliexpress``."""
