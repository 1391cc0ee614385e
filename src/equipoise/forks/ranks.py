"""Ranks at a fork: the process group over which Gram matrices are summed."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist

__all__ = ["group_of_several"]

_AVAILABLE = dist.is_available()
_own_group: tuple[dist.ProcessGroup, dist.ProcessGroup] | None = None  # the default group and the forks' copy of it


def group_of_several(process_group: dist.ProcessGroup | None) -> dist.ProcessGroup | None:
    """Return the group to sum over; None if there is a single rank.

    Args:
        process_group: the user's group. None: all ranks, in a group that only forks use:
            in the default group a fork's all-reduce would queue behind those of the gradients. That group is made in
            the first backward through a fork, which every rank goes through in the same step, as ``dist.new_group``
            needs it. A compiled graph cannot make one, and takes the default group if there is none yet.
    """
    global _own_group  # noqa: PLW0603 - process groups belong to the process
    if not _AVAILABLE or not dist.is_initialized() or dist.get_world_size(process_group) == 1:
        return None
    if process_group is not None:
        return process_group
    default: dist.ProcessGroup = dist.distributed_c10d._get_default_group()
    if _own_group is not None and _own_group[0] is default:
        return _own_group[1]
    if torch.compiler.is_compiling():
        return default
    own: dist.ProcessGroup = dist.new_group(timeout=_timeout_of(default), group_desc="equipoise forks")
    _own_group = default, own
    return own


def _timeout_of(group: dist.ProcessGroup) -> timedelta | None:
    """Return how long the group's ranks wait for each other; None, the backend's default, if it does not tell.

    A group that is made later does not inherit it.
    """
    for device in group._device_types:
        options = getattr(group._get_backend(device), "options", None)
        if options is not None:
            timeout: timedelta = options._timeout
            return timeout
    return None
