"""Extended XYZ (and plain XYZ), frame by frame without holding the file.

The header line is ASE's business; the table of atoms is cut by number of atoms and parsed column-wise,
which is several times faster than atom by atom.
"""

from __future__ import annotations

import logging
import lzma
import re
import zlib
from collections import Counter, deque
from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.readers.file import ALL_FRAMES, Item, item_of
from pimlip_zoo.datasets.readers.labels import LabelFinder
from pimlip_zoo.datasets.readers.scan import OPENERS
from pimlip_zoo.datasets.readers.spec import ReadOptions
from pimlip_zoo.datasets.readers.stated_units import check_units
from pimlip_zoo.datasets.readers.units import energy_unit
from pimlip_zoo.errors import InputError, reason_of
from pimlip_zoo.files import expansion_limit

log = logging.getLogger("pimlip_zoo")

_MAX_ATOMS = 100_000_000
_ELEMENTS = ("species", "Z", "numbers", "atomic_numbers")
_GEOMETRY = {"pos", *_ELEMENTS}
_OTHER_GEOMETRY = {"positions", *(name.lower() for name in _GEOMETRY)}
"""Names in other letters, which might be meant for it."""
_PLAIN = (("species", "S", 1), ("pos", "R", 3))
"""Columns of a file that does not name them."""
_OTHER_CELL = re.compile(r"(?i)(?!super)[a-z_-]*(?:cell|latt?ice|box)[a-z_-]*|abc|tv[_-]?\d?|h0")
"""Names that a cell may have, such as unit_cell, box_size, simulation_cell, cellpar, LatticeVectors, TV_1."""
_LENGTHS_AND_ANGLES = ("a", "b", "c", "alpha", "beta", "gamma")
_SEEMS_OTHER_CELL = re.compile(
    rb"(?i)cell|lattice[\w-]|latice|box|abc|alpha|(?<!\w)(?:tv|h0)|(?<!\w)c[\"']?\s*=\s*[\"'{\[]"
)
"""In a header that may have a cell under another name."""
_SEEMS_UNITS = re.compile(rb"(?i)units?|\w\{")
"""In a header that may state units."""
_UNDERSCORE = re.compile(rb"\d_\d")
_UNDERSCORED = re.compile(r"[-+\d.eE]*\d_\d[\d_.eE+-]*")
"""A number for Python, and a mistake in a file."""
_VALUE = re.compile(r"""([^\s="'{]+)["']?\s*=\s*["'{\[]?(?:[-+\d.eE]+[\s,]+)*([-+\d.eE]*\d_\d[\d_.eE+-]*)""")
"""A key with such a number."""
_SPELLED = {"lattice": "Lattice", "properties": "Properties", "pbc": "pbc"}
_OURS = re.compile(rb"(?i)(?<!\w)(%s)[\"']?\s*=" % "|".join(_SPELLED).encode())
_USUAL = {name.encode() for name in _SPELLED.values()}
_PBC = re.compile(rb"pbc=(?:\"[TF] [TF] [TF]\"|[TF])(?!\S)")
_CLOSING = {'"': re.compile(r'(?:[^"\\]|\\.)*"', re.DOTALL), "'": re.compile(r"(?:[^'\\]|\\.)*'", re.DOTALL)}
_PROPERTIES, _WIDTH = re.compile(rb"(?i:Properties)\s*=\s*[\"']?(\S+)"), re.compile(rb":[A-Z]:\+?([\d_]+)")
_MOST_DIGITS = 40
_COUNT = re.compile(rb"\s*\+?\d+\s*")
_WORD = re.compile(r"""[^\s="'{\[]+""")
_SMALL, _PART = 1 << 24, 1 << 20
_LONGEST_NUMBER, _LONGEST_COMMENT, _LONGEST_ROW = 1 << 12, 1 << 24, 1 << 20
"""Bytes of a line; what is longer has no line feeds, and would be read into memory as a whole."""


class ExtxyzFile:
    """An XYZ file with labels in its header lines and columns."""

    def __init__(self, path: str, options: ReadOptions) -> None:
        self.path = path
        self.finder = LabelFinder(options, file=path)
        self._checked_expansion = False

    def count(self) -> int:
        """Frames in the file; only the lines with numbers of atoms are looked at."""
        return self.starts(1 << 62)[0]

    def check(self) -> None:
        """Whether frames have the lines that they announce, columns that fit, lengths in Å, no cell of other names.

        Raises:
            InputError: naming the frame.
        """
        packed = Path(self.path).suffix.lower() in OPENERS
        most = expansion_limit(self.path) if packed else Path(self.path).stat().st_size
        for index, _, comment, _ in self._cut(range(0), (0, 0)):
            for properties in _PROPERTIES.findall(comment):
                counts = (count.replace(b"_", b"")[:_MOST_DIGITS] for count in _WIDTH.findall(properties))
                columns = sum(int(count or 0) for count in counts)
                if columns > most:
                    raise InputError(f"announces {columns:.3g} columns", file=self.path, frame=index)
            names = _OURS.findall(comment)
            usual = len(names) == len(set(names)) and _USUAL.issuperset(names)
            odd = not usual or (b"pbc" in names and _PBC.search(comment) is None)
            if odd or _SEEMS_OTHER_CELL.search(comment) or _SEEMS_UNITS.search(comment):
                self._check_cell(index, comment)

    def _check_cell(self, index: int, comment: bytes) -> None:
        """As for data, for those who read the file with ASE."""
        try:
            info, _ = _header(comment.decode())
            if "Lattice" not in info and np.any(info.get("pbc", True)):
                _refuse_other_cell(info)
            if "pbc" in info:
                _check_periodic(info["pbc"])
            check_units(info, self.finder, comment=comment.decode(), lengths_only=True)
        except InputError as error:
            raise error.at(file=self.path, frame=index) from error
        except ValueError:
            return  # ASE says what is wrong with it

    def starts(self, every: int) -> tuple[int, list[tuple[int, int]]]:
        """The number of frames, and (frame, byte) where frames 0, every, 2 every, ... start."""
        count, places = 0, []
        for index, place, _, _ in self._cut(range(0), (0, 0)):
            if index % every == 0:
                places.append((index, place))
            count = index + 1
        return count, places

    def read(self, window: range = ALL_FRAMES, hint: tuple[int, int] | None = None) -> Iterator[Item]:
        """Frames of the window.

        Args:
            window: their indices.
            hint: a frame at or before the first one, and the byte where it starts.

        Raises:
            InputError: where a frame is cut off or its number of atoms is unreadable: what follows cannot
                be told apart.
        """
        for index, _, comment, rows in self._cut(window, hint or (0, 0)):
            if index in window:
                yield item_of(self.path, index, self._frame, index, comment, rows)

    def _cut(self, window: range, hint: tuple[int, int]) -> Iterator[tuple[int, int, bytes, list[bytes]]]:
        """Index, place, header line, atom lines; lines of frames outside the window are not kept."""
        last = window[-1] if window else None
        index, place = hint
        line_number = 0
        before: list[bytes] = []
        with self._open() as file:
            try:
                file.seek(place)
                while header := file.readline(_LONGEST_NUMBER):
                    line_number += 1
                    start, place = place, place + len(header)
                    if not header.strip():
                        continue
                    n = self._natoms(header, index, line_number)
                    comment = self._checked(file.readline(_LONGEST_COMMENT), _LONGEST_COMMENT, index)
                    lines = islice(iter(partial(file.readline, _LONGEST_ROW), b""), n)
                    rows = list(lines) if index in window else None
                    found, end = _last(lines) if rows is None else (len(rows), rows[-3:])
                    last_row = end[-1] if end else b""
                    if rows:
                        self._checked(max(rows, key=len), _LONGEST_ROW, index)
                    if n and (found < n or not last_row.strip()):
                        raise InputError(
                            f"is cut off: {n} atoms are announced, the lines end before",
                            file=self.path,
                            frame=index,
                        )
                    before = [*before, *end][-3:]
                    if _seems_cut(before):
                        log.warning(
                            "%s: frame %d ends without a new line, in a row that is shorter than those before it: is "
                            "its last number complete?",
                            *(self.path, index),
                        )
                    line_number += n + 1
                    place = file.tell()
                    yield index, start, comment, rows or []
                    if last is not None and index >= last:
                        return
                    index += 1
            except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
                raise InputError(
                    f"cannot be read: {reason_of(error)}", file=self.path, frame=index
                ) from error

    def _checked(self, line: bytes, longest: int, index: int) -> bytes:
        if len(line) == longest and not line.endswith(b"\n"):
            raise InputError(f"has a line of more than {longest} bytes", file=self.path, frame=index)
        return line

    def _natoms(self, header: bytes, index: int, line_number: int) -> int:
        n = int(header) if _COUNT.fullmatch(header) else -1
        if not 0 <= n <= _MAX_ATOMS:
            text = header.strip()[:40].decode(errors="replace")
            if "\0" in text:
                raise InputError(
                    "is a binary file, no extended XYZ",
                    file=self.path,
                    hint="name its format: ?format=lmdb, or rename it",
                )
            raise InputError(
                f"line {line_number} should be a number of atoms, it is {text!r}",
                file=self.path,
                frame=index,
            )
        return n

    def _frame(self, index: int, comment: bytes, rows: list[bytes]) -> Frame:
        info, columns = _header(comment.decode())
        table = _Table([row.decode() for row in rows], columns or _PLAIN, announced=columns is not None)
        cell = info.pop("Lattice", None)
        pbc = info.pop("pbc", None)
        if cell is None and (pbc is None or np.any(pbc)):
            _refuse_other_cell(info)
        if pbc is None:
            pbc = [cell is not None] * 3
        else:
            _check_periodic(pbc)
        check_units(info, self.finder, comment=comment.decode())
        self._refuse_units(info)
        self._refuse_underscores(index, comment)
        if cell is not None and np.shape(cell) != (3, 3):
            raise InputError("is not nine numbers", file=self.path, frame=index, key="Lattice")
        if "pos" not in table.names:
            raise InputError("has no positions", file=self.path, frame=index, key="Properties")
        if not table.is_number("pos"):
            raise InputError(
                "has positions that are no numbers", file=self.path, frame=index, key="Properties"
            )
        for name in table.names:
            if name not in _GEOMETRY and name.lower() in _OTHER_GEOMETRY:
                raise InputError(f"has a column {name} beside its geometry", file=self.path, frame=index)
            if not table.is_number(name) and self.finder.is_label(name):
                raise InputError("is no column of numbers", file=self.path, frame=index, key=name)
        arrays = {
            name: table.floats(name)
            for name in table.names
            if table.is_number(name) and name not in _GEOMETRY
        }
        numbers = _numbers(table)
        _check_types(table, numbers, comment.decode())
        return self.finder.frame(
            numbers,
            table.floats("pos"),
            None if cell is None else np.asarray(cell).T,
            pbc,
            [("info", info), ("arrays", arrays)],
            index=index,
            also=[name for name in table.names if name not in arrays and name not in _GEOMETRY]
            + ["columns without a name"] * table.has_more,
        )

    def _refuse_units(self, info: dict[str, Any]) -> None:
        """A unit behind a number without quotes is a word of its own, which would change nothing."""
        for key, value in info.items():
            said = _energy(key) if value is True else None
            if said is not None and not np.isclose(said, self.finder.energy_unit, rtol=1e-6, atol=0.0):
                raise InputError(
                    f"the header says {key} by itself",
                    key=key,
                    hint=f"name units as in {self.path}?energy={key}",
                )

    def _refuse_underscores(self, index: int, comment: bytes) -> None:
        """In the numbers of cells and labels, which Python would take."""
        for key, text in _VALUE.findall(comment.decode()) if _UNDERSCORE.search(comment) else ():
            if key == "Lattice" or self.finder.is_label(key):
                raise InputError(f"{text} is no number", file=self.path, frame=index, key=key)

    def _open(self) -> IO[bytes]:
        opener: Any = OPENERS.get(Path(self.path).suffix.lower(), open)
        if opener is not open and not self._checked_expansion:
            check_expansion(self.path)
            self._checked_expansion = True
        try:
            file: IO[bytes] = opener(self.path, "rb")
        except OSError as error:
            raise InputError(f"cannot be opened: {error.strerror or error}", file=self.path) from error
        return file


def check_expansion(path: str | Path) -> None:
    """Decompress a small file to see whether it is about as large as it looks; a large one costs what it costs.

    Raises:
        InputError: when it is not, or cannot be decompressed.
    """
    path = Path(path)
    if path.stat().st_size > _SMALL:
        return
    limit = room = expansion_limit(path)
    opener: Any = OPENERS[path.suffix.lower()]
    try:
        with opener(path, "rb") as file:
            while room >= 0 and (part := file.read(_PART)):
                room -= len(part)
    except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        raise InputError(f"cannot be read: {reason_of(error)}", file=path) from error
    if room < 0:
        raise InputError(
            f"holds more than {limit} bytes in {path.stat().st_size}, which structures do not",
            file=path,
            hint="decompress it first if it is what you think",
        )


class _Table:
    """The atoms' lines as columns."""

    def __init__(
        self, rows: list[str], columns: tuple[tuple[str, str, int], ...], *, announced: bool
    ) -> None:
        self.names = [name for name, _, _ in columns]
        self._at: dict[str, tuple[str, int, int]] = {}
        width = 0
        for name, kind, count in columns:
            self._at[name] = (kind, width, width + count)
            width += count
        words = [row.split() for row in rows]
        self.has_more = False
        """Whether rows go on behind what a plain file has for certain."""
        for atom, row in enumerate(words):
            if len(row) < width or (announced and len(row) > width):
                raise InputError(f"atom {atom} has {len(row)} columns, expected {width}")
            self.has_more = self.has_more or len(row) > width
        self._words = words
        self._odd = any("_" in row for row in rows)

    def is_number(self, name: str) -> bool:
        return self._at[name][0] in "RI"

    def texts(self, name: str) -> list[str]:
        at = self._at[name][1]
        return [row[at] for row in self._words]

    def floats(self, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        _, start, stop = self._at[name]
        flat = [word for row in self._words for word in row[start:stop]]
        if self._odd and (odd := next(filter(_UNDERSCORED.fullmatch, flat), None)) is not None:
            raise InputError(f"{odd} is no number", key=name)
        try:
            values = np.array(flat, dtype=np.float64)
        except ValueError as error:
            raise InputError(f"{error}", key=name) from error
        return values if stop - start == 1 else values.reshape(len(self._words), stop - start)


@lru_cache(maxsize=256)
def _energy(name: str) -> float | None:
    """How many eV a unit of energy is; None for any other word."""
    try:
        return energy_unit(name)
    except InputError:
        return None


def _refuse_other_cell(info: dict[str, Any]) -> None:
    """A cell under another name would be passed over, and a crystal be a cluster."""
    hint = 'write Lattice="...", or pbc="F F F"'
    for key, value in info.items():
        if key.startswith("CELL("):  # of i-PI, which puts its numbers behind it
            raise InputError(f"the header says {key.strip(':')}", key="CELL", hint=hint)
        if not _OTHER_CELL.fullmatch(key):
            continue
        numbers = _only_numbers(value)
        if numbers is not None and len(numbers) in (3, 6, 9) and any(numbers):  # a box of zeros is none
            raise InputError(f"the header says {key}", key=key, hint=hint)
    lengths = {key.lower() for key in info if _only_numbers(info[key]) is not None}
    if lengths.issuperset(_LENGTHS_AND_ANGLES):
        raise InputError("the header says a, b, c, alpha, beta and gamma", key="a", hint=hint)
    vectors = {key.lower() for key, value in info.items() if len(_only_numbers(value) or ()) == 3}
    if vectors.issuperset("abc"):
        raise InputError("the header says a, b and c", key="a", hint=hint)


def _only_numbers(value: Any) -> list[float] | None:
    """The numbers of a value, be it a text with brackets and commas; None where there is anything else."""
    if isinstance(value, str):
        words = re.sub(r"[\[\](){},;]", " ", value).split()
    elif np.asarray(value).dtype.kind in "if":
        words = np.ravel(value).tolist()
    else:
        return None
    try:
        return [float(word) for word in words]
    except ValueError:
        return None


def _check_periodic(pbc: Any) -> None:
    if not set(np.ravel(pbc).tolist()) <= {True, False}:
        raise InputError("is not made of T and F", key="pbc")


def _header(comment: str) -> tuple[dict[str, Any], tuple[tuple[str, str, int], ...] | None]:
    """What stands in the header, and the columns if it names them."""
    from ase.io.extxyz import key_val_str_to_dict

    comment = comment.strip()
    for key, count in Counter(_keys(comment)).items():
        usual = _SPELLED.get(key.lower(), key)
        if key != usual:
            raise InputError(f"the header says {key}", key=key, hint=f"write {usual}")
        if count > 1:
            raise InputError("stands twice in the header", key=key, hint="keep one of them")
    info = key_val_str_to_dict(comment) if comment else {}
    properties = info.pop("Properties", None)
    return info, None if properties is None else _columns(properties)


def _keys(comment: str) -> Iterator[str]:
    """What stands before the equals signs of a header, without its quotes; values are passed over."""
    place, word, before, in_value, begun = 0, "", "", False, False
    while place < len(comment):
        letter = comment[place]
        if letter.isspace():
            if in_value:
                in_value = not begun
            elif word:
                before, word = word, ""
            place += 1
            continue
        if letter == "=" and not in_value:
            yield word or before
            word, before, in_value, begun = "", "", True, False
            place += 1
            continue
        text, place = _piece(comment, place, listed=in_value and not begun)
        if in_value:
            begun = True
        else:
            word += text


def _piece(comment: str, place: int, *, listed: bool) -> tuple[str, int]:
    """A quoted text without its quotes, a list in braces, or letters up to the next of these; and where it ends.

    What is not closed ends with the header.
    """
    letter = comment[place]
    if letter in _CLOSING:
        found = _CLOSING[letter].match(comment, place + 1)
        return ("", len(comment)) if found is None else (found[0][:-1], found.end())
    if letter in "{[" and listed:
        end = comment.find("}" if letter == "{" else "]", place)
        return "", len(comment) if end < 0 else end + 1
    run = _WORD.match(comment, place)
    return (letter, place + 1) if run is None else (run[0], run.end())


@lru_cache(maxsize=64)
def _columns(properties: str) -> tuple[tuple[str, str, int], ...]:
    fields = properties.split(":")
    if len(fields) % 3:
        raise InputError(f"{properties!r} is not name:type:columns", key="Properties")
    columns = tuple((fields[i], fields[i + 1], int(fields[i + 2])) for i in range(0, len(fields), 3))
    if any(kind not in "RISL" or count < 1 for _, kind, count in columns):
        raise InputError(f"{properties!r} has a column of unknown type", key="Properties")
    for name, count in Counter(name for name, _, _ in columns).items():
        if count > 1:
            raise InputError(f"names the column {name} twice", key="Properties", hint="keep one of them")
    return columns


def _numbers(table: _Table) -> np.ndarray[Any, np.dtype[np.int64]]:
    from ase.data import atomic_numbers

    found: list[tuple[str, np.ndarray[Any, np.dtype[np.int64]]]] = []
    for name in _ELEMENTS:
        if name not in table.names:
            continue
        texts = table.texts(name)
        try:
            values = np.array([int(t) if t.isdigit() else atomic_numbers[t.capitalize()] for t in texts])
        except KeyError as error:
            raise InputError(f"{error.args[0]!r} is no element", key=name) from error
        found.append((name, values))
    if not found:
        raise InputError("has neither species nor Z", key="Properties")
    for name, values in found[1:]:
        if (values != found[0][1]).any():
            raise InputError(f"{found[0][0]} and {name} are of different elements", key="Properties")
    return found[0][1]


def _check_types(table: _Table, numbers: np.ndarray[Any, np.dtype[np.int64]], comment: str) -> None:
    """Refuse atom types of LAMMPS in the place of elements: 1, 2, ... in a file that names no column of atomic numbers.

    Raises:
        InputError: for these.
    """
    if not len(numbers) or not all(
        table.texts(name)[0].isdigit() for name in _ELEMENTS if name in table.names
    ):
        return
    if any(name != "species" for name in _ELEMENTS if name in table.names):
        return
    kinds = set(numbers.tolist())
    in_turn = len(kinds) > 1 and kinds == set(range(1, len(kinds) + 1))
    if in_turn or comment.lstrip().startswith("Atoms"):
        raise InputError(
            "has numbers in the place of elements, which look like atom types of LAMMPS",
            key="species",
            hint="write symbols (dump_modify ... element), or a column Z:I:1 of atomic numbers",
        )


def _last(lines: Iterator[bytes]) -> tuple[int, list[bytes]]:
    """How many there are, and the last three."""
    count, end = 0, deque[bytes](maxlen=3)
    for count, line in enumerate(lines, 1):  # noqa: B007
        end.append(line)
    return count, list(end)


def _seems_cut(rows: list[bytes]) -> bool:
    """Whether rows of one width end in one that is shorter and has no end of line."""
    *before, last = rows or [b""]
    widths = {len(row.rstrip(b"\r\n")) for row in before}
    return (
        len(before) > 1
        and len(widths) == 1
        and not last.endswith(b"\n")
        and len(last.rstrip()) < widths.pop()
    )
