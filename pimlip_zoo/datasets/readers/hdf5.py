"""HDF5 files that group conformations by molecule: ANI-1x/ANI-1ccx, SPICE, and files laid out like them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.readers.file import ALL_FRAMES, Item
from pimlip_zoo.datasets.readers.labels import LabelFinder
from pimlip_zoo.datasets.readers.spec import ReadOptions
from pimlip_zoo.errors import InputError, did_you_mean

__all__ = ["Hdf5File"]

_BLOCK = 1024


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


class Hdf5File:
    """Groups of conformations; groups may be nested. NaN labels are missing ones, as in ANI-1x.

    A named energy of ANI-1x (``energy_key=ccsd(t)_cbs.energy``) brings the forces of the same level of
    theory and no others.
    """

    def __init__(self, path: str, options: ReadOptions) -> None:
        self.path = path
        self._groups, names = self._scan()
        self._layout = _choose(names)
        if self._layout is None:
            raise InputError(
                "is of no known layout",
                file=path,
                mend=f"its groups hold {', '.join(sorted(names)[:12])}" if names else "it holds no groups",
            )
        self.finder = LabelFinder(
            options,
            file=path,
            energy=self._layout.energy_unit,
            length=self._layout.length_unit,
        )
        self._energy, self._forces, self._gradient = self._label_keys(options, names)
        self.finder.mark_found(options.energy_key, options.forces_key, options.gradient_key)

    def count(self) -> int:
        """Conformations of all groups."""
        return sum(m for _, m in self._groups)

    def read(self, window: range = ALL_FRAMES) -> Iterator[Item]:
        """Conformations of the window, group by group."""
        offset = 0
        with self._open() as file:
            for name, m in self._groups:
                if offset + m > window.start and offset < window.stop:
                    try:
                        yield from self._read_group(file[name], name, m, offset, window)
                    except (OSError, KeyError) as error:
                        raise InputError(f"cannot be read: {error}", file=self.path, key=name) from error
                offset += m

    def _read_group(self, group: Any, name: str, m: int, offset: int, window: range) -> Iterator[Item]:
        assert self._layout is not None
        numbers = _atomic_numbers(group[_first(self._layout.numbers, group)][()], self.path, name)
        positions = group[_first(self._layout.positions, group)]
        info = {"group": name, **_texts(group)}
        for start in range(0, m, _BLOCK):
            stop = min(start + _BLOCK, m)
            if offset + stop <= window.start or offset + start >= window.stop:
                continue
            block = {
                key: self._block(group, dataset, start, stop, shape)
                for key, dataset, shape in (
                    ("energy", self._energy, (stop - start,)),
                    ("forces", self._forces, (stop - start, numbers.shape[-1], 3)),
                    ("gradient", self._gradient, (stop - start, numbers.shape[-1], 3)),
                )
            }
            place = np.asarray(positions[start:stop], dtype=np.float64) * self.finder.length_unit
            if place.shape != (stop - start, numbers.shape[-1], 3):
                raise InputError(f"positions have shape {positions.shape}", file=self.path, key=name)
            energies, forces = self._labels(block, stop - start)
            for i in range(stop - start):
                if offset + start + i in window:
                    z = numbers if numbers.ndim == 1 else numbers[start + i]
                    yield (
                        offset + start + i,
                        Frame(
                            numbers=z,
                            positions=place[i],
                            energy=energies[i],
                            forces=forces[i],
                            info=dict(info),
                        ),
                    )

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
        self, group: Any, key: str | None, start: int, stop: int, shape: tuple[int, ...]
    ) -> NDArray[np.float64] | None:
        if key is None or key not in group:
            return None
        values = np.asarray(group[key][start:stop], dtype=np.float64)
        if values.size != int(np.prod(shape)):
            raise InputError(f"has shape {group[key].shape}", file=self.path, key=f"{group.name}/{key}")
        return values.reshape(shape)

    def _label_keys(self, options: ReadOptions, names: set[str]) -> tuple[str | None, str | None, str | None]:
        assert self._layout is not None
        for option in ("energy_key", "forces_key", "gradient_key"):
            key = getattr(options, option)
            if key is not None and key not in names:
                raise InputError(
                    f"no group has {key!r}", file=self.path, key=option, mend=did_you_mean(key, names)
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

    def _scan(self) -> tuple[list[tuple[str, int]], set[str]]:
        """Groups with their numbers of conformations, and the names of all that groups hold."""
        positions = {*_ANI1X.positions, *_SPICE.positions, *_OTHER.positions}
        held: dict[str, set[str]] = {}  # of each group; names are cheap to list, objects are not to open
        groups: list[tuple[str, int]] = []
        names: set[str] = set()

        def visit(path: str) -> None:
            parent, _, name = path.rpartition("/")
            held.setdefault(parent or "/", set()).add(name)

        with self._open() as file:
            from h5py import Dataset  # it is there: the file is open

            try:
                file.visit(visit)
                for group, members in held.items():
                    key = _first(tuple(sorted(positions & members)), members)
                    if key is None:
                        continue
                    found = file[f"{group}/{key}"]
                    if isinstance(found, Dataset):
                        names.update(members)
                        groups.append((group, len(found)))
            except (OSError, RuntimeError, KeyError, TypeError) as error:
                raise InputError(f"cannot be read: {error}", file=self.path) from error
        return groups, names

    def _open(self) -> Any:
        try:
            import h5py
        except ImportError as error:
            raise InputError("needs h5py", file=self.path, mend="pip install 'pimlip-zoo[hdf5]'") from error
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


def _atomic_numbers(raw: Any, path: str, name: str) -> NDArray[np.int64]:
    from ase.data import atomic_numbers

    values = np.asarray(raw)
    if values.dtype.kind in "iu":
        return values.astype(np.int64)
    try:
        symbols = [v.decode() if isinstance(v, bytes) else str(v) for v in values.reshape(-1)]
        return np.array([atomic_numbers[s] for s in symbols]).reshape(values.shape)
    except KeyError as error:
        raise InputError(f"{error.args[0]!r} is no element", file=path, key=name) from error


def _texts(group: Any) -> dict[str, str]:
    """SPICE says of each group which subset it belongs to and its SMILES."""
    texts = {}
    for key in ("subset", "smiles"):
        if key in group:
            value = np.asarray(group[key][()]).reshape(-1)
            text = value[0].decode() if len(value) and isinstance(value[0], bytes) else ""
            if text and len(text) <= 256:
                texts[key] = text
    return texts
