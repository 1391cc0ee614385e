"""The encoding of raw columns as ids and numbers: fitted on train rows, kept as JSON, used for training and serving."""

from equipoise.data.encoding.encoding import Encoding
from equipoise.data.encoding.features import CategoryEncoder, FeatureEncoder, NumberEncoder

__all__ = ["CategoryEncoder", "Encoding", "FeatureEncoder", "NumberEncoder"]
