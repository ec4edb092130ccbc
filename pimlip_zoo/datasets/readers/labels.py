"""Finding energies, forces and stress in what a file says of a structure.

Files of the field keep labels in many places: calculator results (ASE moves ``energy``, ``forces`` and
``stress`` there), ``info``, per-atom arrays; under many names. All places are looked at. Where two hold
different values, nothing is chosen silently: that is an error, and a named key ends it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pimlip_zoo.datasets.electrons import ELECTRON_KEYS, electrons_of, nearly_whole
from pimlip_zoo.datasets.frame import NO_CELL, Frame
from pimlip_zoo.datasets.indices import whole_numbers
from pimlip_zoo.datasets.readers.spec import ReadOptions
from pimlip_zoo.datasets.readers.units import energy_unit, forces_unit, length_unit, stress_unit
from pimlip_zoo.errors import InputError, did_you_mean

log = logging.getLogger("pimlip_zoo")

_PREFIXES = ("", "ref_", "dft_", "reference_")
_STEMS = {
    "energy": ("energy", "total_energy", "potential_energy"),
    "forces": ("forces", "force"),
    "stress": ("stress",),
    "virial": ("virial", "virials"),
}
_USUAL = {prefix + stem: kind for kind, stems in _STEMS.items() for stem in stems for prefix in _PREFIXES}
_WEIGHTS = {
    "config_weight": "weight",
    "config_energy_weight": "energy_weight",
    "config_forces_weight": "forces_weight",
    "config_stress_weight": "stress_weight",
    "config_virials_weight": "stress_weight",
}
"""As mace-torch and others call them."""
_LIKE_A_WEIGHT = re.compile(r"(?!atomic_|mol_|molecular_)(\w+_)?weights?(_\w+)?", re.IGNORECASE)
_KINDS = {
    "constraints": ("constraints", "move_mask", "fixed", "frozen", "mobile", "selective_dynamics"),
    "velocities": ("momenta", "momentum", "velocities", "velocity", "velo", "vel"),
    "tags": ("tags",),
    "masses": ("masses", "mass", "initial_masses", "atomic_masses"),
    "charges": ("charges", "charge", "initial_charges"),
    "magnetic moments": ("magmom", "magmoms", "initial_magmoms"),
    "dipoles": ("dipole", "dipoles", "dipole_moment"),
    "energies of atoms": ("energies", "node_energy"),
    "stresses of atoms": ("stresses", "virials_of_atoms"),
}
_KIND_OF = {name: kind for kind, names in _KINDS.items() for name in names}
CELL_NAMES = frozenset({"cell", "cells", "box", "lattice", "lattice_vectors", "pbc"})
"""Under which files of molecules say that atoms are periodic after all."""
INITIAL = ("initial_charges", "initial_magmoms")
"""Arrays of atoms where a calculation starts from, as ASE calls them."""
_MAY_BE: dict[str, tuple[re.Pattern[str], Callable[[int], Sequence[tuple[int, ...]]]]] = {
    "energy": (
        re.compile(
            r"(?!.*(hull|gap|kinetic|zero_?point|formation|barrier))"
            r"(.*energ|ener$|toten$|e(_|$|tot|pot)|pe$|u_?0$|.*_e$)",
            re.IGNORECASE,
        ),
        lambda _: [(), (1,)],
    ),
    "forces": (
        re.compile(r".*(force|grad)|f(_|$)|frc|dedr|.*_f$", re.IGNORECASE),
        lambda n: [(n, 3), (3 * n,)],
    ),
    "stress": (re.compile(r".*(stress|virial)|sigma$", re.IGNORECASE), lambda _: [(6,), (9,), (3, 3)]),
}
"""What a label may be called that is not read by its usual names, and its shapes."""
_OTHER_FORM = {"forces": "gradient", "stress": "virial"}
_NAMED = ("energy", "forces", "gradient", "weight")
_MAX_TEXT = 256
_MOST_KINDS, _LONGEST_NAME = 100, 60


class LabelFinder:
    """Turns the raw content of one source into frames in eV and Å.

    Args:
        options: units and keys that the user named.
        file: the source, for messages.
        length: unit of positions when the options name none.
        energy: unit of energies when the options name none; None where the format does not say, and the
            user has to.
        forces: unit of forces when the options name none and the format has one of its own.
        stress: unit of stress, likewise.
    """

    def __init__(
        self,
        options: ReadOptions,
        *,
        file: str,
        length: str | None = "Å",
        energy: str | None = "eV",
        forces: str | None = None,
        stress: str | None = None,
    ) -> None:
        self.options = options
        self.file = file
        self.keys_seen: set[str] = set()
        self.keys_found: set[str] = set()
        self.not_kept: set[str] = set()
        """Kinds of what the frames so far said and a frame has no place for."""
        self.not_stored: set[str] = set()
        """Kinds of what a frame has a place for, and a store has none."""
        self._said: set[str] = set()
        energy_name, length_name = options.energy or energy, options.length or length
        for name, value in (("energy", energy_name), ("length", length_name)):
            if value is None:
                raise InputError(
                    f"the file does not say its unit of {name}",
                    file=file,
                    key=name,
                    hint=f"name it, as in {file}?energy=kcal/mol&length=Å",
                )
        assert energy_name is not None
        assert length_name is not None
        if options.forces is None and (options.energy or options.length):
            forces = None
        self.energy_unit = energy_unit(energy_name, file=file)
        self.length_unit = length_unit(length_name, file=file)
        named = options.forces or forces
        self.forces_unit = forces_unit(named, file=file) if named else self.energy_unit / self.length_unit
        stress = options.stress or stress
        self._stress_unit = stress_unit(stress, file=file) if stress else None
        self._requested = {
            kind: key
            for kind, key in (
                ("energy", options.energy_key),
                ("forces", options.forces_key),
                ("gradient", options.gradient_key),
                ("stress", options.stress_key),
                ("virial", options.virial_key),
                ("weight", options.weight_key),
            )
            if key
        }
        if options.forces_key and options.gradient_key:
            raise InputError("forces_key and gradient_key exclude each other", file=file)

    @property
    def stress_unit(self) -> float:
        """How many eV/Å³ the unit of stress is.

        Raises:
            InputError: where other units were named and this one was not.
        """
        if self._stress_unit is not None:
            return self._stress_unit
        if self.energy_unit != 1.0 or self.length_unit != 1.0:
            raise InputError(
                "the unit of stress is not named",
                file=self.file,
                key="stress",
                hint="add stress=eV/Å^3, stress=GPa or whatever it is",
            )
        return 1.0

    def frame(
        self,
        numbers: NDArray[Any],
        positions: NDArray[Any],
        cell: NDArray[Any] | None,
        pbc: Sequence[bool] | NDArray[Any] | bool,
        places: Sequence[tuple[str, Mapping[str, Any]]],
        *,
        index: int,
        also: Iterable[str] = (),
    ) -> Frame:
        """A frame from geometry and the places where labels may be.

        Args:
            numbers: (N,) atomic numbers.
            positions: (N, 3), file's unit.
            cell: (3, 3) or None.
            pbc: periodic directions.
            places: name of a place ("info", "calculator") and what it holds.
            index: of the frame in the file, for messages.
            also: names of what else the file says of it, which the reader does not hand over.

        Raises:
            InputError: for labels of the wrong shape, or two that disagree.
        """
        n = len(numbers)
        candidates, info, others = self._sorted(places)
        self.leave_out(*also)
        numbers = whole_numbers(numbers, "atomic number", file=self.file, frame=index, key="species")
        box = NO_CELL if cell is None else np.array(cell, dtype=np.float64) * self.length_unit
        periodic = np.array(np.broadcast_to(np.asarray(pbc, dtype=bool), 3))
        info.update(self._electrons(numbers, periodic, candidates, info, index))
        energy = self._one("energy", candidates, (), index)
        if energy is None:
            energy = self._one("free_energy", candidates, (), index)
        positions = np.array(positions, dtype=np.float64)
        if positions.shape not in ((n, 3), (3 * n,)):
            raise InputError(
                f"have shape {positions.shape}, expected {(n, 3)}",
                file=self.file,
                frame=index,
                key="positions",
            )
        forces = self._one("forces", candidates, (n, 3), index)
        gradient = self._one("gradient", candidates, (n, 3), index)
        weight = self._weight("weight", candidates, index)
        label_weights = (
            self._weight("energy_weight", candidates, index),
            self._weight("forces_weight", candidates, index),
            self._weight("stress_weight", candidates, index),
        )
        forces_value = None if forces is None else forces * self.forces_unit
        if gradient is not None:
            forces_value = -gradient * self.forces_unit
        stress = self._stress(candidates, box, periodic, index)
        for kind, value in (("energy", energy), ("forces", forces_value), ("stress", stress)):
            if value is None and kind not in self._said and (kind != "stress" or periodic.any()):
                self._say_passed_over(kind, others, n)
        return Frame(
            numbers=numbers,
            positions=positions.reshape(n, 3) * self.length_unit,
            cell=box,
            pbc=periodic,
            energy=None if energy is None else float(energy) * self.energy_unit,
            forces=forces_value,
            stress=stress,
            weight=weight,
            label_weights=label_weights,
            info=info,
            initial=self._initial(candidates, n),
        )

    def _initial(
        self, candidates: Mapping[str, list[tuple[str, Any]]], n: int
    ) -> dict[str, NDArray[np.float64]] | None:
        """What a calculation starts from; what has no value for each atom is none, and not kept."""
        found: dict[str, NDArray[np.float64]] = {}
        for key in INITIAL:
            for _, values in candidates.get(key, ()):
                array = values if isinstance(values, np.ndarray) else np.empty(0)
                vectors = key == "initial_magmoms" and array.shape == (n, 3)
                if array.dtype.kind not in "iuf" or not (array.shape == (n,) or vectors):
                    self.leave_out(key)
                    continue
                found.setdefault(key, array.astype(np.float64))
                if array.any():
                    self.not_stored.add(_KIND_OF[key])
        return found or None

    def _sorted(
        self, places: Sequence[tuple[str, Mapping[str, Any]]]
    ) -> tuple[dict[str, list[tuple[str, Any]]], dict[str, Any], dict[str, Any]]:
        """What may be a label, by its kind, with where it stands; what else is kept of the frame; what is no label."""
        candidates: dict[str, list[tuple[str, Any]]] = {}
        info: dict[str, Any] = {}
        others: dict[str, Any] = {}
        for place, content in places:
            of_structure = place not in ("calculator", "arrays")
            for key, value in content.items():
                if value is None:
                    continue
                self.keys_seen.add(key)
                kind = self._kind(key) or (ELECTRON_KEYS.get(key.lower()) if of_structure else None)
                if kind:
                    candidates.setdefault(kind, []).append((f"{place}['{key}']", value))
                    continue
                if not of_structure and key in INITIAL:  # their sums are kept
                    candidates.setdefault(key, []).append((place, value))
                    continue
                others[key] = value
                if not (of_structure and _keep(info, key, value)):
                    self.leave_out(key)
        return candidates, info, others

    def leave_out(self, *keys: str) -> None:
        """Remember that something of this name is not kept."""
        for key in keys:
            kind = _KIND_OF.get(key.lower()) or (key if key.isprintable() else ascii(key))[:_LONGEST_NAME]
            if len(self.not_kept) < _MOST_KINDS:
                self.not_kept.add(kind)

    def _electrons(
        self,
        numbers: NDArray[np.int64],
        periodic: NDArray[np.bool_],
        candidates: Mapping[str, list[tuple[str, Any]]],
        info: dict[str, Any],
        index: int,
    ) -> dict[str, int]:
        """Charge and multiplicity as they are stated; nothing where they are not.

        What is said of the whole structure counts more than sums of ASE's initial charges and moments. Moments of
        periodic structures are what a calculation starts from, and say nothing.
        """
        charge = self._one("charge", candidates, (), index)
        multiplicity = self._one("multiplicity", candidates, (), index)
        if charge is None:
            charge = self._sum_of_atoms("initial_charges", candidates, index)
        if multiplicity is None and charge is not None and isinstance(info.get("spin"), (int, float)):
            multiplicity = np.asarray(float(info.pop("spin")))
        if multiplicity is None and not periodic.any():
            unpaired = self._sum_of_atoms("initial_magmoms", candidates, index)
            multiplicity = None if unpaired is None else np.abs(unpaired) + 1
        said = {"charge": charge, "multiplicity": multiplicity}
        found = {key: value.item() for key, value in said.items() if value is not None}
        if not found:
            return {}
        try:
            electrons = electrons_of(numbers, found)
        except InputError as error:
            raise error.at(file=self.file, frame=index) from error
        return {key: getattr(electrons, key) for key in found}

    def _sum_of_atoms(
        self, key: str, candidates: Mapping[str, list[tuple[str, Any]]], index: int
    ) -> NDArray[np.float64] | None:
        """A whole number that atoms' values add up to; None where they are all zero, or add up to none."""
        for _, values in candidates.get(key, ()):
            if not np.any(values):
                continue
            total = nearly_whole(values)
            if total is not None:
                return np.asarray(float(total))
            if key not in self._said:
                self._said.add(key)
                what = "charge" if key == "initial_charges" else "multiplicity"
                log.warning(
                    "%s: %s of frame %d add up to no whole number and say nothing of its %s; where it matters, "
                    "state %s=",
                    *(self.file, key, index, what, what),
                )
        return None

    def mark_found(self, *keys: str | None) -> None:
        """Say that the source has these keys, where the reader looks at them itself."""
        self.keys_found.update(key for key in keys if key)

    def check_requested(self) -> None:
        """Raise for a key that was asked for by name and is in no frame."""
        for kind, key in self._requested.items():
            if key not in self.keys_found:
                raise InputError(
                    f"no frame has {key!r}",
                    file=self.file,
                    key=f"{kind}_key",
                    hint=did_you_mean(key, self.keys_seen) if self.keys_seen else "the file holds no labels",
                )

    def _kind(self, key: str) -> str | None:
        """Which label a key holds; None for anything else."""
        for kind, requested in self._requested.items():
            if key == requested:
                self.keys_found.add(key)
                return kind
        found = _USUAL.get(key.lower())
        if found is None:
            if key == "free_energy" and "energy" not in self._requested:
                return "free_energy"
            weight = _WEIGHTS.get(key.lower())
            if weight is None and _LIKE_A_WEIGHT.fullmatch(key):
                self._say_no_weight(key)
            return None if weight == "weight" and "weight" in self._requested else weight
        # A named key silences the usual names of the same label, also across forces and gradient.
        same = {
            "forces": ("forces", "gradient"),
            "stress": ("stress", "virial"),
            "virial": ("stress", "virial"),
        }
        if any(kind in self._requested for kind in same.get(found, (found,))):
            return None
        return found

    def _say_no_weight(self, key: str) -> None:
        if key not in self._said:
            self._said.add(key)
            log.warning(
                "%s: %s is no weight that is known, and is ignored (%s)", self.file, key, ", ".join(_WEIGHTS)
            )

    def _say_passed_over(self, kind: str, others: Mapping[str, Any], n: int) -> None:
        """Once, where a frame has no label of a kind and something that may be it by its name and shape."""
        name, shapes = _MAY_BE[kind]
        found = [
            key
            for key, value in others.items()
            if name.match(key)
            and key.lower() not in _KIND_OF
            and not isinstance(value, (bool, str))
            and np.shape(value) in shapes(n)
        ]
        if found and not {kind, _OTHER_FORM.get(kind)} & self._requested.keys():
            self._said.add(kind)
            option = "virial" if "virial" in found[0].lower() else kind
            log.warning(
                "%s: structures without %s: %s is no name of it that is known (if it is the label, name it and its "
                "unit: %s?%s_key=%s&%s=UNIT)",
                *(self.file, kind, " or ".join(found), self.file, option, found[0]),
                "energy" if option == "virial" else option,
            )

    def say_half(self, key: str, dtype: np.dtype[Any]) -> None:
        """Once for a key, where a file has its numbers in half precision."""
        if dtype.kind == "f" and dtype.itemsize < 4 and (said := f"half {key}") not in self._said:
            self._said.add(said)
            log.warning("%s: %s in half precision (%s) has three digits", self.file, key, dtype)

    def is_label(self, key: str) -> bool:
        """Whether a key is that of a label."""
        return key in self._requested.values() or key.lower() in _USUAL

    def _weight(self, kind: str, candidates: Mapping[str, list[tuple[str, Any]]], index: int) -> float:
        value = self._one(kind, candidates, (), index)
        return 1.0 if value is None else float(value)

    def _one(
        self, kind: str, candidates: Mapping[str, list[tuple[str, Any]]], shape: tuple[int, ...], index: int
    ) -> NDArray[np.float64] | None:
        """The value of a label, None where there is none; all places have to agree."""
        value, where = None, ""
        for place, raw in candidates.get(kind, ()):
            array = self._array(raw, shape, place, index)
            if value is not None and not np.allclose(array, value, rtol=1e-9, atol=1e-9, equal_nan=True):
                raise InputError(
                    f"{where} and {place} disagree by up to {_largest_difference(array, value):.6g}",
                    file=self.file,
                    frame=index,
                    key=kind,
                    hint=f"say which one: ?{kind}_key=..." if kind in _NAMED else "keep one of them",
                )
            if value is None:
                value, where = array, place
        return value

    def _array(self, raw: Any, shape: tuple[int, ...], place: str, index: int) -> NDArray[np.float64]:
        try:
            given = np.asarray(raw)
            array = given.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise InputError("is not a number", file=self.file, frame=index, key=place) from error
        if given.dtype == bool:
            raise InputError("is a truth value, no number", file=self.file, frame=index, key=place)
        if array.size != int(np.prod(shape)) or (len(shape) > 1 and array.ndim > 1 and array.shape != shape):
            raise InputError(
                f"has shape {array.shape}, expected {shape or 'one number'}",
                file=self.file,
                frame=index,
                key=place,
            )
        return array.reshape(shape)

    def _stress(
        self,
        candidates: Mapping[str, list[tuple[str, Any]]],
        cell: NDArray[np.float64],
        pbc: NDArray[np.bool_],
        index: int,
    ) -> NDArray[np.float64] | None:
        volume = abs(float(np.linalg.det(cell)))
        if volume < 1e-10 or not pbc.any():
            return None  # zero stress is what writers put where there is no cell: it is no label
        values: list[tuple[str, NDArray[np.float64]]] = []
        for place, raw in candidates.get("stress", ()):
            values.append((place, self._tensor(raw, place, index) * self.stress_unit))
        for place, raw in candidates.get("virial", ()):
            values.append((place, -self._tensor(raw, place, index) * self.energy_unit / volume))
        for place, value in values[1:]:
            if not np.allclose(value, values[0][1], rtol=1e-4, atol=1e-7, equal_nan=True):
                raise InputError(
                    f"{values[0][0]} and {place} disagree: stress is dE/dε/V, virial is -dE/dε",
                    file=self.file,
                    frame=index,
                    key="stress",
                    hint="say which one: ?stress_key=... or ?virial_key=...",
                )
        return values[0][1] if values else None

    def _tensor(self, raw: Any, place: str, index: int) -> NDArray[np.float64]:
        """Six numbers in Voigt order (xx, yy, zz, yz, xz, xy), or a symmetric 3x3."""
        if np.shape(raw) in ((1, 3, 3), (1, 6)):  # SchNetPack's, which it makes batches of
            raw = np.asarray(raw)[0]
        if np.size(raw) == 6:
            return self._array(raw, (6,), place, index)[[0, 5, 4, 5, 1, 3, 4, 3, 2]].reshape(3, 3)
        tensor = self._array(raw, (3, 3), place, index)
        scale = np.nanmax(np.abs(tensor), initial=1e-3)
        if np.nanmax(np.abs(tensor - tensor.T), initial=0.0) > 0.02 * scale:
            raise InputError("is not symmetric", file=self.file, frame=index, key=place)
        return 0.5 * (tensor + tensor.T)


def kind_of(key: str) -> str | None:
    """What else a key says of a structure: constraints, velocities, masses, ...; None: nothing that is known."""
    return _KIND_OF.get(key.lower())


def usual_label(key: str) -> str | None:
    """Which label is found under a name without being asked for: energy, forces, stress or virial; None: none is."""
    return _USUAL.get(key.lower())


def _keep(info: dict[str, Any], key: str, value: Any) -> bool:
    """Keep short strings and numbers of what else a file says; whether it is one."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (bool, int, float)) or (isinstance(value, str) and len(value) <= _MAX_TEXT):
        info[key] = value
        return True
    return False


def _largest_difference(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(np.nanmax(np.abs(a - b), initial=0.0))
