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

from pimlip_zoo.datasets.readers.lammps_data import check_data_file
from pimlip_zoo.datasets.readers.scan import matches, opened
from pimlip_zoo.errors import InputError

log = logging.getLogger("pimlip_zoo")

_TEXT, _BINARY, _DATA = "lammps-dump-text", "lammps-dump-binary", "lammps-data"
_COLUMNS = re.compile(rb"(?m)^[ \t]{0,99}ITEM: ATOMS\b([^\r\n]{0,60000})")
_MASSES = re.compile(rb"(?m)^[ \t]*Masses\b")
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
        InputError: for a dump of which a frame has no column ``element`` or ``mass``, or is not whole (see
            :class:`_DumpCheck`), and data without masses, or of which a part is there twice.
    """
    if kind is None:
        kind = format_of(path)
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
        with suppress(EOFError, OSError, lzma.LZMAError, zlib.error):  # ASE says it
            _DumpCheck(path).run()
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
            _check_masses(path, _masses_of_atoms(path) if kind == _TEXT else check_data_file(path))


def told_to_ase(path: str | Path, kind: str | None = None) -> dict[str, Any]:
    """What ASE's reader has to be told of a file of LAMMPS: its format, its units; of all others nothing.

    Args:
        path: a file that :func:`check_elements_named` let pass.
        kind: as there.

    Raises:
        InputError: for a dump of several units.
    """
    kind = format_of(path) if kind is None else kind
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


def say_guessed(path: str | Path, told: dict[str, Any], *, units: bool = False) -> None:
    """Say what a file of LAMMPS does not: that data are periodic, of which units a dump is.

    Args:
        path: the file.
        told: what ASE is told of it.
        units: whether the user has named them.
    """
    if told.get("format") == _DATA:
        log.warning("%s: taken as periodic in all directions: a data file of LAMMPS does not say", path)
    elif is_dump(told) and "units" not in told and not units:
        log.warning(
            "%s: taken as of LAMMPS' units metal (eV, Å): the dump does not say (dump_modify ... units yes)",
            path,
        )


class _DumpCheck:
    """Looks at every line of a dump: what ASE passes over there would be another structure, or another label.

    A frame with fewer or more atoms than it says, as where LAMMPS was killed, with an atom twice, or with only some
    components of the forces is refused; masses beside elements that are not theirs are said.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self.frame = -1
        self.begins = 1
        """The line that the frame begins at."""
        self.item = b""
        self.expected: int | None = None
        self.columns: list[bytes] = []
        self.rows = 0
        self.ids: set[bytes] = set()
        self.strange: set[bytes] = set()

    def run(self) -> None:
        """Read the file once.

        Raises:
            InputError: naming the frame.
        """
        with opened(self.path) as file:
            for number, line in enumerate(file, start=1):
                words = line.split()
                if words[:1] == [b"ITEM:"]:
                    self._begin(words[1:], number)
                elif words and self.item == b"ATOMS":
                    self._row(words)
                elif words and self.item == b"NUMBER":
                    self.expected = int(words[0]) if words[0].isdigit() else None
        self._end()
        if self.strange:
            log.warning(
                "%s: elements have their usual masses, and not those of the column mass (%s)",
                self.path,
                b", ".join(sorted(self.strange)[:3]).decode(errors="replace"),
            )

    def _begin(self, words: list[bytes], number: int) -> None:
        self._end()
        self.item = words[0] if words else b""
        if self.item == b"TIMESTEP":
            self.begins, self.expected = number, None
        elif self.item == b"ATOMS":
            self.frame, self.columns, self.rows, self.ids = self.frame + 1, words[1:], 0, set()
            _check_components(self.path, self.frame, self.columns)

    def _row(self, words: list[bytes]) -> None:
        self.rows += 1
        row = dict(zip(self.columns, words, strict=False))
        name = row.get(b"id")
        if name is not None and name in self.ids:
            raise InputError(
                f"has the atom {name.decode(errors='replace')} twice", file=self.path, frame=self.frame
            )
        if name is not None:
            self.ids.add(name)
        if b"element" in row and b"mass" in row:
            self.strange |= _strange_mass(row[b"element"], row[b"mass"])

    def _end(self) -> None:
        if self.item != b"ATOMS" or self.expected in (None, self.rows):
            return
        fault = "is cut off" if self.rows < (self.expected or 0) else "goes on behind its end"
        raise InputError(
            f"{fault}: of {self.expected} atoms there are {self.rows}",
            file=self.path,
            frame=self.frame,
            hint=f"head -n {self.begins - 1} leaves the frames before it" if self.frame else "write it again",
        )


def _check_components(path: str | Path, frame: int, columns: list[bytes]) -> None:
    forces = [name for name in (b"fx", b"fy", b"fz") if name in columns]
    if 0 < len(forces) < 3:
        raise InputError(
            f"has of the forces only {b', '.join(forces).decode()}",
            file=path,
            frame=frame,
            hint="write fx fy fz, or none of them",
        )


def _strange_mass(element: bytes, mass: bytes) -> set[bytes]:
    """The two, where the mass is another one than the element's."""
    from ase.data import atomic_masses, atomic_numbers

    with suppress(ValueError, KeyError):
        usual = float(atomic_masses[atomic_numbers[element.decode(errors="replace")]])
        if abs(float(mass) - usual) > max(_OFF, _OFF_OF_MASS * usual):
            return {element + b" " + mass}
    return set()


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


def format_of(path: str | Path) -> str | None:
    """The format of a file, as ASE calls it; None: it does not know it, or cannot look."""
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
