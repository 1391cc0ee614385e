"""Two processes never write to one folder: a second one is refused by name; the folder of a dead one is free."""

import errno
import fcntl
import json
import logging
import multiprocessing
import os
import socket
import threading
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from equipoise.training import FolderInUseError, SettingError, World, own_folder
from equipoise.training.faults import folder_owner
from equipoise.training.faults.folder_owner import OWNER_FILE, _Owner

multiprocessing.set_forkserver_preload(["equipoise.training"])  # each process is a copy of one that has imported it
processes = multiprocessing.get_context("forkserver")


def hold(folder: Path, pipe: Connection) -> None:
    """Report whether the folder could be owned, and own it until told to stop."""
    try:
        with own_folder(folder):
            pipe.send("mine")
            pipe.recv()
    except FolderInUseError:
        pipe.send("refused")


class Rival:
    """Another process that wants the folder."""

    def __init__(self, folder: Path) -> None:
        self.pipe, there = processes.Pipe()
        self.process = processes.Process(target=hold, args=(folder, there))
        self.process.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    def end(self, *, kill: bool = False) -> None:
        if kill:
            self.process.kill()
        elif self.process.is_alive():
            self.pipe.send("end")
        self.process.join()


def holder(folder: Path) -> Rival:
    rival = Rival(folder)
    assert rival.pipe.recv() == "mine"
    return rival


def leave_record(folder: Path, **changes: object) -> None:
    """Write the record of a process that did not release the folder."""
    (folder / OWNER_FILE).write_text(json.dumps(asdict(replace(_Owner.this_process(), **changes))))


def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)


def test_a_second_process_is_refused_and_told_who_is_there_since_when_and_what_to_do(tmp_path: Path) -> None:
    first = holder(tmp_path)
    since = json.loads((tmp_path / OWNER_FILE).read_text())["since"]
    with pytest.raises(FolderInUseError) as caught, own_folder(tmp_path):
        pass
    assert str(caught.value) == (
        f"Another process writes to {tmp_path}: process {first.pid} on {socket.gethostname()}, since {since}. Wait for "
        "it to end, stop it, or name another folder."
    )
    first.end()
    with own_folder(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_of_two_threads_one_is_refused(tmp_path: Path) -> None:
    caught: list[BaseException] = []

    def other() -> None:
        try:
            with own_folder(tmp_path):
                pass
        except FolderInUseError as error:
            caught.append(error)

    with own_folder(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert f"process {os.getpid()} on" in str(caught[0])


@pytest.mark.parametrize("locks", [True, False], ids=["locks", "no locks"])
def test_what_a_killed_process_has_left_is_taken_over_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, locks: bool
) -> None:
    if not locks:
        without_locks(monkeypatch)
    first = holder(tmp_path)
    first.end(kill=True)
    assert (tmp_path / OWNER_FILE).exists()
    with caplog.at_level(logging.WARNING), own_folder(tmp_path):
        assert json.loads((tmp_path / OWNER_FILE).read_text())["pid"] == os.getpid()
    assert f"Taking over {tmp_path} from process {first.pid} on" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_the_process_id_of_a_dead_owner_that_another_process_has_now_does_not_keep_the_folder(tmp_path: Path) -> None:
    leave_record(tmp_path, pid=os.getppid())
    with own_folder(tmp_path):
        pass


def test_without_locks_a_process_that_runs_is_believed_to_be_the_owner(tmp_path: Path, monkeypatch) -> None:
    without_locks(monkeypatch)
    leave_record(tmp_path, pid=os.getppid())
    with pytest.raises(FolderInUseError, match=f"process {os.getppid()} on"), own_folder(tmp_path):
        pass
    with pytest.raises(FolderInUseError), own_folder(tmp_path):  # the first refusal has changed nothing
        pass


@pytest.mark.parametrize("locks", [True, False], ids=["locks", "no locks"])
def test_the_record_of_another_host_is_believed_and_the_file_to_remove_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: bool
) -> None:
    if not locks:
        without_locks(monkeypatch)
    leave_record(tmp_path, pid=7, host="gpu-17", machine="another kernel", since="2026-01-31 10:00:00+00:00")
    with pytest.raises(FolderInUseError) as caught, own_folder(tmp_path):
        pass
    assert "process 7 on gpu-17, since 2026-01-31 10:00:00+00:00" in str(caught.value)
    assert f"remove {tmp_path / OWNER_FILE} if that process is gone" in str(caught.value)
    (tmp_path / OWNER_FILE).unlink()
    with own_folder(tmp_path):
        pass


def test_a_container_on_this_machine_is_judged_by_its_lock_alone(tmp_path: Path, monkeypatch) -> None:
    """A container's process ids mean nothing outside of it."""
    leave_record(tmp_path, pid=2**22, host="another-container")
    with monkeypatch.context() as patch:
        without_locks(patch)
        with pytest.raises(FolderInUseError, match="may still write"), own_folder(tmp_path):
            pass
    with own_folder(tmp_path):
        pass


def test_ranks_that_torchrun_starts_anew_on_another_host_take_their_own_folder_over(tmp_path, monkeypatch) -> None:
    leave_record(tmp_path, host="gpu-17", machine="another kernel", group="run-1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run-2")
    with pytest.raises(FolderInUseError), own_folder(tmp_path):
        pass
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run-1")
    with own_folder(tmp_path, World()):
        pass
    leave_record(tmp_path, host="gpu-17", machine="another kernel", group="")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # torchrun's default, which tells no runs apart
    with pytest.raises(FolderInUseError), own_folder(tmp_path):
        pass


def test_ranks_but_the_first_leave_the_folder_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.broadcast_object_list", lambda *_, **__: None)
    with own_folder(tmp_path / "out", World(1, 2)):
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [ValueError("in the block"), KeyboardInterrupt()])
def test_the_folder_is_released_however_the_block_ends(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), own_folder(tmp_path / "out"):
        raise error
    assert list(tmp_path.iterdir()) == []  # a folder that was created for nothing goes too


def test_a_file_that_was_created_and_never_written_is_taken_over(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(folder_owner, "_PAUSE", 0.0)
    for content in ("", '{"pid": 3', "[]", '{"pid": "x"}'):
        (tmp_path / OWNER_FILE).write_text(content)
        with own_folder(tmp_path):
            pass
        assert "from an unknown process" in caplog.text
        caplog.clear()


def test_an_owner_that_leaves_no_trace_of_itself_is_not_disturbed(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(folder_owner, "_PAUSE", 0.0)
    with (tmp_path / OWNER_FILE).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(FolderInUseError, match="does not say which"), own_folder(tmp_path):
            pass


def test_somebody_who_removes_the_record_by_hand_does_not_lose_the_next_owners(tmp_path: Path) -> None:
    with own_folder(tmp_path):
        (tmp_path / OWNER_FILE).unlink()
        second = holder(tmp_path)
    assert json.loads((tmp_path / OWNER_FILE).read_text())["pid"] == second.pid
    second.end()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, monkeypatch, code: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", refuse)
    message = r"can be written to, found .* \((Permission|Read-only).*name another"
    with pytest.raises(SettingError, match=message), own_folder(tmp_path):
        pass


def test_a_full_disk_is_said_as_it_is_and_leaves_no_claim(tmp_path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left"), own_folder(tmp_path):
            pass
    with own_folder(tmp_path):
        pass


def test_many_processes_that_begin_at_once_after_a_killed_one_have_one_owner_at_a_time(tmp_path: Path) -> None:
    holder(tmp_path).end(kill=True)
    rivals = [Rival(tmp_path) for _ in range(5)]
    found = [rival.pipe.recv() for rival in rivals]
    assert sorted(found) == ["mine", *["refused"] * 4]
    rivals[found.index("mine")].end()
    for rival in rivals:
        rival.process.join()
    assert list(tmp_path.iterdir()) == []
