"""NumPy archives of one molecule: sGDML/MD17 (``z, R, E, F``) and rMD17 layouts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.indices import whole_numbers
from pimlip_zoo.datasets.readers.file import ALL_FRAMES, Item
from pimlip_zoo.datasets.readers.labels import CELL_NAMES, LabelFinder
from pimlip_zoo.datasets.readers.numpy_file import UNREADABLE, check_npz
from pimlip_zoo.datasets.readers.spec import ReadOptions
from pimlip_zoo.datasets.readers.units import energy_unit, length_unit
from pimlip_zoo.errors import InputError

_NUMBERS = ("z", "nuclear_charges", "numbers", "atomic_numbers")
_POSITIONS = ("R", "coords", "positions", "coordinates")
_ENERGY = ("E", "energies", "energy")
_FORCES = ("F", "forces")
_KNOWN = {*_NUMBERS, *_POSITIONS, *_ENERGY, *_FORCES, "e_unit", "r_unit", "old_indices"}
_KNOWN |= {"type", "code_version", "name", "theory", "md5", "perms"}
"""With what sGDML says of the file, not of its frames."""


class NpzFile:
    """An archive whose first axis counts frames, for one list of atoms.

    Units: what the file says of them (sGDML's ``e_unit`` and ``r_unit``), kcal/mol and Å for rMD17 (known
    by its ``old_indices``), otherwise what the user names.
    """

    def __init__(self, path: str, options: ReadOptions) -> None:
        self.path = path
        self._archive = self._load()
        if periodic := sorted(name for name in self._names if name.lower() in CELL_NAMES):
            raise InputError(
                "says that its atoms are periodic; archives of this kind are read as molecules",
                file=path,
                key=periodic[0],
                hint="write them with ASE as extxyz",
            )
        energy, length = self._units(options)
        self.finder = LabelFinder(options, file=path, energy=energy, length=length)
        numbers = self._array(_NUMBERS, "atomic numbers").reshape(-1)
        self._numbers = whole_numbers(numbers, "atomic number", file=path, key="species")
        self._positions = self._floats(self._array(_POSITIONS, "positions"), "positions")
        shape = self._positions.shape
        if self._positions.ndim == 2:
            self._positions = self._positions[None]
        if self._positions.shape[1:] != (len(self._numbers), 3):
            raise InputError(
                f"positions have shape {shape}, expected (frames, {len(self._numbers)}, 3)", file=path
            )
        self._energy = self._optional("energy", _ENERGY, options.energy_key)
        self._forces = self._optional("forces", _FORCES, options.forces_key)
        self._gradient = self._optional("gradient", (), options.gradient_key)
        if self._gradient is not None:
            self._forces = -self._gradient
        self._check_lengths()
        named = {options.energy_key, options.forces_key, options.gradient_key}
        unread = {*self._names} - _KNOWN
        if options.energy_key:
            unread |= {*_ENERGY} & {*self._names}
        if options.forces_key or options.gradient_key:
            unread |= {*_FORCES} & {*self._names}
        self.finder.leave_out(*sorted(unread - named))
        self.finder.mark_found(options.energy_key, options.forces_key, options.gradient_key)

    def count(self) -> int:
        """Frames in the archive."""
        return len(self._positions)

    def read(self, window: range = ALL_FRAMES) -> Iterator[Item]:
        """Frames of the window."""
        finder = self.finder
        for index in range(window.start, min(window.stop, self.count()), window.step):
            energy = None if self._energy is None else float(self._energy[index]) * finder.energy_unit
            forces = None if self._forces is None else self._forces[index] * finder.forces_unit
            yield (
                index,
                Frame(
                    numbers=self._numbers,
                    positions=self._positions[index] * finder.length_unit,
                    energy=energy,
                    forces=forces,
                ),
            )

    def _load(self) -> dict[str, NDArray[Any]]:
        try:
            check_npz(self.path)
            with np.load(self.path, allow_pickle=False) as archive:
                wanted = [
                    name for name in archive.files if name in _KNOWN or name.endswith(("energies", "forces"))
                ]
                self._names = list(archive.files)
                if twice := [name for name in wanted if wanted.count(name) > 1]:
                    raise InputError("is there twice", file=self.path, key=twice[0])  # noqa: TRY301
                return {name: archive[name] for name in wanted}
        except InputError:
            raise
        except UNREADABLE as error:
            text = " ".join(str(error).split())
            if "pickle" in text.lower():
                text = "it holds Python objects, which are not loaded: they could run any code"
            raise InputError(f"cannot be read: {text}", file=self.path) from error

    def _units(self, options: ReadOptions) -> tuple[str | None, str | None]:
        if "old_indices" in self._names:
            return "kcal/mol", "Å"
        energy, length = self._text("e_unit"), self._text("r_unit")
        for key, said, named, value in (
            ("energy", energy, options.energy, energy_unit),
            ("length", length, options.length, length_unit),
        ):
            if said and named and value(said, file=self.path) != value(named, file=self.path):
                raise InputError(
                    f"the file says that its unit is {said}, you say {named}",
                    file=self.path,
                    key=key,
                    hint=f"leave out {key}=, or mend the file",
                )
        return energy, length

    def _text(self, key: str) -> str | None:
        if key not in self._archive:
            return None
        value = self._archive[key].item()
        return value.decode() if isinstance(value, bytes) else str(value)

    def _one(self, names: tuple[str, ...], hint: str) -> str | None:
        """The one of these names that the archive has; None where it has none.

        Raises:
            InputError: when it has several, and they are not the same numbers.
        """
        found = [name for name in names if name in self._archive]
        for name in found[1:]:
            if not np.array_equal(self._archive[found[0]], self._archive[name]):
                raise InputError(
                    f"holds {found[0]} and {name}, which differ", file=self.path, key=name, hint=hint
                )
        return found[0] if found else None

    def _array(self, names: tuple[str, ...], what: str) -> NDArray[Any]:
        name = self._one(names, "keep one of them")
        if name is not None:
            return self._archive[name]
        raise InputError(
            f"holds no {what}",
            file=self.path,
            key=" or ".join(names),
            hint=f"it holds {', '.join(self._names)}",
        )

    def _optional(self, label: str, names: tuple[str, ...], key: str | None) -> NDArray[np.float64] | None:
        if key is not None:
            names = (key,)
            if key not in self._names:
                raise InputError(
                    f"holds no {key!r}", file=self.path, hint=f"it holds {', '.join(self._names)}"
                )
            with np.load(self.path, allow_pickle=False) as archive:
                return self._floats(archive[key], key)
        name = self._one(names, f"say which one: ?{label}_key=...")
        return None if name is None else self._floats(self._archive[name], name)

    def _floats(self, values: NDArray[Any], key: str) -> NDArray[np.float64]:
        if values.dtype.kind not in "iuf":
            raise InputError(f"holds no numbers but {values.dtype}", file=self.path, key=key)
        self.finder.say_half(key, values.dtype)
        return np.asarray(values, dtype=np.float64)

    def _check_lengths(self) -> None:
        m, n = self._positions.shape[:2]
        if self._energy is not None:
            if self._energy.size != m:
                raise InputError(f"{self._energy.size} energies for {m} frames", file=self.path, key="energy")
            self._energy = self._energy.reshape(m)
        if self._forces is not None and self._forces.shape != (m, n, 3):
            flat = self._forces.shape == (m, 3 * n) or (m == 1 and self._forces.shape == (n, 3))
            if not flat:
                raise InputError(
                    f"forces have shape {self._forces.shape}, expected {(m, n, 3)}",
                    file=self.path,
                    key="forces",
                )
            self._forces = self._forces.reshape(m, n, 3)
