"""From a model's outputs to predictions: probabilities at the natural rate, and numbers in the target's unit.

A model learns the distribution of its training rows. Two things move that away from the natural one, and both are
undone here in closed form: the weight of positive labels, and negative sampling (:class:`equipoise.schema.Sampled`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from equipoise.schema import Sampled, Schema, Task

__all__ = ["biased_tasks", "predictions", "scores"]


def predictions(outputs: Sequence[Tensor], schema: Schema, /) -> list[Tensor]:
    """Return the prediction of each task: a probability, or for a regression a number in the target's unit.

    Write z for the output of a binary task after its positive weight w is undone, ``z = output − log w``, and r for
    the rate with which rows without a positive of task s were kept. p and p_s are the sampled probabilities of the
    task and of s. The correction to the natural rate depends on how the task is related to s:

    ================================  =====================================================================
    task                              natural prediction
    ================================  =====================================================================
    s itself                          ``σ(z + log r)``
    nested in s, over all rows        ``r p / (1 − (1 − r) p_s)``
    nested in s, over parent rows     unchanged: rows with a positive of s were all kept
    an ancestor of s                  ``σ(z + log(1 − (1 − r) q))``, q the share of its positives that are
                                      positives of s
    any other                         unchanged, and not exact: see :func:`biased_tasks`
    ================================  =====================================================================

    The first row is that of He et al., "Practical Lessons from Predicting Clicks on Ads at Facebook" (ADKDD 2014),
    section 6.3. The others follow from the same argument: a row without a positive of s stands for 1/r rows. All are
    exact where the outputs are the probabilities of the sampled rows. Outputs that contradict the nesting (a
    conversion likelier than its click) still give a value in [0, 1].

    A regression's output is brought to ``mean + scale · output``, and for the loss "log" back through ``exp(x) − 1``,
    which predicts the median of a log-normal target rather than its mean. One nested in s over all rows, where its
    target is 0 without a positive of s, is multiplied with ``r / (1 − (1 − r) p_s)`` before the last step; not so for
    the Huber loss, whose minimum is no mean.

    Args:
        outputs: one floating-point tensor per task, all of one shape, in the schema's order. Half precision is
            widened to float32.

    Returns:
        One tensor per task, of the shape of the outputs: for binary tasks in [0, 1]. Built of tensor operations
        alone, so that ``torch.export`` and ONNX take it.

    Raises:
        ValueError: the number of outputs is not that of the tasks.

    Example:
        >>> from equipoise.schema import Numeric
        >>> tasks = [Task("purchase"), Task("spend", kind="regression", mean=12.0, scale=5.0, after="purchase")]
        >>> schema = Schema([], [Numeric("age")], tasks, sampled=Sampled("purchase", rate=0.01))
        >>> purchase, spend = predictions([torch.tensor([0.0]), torch.tensor([-0.4])], schema)
        >>> purchase, spend
        (tensor([0.0099]), tensor([10.]))
    """
    return [
        score.sigmoid() if task.binary else score
        for task, score in zip(schema.tasks, scores(outputs, schema), strict=True)
    ]


def scores(outputs: Sequence[Tensor], schema: Schema, /) -> list[Tensor]:
    """Return what :func:`predictions` returns, but for binary tasks the logit, which keeps small probabilities apart.

    Args and errors as for :func:`predictions`. For scores at the rate of the sampled rows, pass the schema with
    ``sampled=None``.

    Example:
        >>> from equipoise.schema import Numeric
        >>> schema = Schema([], [Numeric("age")], [Task("click", positive_weight=4.0)], sampled=Sampled("click", 0.25))
        >>> scores([torch.tensor([math.log(16.0)])], schema)
        [tensor([0.])]
    """
    if len(outputs) != len(schema.tasks):
        raise ValueError(
            f"Expected one output for each of the tasks {', '.join(schema.task_names)}, found {len(outputs)}."
        )
    wide = [output.to(torch.promote_types(output.dtype, torch.float32)) for output in outputs]
    found = [
        (output if task.positive_weight == 1 else output - math.log(task.positive_weight))
        if task.binary
        else task.mean + task.scale * output
        for task, output in zip(schema.tasks, wide, strict=True)
    ]
    if schema.sampled is not None and schema.sampled.rate < 1:
        found = _at_natural_rate(found, schema, schema.sampled)
    return [
        score.expm1() if task.kind == "regression" and task.loss == "log" else score
        for task, score in zip(schema.tasks, found, strict=True)
    ]


def biased_tasks(schema: Schema, /) -> tuple[str, ...]:
    """Return the tasks whose predictions stay those of the sampled rows, because the correction is not known.

    These are the tasks that are neither the sampled task nor nested in it nor an ancestor of it: their natural
    rate depends on how often they occur together with it, which no output says. Empty without sampling.

    Example:
        >>> from equipoise.schema import Numeric
        >>> tasks = [Task("click"), Task("purchase", after="click"), Task("like")]
        >>> biased_tasks(Schema([], [Numeric("age")], tasks, sampled=Sampled("purchase", rate=0.01)))
        ('like',)
    """
    sampled = schema.sampled
    if sampled is None or sampled.rate == 1:
        return ()
    ancestors = _lineage(schema, sampled.task)
    return tuple(
        task.name
        for task in schema.tasks
        if task.name not in ancestors
        and (sampled.task not in _lineage(schema, task.name) or (task.loss == "huber" and _over_all_rows(task)))
    )


def _at_natural_rate(found: list[Tensor], schema: Schema, sampled: Sampled) -> list[Tensor]:
    rate = sampled.rate
    logits = dict(zip(schema.task_names, found, strict=True))
    ancestors = _lineage(schema, sampled.task)
    log_positive = _log_probability(schema, sampled.task, logits)
    natural = []
    for task, score in zip(schema.tasks, found, strict=True):
        if task.name == sampled.task:
            natural.append(score + math.log(rate))
        elif task.name in ancestors:
            log_share = (log_positive - _log_probability(schema, task.name, logits)).clamp(max=0)
            natural.append(score + _log_weight(log_share, rate))
        elif sampled.task not in _lineage(schema, task.name) or not _over_all_rows(task):
            natural.append(score)
        elif task.binary:
            # 1 − r p / (1 − (1 − r) p_s) = ((1 − r)(1 − p_s) + r (1 − p)) / (1 − (1 − r) p_s): no difference of
            # nearly equal numbers
            log_negative = torch.logaddexp(
                math.log1p(-rate) + _log_complement(schema, sampled.task, logits),
                math.log(rate) + functional.logsigmoid(-score),
            )
            natural.append(math.log(rate) + functional.logsigmoid(score) - log_negative)
        else:
            change = math.log(rate) - _log_weight(log_positive, rate)
            natural.append(score if task.loss == "huber" else score * change.exp())
    return natural


def _log_weight(log_share: Tensor, rate: float) -> Tensor:
    """Return log(1 − (1 − r) q) for the log of q, written without a difference of nearly equal numbers."""
    return torch.log(rate * log_share.exp() - torch.expm1(log_share))


def _lineage(schema: Schema, name: str) -> list[str]:
    """Return a task and the tasks that it is nested in, nearest first."""
    names = [name]
    while after := schema.task(names[-1]).after:
        names.append(after)
    return names


def _over_all_rows(task: Task) -> bool:
    """Return whether the task's output is about any row, not about one whose parent is positive."""
    return not task.after or task.over == "all"


def _log_probability(schema: Schema, name: str, logits: dict[str, Tensor]) -> Tensor:
    """Return the log probability of a positive among all sampled rows: the product along the parents."""
    task = schema.task(name)
    own = functional.logsigmoid(logits[name])
    return own if _over_all_rows(task) else own + _log_probability(schema, task.after, logits)


def _log_complement(schema: Schema, name: str, logits: dict[str, Tensor]) -> Tensor:
    """Return the log probability of no positive among all sampled rows."""
    if _over_all_rows(schema.task(name)):
        return functional.logsigmoid(-logits[name])
    return torch.log(-torch.expm1(_log_probability(schema, name, logits)))
