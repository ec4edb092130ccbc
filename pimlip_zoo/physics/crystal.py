"""A crystal as properties want it: primitive, in standard orientation, repeated to a width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pimlip_zoo.deploy.relax import relax
from pimlip_zoo.physics.property import NotPossibleError

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator

_LATTICE_TOLERANCE = 2e-3
_SYMMETRY_TOLERANCE = 1e-2  # Å
_FMAX, _STEPS = 1e-4, 300  # eV/Å; of a cell eV per atom
_USABLE_FORCE, _USABLE_STRESS = 0.02, 0.1  # eV/Å, GPa
_FAR = 0.2
"""A relaxation that changes the volume by a fifth has left the structure that was given."""
_LOST = 0.5
"""One that halves or doubles it has found no crystal."""


@dataclass(frozen=True)
class Crystal:
    """A relaxed crystal."""

    atoms: Atoms
    """Primitive where spglib is installed, in the orientation of ``lattice.tocell()``; without a calculator."""
    lattice: Any
    """ASE's Bravais lattice."""
    energy: float
    """eV, of the cell."""
    stress_left: float
    """GPa, largest component."""
    doubts: tuple[str, ...]
    notes: tuple[str, ...]


def relax_crystal(atoms: Atoms, calculator: Calculator) -> Crystal:
    """Relax cell and atoms, and bring the result to the standard form.

    Args:
        atoms: periodic in all directions; not moved.
        calculator: with stress.

    Raises:
        NotPossibleError: when there is no stress, or no minimum is found.
    """
    from ase import units

    if "stress" not in calculator.implemented_properties:
        raise NotPossibleError("the calculator has no stress, so that the cell cannot be relaxed")
    doubts: list[str] = []
    notes: list[str] = []
    current = atoms.copy()
    current.set_constraint()
    smaller = primitive(current)
    if smaller is None:
        notes.append(
            "spglib is not installed: the cell is taken as it was given, not reduced to a primitive one"
        )
    current = current if smaller is None else smaller
    volume = current.get_volume() / len(current)
    before = _bravais(current)
    result = _relax(current, calculator)
    again = primitive(current)
    if again is not None and len(again) < len(current):
        current = again
        result = _relax(current, calculator)
    stress = (result.largest_stress or 0.0) / units.GPa
    if not result.converged:
        left = f"forces up to {result.largest_force:.2g} eV/Å and {stress:.2g} GPa are left"
        if result.largest_force > _USABLE_FORCE or stress > _USABLE_STRESS:
            raise NotPossibleError(f"the cell does not relax: after {result.steps} steps {left}")
        doubts.append(f"not relaxed to the end: {left}")
    change = current.get_volume() / len(current) / volume - 1
    if not -_LOST < change / (1 + max(change, 0.0)) < _LOST:
        raise NotPossibleError(
            f"the cell does not relax: its volume became {1 + change:.2g} times that of the structure given"
        )
    if abs(change) > _FAR:
        doubts.append(f"the relaxed volume differs by {100 * change:+.0f} % from that of the structure given")
    current.calc = None
    found = oriented(current)
    if found is None:
        raise NotPossibleError("the relaxed cell is no lattice that ASE recognises")
    standard, lattice = found
    if before is not None and before.name != lattice.name:
        notes.append(f"the lattice became {lattice.name}, given was {before.name}")
    return Crystal(standard, lattice, result.energy, stress, tuple(doubts), tuple(notes))


def _relax(atoms: Atoms, calculator: Calculator) -> Any:
    atoms.calc = calculator
    try:
        return relax(atoms, cell=True, fmax=_FMAX, steps=_STEPS)
    except (ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
        raise NotPossibleError(f"the cell does not relax: {error}") from error


def primitive(atoms: Atoms) -> Atoms | None:
    """The primitive cell without rotation; the structure itself where spglib finds none; None without spglib.

    Atoms of one element with different masses are different atoms.
    """
    try:
        import spglib
    except ImportError:
        return None
    from ase import Atoms as AseAtoms

    kinds, kind = np.unique(
        np.stack([atoms.numbers, atoms.get_masses().round(6)]), axis=1, return_inverse=True
    )
    cell = (np.array(atoms.cell), atoms.get_scaled_positions(), kind.reshape(-1) + 1)
    try:
        found = spglib.standardize_cell(
            cell, to_primitive=True, no_idealize=True, symprec=_SYMMETRY_TOLERANCE
        )
    except Exception:  # noqa: BLE001 - it has no class of its own in all versions
        found = None
    if found is None:
        return atoms
    vectors, positions, of_kind = found
    numbers, masses = kinds[:, of_kind - 1]
    return AseAtoms(
        numbers=numbers.astype(int), masses=masses, scaled_positions=positions, cell=vectors, pbc=True
    )


def oriented(atoms: Atoms) -> tuple[Atoms, Any] | None:
    """The crystal with the cell vectors of its Bravais lattice's standard cell, and that lattice.

    Cubic axes then are x, y, z however skewed or rotated the cell was.
    """
    from ase.lattice import identify_lattice

    try:
        lattice, operation = identify_lattice(atoms.cell, eps=_LATTICE_TOLERANCE)
    except (RuntimeError, ValueError):
        return None
    moved = atoms.copy()
    moved.set_cell(operation @ np.array(atoms.cell), scale_atoms=False)
    moved.set_cell(lattice.tocell(), scale_atoms=True)
    moved.wrap()
    return moved, lattice


def conventional(crystal: Crystal) -> Atoms:
    """The same crystal in its conventional cell: of a cubic one, the cube."""
    from ase.build import make_supercell

    target = np.array(crystal.lattice.conventional().tocell())
    matrix = target @ np.linalg.inv(np.array(crystal.atoms.cell))
    whole = np.rint(matrix)
    if np.abs(matrix - whole).max() > 1e-6 or round(float(np.linalg.det(whole))) < 1:
        return crystal.atoms.copy()
    return make_supercell(crystal.atoms, whole.astype(int))


def widths(atoms: Atoms) -> Any:
    """(3,) Å, the distances of opposite faces of the cell."""
    return 1 / np.linalg.norm(np.array(atoms.cell.reciprocal()), axis=1)


def repeats(atoms: Atoms, width: float, most: int) -> tuple[int, int, int]:
    """How often a cell is repeated to be at least so wide, with at most so many atoms.

    Args:
        atoms: the cell.
        width: Å.
        most: atoms.
    """
    numbers = np.ceil(width / widths(atoms) - 1e-9).astype(int).clip(min=1)
    while len(atoms) * int(numbers.prod()) > most and numbers.max() > 1:
        numbers[int(np.argmax(np.where(numbers > 1, numbers * widths(atoms), 0.0)))] -= 1
    return int(numbers[0]), int(numbers[1]), int(numbers[2])


def _bravais(atoms: Atoms) -> Any:
    found = oriented(atoms)
    return None if found is None else found[1]
