"""What a structure is: crystal, liquid, slab, chain, molecule or atom."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pimlip_zoo.physics.property import Kind

if TYPE_CHECKING:
    from ase import Atoms
    from numpy.typing import NDArray

_VACUUM = 7.0  # Å
_FINEST = 1.5  # Å, the narrowest planes that are looked at
_ORDERED = 0.3
_FEW = 8


def find_kind(atoms: Atoms) -> tuple[Kind, str]:
    """The kind and the reason for it.

    Directions count as open that are not periodic or have 7 Å of vacuum. What fills all three is a crystal when its
    atoms lie on planes, which :func:`bragg_order` tells, or when spglib, where it is installed, finds more symmetry
    than the identity; otherwise it is a liquid, or a glass.
    """
    gaps = _open_directions(atoms)
    open_count = int(gaps.sum())
    if open_count == 3:
        return ("atom", "a single atom") if len(atoms) == 1 else ("molecule", _open_reason(atoms))
    if open_count:
        return ("slab" if open_count == 1 else "chain"), _open_reason(atoms)
    if len(atoms) <= _FEW:
        return "crystal", f"periodic in all directions, {len(atoms)} atom{'s' * (len(atoms) > 1)}"
    order = bragg_order(atoms)
    if order > _ORDERED:
        return "crystal", f"{100 * order:.0f} % of the atoms scatter in phase from one family of planes"
    if _has_symmetry(atoms):
        return "crystal", "it has symmetry"
    return "liquid", f"periodic without order: at most {100 * order:.0f} % of the atoms scatter in phase"


def bragg_order(atoms: Atoms) -> float:
    """The largest ``|Σ exp(i k r)|² / N²`` over wave vectors of the cell whose planes are 1.5 Å apart or more.

    It is 1 for atoms on one family of planes, falls with their vibrations, and is of the order of 1/N without order.
    """
    fractions = atoms.get_scaled_positions(wrap=False)
    reciprocal = np.array(
        atoms.cell.reciprocal()
    )  # without 2π: 1 / |row combination| is the distance of planes
    lengths = np.linalg.norm(np.array(atoms.cell), axis=1)
    highest = [int(length / _FINEST) + 1 for length in lengths]
    ranges = [np.arange(0 if axis == 0 else -most, most + 1) for axis, most in enumerate(highest)]
    phases = [
        np.exp(2j * np.pi * np.outer(fractions[:, axis], numbers)) for axis, numbers in enumerate(ranges)
    ]
    best = 0.0
    for first, number in enumerate(ranges[0]):
        amplitude = (phases[1] * phases[0][:, first : first + 1]).T @ phases[2]
        vectors = (
            number * reciprocal[0]
            + ranges[1][:, None, None] * reciprocal[1]
            + ranges[2][None, :, None] * reciprocal[2]
        )
        inverse = np.linalg.norm(vectors, axis=-1)
        seen = (inverse > 0) & (inverse < 1 / _FINEST)
        if seen.any():
            best = max(best, float(np.square(np.abs(amplitude[seen])).max()) / len(atoms) ** 2)
    return best


def _open_directions(atoms: Atoms) -> NDArray[np.bool_]:
    """(3,) which directions are open: not periodic, or with vacuum."""
    result = ~np.asarray(atoms.pbc, dtype=bool)
    if atoms.cell.rank < 3:
        return result
    fractions = atoms.get_scaled_positions(wrap=True)
    heights = 1 / np.linalg.norm(np.array(atoms.cell.reciprocal()), axis=1)
    for axis in range(3):
        ordered = np.sort(fractions[:, axis])
        gap = float(np.diff(np.append(ordered, ordered[0] + 1.0)).max())
        # A single layer of atoms in a small cell is no vacuum: neighbours are that far in a crystal.
        result[axis] |= gap * heights[axis] > _VACUUM
    return result


def _open_reason(atoms: Atoms) -> str:
    count = int(np.sum(atoms.pbc))
    vacuum = int(_open_directions(atoms).sum()) - (3 - count)
    if vacuum:
        return f"{vacuum} periodic direction{'s' * (vacuum > 1)} with more than {_VACUUM:g} Å of vacuum"
    return "not periodic" if count == 0 else f"periodic in {count} direction{'s' * (count > 1)}"


def _has_symmetry(atoms: Atoms) -> bool:
    try:
        import spglib
    except ImportError:
        return False
    cell = (np.array(atoms.cell), atoms.get_scaled_positions(), atoms.numbers)
    try:
        symmetry = spglib.get_symmetry(cell, symprec=1e-2)
    except Exception:  # noqa: BLE001 - it has no class of its own in all versions
        return False
    return symmetry is not None and len(symmetry["rotations"]) > 1
