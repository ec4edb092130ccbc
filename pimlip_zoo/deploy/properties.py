"""What calculators tell beside energies and forces; without torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from ase.data import atomic_numbers
from numpy.typing import NDArray

VOIGT = [0, 4, 8, 5, 2, 1]
"""xx, yy, zz, yz, xz, xy in a flattened (3, 3)."""


def numbers_of(species: Iterable[str]) -> set[int]:
    """Atomic numbers of chemical symbols, as ``allowed_atomic_numbers`` of a calculator, which MLIPAudit asks for."""
    return {atomic_numbers[symbol] for symbol in species}


def common_numbers(calculators: Iterable[Any]) -> set[int] | None:
    """The atomic numbers that all of these allow; None where none of them says which."""
    known = [
        set(each.allowed_atomic_numbers) for each in calculators if hasattr(each, "allowed_atomic_numbers")
    ]
    return set.intersection(*known) if known else None


def changes_of_parts(calculators: Iterable[Any], atoms: Any, tol: float) -> list[str]:
    """What has changed for any of the calculators that are one together since it was last asked; most often nothing.

    Args:
        calculators: each has seen a structure, or says that everything has changed.
        atoms: the structure now.
        tol: of ASE's comparison.
    """
    for each in calculators:
        if changes := each.check_state(atoms, tol):
            return list(changes)
    return []


def stresses_of_atoms(
    vectors: NDArray[np.float64],
    gradient: NDArray[np.float64],
    edge_index: NDArray[np.int64],
    atoms: int,
    volume: float,
) -> NDArray[np.float64]:
    """The stress of each atom, whose sum is the stress of the structure: each edge gives half to either end.

    Args:
        vectors: (E, 3) Å.
        gradient: (E, 3) eV/Å, derivative of the total energy by them.
        edge_index: (2, E).
        atoms: N.
        volume: of the cell, Å³.

    Returns:
        (N, 6) eV/Å³, xx, yy, zz, yz, xz, xy.
    """
    products = vectors[:, :, None] * gradient[:, None, :]
    of_edge = (0.25 * (products + products.transpose(0, 2, 1))).reshape(-1, 9)[:, VOIGT]
    total = np.zeros((atoms, 6))
    for ends in edge_index:
        np.add.at(total, ends, of_edge)
    return total / volume
