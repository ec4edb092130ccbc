"""The structures that are to be labelled: geometry, charge, spin, and the name by which a result is found again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pimlip_zoo.datasets.electrons import electrons_of, whole
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.readers import DataSource, open_source, parse_spec, read_window, window_of
from pimlip_zoo.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms

_PER_ATOM = (".extxyz", ".xyz", ".traj")
"""Files in which ASE finds charges and magnetic moments of atoms."""
_CHARGE = ("charge", "total_charge")
_MULTIPLICITY = ("multiplicity", "spin_multiplicity")


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
    magnetic moments of atoms from extended XYZ and ASE trajectories (``initial_charges``, ``initial_magmoms``).

    Raises:
        InputError: for data that cannot be read, or a charge or multiplicity that is not possible.
    """
    found: list[Structure] = []
    for source in parse_spec(spec):
        file = open_source(source)
        window = window_of(source.frames, file)
        frames = list(read_window(source, file, window))
        arrays = _arrays(source, window, len(frames))
        for number, (frame, extra) in enumerate(zip(frames, arrays, strict=True)):
            index = window[number] if source.indices is None and number < len(window) else number
            found.append(structure_of(frame, **extra, file=source.path, index=index))
    if not found:
        raise InputError("there are no structures", file=spec)
    return found


def structure_of(
    frame: Frame,
    *,
    charges: NDArray[np.float64] | None = None,
    moments: NDArray[np.float64] | None = None,
    file: str = "",
    index: int | None = None,
) -> Structure:
    """A frame with what it says of its charge and spin.

    Args:
        frame: its labels are not looked at.
        charges: (N,) of the atoms.
        moments: (N,) or (N, 3) of the atoms.
        file: where it is from, for messages.
        index: its number there.

    Raises:
        InputError: for a charge that is no whole number or is not that of the atoms, and a multiplicity that the
            number of electrons does not allow.
    """
    at: dict[str, Any] = {"file": file or None, "frame": index}
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
    bare = Frame(frame.numbers, frame.positions, frame.cell, frame.pbc, info=dict(frame.info))
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


def _arrays(source: DataSource, window: range, count: int) -> list[dict[str, Any]]:
    """Initial charges and magnetic moments of each frame, where the file can have them."""
    none: list[dict[str, Any]] = [{} for _ in range(count)]
    path = Path(source.path)
    if source.is_builtin or path.suffix not in _PER_ATOM or not _mentions(path):
        return none
    from ase.io import iread

    found: dict[int, dict[str, Any]] = {}
    wanted = window if source.indices is None else source.indices
    for index, atoms in enumerate(iread(str(path), index=":")):
        if index in wanted:
            extra: dict[str, Any] = {}
            if atoms.has("initial_charges"):
                extra["charges"] = atoms.get_initial_charges()
            if atoms.has("initial_magmoms"):
                extra["moments"] = atoms.get_initial_magnetic_moments()
            found[index] = extra
    return [found[index] for index in sorted(found)] if len(found) == count else none


def _mentions(path: Path) -> bool:
    """Whether it is worth reading a file a second time."""
    if path.suffix == ".traj":
        return True
    with path.open("rb") as file:
        return any(b"initial_" in line for line in file if b"=" in line)
