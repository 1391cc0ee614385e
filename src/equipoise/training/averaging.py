"""An exponential moving average of a model's weights over the steps of a training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

__all__ = ["AveragedWeights"]


class AveragedWeights:
    """The moving average θ̄ ← d θ̄ + (1 − d) θ of a model's parameters, made after every step by PyTorch's own function.

    In step t the decay d is at most (1 + t) / (10 + t), as in TensorFlow's ``ExponentialMovingAverage``: the initial
    weights would otherwise make up a good part of the average of a short training. Buffers, such as those of forks, are
    not averaged.

    Args:
        decay: d in later steps, in (0, 1).

    Attributes:
        averages: name of a parameter -> its average.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> averaged = AveragedWeights(model, 0.999)
        >>> _ = nn.init.constant_(model.weight, 2.0), nn.init.constant_(averaged.averages["weight"], 1.0)
        >>> averaged.update(1)  # by 1 − 2 / 11
        >>> averaged.averages["weight"]
        tensor([[1.8182]])
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._parameters = {name: p.detach() for name, p in model.named_parameters()}
        self.averages = {name: p.clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights after a step, counted from one, into the average."""
        decay = min(self.decay, (1 + step) / (10 + step))
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        average(list(self.averages.values()), list(self._parameters.values()), step)

    @torch.no_grad()
    def load(self, averages: Mapping[str, Tensor]) -> None:
        """Take over averages, of the same names and shapes."""
        for name, average in self.averages.items():
            average.copy_(averages[name])
