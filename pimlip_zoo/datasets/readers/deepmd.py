"""DeePMD-kit's folders of NumPy files.

``type.raw`` and ``type_map.raw``, then ``coord``, ``box``, ``energy``, ``force``, ``virial`` in ``set.*``. In the mixed
format each frame has types of its own, ``real_atom_types``, padded with virtual atoms of type -1, which are no atoms.

A folder that lacks one of these files may be a copy that was interrupted: it is refused, not passed over.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.indices import whole_numbers
from pimlip_zoo.datasets.readers.file import ALL_FRAMES, Item, item_of
from pimlip_zoo.datasets.readers.labels import LabelFinder
from pimlip_zoo.datasets.readers.numpy_file import load_npy
from pimlip_zoo.datasets.readers.spec import ReadOptions
from pimlip_zoo.errors import InputError, reading
from pimlip_zoo.files import read_text, regular_file

_VIRTUAL = -1
_OF_FRAMES = "real_atom_types.npy"
"""Types of each frame's atoms; all sets of a system have them, or none."""
_READ = {"coord", "box", "energy", "force", "virial", "real_atom_types"}


class DeepmdFolder:
    """A system folder, or a folder that has system folders below it.

    The format's units are eV and Å; its virial is -dE/dε in eV.
    """

    def __init__(self, path: str, options: ReadOptions) -> None:
        self.path = path
        self.finder = LabelFinder(options, file=path)
        self._systems = _find_systems(Path(path))
        self._type_map = options.species.split("+") if options.species else None

    def count(self) -> int:
        """Frames of all systems and sets."""
        return sum(len(load_npy(part / "coord.npy", mapped=True)) for s in self._systems for part in _sets(s))

    def read(self, window: range = ALL_FRAMES) -> Iterator[Item]:
        """Frames of the window, system by system."""
        offset = 0
        for system in self._systems:
            table = self._table(system)
            types = self._types(system, len(table))
            periodic = not (system / "nopbc").exists()
            for folder in _sets(system):
                m = len(load_npy(folder / "coord.npy", mapped=True))
                if offset + m > window.start and offset < window.stop:
                    yield from self._read_set(folder, table, types, periodic, offset, window)
                offset += m

    def _read_set(
        self,
        folder: Path,
        table: NDArray[np.int64],
        types: NDArray[np.int64],
        periodic: bool,
        offset: int,
        window: range,
    ) -> Iterator[Item]:
        m, n = len(load_npy(folder / "coord.npy", mapped=True)), len(types)
        mixed = folder / _OF_FRAMES
        of_frames = self._shaped(mixed, (m, n)) if os.path.lexists(mixed) else None
        data = {
            key: self._shaped(folder / f"{key}.npy", (m, *shape))
            for key, shape in (("box", (3, 3)), ("energy", ()), ("force", (n, 3)), ("virial", (3, 3)))
            if os.path.lexists(folder / f"{key}.npy")  # a link to nowhere is refused, not taken for no label
        }
        others = [path.stem for path in folder.glob("*.npy") if path.stem not in _READ]
        if periodic and "box" not in data:
            raise InputError("has no box.npy", file=folder, hint="a file nopbc beside type.raw says open")
        positions = self._shaped(folder / "coord.npy", (m, n, 3))

        def frame(i: int) -> Frame:
            of_atoms = types if of_frames is None else _checked_types(of_frames[i], len(table), mixed, i)
            real = of_atoms != _VIRTUAL
            labels: dict[str, Any] = {
                key: data[key][i] for key in ("energy", "force", "virial") if key in data
            }
            if "force" in labels:
                labels["force"] = labels["force"][real]
            return self.finder.frame(
                table[of_atoms[real]],
                positions[i][real],
                data["box"][i] if periodic else None,
                periodic,
                [("npy", labels)],
                index=offset + i,
                also=others,
            )

        for i in range(m):
            if offset + i in window:
                yield item_of(self.path, offset + i, frame, i)

    def _shaped(self, path: Path, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Numbers of frames, which the first axis counts; the others may be flat."""
        array = load_npy(path)
        if array.dtype.kind not in "biuf":
            raise InputError(f"holds no numbers but {array.dtype}", file=path)
        if array.size != int(np.prod(shape)) or array.shape[:1] != shape[:1]:
            raise InputError(f"has shape {array.shape}, expected {shape}", file=path)
        self.finder.say_half(path.name, array.dtype)
        return np.asarray(array, dtype=np.float64).reshape(shape)

    def _types(self, system: Path, count: int) -> NDArray[np.int64]:
        if not read_text(system / "type.raw").strip():
            raise InputError("names no atoms", file=system / "type.raw")
        with reading(system / "type.raw"):
            types = np.loadtxt(regular_file(system / "type.raw"), dtype=np.int64, ndmin=1)
        return _checked_types(types.reshape(-1), count, system / "type.raw", None)

    def _table(self, system: Path) -> NDArray[np.int64]:
        from ase.data import atomic_numbers

        map_file = system / "type_map.raw"
        symbols = read_text(map_file).split() if map_file.exists() else None
        if (given := self._type_map) is not None:
            # Names such as OW and HW say no elements; those that do have to be the ones that were given.
            known = symbols is not None and all(symbol in atomic_numbers for symbol in symbols)
            if symbols is not None and known and any(a != b for a, b in zip(symbols, given, strict=False)):
                raise InputError(
                    f"says {' '.join(symbols)}, ?species= says {' '.join(given)}",
                    file=map_file,
                    key="species",
                    hint="leave ?species= out, or correct the file",
                )
            symbols = given
        if symbols is None:
            raise InputError(
                "does not say which elements its types are",
                file=system,
                key="species",
                hint="name them in order, as in ?species=O+H",
            )
        try:
            return np.array([atomic_numbers[symbol] for symbol in symbols])
        except KeyError as error:
            raise InputError(f"{error.args[0]!r} is no element", file=system, key="species") from error


def _checked_types(types: NDArray[Any], count: int, file: Path, frame: int | None) -> NDArray[np.int64]:
    """Indices into the table of elements, -1 for virtual atoms."""
    return whole_numbers(types, "type", least=_VIRTUAL, count=count, file=file, frame=frame)


def _find_systems(path: Path) -> list[Path]:
    """Folders with a ``type.raw``, at any depth, behind links, too.

    Raises:
        InputError: when there is none, or sets lie in a folder that has none.
    """
    systems, seen = [], set()
    for folder, inside, files in os.walk(path, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:  # a link to a folder above has no end
            inside.clear()
            continue
        seen.add(real)
        if "type.raw" in files:
            systems.append(Path(folder))
            continue
        for name in sorted(name for name in inside if name.startswith("set.")):
            if any((Path(folder) / name).glob("*.npy")):
                raise InputError(f"has {name} and no type.raw", file=folder, hint="is it complete?")
    if not systems:
        raise InputError("has no type.raw", file=path)
    return sorted(systems)


def _sets(system: Path) -> list[Path]:
    found = sorted(folder for folder in system.glob("set.*") if folder.is_dir())
    if not found:
        raise InputError("has no set.*/coord.npy", file=system)
    for folder in found:
        if not (folder / "coord.npy").exists():
            raise InputError(
                "has no coord.npy", file=folder, hint="is it complete? remove it if it is not meant"
            )
    mixed = [os.path.lexists(folder / _OF_FRAMES) for folder in found]
    if any(mixed) and not all(mixed):
        raise InputError(
            f"has no {_OF_FRAMES}, other sets of its system have",
            file=found[mixed.index(False)],
            hint="is it complete? without it, nothing says which atoms there are",
        )
    return found
