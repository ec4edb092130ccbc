"""Files that are there as a whole or not at all, that are what was written, and no larger than they look."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from pimlip_zoo.errors import InputError, no_such_file, reason_of
from pimlip_zoo.locks import LOCK_NAME, try_lock

_EXPANSION, _ALWAYS = 100, 4 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LONG_AGO = 86_400.0  # s
_PART = 1 << 20
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def regular_file(path: str | Path) -> Path:
    """The file, when it is one that has an end: reading a pipe waits, and a device goes on for ever.

    Raises:
        InputError: when there is no such file, or it is a folder, a pipe, a socket or a device.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise no_such_file(path) from error
    if stat.S_ISREG(mode):
        return path
    kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
    raise InputError(f"is {kind}, not a file", file=path)


def read_text(path: str | Path, *, most: int = 1 << 24) -> str:
    """The text of a file that programs of this package, or people, write.

    Args:
        path: the file.
        most: bytes that such a file may have.

    Raises:
        InputError: when there is no such file, it is a folder, a pipe or a device, too long, or no text.
    """
    path = regular_file(path)
    if (size := path.stat().st_size) > most:
        raise InputError(f"has {size} bytes, more than {most}, which no such file has", file=path)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {reason_of(error)}", file=path) from error


_T = TypeVar("_T", bound=dict[str, Any] | list[Any])


def read_json(path: str | Path, kind: type[_T]) -> _T:
    """What a JSON file of this package holds.

    Args:
        path: the file.
        kind: dict or list, what it is at its outside.

    Raises:
        InputError: as :func:`read_text`, and when it is damaged.
    """
    try:
        content = json.loads(read_text(path))
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"is damaged: {reason_of(error)}", file=path, hint="remove it, and it is made anew"
        ) from error
    if not isinstance(content, kind):
        raise InputError(
            f"holds a {type(content).__name__}, not a {kind.__name__}",
            file=path,
            hint="remove it, and it is made anew",
        )
    return content


def expansion_limit(path: str | Path) -> int:
    """How many bytes the content of a compressed file may have: a hundred times its own, or 4 MiB.

    Structures shrink to a half or a tenth; what a few bytes blow up without an end is no data.
    """
    return max(_ALWAYS, _EXPANSION * Path(path).stat().st_size)


def check_archive(
    path: str | os.PathLike[str], wrong: str = "not a readable archive", *, hint: str = "is it truncated?"
) -> None:
    """Compare every entry of a zip archive with the checksum that its writer put beside it.

    torch writes checkpoints and TorchScript as such archives, and does not look at the checksums when it reads them.

    Args:
        path: the file.
        wrong: what the message says of such a file.
        hint: what to do about it.

    Raises:
        InputError: for a file that is missing, that is no archive, or that has changed since it was written.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > expansion_limit(os.fspath(path)):
                raise ValueError("it would unpack to far more than a model has")  # noqa: TRY301
            for entry in entries:
                with archive.open(entry) as content:
                    while content.read(_PART):
                        pass
    except FileNotFoundError as error:
        raise no_such_file(path) from error
    except Exception as error:
        raise InputError(f"{wrong}: {reason_of(error)}", file=path, hint=hint) from error


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A name to write to, in a folder of its own beside a file, that takes the file's place when all went well.

    When the block fails the unfinished file is removed, and what was there before stays. What a killed process left of
    the same file is removed, too; what another process is writing is not.

    Args:
        path: the file that is meant.

    Yields:
        The temporary name, whose last part is that of the file.

    Raises:
        InputError: when the system does not let the file be written: no space, no permission, no such folder.

    >>> target = Path(tempfile.mkdtemp()) / "numbers.txt"
    >>> with replacing(target) as temporary:
    ...     _ = temporary.write_text("1 2 3")
    >>> target.read_text()
    '1 2 3'
    """
    path = Path(path)
    with writing(path), _scratch(path) as folder:
        temporary = folder / path.name
        try:
            yield temporary
        except (InputError, OSError):
            raise
        except Exception as error:
            # Libraries that write by themselves say no more than that it failed.
            if (refusal := _refusal(temporary)) is not None:
                raise refusal from error
            raise
        os.replace(temporary, path)  # noqa: PTH105


def write_text(path: str | Path, text: str) -> None:
    """Write a file as a whole or not at all, see :func:`replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: object, **options: Any) -> None:
    """Write JSON for people, too, as a whole or not at all; ``options`` are those of ``json.dumps``."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, **options))


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Name the file where the system refuses to write: its own errors do not.

    Raises:
        InputError: in place of OSError.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"cannot be written: {reason[:1].lower()}{reason[1:]}", file=path) from error


def append(path: Path, text: str) -> None:
    """Add to the end of a file, all of it or nothing; the file is made where it is missing, and gone if that fails.

    Raises:
        InputError: when the system does not let it be written, or it is a link.
    """
    check_no_link(path)
    if path.exists():
        regular_file(path)
    with writing(path), path.open("ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        rest = memoryview(text.encode())
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            with suppress(OSError):
                file.truncate(size)
                if not size:
                    path.unlink()
            raise


def check_no_link(path: Path) -> None:
    """Refuse to add to what a link leads to: a folder from elsewhere may have one to any file of the user.

    Raises:
        InputError: for a symbolic link.
    """
    if path.is_symlink():
        raise InputError(
            "is a symbolic link: nothing is added to what it leads to", file=path, hint="remove the link"
        )


@contextmanager
def scratch_folder(parent: Path, name: str) -> Iterator[Path]:
    """A folder to work in, gone afterwards; those of the same name that killed processes left are removed.

    Args:
        parent: where it is made.
        name: what is done in it.

    Yields:
        The folder; what other processes do under the same name have folders of their own.

    Raises:
        InputError: when the system does not let it be made, or what is in it be written.
    """
    _clear(parent, f".{name}-")  # of versions before, which knew no locks: gone when they are a day old
    with writing(parent), _scratch(parent / name) as folder:
        yield folder


@contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    """A folder beside a file, locked as long as it is in use; those of the same file that nobody uses are removed."""
    start = f".{path.name[:40]}."
    _clear(path.parent, start)
    while True:
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=start, suffix=".tmp"))
        try:
            lock = try_lock(folder / LOCK_NAME)
        except FileNotFoundError:
            continue  # another process took it for a leftover before it was locked
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        if lock is not None:
            break
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def _clear(parent: Path, start: str) -> None:
    with suppress(OSError):  # who may not remove them leaves them
        found = [entry for entry in parent.iterdir() if entry.name.startswith(start)]
        for folder in (
            entry for entry in found if (entry.suffix == ".tmp" or start[-1] == "-") and entry.is_dir()
        ):
            old = time.time() - folder.stat().st_mtime > _LONG_AGO
            if not old and not (folder / LOCK_NAME).exists():
                continue  # its process is about to lock it
            lock = try_lock(folder / LOCK_NAME)
            if lock is None:
                continue
            if old or lock.sure:
                shutil.rmtree(folder, ignore_errors=True)
            lock.release()


def _refusal(temporary: Path) -> OSError | None:
    """What the system says to more bytes at the end of an unfinished file, if it refuses them for want of space."""
    try:
        with temporary.open("ab") as file:
            file.write(bytes(1 << 16))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error if error.errno in _FULL else None
    return None


def content_hash(path: Path) -> str:
    """SHA-256 of a file, in 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_PART):
            digest.update(part)
    return digest.hexdigest()


def belongs_to_user(folder: Path) -> bool:
    """Whether a folder and the one that it is in are this user's; others are kept from writing to them from now on.

    What is loaded from a folder runs with the user's rights: whoever else may write there must not choose it.

    Raises:
        OSError: when one is not there.
    """
    if not hasattr(os, "getuid"):
        return True
    for place in (folder.parent, folder):
        if place.stat().st_uid != os.getuid():
            return False
        keep_others_out(place)
        if not is_own(place):  # a file system on which modes are what they are
            return False
    return True


def keep_others_out(path: Path) -> None:
    """Take from the group and from others the right to write to one's own file or folder."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & _OTHERS_WRITE:
        path.chmod(mode & ~_OTHERS_WRITE)


def is_own(path: Path) -> bool:
    """Whether a file is this user's, and nobody else may write to it.

    Raises:
        OSError: when it is not there.
    """
    status = path.stat()
    return not hasattr(os, "getuid") or (status.st_uid == os.getuid() and not status.st_mode & _OTHERS_WRITE)


def seal(path: Path) -> None:
    """Write the hash of a file beside it, so that :func:`sealed` can tell whether it is still what it was.

    Raises:
        InputError: when that cannot be written.
    """
    keep_others_out(path)
    with replacing(_seal_of(path)) as temporary:
        temporary.write_text(content_hash(path) + "\n", encoding="ascii")


def sealed(path: Path) -> bool:
    """Whether a file of this user is there and has the content that it was sealed with.

    A library that is truncated or damaged ends the process that maps it: look before it is loaded.
    """
    if not path.is_file():  # reading a pipe would wait
        return False
    try:
        return is_own(path) and seal_of(path) == content_hash(path)
    except OSError:
        return False


def seal_of(path: Path) -> str | None:
    """The hash that a file was sealed with; None where it was not."""
    if not _seal_of(path).is_file():
        return None
    try:
        return _seal_of(path).read_bytes().strip().decode(errors="replace")
    except OSError:
        return None


def _seal_of(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")
