"""One training or comparison writes to a folder at a time; a second one is refused and told which process is there.

The owner creates ``owner.json`` in the folder, which says who it is, and holds a ``flock`` on it. The kernel releases
that lock however the process ends, so the lock of a killed process is recognised, and a reused process id misleads
nobody. On a file system that several hosts share, a ``flock`` may be seen by one host only (NFS and Lustre have mount
options for it), so the record of another host is believed even where its lock looks free. Where the file system has no
``flock`` at all, the process id decides.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import torch.distributed as dist

from equipoise.errors import SettingError
from equipoise.training.ranks.world import World

__all__ = ["OWNER_FILE", "FolderInUseError", "own_folder"]

OWNER_FILE: Final = "owner.json"

_LOG = logging.getLogger(__name__)
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_HELD: Final = {errno.EAGAIN, errno.EACCES}
_NO_LOCKS: Final = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
_CANNOT_WRITE: Final = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}
_TRIES: Final = 50  # for a record that is being written
_PAUSE: Final = 0.02  # seconds between two of them


class FolderInUseError(SettingError):
    """Another process writes to the folder: the message says which one, since when, and what to do."""


@contextmanager
def own_folder(folder: Path, /, world: World | None = None) -> Iterator[None]:
    """Be the only process that writes to ``folder`` within the block; the folder is created if it is not there.

    The ranks of one training count as one owner: the first rank takes the folder, and all raise what it raises. A
    folder whose owner has ended without releasing it is taken over, and a warning is logged.

    Raises:
        FolderInUseError: another process owns the folder, or one on another host that may still run.
        SettingError: the folder cannot be written to.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name, own_folder(Path(name)):
        ...     sorted(path.name for path in Path(name).iterdir())
        ['owner.json']
    """
    handle, created = None, False
    refusal: SettingError | None = None
    if world is None or world.rank == 0:
        created = not folder.exists()
        try:
            handle = _take(folder)
        except SettingError as error:
            refusal = error
    if world is not None and world.size > 1:
        told = [refusal]
        dist.broadcast_object_list(told, src=0)
        refusal = told[0]
    if refusal is not None:
        raise refusal
    try:
        yield
    finally:
        if handle is not None:
            _release(handle, folder / OWNER_FILE)
            if created:  # nothing was written
                with suppress(OSError):
                    folder.rmdir()


@dataclass(frozen=True)
class _Owner:
    """The content of ``owner.json``.

    Attributes:
        machine: what processes of one kernel have in common: the kernel's boot id, or the host's name without one.
        since: local time with its offset from UTC.
        group: the run id of torchrun, which restarts a group of ranks under the same one; "" without torchrun.
    """

    pid: int
    host: str
    machine: str
    since: str
    group: str

    @classmethod
    def this_process(cls) -> _Owner:
        host = socket.gethostname()
        machine = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else host
        group = os.environ.get("TORCHELASTIC_RUN_ID", "none")
        since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        return cls(os.getpid(), host, machine, since, "" if group == "none" else group)  # torchrun's default is "none"

    @classmethod
    def parse(cls, text: bytes) -> _Owner | None:
        """Return the owner that a file names, or None if the file was not written whole."""
        try:
            found = json.loads(text)
            return cls(int(found["pid"]), *(str(found[name]) for name in ("host", "machine", "since", "group")))
        except (ValueError, TypeError, KeyError):
            return None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


def _take(folder: Path) -> int:
    """Return the open file whose lock makes this process the owner."""
    path = folder / OWNER_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for more in reversed(range(_TRIES)):
            handle, created = _open(path)
            try:
                if _owns(handle, path, created=created, may_change=more > 0):
                    return handle
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)
            time.sleep(_PAUSE)
    except OSError as error:
        if error.errno in _CANNOT_WRITE:
            raise SettingError(
                f"Expected a folder that can be written to, found {folder} ({error.strerror}): name another."
            ) from error
        raise
    raise FolderInUseError(f"Other processes begin and end to write to {folder} all the time: name another folder.")


def _open(path: Path) -> tuple[int, bool]:
    """Return the open file, and whether it was created here."""
    while True:
        with suppress(FileExistsError):
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644), True
        with suppress(FileNotFoundError):  # removed since
            return os.open(path, os.O_RDWR), False


def _owns(handle: int, path: Path, *, created: bool, may_change: bool) -> bool:
    """Make this process the owner of the file, or return False if it must be opened again.

    Args:
        created: the file was created by this process.
        may_change: a file without a record may be one that is being written.

    Raises:
        FolderInUseError: somebody else owns it.
    """
    mine = _Owner.this_process()
    # The lock on a file that was created here is free, or held for a moment by somebody who looks into it.
    free = _lock(handle, wait=created)
    if not _is_at(handle, path):
        return False
    if not created:
        owner = _Owner.parse(os.pread(handle, 10_000, 0))
        if owner is None and may_change:
            return False
        if owner is not None:
            _refuse_if_alive(owner, mine, free, path)
        elif free is not True:
            raise FolderInUseError(
                f"Another process writes to {path.parent}, but {path} does not say which: wait for it, name another "
                "folder, or remove that file if no process writes there."
            )
        _LOG.warning("Taking over %s from %s, which has ended.", path.parent, owner or "an unknown process")
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(asdict(mine)).encode(), 0)
    os.fsync(handle)
    return True


def _refuse_if_alive(owner: _Owner, mine: _Owner, free: bool | None, path: Path) -> None:
    here = owner.machine == mine.machine
    if free is False or (free is None and here and owner.host == mine.host and _runs(owner.pid)):
        raise FolderInUseError(
            f"Another process writes to {path.parent}: {owner}. Wait for it to end, stop it, or name another folder."
        )
    restarted = owner.group != "" and owner.group == mine.group
    if not restarted and (not here or (free is None and owner.host != mine.host)):
        raise FolderInUseError(
            f"Another process may still write to {path.parent}: {owner}. That cannot be seen from {mine.host}: wait "
            f"for it to end, name another folder, or remove {path} if that process is gone."
        )


def _lock(handle: int, *, wait: bool) -> bool | None:
    """Return whether the lock could be had; None where the file system has none."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        if error.errno in _HELD:
            return False
        raise
    return True


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        return True
    return True


def _is_at(handle: int, path: Path) -> bool:
    """Return whether the open file is still the one at ``path``, which its owner removes at the end."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _release(handle: int, path: Path) -> None:
    try:
        with suppress(OSError):  # a record that stays names a process that is gone
            if _is_at(handle, path):
                path.unlink()
    finally:
        os.close(handle)
