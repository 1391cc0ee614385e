"""A small LeNet for images of two digits, which the comparison trains with any method.

equipoise compare --data two-digits --model examples.two_digits:LeNet --methods equal,multibalance --seeds 3
"""

import math

from torch import Tensor, nn


class LeNet(nn.Module):
    """Two convolutions that all tasks share, then a head per task (after LeCun et al., 1998; Sener & Koltun, 2018).

    Takes the pixels of square images, [B, side²]; each head returns one logit per row, [B, 1].
    """

    def __init__(self, schema, channels: int = 10, width: int = 50) -> None:
        super().__init__()
        self.side = math.isqrt(len(schema.numeric_columns))
        size = ((self.side - 4) // 2 - 2) // 2
        self.trunk = nn.Sequential(
            nn.Conv2d(1, channels, 5), nn.MaxPool2d(2), nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, 3), nn.MaxPool2d(2), nn.ReLU(),
            nn.Flatten(), nn.Linear(2 * channels * size * size, width), nn.ReLU(),
        )  # fmt: skip
        self.heads = nn.ModuleDict(
            {task: nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)) for task in schema.task_names}
        )

    def representation(self, _: Tensor, numeric: Tensor) -> Tensor:
        """Return what all tasks read, [B, width]."""
        return self.trunk(numeric.view(-1, 1, self.side, self.side))
