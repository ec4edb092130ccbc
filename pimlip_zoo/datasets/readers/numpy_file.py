"""NumPy files whose headers are compared with what is there before memory is taken for it."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pimlip_zoo.errors import InputError, reading
from pimlip_zoo.files import expansion_limit, regular_file

UNREADABLE = (OSError, ValueError, EOFError, MemoryError, SyntaxError, zipfile.BadZipFile)
"""What numpy raises for files that are none of its own, or damaged."""


def load_npy(path: str | Path, *, mapped: bool = False) -> NDArray[Any]:
    """The array of a ``.npy`` file.

    Raises:
        InputError: when there is none, or fewer bytes than its shape needs.
    """
    path = regular_file(path)
    with reading(path):
        with path.open("rb") as file:
            _check_header(file, path.stat().st_size, path)
        return np.load(path, allow_pickle=False, mmap_mode="r" if mapped else None)


def check_npz(path: str | Path) -> None:
    """Whether the arrays of an ``.npz`` file are as large as it says, and not many times larger than the file.

    Raises:
        InputError: when they are not.
        zipfile.BadZipFile: when it is no archive; this and all else of :data:`UNREADABLE` as numpy would.
    """
    limit = expansion_limit(path)
    with zipfile.ZipFile(regular_file(path)) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > limit:
            raise InputError(
                f"holds more than {limit} bytes in {Path(path).stat().st_size}, which structures do not",
                file=path,
                hint="store it without compression if it is what you think",
            )
        for entry in entries:
            if entry.filename.endswith(".npy"):
                with archive.open(entry) as file:
                    _check_header(file, entry.file_size, path)


def open_npz(path: str | Path) -> Any:
    """The archive, opened after :func:`check_npz`; nothing in it is unpickled. Close it, as in ``with``.

    Raises:
        InputError: as that.
    """
    check_npz(path)
    return np.load(path, allow_pickle=False)


def _check_header(file: IO[bytes], size: int, path: str | Path) -> None:
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        return  # of names in Unicode, which numbers do not have; numpy says what it thinks of it
    shape, _, dtype = read(file)
    if not dtype.hasobject and math.prod(shape) * dtype.itemsize > size:
        raise InputError(f"claims an array of the shape {shape}, and has {size} bytes", file=path)
