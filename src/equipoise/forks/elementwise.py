"""Forks that combine the tasks' gradients element by element, instead of by one weight per task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from equipoise.forks.fork import Fork
from equipoise.forks.pieces import Piece, as_rows, first_of

__all__ = ["Elementwise", "GradDrop"]


class Elementwise(Fork):
    """Combines the tasks' gradients element by element; a subclass defines :meth:`combine`.

    ``last_gram`` and ``last_present`` hold the step's Gram matrix and tasks as in every fork; ``last_weights`` stay 1
    and have no meaning. Each rank combines the gradients of its own rows. A second
    backward over the same graph combines again; under ``create_graph=True`` it is differentiated as PyTorch
    differentiates :meth:`combine`.

    Args:
        tasks: the tasks' names, or how many there are.
        process_group: the ranks whose Gram matrices ``last_gram`` sums; the default group if None.
    """

    def __init__(self, tasks: int | Sequence[str], *, process_group: dist.ProcessGroup | None = None) -> None:
        super().__init__(tasks, process_group=process_group)

    def combine(self, gradients: Tensor, present: Tensor, /) -> Tensor:
        """Return the gradient that flows on; called once per backward, without a host sync.

        Args:
            gradients: the tasks' gradients of all shared tensors, flattened and one after the other, float32 or
                wider, shape [M, N]; 0 for tasks that are not present.
            present: which tasks have a finite gradient other than 0, bool, shape [M].

        Returns:
            The combined gradient in the dtype of ``gradients``, shape [N].

        Raises:
            NotImplementedError: a subclass does not define it.
        """
        raise NotImplementedError(f"{type(self).__name__} must define combine(gradients, present).")

    @property
    def mixes_examples(self) -> bool:
        """True: a subclass may combine elements of several examples."""
        return True

    def monitored(self) -> dict[str, Tensor]:
        """Return nothing: there is no weight per task."""
        return {}

    def merge(self, pieces: Sequence[Piece], weights: Tensor, present: Tensor) -> list[Tensor | None]:
        """Return the gradient that flows on for each piece, by :meth:`combine`; None where none arrived."""
        likes = [first_of(piece) for piece in pieces]
        columns = [as_rows(piece) for piece, like in zip(pieces, likes, strict=True) if like is not None]
        if not columns:
            return [None] * len(pieces)
        wide = torch.promote_types(columns[0].dtype, torch.float32)
        rows = torch.cat([column.to(wide) for column in columns], dim=1)
        if not torch.compiler.is_compiling() and rows.is_cpu and bool(present.all()):
            combined = self.combine(rows, present)
        else:
            combined = self.combine(torch.where(present.unsqueeze(1), rows, 0.0), present)
            # What is not present is passed on with the weight 1, so that a GradScaler sees an overflow.
            combined = combined + torch.mv(rows.T, (~present).to(wide))
        parts = iter(torch.split(combined, [column.shape[1] for column in columns]))
        return [None if like is None else next(parts).view(like.shape).to(like.dtype) for like in likes]


class GradDrop(Elementwise):
    r"""Keeps, of each element, the tasks' gradients of one sign, drawn at random in proportion to that sign's share.

    From `Just Pick a Sign: Optimizing Deep Multitask Models with Gradient Sign Dropout
    <https://arxiv.org/abs/2010.06808>`_ (Algorithm 1, lines 10 to 15). For each element::

        P    = ½ (1 + Σ_m g_m / Σ_m |g_m|)                purity of the positive sign, 0 to 1
        M_m  = 1 where g_m > 0 and P > U, or g_m < 0 and P < U, else 0       U uniform in [0, 1)
        out  = Σ_m (ℓ_m + (1 − ℓ_m) M_m) g_m

    Every element of the shared representation is drawn by itself; the paper's sum of activation times gradient over
    the batch (lines 5 to 7) is left out, as in torchjd. Magnitudes are not balanced: a task whose loss is scaled up
    prevails.

    The draws depend on ``seed``, on the rank and on the number of the step, which is part of the state. A run is
    repeatable, and one resumed from a checkpoint makes the same draws.

    Args:
        tasks: the tasks' names, or how many there are.
        leak: the share ℓ of a task's gradient that passes in any case, in [0, 1]; one number, or one per task in the
            order of ``tasks``.
        seed: of the draws.
        process_group: the ranks whose Gram matrices ``last_gram`` sums; the default group if None.

    Raises:
        ValueError: ``leak`` is out of its range, or its length is not the number of tasks.

    Example:
        >>> fork = GradDrop(["click", "like"])
        >>> shared = torch.ones(1000, requires_grad=True)
        >>> for_click, for_like = fork(shared)
        >>> (3 * for_click.sum() - for_like.sum()).backward()
        >>> sorted(set(shared.grad.tolist())), bool(700 < (shared.grad > 0).sum() < 800)  # 3 with P = ¾, else −1
        ([-1.0, 3.0], True)
    """

    task_dims: ClassVar = {**Fork.task_dims, "draws": ()}

    draws: Tensor

    replayable: ClassVar[bool] = True

    def __init__(
        self,
        tasks: int | Sequence[str],
        *,
        leak: float | Sequence[float] = 0.0,
        seed: int = 0,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(tasks, process_group=process_group)
        self.leak = [float(leak)] * len(self.tasks) if isinstance(leak, int | float) else [float(part) for part in leak]
        if len(self.leak) != len(self.tasks) or not all(0 <= part <= 1 for part in self.leak):
            raise ValueError(
                f"leak must be a number in [0, 1], or {len(self.tasks)} of them, one for each of "
                f"{', '.join(self.tasks)}; found {leak!r}."
            )
        self.seed = seed
        self.register_buffer("draws", torch.empty((), dtype=torch.int64))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Go back to the state before the first step; see :meth:`Fork.reset_parameters`."""
        super().reset_parameters()
        self.draws.zero_()

    def weigh(self, gram: Tensor, present: Tensor, /) -> Tensor:
        """Count the step; the weights are 1."""
        self.draws.add_(1)
        return torch.ones_like(gram[0])

    @property
    def mixes_examples(self) -> bool:
        """False: every element is drawn by itself, and an element belongs to one example."""
        return False

    def combine(self, gradients: Tensor, present: Tensor, /) -> Tensor:
        """Sum the gradients of the drawn sign and the leaks of the others; see :meth:`Elementwise.combine`."""
        drawn = _uniform(self.draws, gradients.shape[1], self.seed, _rank(self.process_group)).to(gradients.dtype)
        # The share of the positive sign, ½ (1 + Σ g / Σ |g|); NaN where all are 0, where the output is 0 in any case.
        of_positive, of_negative = _sums_by_sign(gradients, [1.0] * len(gradients))
        purity = of_positive / (of_positive - of_negative)
        if any(self.leak):
            of_positive, of_negative = _sums_by_sign(gradients, [1 - leak for leak in self.leak])
        total = (purity > drawn) * of_positive + (purity < drawn) * of_negative
        for gradient, leak in zip(gradients, self.leak, strict=True):
            if leak:
                total.add_(gradient, alpha=leak)
        return total

    def extra_repr(self) -> str:
        """Return the constructor's arguments."""
        return f"{super().extra_repr()}, leak={self.leak!r}, seed={self.seed}"


def _sums_by_sign(gradients: Tensor, factors: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return, for each element, the weighted sum of the tasks' positive gradients, and that of the negative ones."""
    positive, negative = torch.zeros_like(gradients[0]), torch.zeros_like(gradients[0])
    for gradient, factor in zip(gradients, factors, strict=True):
        positive.add_(gradient.clamp(min=0), alpha=factor)
        negative.add_(gradient.clamp(max=0), alpha=factor)
    return positive, negative


def _rank(process_group: dist.ProcessGroup | None) -> int:
    return dist.get_rank(process_group) if dist.is_available() and dist.is_initialized() else 0


def _uniform(step: Tensor, count: int, *keys: int) -> Tensor:
    """Draw numbers in [0, 1) that depend on the keys, the step and their place alone; shape [count], float32.

    Unlike a ``torch.Generator`` this needs no state on the host: it works in compiled and captured steps, and draws the
    same on every device.
    """
    mixed = step.clone()
    for key in keys:
        mixed = _hash(mixed ^ _hash(torch.full_like(step, key % (1 << 32))))
    numbers = _hash(torch.arange(count, device=step.device).add_(mixed))
    return numbers.bitwise_right_shift_(8).to(torch.float32).mul_(2.0**-24)


def _hash(x: Tensor) -> Tensor:
    """Hash 32-bit numbers, held in int64 and overwritten, by a bijection (C. Wellons' lowbias32)."""
    x.bitwise_xor_(x >> 16).mul_(0x7FEB352D).bitwise_and_(0xFFFFFFFF)
    x.bitwise_xor_(x >> 15).mul_(0x846CA68B).bitwise_and_(0xFFFFFFFF)
    return x.bitwise_xor_(x >> 16)
