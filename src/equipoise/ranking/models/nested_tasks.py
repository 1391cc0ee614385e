"""Tasks that are nested in others: their parents, and the log-odds of a product of probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from equipoise.schema import Schema

__all__ = ["log_odds_of_product", "parents_of", "parents_over_all_rows"]


def parents_of(schema: Schema, model: str, /) -> list[int | None]:
    """Return the position of the task that each task is nested in; None for a task that is not nested.

    Args:
        schema: the tasks.
        model: the name of the model that needs nested tasks, for the message.

    Raises:
        ValueError: no task is nested.

    Example:
        >>> from equipoise.schema import Task
        >>> parents_of(Schema([], [], [Task("click"), Task("buy", after="click"), Task("like")]), "AITM")
        [None, 0, None]
    """
    names = schema.task_names
    parents = [names.index(task.after) if task.after else None for task in schema.tasks]
    if all(parent is None for parent in parents):
        raise ValueError(
            f"{model} needs a task that is nested in another one, such as a conversion in a click; found none in "
            f"{', '.join(names)}. Give the nested task `after`, the name of the other one: conversion: {{label: "
            "conversion, after: click, over: all}."
        )
    return parents


def parents_over_all_rows(schema: Schema, model: str, /) -> list[int | None]:
    """Return the position of the task that each binary task is nested in; None for regressions and tasks not nested.

    Args:
        schema: the tasks.
        model: the name of the model that needs tasks nested over all rows, for the message.

    Raises:
        ValueError: no binary task is nested, or one is labelled only where its parent is 1.

    Example:
        >>> from equipoise.schema import Task
        >>> parents_over_all_rows(Schema([], [], [Task("click"), Task("buy", after="click")]), "ESMM")
        Traceback (most recent call last):
        ValueError: ESMM learns nested tasks over all rows, with the label 0 where the parent is 0; found \
`over: parent` in buy. Set `over: all` there.
    """
    parents = [
        parent if task.binary else None for task, parent in zip(schema.tasks, parents_of(schema, model), strict=True)
    ]
    nested = [task for task, parent in zip(schema.tasks, parents, strict=True) if parent is not None]
    if not nested:
        raise ValueError(f"{model} needs a binary task that is nested in another one; found regressions alone.")
    if given := [task.name for task in nested if task.over == "parent"]:
        raise ValueError(
            f"{model} learns nested tasks over all rows, with the label 0 where the parent is 0; found `over: parent` "
            f"in {', '.join(given)}. Set `over: all` there."
        )
    return parents


def log_odds_of_product(logits: Sequence[Tensor], /) -> Tensor:
    r"""Return the logit of a product of probabilities from their logits, exact and finite at any size.

    With p = σ(a) and q = σ(b), (1 − pq) / pq = e^{−a} + e^{−b} + e^{−a−b}, so that

        logit(pq) = −logsumexp(−a, −b, −a − b).

    No probability is rounded to 0 or 1 on the way, and the gradients are shares of a softmax.

    Args:
        logits: at least one tensor, all of the same shape.

    Returns:
        Of the same shape.

    Example:
        >>> half = torch.tensor(0.0)
        >>> log_odds_of_product([half, half]).sigmoid()
        tensor(0.2500)
        >>> log_odds_of_product([torch.tensor(-200.0), torch.tensor(-300.0)])
        tensor(-500.)
    """
    first, *others = logits
    for other in others:
        first = -torch.logsumexp(torch.stack((-first, -other, -first - other)), dim=0)
    return first
