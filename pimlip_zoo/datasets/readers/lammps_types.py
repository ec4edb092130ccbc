"""What LAMMPS' files say and ASE passes over.

Atom types without elements: ASE takes type 1 for hydrogen, 2 for helium. Units: ASE takes all for `metal`. Masses of no
element: ASE takes the nearest one's. Labels of types: ASE sorts the atoms, and not their labels.
"""

from __future__ import annotations

import logging
import lzma
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pimlip_zoo.datasets.readers.scan import matches, opened
from pimlip_zoo.errors import InputError

log = logging.getLogger("pimlip_zoo")

_TEXT, _BINARY, _DATA = "lammps-dump-text", "lammps-dump-binary", "lammps-data"
_COLUMNS = re.compile(rb"(?m)^[ \t]{0,99}ITEM: ATOMS\b([^\r\n]{0,60000})")
_MASSES = re.compile(rb"(?m)^[ \t]*Masses\b")
_MASSES_OF_TYPES = re.compile(
    rb"[ \t]*Masses\b[^\n]*\n(?:[ \t]*\r?\n)*((?:[ \t]*\S+[ \t]+[-+.\deE]+[^\n]*\n)*)"
)
_COUNTS = [re.compile(rb"(?m)^[ \t]*\d+[ \t]+%s\b" % what) for what in (b"atoms", b"atom types")]
_LABELS = re.compile(rb"(?m)^[ \t]*Atom Type Labels\b")
_UNITS = re.compile(rb"(?m)^ITEM: UNITS[ \t]*\r?\n[ \t]*(\w+)")
_UNITS_OF_DATA = re.compile(rb"[^\n]*\bunits[ \t]*=[ \t]*(\w+)")
_HEAD = 1 << 16
_OFF, _OFF_OF_MASS, _HYDROGEN = 0.3, 0.015, 2.1
"""By how many u, and by which part of it, a mass may differ from its element's; deuterium is hydrogen, which has its
own limit."""


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
    by_mass = kind == _DATA
    if kind == _TEXT:
        for frame, found in enumerate(_found(path, _COLUMNS)):
            columns = found[1].split()
            by_mass = by_mass or b"element" not in columns
            if {b"element", b"mass"}.isdisjoint(columns):
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
    if by_mass:
        with suppress(EOFError, OSError, lzma.LZMAError, zlib.error):  # ASE says it
            _check_masses(path, _masses_of_atoms(path) if kind == _TEXT else _masses_of_types(path))


def told_to_ase(path: str | Path, kind: str | None = None) -> dict[str, Any]:
    """What ASE's reader has to be told of a file of LAMMPS: its format, its units; of all others nothing.

    Args:
        path: a file that :func:`check_elements_named` let pass.
        kind: as there.

    Raises:
        InputError: for a dump of several units.
    """
    kind = _kind(path) if kind is None else kind
    if kind not in (_TEXT, _DATA):
        return {}
    found = _found(path, _UNITS) if kind == _TEXT else iter([_UNITS_OF_DATA.match(_head(path))])
    units = {match[1].decode() for match in found if match is not None}
    if len(units) > 1:
        raise InputError(f"is of several units: {', '.join(sorted(units))}", file=path)
    told: dict[str, Any] = {"format": kind, **({"units": units.pop()} if units else {})}
    if kind == _DATA and next(_found(path, _LABELS), None) is not None:
        told["sort_by_id"] = False  # which would leave the labels where they are
    return told


def is_dump(told: dict[str, Any]) -> bool:
    """Whether :func:`told_to_ase` is of a dump, which has no energies; ASE gives it some, of zero."""
    return told.get("format") == _TEXT


def say_periodic(path: str | Path, told: dict[str, Any]) -> None:
    """Say of a data file that it is taken as periodic, which it does not tell."""
    if told.get("format") == _DATA:
        log.warning("%s: taken as periodic in all directions: a data file of LAMMPS does not say", path)


def _masses_of_types(path: str | Path) -> Iterator[bytes]:
    for line in next(iter(_MASSES_OF_TYPES.findall(_head(path))), b"").splitlines():
        yield line.split()[1]


def _masses_of_atoms(path: str | Path) -> Iterator[bytes]:
    """Of frames that have no column ``element``."""
    at: int | None = None
    with opened(path) as file:
        for line in file:
            words = line.split()
            if words[:1] == [b"ITEM:"]:
                columns = words[2:] if words[1:2] == [b"ATOMS"] else []
                at = columns.index(b"mass") if b"mass" in columns and b"element" not in columns else None
            elif at is not None and at < len(words):
                yield words[at]


def _check_masses(path: str | Path, texts: Iterable[bytes]) -> None:
    from ase.data import atomic_masses

    known: set[bytes] = set()
    for text in texts:
        if text in known:
            continue
        known.add(text)
        try:
            mass = float(text)
        except ValueError:
            continue  # ASE says it
        number = abs(atomic_masses - mass).argmin()  # 0 for a mass of 1, as ASE has it
        off = abs(atomic_masses[number] - mass)
        allowed = _HYDROGEN - 1 if number == 1 else max(_OFF, _OFF_OF_MASS * mass)
        if number == 0 or off > allowed:
            raise InputError(
                f"the mass {mass:g} is of no element",
                file=path,
                hint="masses tell the elements here; write a column `element`, or the elements' own masses",
            )


def _head(path: str | Path) -> bytes:
    with opened(path) as file:
        return file.read(_HEAD)


def _kind(path: str | Path) -> str | None:
    from ase.io.formats import filetype

    with suppress(EOFError, OSError, lzma.LZMAError, zlib.error):
        if Path(path).is_file() and all(count.search(_head(path)) for count in _COUNTS):
            return _DATA  # whose names end in anything
    try:
        return str(filetype(str(path), read=True))
    except Exception:  # noqa: BLE001 - whoever reads the file says what is wrong with it
        return None


def _found(path: str | Path, pattern: re.Pattern[bytes]) -> Iterator[re.Match[bytes]]:
    with suppress(EOFError, OSError, lzma.LZMAError, zlib.error):  # ASE says it
        yield from matches(path, pattern)
