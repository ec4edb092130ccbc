"""What a data file of LAMMPS announces, and what is in its sections: ASE passes over what is there twice or too often.

LAMMPS itself refuses these files.
"""

from __future__ import annotations

import re
from pathlib import Path

from pimlip_zoo.datasets.readers.scan import opened
from pimlip_zoo.errors import InputError

_SECTION = re.compile(rb"[A-Z]\w*(?: [A-Z]\w*)*")
"""A line that is one: rows of sections have numbers."""
_COUNT = re.compile(
    rb"([-+]?\d+) (atoms|bonds|angles|dihedrals|impropers|(?:atom|bond|angle|dihedral|improper) types)"
)
_ROWS_OF = {
    b"Atoms": b"atoms",
    b"Velocities": b"atoms",
    b"Masses": b"atom types",
    b"Atom Type Labels": b"atom types",
    b"Bonds": b"bonds",
    b"Angles": b"angles",
    b"Dihedrals": b"dihedrals",
    b"Impropers": b"impropers",
}
"""What of the header says how many rows a section has."""
_ONE_EACH = (b"Atoms", b"Velocities", b"Masses", b"Atom Type Labels")
"""Sections of which an atom, or a type, has one row."""


def check_data_file(path: str | Path) -> list[bytes]:
    """Read a data file of LAMMPS once, row by row.

    Args:
        path: of the file.

    Returns:
        The masses in it.

    Raises:
        InputError: for a section or a number of the header that is there twice, an atom or a type with two rows, more
            rows than the header announces, and fewer atoms.
    """
    check = _Check(path)
    with opened(path) as file:
        next(file, b"")  # a title
        for line in file:
            words = line.partition(b"#")[0].split()
            if words:
                check.take(words)
    check.end()
    return check.masses


class _Check:
    def __init__(self, path: str | Path) -> None:
        self.path = path
        self.counts: dict[bytes, int] = {}
        self.seen: set[bytes] = set()
        self.section = b""
        self.rows = 0
        self.ids: set[bytes] = set()
        self.masses: list[bytes] = []

    def take(self, words: list[bytes]) -> None:
        """A line that is not empty, without its comment."""
        line = b" ".join(words)
        if _SECTION.fullmatch(line):
            self.end()
            if line in self.seen:
                self._refuse(f"has the section {line.decode()} twice", "leave one of them")
            self.seen.add(line)
            self.section, self.rows, self.ids = line, 0, set()
        elif self.section:
            self._row(words)
        elif count := _COUNT.fullmatch(line):
            if count[2] in self.counts:
                self._refuse(f"says its number of {count[2].decode()} twice", "leave one of them")
            self.counts[count[2]] = int(count[1])

    def _row(self, words: list[bytes]) -> None:
        self.rows += 1
        if self.section in _ONE_EACH:
            if words[0] in self.ids:
                row = words[0].decode(errors="replace")
                self._refuse(
                    f"has two rows {row} in its section {self.section.decode()}", "leave one of them"
                )
            self.ids.add(words[0])
        if self.section == b"Masses":
            self.masses += words[1:2]

    def end(self) -> None:
        """Compare the section that ends with the header."""
        if self.section not in _ROWS_OF:
            return
        name = _ROWS_OF[self.section]
        announced = self.counts.get(name, 0)
        if self.rows > announced or (self.section == b"Atoms" and self.rows < announced):
            self._refuse(
                f"announces {announced} {name.decode()}, and its section {self.section.decode()} has {self.rows} rows",
                "write it again",
            )

    def _refuse(self, fault: str, hint: str) -> None:
        raise InputError(fault, file=self.path, hint=hint)
