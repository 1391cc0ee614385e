"""Replay of rankers on logged bandit data: what the reward would have been had they chosen the items."""

from equipoise.serving.replay.estimators import ESTIMATORS, Interval, PolicyRounds
from equipoise.serving.replay.folders import load_seeds
from equipoise.serving.replay.log import BanditLog
from equipoise.serving.replay.policies import RankingPolicy
from equipoise.serving.replay.replaying import Estimate, RankedSide, Replay, Replayed, replay
from equipoise.serving.replay.reward_model import RewardModel

__all__ = [
    "ESTIMATORS",
    "BanditLog",
    "Estimate",
    "Interval",
    "PolicyRounds",
    "RankedSide",
    "RankingPolicy",
    "Replay",
    "Replayed",
    "RewardModel",
    "load_seeds",
    "replay",
]
