"""HDF5 files that group conformations by molecule: ANI-1x/ANI-1ccx, SPICE, and files laid out like them."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pimlip_zoo.datasets.electrons import ELECTRON_KEYS, electrons_of
from pimlip_zoo.datasets.frame import NO_CELL, OPEN, Frame
from pimlip_zoo.datasets.indices import whole_numbers
from pimlip_zoo.datasets.readers.file import ALL_FRAMES, Item
from pimlip_zoo.datasets.readers.labels import CELL_NAMES, LabelFinder
from pimlip_zoo.datasets.readers.spec import ReadOptions
from pimlip_zoo.datasets.readers.units import energy_unit, forces_unit, length_unit
from pimlip_zoo.errors import InputError, did_you_mean, reading
from pimlip_zoo.files import expansion_limit

log = logging.getLogger("pimlip_zoo")

_UNIT = (b"units", b"unit", b"Units", b"Unit")
"""Attributes by which a data set says its unit."""
_BLOCK = 1024
_DEEPEST = 50
"""Of groups in groups; walking through takes the square of it."""


@dataclass(frozen=True)
class _Layout:
    """Where a family of files keeps what, and in which units it does so by its own documentation."""

    numbers: tuple[str, ...]
    positions: tuple[str, ...]
    energy: tuple[str, ...]
    forces: tuple[str, ...]
    gradient: tuple[str, ...]
    energy_unit: str | None
    length_unit: str | None
    forces_unit: str | None = None


_ANI1X = _Layout(
    ("atomic_numbers",),
    ("coordinates",),
    ("wb97x_dz.energy",),
    ("wb97x_dz.forces",),
    (),
    "Hartree",
    "Å",
)
_SPICE = _Layout(
    ("atomic_numbers",),
    ("conformations",),
    ("dft_total_energy", "dft total energy"),
    (),
    ("dft_total_gradient", "dft total gradient"),
    "Hartree",
    "Bohr",
)
_OTHER = _Layout(
    ("atomic_numbers", "species", "numbers"),
    ("coordinates", "positions", "conformations"),
    ("energy", "energies"),
    ("forces", "force"),
    ("gradient", "gradients"),
    None,
    None,
)


@dataclass(frozen=True, slots=True)
class _Group:
    """One group of conformations."""

    name: str
    size: int
    members: frozenset[str]
    """What it holds, by name."""


class Hdf5File:
    """Groups of conformations; groups may be nested. NaN labels are missing ones, as in ANI-1x.

    A named energy of ANI-1x (``energy_key=ccsd(t)_cbs.energy``) brings the forces of the same level of
    theory and no others.
    """

    def __init__(self, path: str, options: ReadOptions) -> None:
        self.path = path
        self._said: set[str] = set()
        self._groups, names = self._scan()
        self._layout = _choose(names)
        if self._layout is None:
            raise InputError(
                "is of no known layout",
                file=path,
                hint=f"its groups hold {', '.join(sorted(names)[:12])}" if names else "it holds no groups",
            )
        self.finder = LabelFinder(
            options,
            file=path,
            energy=self._layout.energy_unit,
            length=self._layout.length_unit,
        )
        if periodic := sorted(name for name in names if name.lower() in CELL_NAMES):
            raise InputError(
                "says that its atoms are periodic; files of this kind are read as molecules",
                file=path,
                key=periodic[0],
                hint="write them with ASE as extxyz",
            )
        self._energy, self._forces, self._gradient = self._label_keys(options, names)
        labels = {self._energy, self._forces, self._gradient}
        read = {*self._layout.numbers, *self._layout.positions, *labels, "subset", "smiles"}
        self.finder.leave_out(*sorted(name for name in names - read if name.lower() not in ELECTRON_KEYS))
        self.finder.mark_found(options.energy_key, options.forces_key, options.gradient_key)

    def count(self) -> int:
        """Conformations of all groups."""
        return sum(group.size for group in self._groups)

    def read(self, window: range = ALL_FRAMES) -> Iterator[Item]:
        """Conformations of the window, group by group."""
        offset = 0
        with self._open() as file:
            for group in self._groups:
                if offset + group.size > window.start and offset < window.stop:
                    try:
                        yield from self._read_group(file, group, offset, window)
                    except InputError:
                        raise
                    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
                        raise InputError(
                            f"cannot be read: {error}", file=self.path, key=group.name
                        ) from error
                offset += group.size

    def _read_group(self, file: Any, group: _Group, offset: int, window: range) -> Iterator[Item]:
        assert self._layout is not None
        self._check_names(file, group)
        numbers = self._atomic_numbers(file, group)
        positions = _first(self._layout.positions, group.members)
        info = {"group": group.name, **_texts(file, group)}
        n = numbers.shape[-1]
        electrons = self._electrons(file, group)
        for start in range(0, group.size, _BLOCK):
            rows = range(start, min(start + _BLOCK, group.size))
            if offset + rows.stop <= window.start or offset + start >= window.stop:
                continue
            place = self._block(file, group, positions, rows, (len(rows), n, 3))
            assert place is not None
            place *= self.finder.length_unit
            block = {
                "energy": self._block(file, group, self._energy, rows, (len(rows),)),
                "forces": self._block(file, group, self._forces, rows, (len(rows), n, 3)),
                "gradient": self._block(file, group, self._gradient, rows, (len(rows), n, 3)),
            }
            energies, forces = self._labels(block, len(rows))
            for i, row in enumerate(rows):
                if offset + row in window:
                    of_row = numbers if numbers.ndim == 1 else numbers[row]
                    yield (
                        offset + row,
                        Frame(
                            of_row,
                            place[i],
                            NO_CELL,
                            OPEN,
                            energies[i],
                            forces[i],
                            info={**info, **self._stated(of_row, electrons, row, offset + row)},
                        ),
                    )

    def _check_names(self, file: Any, group: _Group) -> None:
        """Refuse two data sets for one thing that differ."""
        assert self._layout is not None
        asked, gradient = self.finder.options, self._layout.gradient
        choices = [(self._layout.positions, "")]
        if not asked.energy_key:
            choices.append((self._layout.energy, "energy"))
        if not (asked.forces_key or asked.gradient_key or asked.energy_key):
            choices.append(((*self._layout.forces, *gradient), "forces"))
        for names, option in choices:
            keys = [key for key in names if key in group.members]
            for key in keys[1:]:
                first, other = (_whole(_opened(file, group, name)) for name in (keys[0], key))
                if (key in gradient) != (keys[0] in gradient):
                    other = -other
                if not _alike(first, other):
                    hint = f"say which one: ?{option}_key=..." if option else "keep one of them"
                    raise self._differ(group, keys[0], key, hint)

    def _check_unit(self, data: Any, group: _Group, key: str) -> None:
        """Refuse a data set that says another unit than the one that it is read in."""
        said = _said_unit(data)
        if said is None:
            return
        assert self._layout is not None
        if key in self._layout.positions:
            unit, value = length_unit, self.finder.length_unit
        elif key == self._energy:
            unit, value = energy_unit, self.finder.energy_unit
        else:
            unit, value = forces_unit, self.finder.forces_unit
        try:
            taken = unit(said, file=self.path)
        except InputError:
            self._say_unknown(key, said)
            return
        if not math.isclose(taken, value, rel_tol=1e-6):
            raise InputError(
                f"says that its unit is {said}, which is not what it is read as",
                file=self.path,
                key=f"{group.name}/{key}",
                hint="name the units of the file: ?energy=...&length=...&forces=...",
            )

    def _say_unknown(self, key: str, unit: str) -> None:
        if key not in self._said:
            self._said.add(key)
            log.warning("%s: %s says that its unit is %r, which is not known", self.path, key, unit)

    def _electrons(self, file: Any, group: _Group) -> dict[str, NDArray[np.float64]]:
        """Charges and multiplicities of a group: one number for all of its conformations, or one for each."""
        found: dict[str, NDArray[np.float64]] = {}
        for name in sorted(group.members):
            key = ELECTRON_KEYS.get(name.lower())
            if key is None:
                continue
            data = _opened(file, group, name)
            size = math.prod(data.shape or ())
            if data.shape is None or size not in (1, group.size):
                raise InputError(f"has shape {data.shape}", file=self.path, key=f"{group.name}/{name}")
            values = np.broadcast_to(np.asarray(_whole(data), dtype=np.float64).reshape(-1), group.size)
            if key in found and not np.array_equal(found[key], values):
                raise InputError("two of its data sets disagree", file=self.path, key=f"{group.name}/{key}")
            found[key] = values
        return found

    def _stated(
        self, numbers: NDArray[np.int64], electrons: dict[str, NDArray[np.float64]], row: int, index: int
    ) -> dict[str, int]:
        if not electrons:
            return {}
        try:
            found = electrons_of(numbers, {key: values[row] for key, values in electrons.items()})
        except InputError as error:
            raise error.at(file=self.path, frame=index) from error
        return {key: getattr(found, key) for key in electrons}

    def _labels(
        self, block: dict[str, NDArray[np.float64] | None], size: int
    ) -> tuple[list[float | None], list[NDArray[np.float64] | None]]:
        """Energies and forces in eV and eV/Å; None where a structure has none, which these files mark by NaN."""
        energies: list[float | None] = [None] * size
        forces: list[NDArray[np.float64] | None] = [None] * size
        if (energy := block["energy"]) is not None:
            energies = [None if e != e else e for e in (energy * self.finder.energy_unit).tolist()]  # noqa: PLR0124
        sign, values = (-1.0, block["gradient"]) if block["gradient"] is not None else (1.0, block["forces"])
        if values is not None:
            values = sign * self.finder.forces_unit * values
            unknown = np.isnan(values).reshape(size, -1).sum(axis=1) == values[0].size
            forces = [None if gone else force for force, gone in zip(values, unknown, strict=True)]
        return energies, forces

    def _block(
        self, file: Any, group: _Group, key: str | None, rows: range, shape: tuple[int, ...]
    ) -> NDArray[np.float64] | None:
        """Some rows of a data set in double precision, None where the group has no such data set."""
        if key is None or key not in group.members:
            return None
        data = _opened(file, group, key)
        of_one = shape[1:]
        forms = (of_one, (math.prod(of_one),))  # of one row: as it is, or flat
        if data.shape is None or data.shape[:1] != (group.size,) or data.shape[1:] not in forms:
            raise InputError(
                f"has shape {data.shape}, expected {(group.size, *of_one)}",
                file=self.path,
                key=f"{group.name}/{key}",
            )
        if data.dtype.kind not in "iuf":
            raise InputError(f"holds no numbers but {data.dtype}", file=self.path, key=f"{group.name}/{key}")
        self._check_unit(data, group, key)
        values = _rows(data, rows) if len(rows) < group.size else _whole(data)
        self.finder.say_half(key, values.dtype)
        return np.asarray(values, dtype=np.float64).reshape(shape)

    def _atomic_numbers(self, file: Any, group: _Group) -> NDArray[np.int64]:
        """(N,), or (M, N) for each conformation of its own."""
        assert self._layout is not None
        keys = [key for key in self._layout.numbers if key in group.members]
        if not keys:
            raise InputError("has no atomic numbers", file=self.path, key=group.name)
        found = [self._numbers_in(file, group, key) for key in keys]
        for key, other in zip(keys[1:], found[1:], strict=True):
            if not np.array_equal(found[0], other):
                raise self._differ(group, keys[0], key)
        return found[0]

    def _differ(self, group: _Group, first: str, other: str, hint: str = "keep one of them") -> InputError:
        return InputError(
            f"holds {first} and {other}, which differ", file=self.path, key=group.name, hint=hint
        )

    def _numbers_in(self, file: Any, group: _Group, key: str) -> NDArray[np.int64]:
        from ase.data import atomic_numbers

        data = _opened(file, group, key)
        shape = tuple(data.shape or ())
        if len(shape) not in (1, 2) or not shape[-1] or (len(shape) == 2 and shape[0] != group.size):
            raise InputError(f"has shape {shape}", file=self.path, key=f"{group.name}/{key}")
        values = _whole(data)
        if values.dtype.kind in "iuf":
            return whole_numbers(values, "atomic number", file=self.path, key=group.name)
        try:
            symbols = [v.decode() if isinstance(v, bytes) else str(v) for v in values.reshape(-1)]
            return np.array([atomic_numbers[s] for s in symbols]).reshape(values.shape)
        except KeyError as error:
            raise InputError(f"{error.args[0]!r} is no element", file=self.path, key=group.name) from error

    def _label_keys(self, options: ReadOptions, names: set[str]) -> tuple[str | None, str | None, str | None]:
        assert self._layout is not None
        for option in ("energy_key", "forces_key", "gradient_key"):
            key = getattr(options, option)
            if key is not None and key not in names:
                raise InputError(
                    f"no group has {key!r}", file=self.path, key=option, hint=did_you_mean(key, names)
                )
        energy = options.energy_key or _first(self._layout.energy, names)
        forces = options.forces_key
        gradient = options.gradient_key
        if options.energy_key and not forces and not gradient:
            same_level = options.energy_key.replace("energy", "forces")
            return energy, same_level if same_level in names else None, None
        if not gradient and not forces:
            forces = _first(self._layout.forces, names)
            gradient = None if forces else _first(self._layout.gradient, names)
        return energy, forces, gradient

    def _scan(self) -> tuple[list[_Group], set[str]]:
        """Groups of conformations, and the names of all that groups hold."""
        positions = {*_ANI1X.positions, *_SPICE.positions, *_OTHER.positions}
        held: dict[str, set[str]] = {}  # of each group; names are cheap to list, objects are not to open
        groups: list[_Group] = []
        names: set[str] = set()

        def visit(path: bytes, link: Any) -> InputError | None:  # h5py does not pass on what is raised here
            where = path.decode(errors="surrogateescape")
            if link.type == h5l.TYPE_EXTERNAL:
                return InputError(
                    "is a link to another file, which is not read",
                    file=self.path,
                    key=where,
                    hint="read that file, or copy what it holds into this one",
                )
            if where.count("/") > _DEEPEST:
                return InputError(f"has groups in groups, more than {_DEEPEST}", file=self.path)
            parent, _, name = where.rpartition("/")
            held.setdefault(parent or "/", set()).add(name)
            return None

        with reading(self.path), self._open() as file:
            from h5py import Dataset, h5l  # it is there: the file is open

            # Names of links, not of objects: groups may share a data set.
            if (refused := file.id.links.visit(visit, info=True)) is not None:
                raise refused
            for group, members in held.items():
                key = _first(tuple(sorted(positions & members)), members)
                found = None if key is None else file[f"{group}/{key}"]
                if isinstance(found, Dataset):
                    names.update(members)
                    groups.append(_Group(group, len(found), frozenset(members)))
        return groups, names

    def _open(self) -> Any:
        try:
            import h5py
        except ImportError as error:
            raise InputError("needs h5py", file=self.path, hint="pip install 'pimlip-zoo[hdf5]'") from error
        try:
            return h5py.File(self.path, "r")
        except OSError as error:
            raise InputError(f"cannot be opened: {error}", file=self.path) from error


def _choose(names: set[str]) -> _Layout | None:
    if "conformations" in names and ("dft_total_energy" in names or "dft total energy" in names):
        return _SPICE
    if "coordinates" in names and "wb97x_dz.energy" in names:
        return _ANI1X
    if _first(_OTHER.positions, names) and _first(_OTHER.numbers, names):
        return _OTHER
    return None


def _first(candidates: tuple[str, ...], held: Any) -> Any:
    return next((name for name in candidates if name in held), None)


def _texts(file: Any, group: _Group) -> dict[str, str]:
    """SPICE says of each group which subset it belongs to and its SMILES."""
    texts = {}
    for key in group.members & {"subset", "smiles"}:
        data = _opened(file, group, key)
        if data.shape is None or math.prod(data.shape) > 1:
            continue
        value = _whole(data).reshape(-1)
        text = value[0].decode() if len(value) and isinstance(value[0], bytes) else ""
        if text and len(text) <= 256:
            texts[key] = text
    return texts


# Files of this kind hold thousands of small data sets; h5py's own objects take longer to make than the data to read.


def _opened(file: Any, group: _Group, key: str) -> Any:
    from h5py import h5d

    data = h5d.open(file.id, f"{group.name}/{key}".encode())
    made = data.get_create_plist()
    if made.get_external_count() or made.get_layout() == h5d.VIRTUAL:
        raise InputError("its numbers are in another file", file=file.filename, key=f"{group.name}/{key}")
    if math.prod(data.shape or ()) * data.dtype.itemsize > expansion_limit(file.filename):
        raise InputError(
            f"claims an array of the shape {data.shape}, which the file is too small for",
            file=file.filename,
            key=f"{group.name}/{key}",
        )
    return data


def _said_unit(data: Any) -> str | None:
    """What a data set says of its unit; None where it says nothing."""
    from h5py import h5a

    if not h5a.get_num_attrs(data):
        return None
    name = next((name for name in _UNIT if h5a.exists(data, name)), None)
    if name is None:
        return None
    attribute = h5a.open(data, name)
    if attribute.shape is None or math.prod(attribute.shape) != 1:
        return None
    value = np.empty(attribute.shape, attribute.dtype)
    attribute.read(value)
    text = value.reshape(-1)[0]
    said = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
    return said.strip() or None


def _alike(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Whether two data sets hold the same numbers, in whatever precision, or missing ones."""
    return one.size == other.size and np.allclose(
        one.reshape(-1), other.reshape(-1), rtol=1e-6, atol=1e-6, equal_nan=True
    )


def _whole(data: Any) -> NDArray[Any]:
    from h5py import h5s

    values = np.empty(data.shape, data.dtype)
    data.read(h5s.ALL, h5s.ALL, values)
    return values


def _rows(data: Any, rows: range) -> NDArray[Any]:
    from h5py import h5s

    shape = (len(rows), *data.shape[1:])
    values = np.empty(shape, data.dtype)
    there = data.get_space()
    there.select_hyperslab((rows.start, *(0 for _ in shape[1:])), shape)
    data.read(h5s.create_simple(shape), there, values)
    return values
