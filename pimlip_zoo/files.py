"""Files that are there as a whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pimlip_zoo.errors import InputError

__all__ = ["replacing"]


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
