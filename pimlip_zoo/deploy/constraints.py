"""Which coordinates of a structure are held fixed, for everything that has to keep them so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pimlip_zoo.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms
    from numpy.typing import NDArray


def held_coordinates(atoms: Atoms) -> NDArray[np.bool_]:
    """(N, 3), True for the coordinates that ASE's ``FixAtoms`` and ``FixCartesian`` hold.

    Raises:
        InputError: for a constraint of another kind: dropping it without a word would let atoms loose; for one that
            names atoms that are not there.
    """
    from ase.constraints import FixAtoms, FixCartesian, FixScaled

    held = np.zeros((len(atoms), 3), dtype=bool)
    for constraint in atoms.constraints:
        whole = isinstance(constraint, FixScaled) and np.all(constraint.mask)
        if isinstance(constraint, FixAtoms) or whole:
            held[_those(constraint.index, atoms)] = True
        elif isinstance(constraint, FixCartesian):
            held[_those(constraint.index, atoms)] |= np.asarray(constraint.mask, dtype=bool)
        else:
            raise InputError(
                f"its constraint {type(constraint).__name__} cannot be kept here",
                key="structure",
                hint="FixAtoms and FixCartesian can; remove it, or use ASE itself",
            )
    return held


def _those(index: Any, atoms: Atoms) -> NDArray[Any]:
    indices = np.atleast_1d(index)
    if indices.dtype != bool and np.any((indices < -len(atoms)) | (indices >= len(atoms))):
        raise InputError(
            f"a constraint names atoms that are not there: there are {len(atoms)}", key="structure"
        )
    return indices


def holding(held: NDArray[np.bool_]) -> list[Any]:
    """Constraints of the two kinds that extended XYZ has a column for, from :func:`held_coordinates`."""
    from ase.constraints import FixAtoms, FixCartesian

    whole, some = held.all(axis=1), held.any(axis=1)
    kept: list[Any] = [FixAtoms(mask=whole)] if whole.any() else []
    kept += [
        FixCartesian(np.flatnonzero((held == pattern).all(axis=1)), mask=pattern)
        for pattern in np.unique(held[some & ~whole], axis=0)
    ]
    return kept
