"""A ranker of one's own in plain PyTorch: DCN-v2 below two levels of PLE. It says where the fork belongs."""

import torch
from torch import Tensor, nn


def layer(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU())


class Experts(nn.ModuleList):
    """Networks side by side; takes [B, inputs], returns [B, count, outputs]."""

    def __init__(self, count: int, inputs: int, outputs: int) -> None:
        super().__init__(layer(inputs, outputs) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([expert(x) for expert in self], dim=1)


def mixed(gate: nn.Linear, x: Tensor, outputs: Tensor) -> Tensor:
    return (gate(x).softmax(dim=1).unsqueeze(2) * outputs).sum(dim=1)


class Head(nn.Module):
    """The part of one task: its gate over the lower level, its experts, its gate over the top level, its tower."""

    def __init__(self, inputs: int, width: int, read: list[int], shared: int) -> None:
        super().__init__()
        self.read = read  # which outputs of the lower level this task reads
        self.lower_gate = nn.Linear(inputs, len(read), bias=False)
        self.experts = Experts(1, width, width)
        self.top_gate = nn.Linear(width, 1 + shared, bias=False)
        self.tower = nn.Sequential(layer(width, 16), nn.Linear(16, 1))

    def forward(self, branch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        x, lower, top = branch
        x = mixed(self.lower_gate, x, lower[:, self.read])
        return self.tower(mixed(self.top_gate, x, torch.cat([self.experts(x), top], dim=1)))


class DCNv2PLE(nn.Module):
    """Cross layers over embeddings and numbers, then shared experts and experts of each task.

    Takes ids [B, columns] and numbers [B, columns]; each head returns one logit per row, [B, 1].
    """

    def __init__(self, schema, dim: int = 8, crosses: int = 2, width: int = 64, shared: int = 2) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(feature.cardinality, dim) for feature in schema.categorical)
        inputs = len(schema.categorical) * dim + len(schema.numeric_columns)
        self.crosses = nn.ModuleList(nn.Linear(inputs, inputs) for _ in range(crosses))
        tasks = len(schema.tasks)
        self.lower = Experts(tasks + shared, inputs, width)  # one for each task, then the shared ones
        self.shared_gate = nn.Linear(inputs, tasks + shared, bias=False)
        self.top = Experts(shared, width, width)
        shared_ones = list(range(tasks, tasks + shared))
        self.heads = nn.ModuleList(Head(inputs, width, [task, *shared_ones], shared) for task in range(tasks))

    def representation(self, categorical: Tensor, numeric: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what all tasks read: the crossed features, the lower experts' outputs, the top shared experts'."""
        embedded = [table(ids) for table, ids in zip(self.tables, categorical.unbind(1), strict=True)]
        x = start = torch.cat([*embedded, numeric], dim=1)
        for cross in self.crosses:
            x = start * cross(x) + x
        lower = self.lower(x)
        return x, lower, self.top(mixed(self.shared_gate, x, lower))
