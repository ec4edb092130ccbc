"""The structure of a LAMMPS run: in LAMMPS' axes, with its masses, charges and velocities."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pimlip_zoo.deploy.constraints import held_coordinates
from pimlip_zoo.errors import InputError
from pimlip_zoo.files import replacing

if TYPE_CHECKING:
    from ase import Atoms
    from numpy.typing import NDArray

_MARGIN = 6.0  # Å of empty space beyond the atoms in open directions
_CARRIED = {"numbers", "positions", "momenta", "masses", "initial_charges", "type", "id"}
_STANDARD = 1e-3  # relative; what `pair_style pimlip` takes for the element's own mass


@dataclass(frozen=True)
class AtomTypes:
    """Atom types of a run: elements, and one more type for each further mass of an element."""

    elements: tuple[str, ...]
    """By type, in the order of ``pair_coeff``."""
    masses: tuple[float, ...]
    """By type, g/mol."""
    of_atom: tuple[int, ...]
    """By atom, from 1."""

    @property
    def have_standard_masses(self) -> bool:
        """Whether ``pair_style pimlip`` recognises the elements by their masses."""
        from ase.data import atomic_masses, atomic_numbers

        standard = [atomic_masses[atomic_numbers[element]] for element in self.elements]
        return bool(np.allclose(self.masses, standard, rtol=_STANDARD, atol=0.0))


def in_lammps_axes(atoms: Atoms) -> Atoms:
    """The same structure with the first lattice vector along x, the second in the xy plane.

    Directions that are not periodic get a lattice vector with empty space around the atoms, orthogonal to the
    periodic ones. Of a left-handed cell the first two vectors are exchanged.

    Raises:
        InputError: when there are no atoms, periodic lattice vectors are coplanar, or the structure has to be
            turned and single coordinates of an atom are held fixed.
    """
    from ase.calculators.lammps import Prism

    if len(atoms) == 0:
        raise InputError("there are no atoms", key="structure")
    held = held_coordinates(atoms)
    result = atoms.copy()
    result.set_constraint()  # ASE would not turn atoms that are held
    periodic = np.array(result.pbc, dtype=bool)
    cell = np.array(result.cell)
    if np.linalg.matrix_rank(cell[periodic], tol=1e-8) < periodic.sum():
        raise InputError("the periodic lattice vectors are coplanar, or one is missing", key="cell")
    _close_open_directions(cell, periodic, result.positions)
    if np.linalg.det(cell) < 0:
        cell, periodic = cell[[1, 0, 2]], periodic[[1, 0, 2]]
    result.set_cell(cell)
    result.set_pbc(periodic)
    prism = Prism(cell, pbc=periodic)
    positions, velocities = result.get_positions(), result.get_velocities()
    result.set_cell(prism.cell)
    result.set_positions(prism.vector_to_lammps(positions))
    if result.has("momenta"):
        result.set_velocities(prism.vector_to_lammps(velocities))
    partly = held.any(axis=1) & ~held.all(axis=1)
    if partly.any() and not np.allclose(prism.vector_to_lammps(np.eye(3)), np.eye(3), atol=1e-10):
        raise InputError(
            f"single coordinates of atom {int(partly.argmax())} are held, and LAMMPS needs the cell turned",
            key="structure",
            hint="turn the structure so that the first lattice vector is along x and the second in the xy plane",
        )
    result.set_constraint(atoms.constraints)
    return result


def _close_open_directions(
    cell: NDArray[np.float64], periodic: NDArray[np.bool_], positions: NDArray[np.float64]
) -> None:
    """Fill the rows of open directions, and move the atoms into the middle of them; both in place."""
    kept = cell[periodic]
    directions = np.linalg.svd(kept)[2][len(kept) :] if len(kept) else np.eye(3)
    for axis, direction in zip(np.flatnonzero(~periodic), directions, strict=True):
        along = positions @ direction
        cell[axis] = direction * (np.ptp(along) + 2 * _MARGIN)
        positions += direction * (_MARGIN - along.min())


def atom_types(atoms: Atoms, species: Sequence[str]) -> AtomTypes:
    """Types in the order of the species; isotopes of one of them follow one another.

    Raises:
        InputError: for an element that is not among the species, or a mass that is no positive number.
    """
    from ase.data import atomic_masses, atomic_numbers

    symbols, masses = np.array(atoms.get_chemical_symbols()), np.round(atoms.get_masses(), 8)
    unknown = sorted(set(symbols) - set(species))
    if unknown:
        raise InputError(
            f"the model does not know {', '.join(unknown)}",
            key="species",
            hint="train on data that have them",
        )
    if not (np.isfinite(masses) & (masses > 0)).all():
        raise InputError("a mass is no positive number", key="masses")
    pairs: list[tuple[str, float]] = []
    for symbol in species:
        found = np.unique(masses[symbols == symbol])
        pairs += [(symbol, float(m)) for m in found] or [(symbol, atomic_masses[atomic_numbers[symbol]])]
    place = {pair: number for number, pair in enumerate(pairs, start=1)}
    of_atom = tuple(place[str(s), float(m)] for s, m in zip(symbols, masses, strict=True))
    return AtomTypes(tuple(s for s, _ in pairs), tuple(m for _, m in pairs), of_atom)


def has_charges(atoms: Atoms) -> bool:
    """Whether the structure has charges of atoms, for ``atom_style charge``."""
    return bool(atoms.has("initial_charges") and atoms.get_initial_charges().any())


def left_out(atoms: Atoms) -> list[str]:
    """What the structure says of its atoms and LAMMPS has no place for: tags, magnetic moments, ..."""
    return sorted(
        key
        for key, value in atoms.arrays.items()
        if key not in _CARRIED and (value.dtype.kind not in "biufc" or value.any())
    )


def write_data(path: str | os.PathLike[str], atoms: Atoms, species: Sequence[str]) -> AtomTypes:
    """Write a LAMMPS data file.

    Args:
        path: the file.
        atoms: see :func:`data_text`.
        species: see there.

    Raises:
        InputError: as :func:`data_text`, and where the file cannot be written.
    """
    text, types = data_text(atoms, species)
    with replacing(os.fspath(path)) as scratch:
        scratch.write_text(text)
    return types


def data_text(atoms: Atoms, species: Sequence[str]) -> tuple[str, AtomTypes]:
    """What a LAMMPS data file says (``atom_style atomic`` or ``charge``, ``units metal``), and its atom types.

    Args:
        atoms: from :func:`in_lammps_axes`. Coordinates that are held get no velocity.
        species: chemical symbols of the atom types, see :func:`atom_types`.

    Raises:
        InputError: as :func:`atom_types`.
    """
    from ase.calculators.lammps import convert

    types = atom_types(atoms, species)
    (xx, _, _), (xy, yy, _), (xz, yz, zz) = np.array(atoms.cell)
    lines = [
        "structure written by pimlip-zoo",
        "",
        f"{len(atoms)} atoms",
        f"{len(types.elements)} atom types",
    ]
    lines += ["", *(f"0 {high:.17g} {d}lo {d}hi" for d, high in zip("xyz", (xx, yy, zz), strict=True))]
    if np.abs([xy, xz, yz]).max() > 1e-12:
        lines.append(f"{xy:.17g} {xz:.17g} {yz:.17g} xy xz yz")
    lines += ["", "Masses", ""]
    for number, (element, mass) in enumerate(zip(types.elements, types.masses, strict=True), start=1):
        lines.append(f"{number} {mass:.17g} # {element}")
    charges = [f" {q:.17g}" for q in atoms.get_initial_charges()] if has_charges(atoms) else [""] * len(atoms)
    lines += ["", f"Atoms # {'charge' if has_charges(atoms) else 'atomic'}", ""]
    for number, (kind, charge, r) in enumerate(
        zip(types.of_atom, charges, atoms.positions, strict=True), start=1
    ):
        lines.append(f"{number} {kind}{charge} {r[0]:.17g} {r[1]:.17g} {r[2]:.17g}")
    if atoms.has("momenta"):
        velocities = convert(atoms.get_velocities(), "velocity", "ASE", "metal")
        velocities = np.where(held_coordinates(atoms), 0.0, velocities)
        lines += ["", "Velocities", ""]
        lines += [f"{n} {v[0]:.17g} {v[1]:.17g} {v[2]:.17g}" for n, v in enumerate(velocities, start=1)]
    return "\n".join(lines) + "\n", types
