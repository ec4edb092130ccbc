"""The structures that are to be labelled: geometry, charge, spin, and the name by which a result is found again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pimlip_zoo.datasets.electrons import electrons_of, whole
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.readers import open_source, parse_spec, read_window, window_of
from pimlip_zoo.datasets.readers.left_out import say_not_kept
from pimlip_zoo.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms

_CHARGE = ("charge", "total_charge")
_MULTIPLICITY = ("multiplicity", "spin_multiplicity")
_ROUNDED = 1e-6
"""Å, e, Bohr magnetons: two structures whose numbers differ by less are the same, written with fewer digits."""


@dataclass(frozen=True)
class Structure:
    """What a calculator is asked for."""

    frame: Frame
    """Without labels."""
    charge: int = 0
    """In units of e."""
    multiplicity: int | None = None
    """2 S + 1; None where the structure does not say."""
    charges: NDArray[np.float64] | None = None
    """(N,) initial charges of the atoms, where the file has them."""
    moments: NDArray[np.float64] | None = None
    """(N,) or (N, 3) initial magnetic moments of the atoms in Bohr magnetons, where the file has them."""
    place: str = ""
    """File and frame, for messages."""

    def key(self) -> str:
        """A hash of everything that a result depends on: equal structures are computed once."""
        digest = hashlib.sha256()
        frame = self.frame
        for array, kind in (
            (frame.numbers, "<i8"),
            (frame.positions, "<f8"),
            (frame.cell, "<f8"),
            (frame.pbc, "<u1"),
            (self.charges, "<f8"),
            (self.moments, "<f8"),
        ):
            digest.update(b"-" if array is None else np.ascontiguousarray(array, dtype=kind).tobytes() + b"|")
        digest.update(f"{self.charge} {self.multiplicity}".encode())
        return digest.hexdigest()[:32]


def load_structures(spec: str) -> list[Structure]:
    """The structures of a DATA specification, with their charges and spins.

    ``charge`` and ``multiplicity`` are read from what a file says of a structure (``info``); initial charges and
    magnetic moments of atoms from every format that has them (``initial_charges``, ``initial_magmoms``).

    Raises:
        InputError: for data that cannot be read, or a charge or multiplicity that is not possible.
    """
    found: list[Structure] = []
    not_kept: set[str] = set()
    for source in parse_spec(spec):
        file = open_source(source)
        window = window_of(source.frames, file)
        frames = list(read_window(source, file, window))
        not_kept |= file.finder.not_kept
        for number, frame in enumerate(frames):
            index = window[number] if source.indices is None and number < len(window) else number
            found.append(structure_of(frame, file=source.path, index=index))
    if not found:
        raise InputError("there are no structures", file=spec)
    say_not_kept(spec, not_kept)
    return found


def structure_of(
    frame: Frame,
    *,
    file: str = "",
    index: int | None = None,
) -> Structure:
    """A frame with what it says of its charge and spin.

    Args:
        frame: its labels are not looked at.
        file: where it is from, for messages.
        index: its number there.

    Raises:
        InputError: for a charge that is no whole number or is not that of the atoms, a multiplicity that the
            number of electrons does not allow, and values of atoms that are no numbers.
    """
    at: dict[str, Any] = {"file": file or None, "frame": index}
    initial = frame.initial or {}
    for name, values in initial.items():
        if not np.isfinite(values).all():
            raise InputError("are not all finite", key=name, **at)
    charges, moments = initial.get("initial_charges"), initial.get("initial_magmoms")
    charge = _whole(frame.info, _CHARGE, at)
    multiplicity = _whole(frame.info, _MULTIPLICITY, at)
    if charges is not None:
        total = float(np.sum(charges))
        if charge is None:
            charge = round(total)
        if abs(total - charge) > 1e-3:
            raise InputError(
                f"the atoms' initial charges add up to {total:g}, the charge is {charge}", key="charge", **at
            )
    charge = charge or 0
    if multiplicity is None and moments is not None and moments.ndim == 1 and not frame.pbc.any():
        multiplicity = round(abs(float(np.sum(moments)))) + 1
    stated = {"charge": charge}
    if multiplicity is not None and not frame.pbc.any():  # a crystal's bands need no whole number of pairs
        stated["multiplicity"] = multiplicity
    try:
        electrons_of(frame.numbers, stated)
    except InputError as error:
        raise error.at(**at) from error
    bare = Frame(
        frame.numbers,
        frame.positions,
        frame.cell,
        frame.pbc,
        weight=frame.weight,
        label_weights=frame.label_weights,
        info=dict(frame.info),
        initial=frame.initial,
    )
    place = f"{file}, frame {index}" if index is not None else file
    return Structure(bare, charge, multiplicity, charges, moments, place)


def as_atoms(structure: Structure) -> Atoms:
    """The structure as ASE atoms, charge and spin in ``info`` and as initial charges and magnetic moments.

    Calculators look in either place. Where a file has no values of atoms, the charge and the unpaired electrons are
    spread evenly, which is what those that add them up (tblite) need.
    """
    from ase import Atoms

    frame = structure.frame
    atoms = Atoms(numbers=frame.numbers, positions=frame.positions, cell=frame.cell, pbc=frame.pbc)
    set_charge_and_spin(atoms, structure)
    return atoms


def structure_text(structure: Structure) -> str:
    """The structure as extended XYZ with every digit: what reads it finds a structure of the same key.

    ASE writes eight decimals of positions, and has no way to write more.
    """
    from ase.data import chemical_symbols

    frame = structure.frame
    columns, names = [frame.positions], ["species:S:1", "pos:R:3"]
    for name, values in (("initial_charges", structure.charges), ("initial_magmoms", structure.moments)):
        if values is not None:
            columns.append(np.asarray(values, dtype=np.float64).reshape(len(frame.numbers), -1))
            names.append(f"{name}:R:{columns[-1].shape[1]}")
    said = {"Properties": ":".join(names), "charge": str(structure.charge)}
    if frame.cell.any():
        said = {"Lattice": f'"{_digits(frame.cell.reshape(9))}"', **said}
    if structure.multiplicity is not None:
        said["multiplicity"] = str(structure.multiplicity)
    said["pbc"] = '"' + " ".join("T" if periodic else "F" for periodic in frame.pbc) + '"'
    rows = np.concatenate(columns, axis=1)
    lines = [str(len(rows)), " ".join(f"{key}={value}" for key, value in said.items())]
    lines += [
        f"{chemical_symbols[z]} {_digits(row)}" for z, row in zip(frame.numbers.tolist(), rows, strict=True)
    ]
    return "\n".join(lines) + "\n"


def same_but_rounded(one: Structure, other: Structure) -> bool:
    """Whether two structures are the same but for digits that a file has no room for, and where charge and spin stand.

    What stands at the atoms is compared as calculators get it, see :func:`as_atoms`.
    """
    if one.charge != other.charge or one.multiplicity != other.multiplicity:
        return False
    if not np.array_equal(one.frame.numbers, other.frame.numbers):
        return False
    if not np.array_equal(one.frame.pbc, other.frame.pbc):
        return False
    a, b = as_atoms(one), as_atoms(other)
    pairs = [
        (a.positions, b.positions),
        (a.cell.array, b.cell.array),
        (a.get_initial_charges(), b.get_initial_charges()),
        (a.get_initial_magnetic_moments(), b.get_initial_magnetic_moments()),
    ]
    return all(x.shape == y.shape and np.allclose(x, y, rtol=0, atol=_ROUNDED) for x, y in pairs)


def _digits(values: NDArray[np.float64]) -> str:
    return " ".join(map(repr, values.tolist()))


def set_charge_and_spin(atoms: Atoms, structure: Structure) -> None:
    """Put charge and spin where calculators look for them, see :func:`as_atoms`."""
    count = len(atoms)
    atoms.info["charge"] = structure.charge
    if structure.multiplicity is not None:
        atoms.info["multiplicity"] = structure.multiplicity
    if structure.charges is not None:
        atoms.set_initial_charges(structure.charges)
    elif structure.charge:
        atoms.set_initial_charges(np.full(count, structure.charge / count))
    if structure.moments is not None:
        atoms.set_initial_magnetic_moments(structure.moments)
    elif structure.multiplicity is not None and structure.multiplicity > 1:
        atoms.set_initial_magnetic_moments(np.full(count, (structure.multiplicity - 1) / count))


def _whole(info: dict[str, Any], names: tuple[str, ...], at: dict[str, Any]) -> int | None:
    for name in names:
        try:
            number = whole(info, name)
        except InputError as error:
            raise error.at(**at) from error
        if number is not None:
            return number
    return None
