"""LAMMPS' files that number atom types and name no elements: ASE takes type 1 for hydrogen, 2 for helium."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from pimlip_zoo.errors import InputError

__all__ = ["check_elements_named"]

_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_TEXT, _BINARY, _DATA = "lammps-dump-text", "lammps-dump-binary", "lammps-data"
_LONGEST, _HEAD = 1 << 16, 1000
"""Bytes of a line, and lines within which a dump has its columns."""


def check_elements_named(path: str | Path, kind: str | None = None) -> None:
    """Refuse a dump or data file of LAMMPS from which nobody can tell the elements.

    Args:
        path: a file that ASE is to read; its size has been checked.
        kind: its format, as ASE calls it; None: ASE says which.

    Raises:
        InputError: for a dump without a column ``element`` or ``mass``, and data without masses.
    """
    if kind is None:
        kind = _kind(path)
    if kind == _TEXT:
        if _columns(path).isdisjoint({b"element", b"mass"}):
            raise InputError(
                "this dump of LAMMPS has numbers of atom types and no elements",
                file=path,
                hint="write a column of them: dump ... custom ... id element x y z, and dump_modify ... element",
            )
    elif kind == _BINARY:
        raise InputError(
            "a binary dump of LAMMPS has numbers of atom types and no elements",
            file=path,
            hint="write a text dump with a column `element`",
        )
    elif kind == _DATA and not any(line.startswith(b"Masses") for line in _lines(path)):
        raise InputError(
            "this data file of LAMMPS has numbers of atom types and no masses, which tell the elements",
            file=path,
            hint="add its section Masses",
        )


def _kind(path: str | Path) -> str | None:
    from ase.io.formats import filetype

    try:
        return str(filetype(str(path), read=True))
    except Exception:  # noqa: BLE001 - whoever reads the file says what is wrong with it
        return None


def _columns(path: str | Path) -> set[bytes]:
    found = (line.split()[2:] for line in islice(_lines(path), _HEAD) if line.startswith(b"ITEM: ATOMS"))
    return set(next(found, [b"element"]))  # without atoms there is nothing to mistake


def _lines(path: str | Path) -> Iterator[bytes]:
    path = Path(path)
    try:
        with _OPENERS.get(path.suffix, open)(path, "rb") as file:
            while line := file.readline(_LONGEST):
                yield line
    except (EOFError, OSError, lzma.LZMAError, zlib.error):
        return
