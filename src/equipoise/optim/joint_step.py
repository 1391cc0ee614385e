"""One joint step of the shared parameters: the tasks' updates, their Gram matrix, and their weighted sum applied."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from equipoise.optim.blocks import Block, blocks
from equipoise.optim.entries import OwnState, entry_of
from equipoise.optim.host_counts import HostCounts
from equipoise.optim.rules import State, rule_of

__all__ = ["Gradients", "JointStep"]

Gradients = Sequence[Tensor | None]
"""One gradient per shared parameter, None where the loss does not reach it."""


class JointStep:
    """The shared parameters and R gradients of them; nothing moves before :meth:`move`.

    The update u_m is what the optimizer would subtract, without the learning rate, had gradient m come alone. Where the
    learning rates of shared groups differ, each update is scaled by its own rate over the largest, so that inner
    products and norms measure actual changes of the parameters. Entries of a gradient that are not finite count as 0,
    so that one bad batch does not spoil the state.

    Args:
        optimizer: the torch.optim optimizer that holds the state.
        shared: the shared parameters.
        gradients: R gradients, at least one.
        own: given if every task keeps its own state.
        counts: the step counts that lie on the device.
        unreached_stay: count the update of a parameter that a gradient does not reach as 0, and apply decoupled decay
            once per gradient that reaches the parameter. Otherwise momentum moves it as a gradient of 0 would, and
            decay comes once.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        shared: Sequence[Tensor],
        gradients: Sequence[Gradients],
        own: OwnState | None = None,
        *,
        counts: HostCounts,
        unreached_stay: bool = False,
    ) -> None:
        self._optimizer = optimizer
        self._rule = rule_of(optimizer)
        self._own = own
        self._rows = len(gradients)
        self._device = shared[0].device
        self._dtype = torch.float64 if any(p.dtype == torch.float64 for p in shared) else torch.float32
        options = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        self._lead: float = max(options[id(p)]["lr"] for p in shared)
        self._counts = counts
        steps = [optimizer.state[p]["step"] for p in shared if "step" in optimizer.state.get(p, {})]
        counts.read([step for step in steps if step.device.type != "cpu"])  # one wait for all, where there is any
        self._entries = [
            entry_of(p, of_p, options[id(p)], optimizer=optimizer, own=own, counts=counts)
            for p, *of_p in zip(shared, *gradients, strict=True)
            if any(g is not None for g in of_p)
        ]
        self._unreached_stay = unreached_stay
        self._thetas = [entry.theta for entry in self._entries]
        self._states: dict[str, Sequence[Tensor]] = {}
        self._by_row = [[entry.gradients[row] for entry in self._entries] for row in range(self._rows)]
        apart = {entry.count: self._per_row(entry.count) for entry in self._entries if isinstance(entry.count, tuple)}
        places = [
            (entry.options, apart[entry.count] if isinstance(entry.count, tuple) else entry.count, entry.theta.numel())
            for entry in self._entries
        ]
        # Where the parameters fit one block, what gram() has gathered serves move() too.
        self._held: tuple[Block | None, Tensor] = (None, shared[0])
        self._blocks = list(blocks(places, self._rows + 2, self._device))  # 2: move() adds up to two sums as rows

    def gram(self, *, momentum: bool) -> Tensor:
        """Return the inner products of the R updates, float64, shape [R, R].

        With ``momentum=False`` those of the gradients scaled as the optimizer would, see :meth:`Rule.precondition`.
        """
        total = torch.zeros(self._rows, self._rows, dtype=torch.float64, device=self._device)
        for block in self._blocks:
            g, state = self._gradients(block), self._state(block)
            if momentum:
                updates, _ = self._rule.advance(g, self._theta(block), state, block.count, block.options)
            else:
                updates = self._rule.precondition(g, state, block.count, block.options)
            updates = self._as_changes(updates, block)
            total += updates @ updates.T
        return total

    def combine(self, weights: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return ``(p, Σ_m weights[m] g_m)`` for each parameter p with a gradient; sparse if they are."""
        targets = [torch.empty_like(entry.theta) for entry in self._entries]
        mix = weights.to(self._dtype).unsqueeze(0)
        for block in self._blocks:
            for part, place in block.pair(mix @ self._gradients(block), targets):
                place.copy_(part)
        return [(entry.p, entry.as_gradient(target)) for entry, target in zip(self._entries, targets, strict=True)]

    def move(self, weights: Tensor, *, joint: Tensor, plain: Tensor | None = None) -> None:
        """Subtract ``lr · Σ_m weights[m] u_m`` from the parameters, and advance the state.

        A shared state advances with ``Σ_m joint[m] g_m``, own states each with their gradient. Decoupled weight decay
        comes once.

        Args:
            weights: shape [R].
            joint: shape [R].
            plain: shape [R]; given to rescale the step to the norm of the optimizer's own, which is that for the
                gradient ``Σ_m plain[m] g_m`` with a shared state, and ``Σ_m plain[m] u_m`` with own states.
        """
        if not self._entries:
            return
        mix = (weights.unsqueeze(0) if plain is None else torch.stack((weights, plain))).to(self._dtype)
        sums = (joint.unsqueeze(0) if plain is None else torch.stack((joint, plain))).to(self._dtype)
        steps: list[Tensor] = []
        places: list[Tensor] = []
        references: list[Tensor] = []
        squares = torch.zeros(self._rows, dtype=torch.float64, device=self._device)
        for block in self._blocks:
            g = self._gradients(block)
            if self._own is None:
                g = torch.cat((g, sums @ g))
            updates, after = self._rule.advance(g, self._theta(block), self._state(block), block.count, block.options)
            updates = self._as_changes(updates, block)
            moves = mix @ updates[: self._rows]
            for part, place in block.pair(moves[:1], self._thetas):
                steps.append(part)
                places.append(place)
            if plain is not None:
                reference = moves[1] if self._own else updates[-1]
                references.append(torch.linalg.vector_norm(reference, dtype=torch.float64))
                squares += torch.linalg.vector_norm(updates[: self._rows], dim=1, dtype=torch.float64).square_()
            self._store(block, after)
        if plain is not None and steps:
            rounding = self._rows * torch.finfo(self._dtype).eps * torch.dot(weights.double().abs(), squares.sqrt_())
            torch._foreach_mul_(steps, _ratio(references, steps, rounding))
        for entry in self._entries:
            if decay := self._rule.decoupled_decay(entry.options):
                times = sum(entry.reached) if self._unreached_stay else 1
                entry.theta.mul_((1 - entry.options["lr"] * decay) ** times)
        if steps:  # not where all gradients are sparse and touch nothing
            torch._foreach_add_(places, steps, alpha=-self._lead)
        for entry in self._entries:
            self._optimizer.state[entry.p] = entry.kept
            known = self._counts.known([entry.kept["step"]]) if "step" in entry.kept else []
            entry.close(self._own)
            self._counts.counted(known, None if self._own is None else self._own.tasks)

    def _per_row(self, count: tuple[float, ...]) -> Tensor:
        """Return one count per row, created on the device to avoid a host sync."""
        rows = [torch.full((1, 1), number, dtype=torch.float64, device=self._device) for number in count]
        return torch.cat(rows)

    def _theta(self, block: Block) -> Tensor:
        return block.take(self._thetas).to(self._dtype)

    def _gradients(self, block: Block) -> Tensor:
        if block is not self._held[0]:
            g = torch.cat([block.take(row) for row in self._by_row])
            self._held = block, g.to(self._dtype).nan_to_num_(0.0, 0.0, 0.0)
        return self._held[1]

    def _state(self, block: Block) -> State:
        found = {}
        for name in self._rule.names(block.options):
            matrix = block.take(self._matrices(name))
            found[name] = (matrix if self._own is None else self._own.of_step(matrix)).to(self._dtype)
        return found

    def _store(self, block: Block, after: State) -> None:
        for name, value in after.items():
            if self._own is None:
                joint = value[self._rows : self._rows + 1]
                for part, place in block.pair(joint, self._matrices(name)):
                    place.copy_(part)
            else:
                for part, place in block.pair(value, self._matrices(name)):
                    self._own.put(place, part)

    def _matrices(self, name: str) -> Sequence[Tensor]:
        # Groups may differ in the state they have; a block never takes from an entry of other options than its own.
        if name not in self._states:
            self._states[name] = [entry.state.get(name, entry.theta) for entry in self._entries]
        return self._states[name]

    def _as_changes(self, updates: Tensor, block: Block) -> Tensor:
        """Return the updates in units of the largest learning rate."""
        updates = updates.to(self._dtype)  # counts that differ by row are float64
        rate = block.options["lr"]
        updates = updates if rate == self._lead else updates * (rate / self._lead)
        if self._unreached_stay:
            offset = 0
            for number, start, end in block.pieces:
                for row, reached in enumerate(self._entries[number].reached):
                    if not reached:
                        updates[row, offset : offset + end - start].zero_()
                offset += end - start
        return updates


def _ratio(references: list[Tensor], steps: list[Tensor], rounding: Tensor) -> Tensor:
    """Return the norm of the reference step over the step's; 0 if the latter is rounding error (opposed tasks)."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(steps)), dtype=torch.float64)
    reference = torch.linalg.vector_norm(torch.stack(references))
    return torch.where(norm > rounding, reference / norm, 0.0).to(steps[0].dtype)
