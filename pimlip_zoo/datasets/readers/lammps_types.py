"""LAMMPS' files that number atom types and name no elements: ASE takes type 1 for hydrogen, 2 for helium."""

from __future__ import annotations

import lzma
import re
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pimlip_zoo.datasets.readers.scan import matches
from pimlip_zoo.errors import InputError

_TEXT, _BINARY, _DATA = "lammps-dump-text", "lammps-dump-binary", "lammps-data"
_COLUMNS = re.compile(rb"(?m)^[ \t]{0,99}ITEM: ATOMS\b([^\r\n]{0,60000})")
_MASSES = re.compile(rb"(?m)^[ \t]*Masses\b")


def check_elements_named(path: str | Path, kind: str | None = None) -> None:
    """Refuse a dump or data file of LAMMPS from which nobody can tell the elements.

    Args:
        path: a file that ASE is to read; its size has been checked.
        kind: its format, as ASE calls it; None: ASE says which.

    Raises:
        InputError: for a dump of which a frame has no column ``element`` or ``mass``, and data without masses.
    """
    if kind is None:
        kind = _kind(path)
    if kind == _TEXT:
        for frame, found in enumerate(_found(path, _COLUMNS)):
            if {b"element", b"mass"}.isdisjoint(found[1].split()):
                raise InputError(
                    "this dump of LAMMPS has numbers of atom types and no elements",
                    file=path,
                    frame=frame,
                    hint="write a column of them: dump ... custom ... id element x y z, and dump_modify ... element",
                )
    elif kind == _BINARY:
        raise InputError(
            "a binary dump of LAMMPS has numbers of atom types and no elements",
            file=path,
            hint="write a text dump with a column `element`",
        )
    elif kind == _DATA and next(_found(path, _MASSES), None) is None:
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


def _found(path: str | Path, pattern: re.Pattern[bytes]) -> Iterator[re.Match[bytes]]:
    with suppress(EOFError, OSError, lzma.LZMAError, zlib.error):  # ASE says it
        yield from matches(path, pattern)
