"""Locks on files and folders that end with the process that holds them, however it ends.

They are the operating system's: a killed process leaves an empty file behind, and no lock. Processes on several
machines see each other's where the file system they share has locks; where it has none, a warning says so.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pimlip_zoo.errors import InputError

try:
    import fcntl
except ImportError:  # not on this system
    fcntl = None  # type: ignore[assignment]

LOCK_NAME = ".lock"
"""The file in a claimed folder."""

_PATIENCE = 5.0
"""Seconds after which a process that waits says so."""
_HOLDER = b"process "
"""What a lock file that is held begins with."""

log = logging.getLogger("pimlip_zoo")


class Lock:
    """A lock that is held; see :func:`try_lock`.

    Args:
        path: its file.
        descriptor: of the open file.
        sure: whether the file system keeps others out.
    """

    def __init__(self, path: Path, descriptor: int, *, sure: bool) -> None:
        self.path, self.sure = path, sure
        self._descriptor = descriptor

    def release(self) -> None:
        """Remove the file, and let others in."""
        with suppress(OSError):
            self.path.unlink()  # while it is held: who opened it meanwhile sees that its file is gone
        os.close(self._descriptor)


def try_lock(path: Path) -> Lock | None:
    """Lock a file, which is made; None while another holds it.

    Raises:
        OSError: when the file cannot be made, or is a link: what it leads to is somebody else's; or a pipe.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "its lock is no file", str(path))
        try:
            sure = _lock(descriptor)
        except BlockingIOError:
            os.close(descriptor)
            return None
        if _is_file(descriptor, path):
            with suppress(OSError):  # for who asks; a full disk is no reason to stop here
                _sign(descriptor)
            return Lock(path, descriptor, sure=sure)
        os.close(descriptor)


def _sign(descriptor: int) -> None:
    """Write into a lock file who holds it; another file under its name keeps what is in it."""
    if os.read(descriptor, len(_HOLDER)) in (b"", _HOLDER):
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, b"%s%d on %s" % (_HOLDER, os.getpid(), socket.gethostname().encode()), 0)


def _lock(descriptor: int) -> bool:
    """Whether there are locks here; BlockingIOError while another holds it."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


def _is_file(descriptor: int, path: Path) -> bool:
    """Whether an open file still has its name: its last holder may have removed it before the lock was got."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """One process after the other, for as short as it takes to read a file and to write it.

    Whoever waits for long says for whom.

    Args:
        path: of the lock, gone afterwards.

    Raises:
        InputError: when it cannot be made.
    """
    asked, said = time.monotonic(), False
    try:
        while (lock := try_lock(path)) is None:
            if not said and time.monotonic() - asked > _PATIENCE:
                log.warning("%s: waiting for %s", path, _holder(path))
                said = True
            time.sleep(0.02)
    except OSError as error:
        raise _not_made(error, path) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def making(folder: Path) -> Iterator[Path]:
    """A folder to write to, made with those above it; when the block fails, those that stayed empty are gone again.

    Yields:
        The folder.

    Raises:
        OSError: when it cannot be made.
    """
    new = []
    for place in (folder, *folder.parents):
        if place.exists():
            break
        new.append(place)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except BaseException:
        with suppress(OSError):  # the first that holds something stays, and those above it
            for place in new:
                place.rmdir()
        raise


@contextmanager
def claimed(folder: Path) -> Iterator[Path]:
    """A folder that no other process writes to meanwhile; made where it is missing, see :func:`making`.

    Yields:
        The folder.

    Raises:
        InputError: while another process has it, or when it cannot be made.
    """
    with ExitStack() as held:
        try:
            held.enter_context(making(folder))
            lock = try_lock(folder / LOCK_NAME)
        except OSError as error:
            raise _not_made(error, folder) from error
        if lock is None:
            raise InputError(
                f"{_holder(folder / LOCK_NAME)} is writing to it",
                file=folder,
                hint="wait until it is done, or name another folder",
            )
        held.callback(lock.release)
        if not lock.sure:
            log.warning("%s: the file system has no locks; no other process may write there", folder)
        yield folder


def _not_made(error: OSError, path: Path) -> InputError:
    if error.errno == errno.ELOOP:
        return InputError(
            "its lock is a symbolic link, which nothing of this package makes",
            file=path,
            hint=f"remove the link {LOCK_NAME}" if path.is_dir() else "remove the link",
        )
    return InputError(f"cannot be made: {(error.strerror or str(error)).lower()}", file=path)


def _holder(path: Path) -> str:
    try:
        return path.read_text() or "another process"
    except OSError:
        return "another process"


@contextmanager
def numbered_folder(parent: Path, stem: str) -> Iterator[Path]:
    """Make the next free one of ``stem-1``, ``stem-2``, ...; gone again when nothing was put into it.

    Of processes that ask at the same moment each gets a number of its own.
    """
    number = 1
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        folder = parent / f"{stem}-{number}"
        try:
            folder.mkdir()
            break
        except FileExistsError:
            number += 1
    try:
        yield folder
    finally:
        with suppress(OSError):
            folder.rmdir()
