"""The processes that train together, and the message of one that loses contact with another."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from equipoise.errors import SettingError

__all__ = ["LostRanksError", "World", "launched", "usable_device"]

_VARIABLES: Final = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_TIMEOUT: Final = timedelta(minutes=10)
# Words in gloo's errors when another rank is gone or silent; NCCL has an error type for it.
_GONE: Final = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused")
_SILENT: Final = ("Timed out waiting", "Application timeout")


class LostRanksError(RuntimeError):
    """Other ranks have died or hang: the message names them."""


@dataclass(frozen=True)
class World:
    """The processes that train together.

    Attributes:
        rank: the number of this process, from 0.
        size: the number of processes.
        device: the device that this process trains on.
        restarted: torchrun has restarted the processes after one of them died.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - a value that never changes
    restarted: bool = False

    def share(self, rows: int) -> slice:
        """Return this rank's part of a batch of ``rows`` rows."""
        return slice(self.rank * rows // self.size, (self.rank + 1) * rows // self.size)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Return the tensor of each rank, on the CPU. All ranks must ask, with tensors of one shape."""
        if self.size == 1:
            return [tensor.cpu()]
        of_ranks = [torch.empty_like(tensor, device=self.device) for _ in range(self.size)]
        dist.all_gather(of_ranks, tensor.to(self.device))
        return [found.cpu() for found in of_ranks]


@contextmanager
def launched(device: str = "cpu", *, timeout: timedelta = _TIMEOUT) -> Iterator[World]:
    """Join the processes that ``torchrun`` has started, or a launcher that sets the same variables; else train alone.

    Processes on CPUs are connected by gloo, those on GPUs by NCCL; each takes the GPU of its local rank.

    Args:
        device: "cpu", "cuda", or another device that PyTorch knows.
        timeout: how long a rank waits for another one in a collective.

    Raises:
        SettingError: the device cannot be used, or some of torchrun's variables are missing.
        LostRanksError: a rank has not started within ``timeout``; or one has died or not answered within ``timeout``
            in the block. NCCL's watchdog may end the process with its own message instead.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1" and "TORCHELASTIC_RUN_ID" not in os.environ:
        yield World(device=usable_device(device))
        return
    if missing := [name for name in _VARIABLES if name not in os.environ]:
        raise SettingError(
            f"Found WORLD_SIZE={os.environ['WORLD_SIZE']}, but not {', '.join(missing)}: launch with torchrun, or set "
            "them too."
        )
    local = torch.device(device, int(os.environ["LOCAL_RANK"])) if device == "cuda" else torch.device(device)
    if local.type == "cuda":
        torch.cuda.set_device(local)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    try:
        store = next(rendezvous("env://", timeout=timeout))[0]
    except dist.DistStoreError as error:
        raise LostRanksError(_not_started_message(rank, timeout, f"the others of {size}")) from error
    # A prefix for each restart of the group: the store still holds the addresses of the processes before.
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    store = PrefixStore(f"restart{restarts}", store)
    _wait_for_all(store, rank, size, timeout)
    dist.init_process_group(
        "nccl" if local.type == "cuda" else "gloo", store=store, rank=rank, world_size=size, timeout=timeout
    )
    try:
        yield World(rank, size, local, restarted=restarts > 0)
        # Gloo's threads need Python's lock to let go of work that is done, and abort a Python that ends before they
        # have had it. While all wait here they can.
        dist.barrier()
    except RuntimeError as error:
        gone, silent = (any(words in str(error) for words in signs) for signs in (_GONE, _SILENT))
        if not gone and not silent and not isinstance(error, dist.DistError):
            raise
        # All waiting ranks notice: at once when a connection breaks, else as far apart as they began to wait.
        seconds_to_report = 3.0 if gone else max(3.0, timeout.total_seconds() / 20)
        how = "dead, or given up by the others" if gone else f"without an answer for {timeout.total_seconds():g} s"
        raise LostRanksError(_lost_ranks_message(store, rank, size, how, seconds_to_report)) from error
    finally:
        dist.destroy_process_group()


def usable_device(name: torch.device | str, /) -> torch.device:
    """Return the device of this name.

    Raises:
        SettingError: PyTorch cannot use it here.
    """
    try:
        found = torch.ones(1, device=name)
        if found.is_meta:
            raise SettingError(f"Expected a device that computes, found {str(name)!r}.")
        return found.device
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # not known; not built in or not there
        reason = f"{error}".splitlines()[0][:200]
        raise SettingError(f"Expected a device that PyTorch can use here, found {str(name)!r}: {reason}") from error


def _wait_for_all(store: PrefixStore, rank: int, size: int, timeout: timedelta) -> None:
    names = [f"here/{other}" for other in range(size)]
    store.set(names[rank], "")
    try:
        store.wait(names, timeout)
    except RuntimeError as error:
        absent = [other for other in range(size) if not store.check([names[other]])]
        raise LostRanksError(_not_started_message(rank, timeout, f"{_list_ranks(absent)} of {size}")) from error


def _not_started_message(rank: int, timeout: timedelta, others: str) -> str:
    seconds = f"{timeout.total_seconds():g} s"
    return f"Rank {rank} has waited {seconds} for {others} to start. See what that process said last."


def _list_ranks(ranks: list[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"


def _lost_ranks_message(store: PrefixStore, rank: int, size: int, how: str, seconds_to_report: float) -> str:
    """Name the ranks that have not reported a lost contact themselves within ``seconds_to_report``."""
    names = [f"lost-contact/{other}" for other in range(size)]
    store.set(names[rank], "")
    deadline = time.monotonic() + seconds_to_report
    while (silent := [r for r in range(size) if not store.check([names[r]])]) and time.monotonic() < deadline:
        time.sleep(0.05)
    if not silent:
        return f"A connection between the {size} ranks broke; none of them has died."
    return f"Rank {rank} has lost contact with {_list_ranks(silent)} of {size}: {how}. See what that process said last."
