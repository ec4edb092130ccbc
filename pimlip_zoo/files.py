"""Files that are there as a whole or not at all, and no larger than they look."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pimlip_zoo.errors import InputError, no_such_file

__all__ = ["expansion_limit", "regular_file", "replacing"]

_EXPANSION, _ALWAYS = 100, 4 << 20


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


def expansion_limit(path: str | Path) -> int:
    """How many bytes the content of a compressed file may have: a hundred times its own, or 4 MiB.

    Structures shrink to a half or a tenth; what a few bytes blow up without an end is no data.
    """
    return max(_ALWAYS, _EXPANSION * Path(path).stat().st_size)


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
