"""The encoding of raw columns as ids and numbers: fitted on train rows, kept as JSON, used for training and serving."""

from equipoise.data.encoding.encoding import Encoding, FeatureEncoder
from equipoise.data.encoding.fitting import fit

__all__ = ["Encoding", "FeatureEncoder", "fit"]
