"""How many atoms a file announces, before ASE makes room for them: a few bytes could ask for all of the memory."""

from __future__ import annotations

import lzma
import math
import re
import zlib
from itertools import takewhile
from pathlib import Path

from pimlip_zoo.datasets.readers.scan import OPENERS, matches
from pimlip_zoo.errors import InputError
from pimlip_zoo.files import expansion_limit

_HEAD, _OF_JSON = 1 << 22, 1 << 26
"""Bytes that are looked at."""
_IONS = re.compile(rb"ions per type\s*=([ \t\d]+)")
_OF_DUMP = re.compile(rb"ITEM: NUMBER OF ATOMS[ \t]*\r?\n[ \t]*(\+?\d[\d_]*)")
_OF_DATA = re.compile(rb"(?m)^[ \t]*(\+?\d[\d_]*)[ \t]+atoms\b")
_SHAPE = re.compile(rb'"__ndarray__"\s*:\s*\[\s*\[([\d\s,]*)\]')
_COUNT = re.compile(rb"\+?\d[\d_]*")
"""What ASE takes for a number of atoms."""
_MOST_DIGITS, _MOST = 40, 10**30


def check_announced(path: Path) -> None:
    """Compare numbers of atoms in POSCAR, OUTCAR and LAMMPS' files, and sizes of arrays in JSON, with the file's size.

    An atom takes a line, and a number of an array a digit and a comma.

    Args:
        path: a file that is there, of any format; of all others nothing is said.

    Raises:
        InputError: for more than there can be.
    """
    packed = path.suffix.lower() in OPENERS
    most = expansion_limit(path) if packed else path.stat().st_size
    opener = OPENERS.get(path.suffix.lower(), open)
    try:
        with opener(path, "rb") as file:
            head = file.read(_HEAD)
            if head.lstrip()[:1] in (b"{", b"["):
                head += file.read(_OF_JSON - len(head))
        dump = matches(path, _OF_DUMP) if head.lstrip().startswith(b"ITEM:") else ()
        announced = [_sum(found[1]) for found in dump]
    except (OSError, EOFError, zlib.error, lzma.LZMAError):
        return  # whoever reads it says so
    announced += [_sum(found) for pattern in (_IONS, _OF_DATA) for found in pattern.findall(head)]
    announced += [_of_poscar(head)]
    if max(announced) > most:
        raise InputError(f"announces {max(announced):.3g} atoms and has {most} bytes", file=path)
    sizes = [min(math.prod(_numbers(found.replace(b",", b" "))), _MOST) for found in _SHAPE.findall(head)]
    if max(sizes, default=0) > most:
        raise InputError(f"announces {max(sizes):.3g} numbers and has {most} bytes", file=path)


def _of_poscar(head: bytes) -> int:
    """Atoms that a POSCAR announces; 0 for what is none: a comment, a scale, three vectors, then counts."""
    lines = head[: 1 << 16].splitlines()[:7]
    if len(lines) < 6 or not all(map(_is_vector, lines[2:5])):
        return 0
    counts = (list(takewhile(_COUNT.fullmatch, line.split())) for line in lines[5:7])  # a comment may follow
    return _sum(b" ".join(next(filter(None, counts), [])))


def _is_vector(line: bytes) -> bool:
    try:
        return len([float(word) for word in line.split()[:3]]) == 3
    except ValueError:
        return False


def _sum(text: bytes) -> int:
    return min(sum(_numbers(text)), _MOST)


def _numbers(text: bytes) -> list[int]:
    return [int(word.replace(b"_", b"")[:_MOST_DIGITS]) for word in text.split()]
