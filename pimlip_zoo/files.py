"""Files that are there as a whole or not at all, and that are what was written."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pimlip_zoo.errors import InputError, no_such_file, reason_of

__all__ = ["check_archive", "content_hash", "replacing", "seal", "sealed"]

_PART = 1 << 20


def check_archive(
    path: str | os.PathLike[str], wrong: str = "not a readable archive", *, mend: str = "is it truncated?"
) -> None:
    """Compare every entry of a zip archive with the checksum that its writer put beside it.

    torch writes checkpoints and TorchScript as such archives, and does not look at the checksums when it reads them.

    Args:
        path: the file.
        wrong: what the message says of such a file.
        mend: what to do about it.

    Raises:
        InputError: for a file that is missing, that is no archive, or that has changed since it was written.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                with archive.open(entry) as content:
                    while content.read(_PART):
                        pass
    except FileNotFoundError as error:
        raise no_such_file(path) from error
    except Exception as error:
        raise InputError(f"{wrong}: {reason_of(error)}", file=path, mend=mend) from error


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A name to write to, in the folder of a file and with its suffix, that takes the file's place when all went well.

    When the block fails the unfinished file is removed, and what was there before stays.

    Args:
        path: the file that is meant.

    Yields:
        The temporary name.

    Raises:
        InputError: when the system does not let the file be written: no space, no permission, no such folder.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "numbers.txt"
    >>> with replacing(target) as temporary:
    ...     _ = temporary.write_text("1 2 3")
    >>> target.read_text()
    '1 2 3'
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)  # noqa: PTH105
    except OSError as error:
        temporary.unlink(missing_ok=True)
        reason = error.strerror or str(error)
        raise InputError(f"cannot be written: {reason[:1].lower()}{reason[1:]}", file=path) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def content_hash(path: Path) -> str:
    """SHA-256 of a file, in 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_PART):
            digest.update(part)
    return digest.hexdigest()


def seal(path: Path) -> None:
    """Write the hash of a file beside it, so that :func:`sealed` can tell whether it is still what it was.

    Raises:
        InputError: when that cannot be written.
    """
    with replacing(_seal_of(path)) as temporary:
        temporary.write_text(content_hash(path) + "\n", encoding="ascii")


def sealed(path: Path) -> bool:
    """Whether a file is there and has the content that it was sealed with.

    A library that is truncated or damaged ends the process that maps it: look before it is loaded.
    """
    try:
        return _seal_of(path).read_bytes().strip() == content_hash(path).encode()
    except OSError:
        return False


def _seal_of(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")
