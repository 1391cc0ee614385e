"""Training one model, or one model per task, with any of the methods."""

from equipoise.training.checkpoint import CheckpointError
from equipoise.training.compatibility import IncompatibleError
from equipoise.training.errors import SettingError
from equipoise.training.interruptions import StoppedError, listening
from equipoise.training.learner import Learner
from equipoise.training.loop import SEED_LIMIT, Schedule, count_steps, train
from equipoise.training.methods import METHODS, Method, MethodError, parse_method
from equipoise.training.non_finite import NonFinite, NonFiniteError
from equipoise.training.parallel import Sharding, parallelize
from equipoise.training.run import Run
from equipoise.training.world import LostRanksError, World, launched

__all__ = [
    "METHODS",
    "SEED_LIMIT",
    "CheckpointError",
    "IncompatibleError",
    "Learner",
    "LostRanksError",
    "Method",
    "MethodError",
    "NonFinite",
    "NonFiniteError",
    "Run",
    "Schedule",
    "SettingError",
    "Sharding",
    "StoppedError",
    "World",
    "count_steps",
    "launched",
    "listening",
    "parallelize",
    "parse_method",
    "train",
]
