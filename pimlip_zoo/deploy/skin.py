"""Neighbour lists that outlive a step of molecular dynamics; without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pimlip_zoo.datasets.neighbour_list import neighbour_list
from pimlip_zoo.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms

_Pairs = tuple[NDArray[np.int64], NDArray[np.float64]]


class SkinnedPairs:
    """Neighbour lists that are built with a skin and used until an atom has moved half of it.

    Args:
        cutoff: Å.
        skin: Å; 0 builds a list every time.
    """

    def __init__(self, cutoff: float, skin: float = 0.5) -> None:
        if not skin >= 0:
            raise InputError(f"the skin is {skin}", key="skin", hint="give a length >= 0 in Å")
        self.cutoff, self.skin = cutoff, skin
        self.builds = 0
        """How many lists were built."""
        # One tuple, replaced at once: copies of a calculator that threads use may share this.
        self._known: tuple[tuple[Any, ...], NDArray[np.float64], _Pairs] | None = None

    def pairs(self, atoms: Atoms) -> _Pairs:
        """All pairs within the cutoff, and some up to the skin beyond: index (2, P), shift (P, 3).

        Raises:
            InputError: for positions or a cell that are not finite.
        """
        check_finite(atoms)
        key = (
            len(atoms),
            atoms.numbers.tobytes(),
            atoms.cell.array.tobytes(),
            np.asarray(atoms.pbc, dtype=bool).tobytes(),
        )
        known = self._known
        if known is None or known[0] != key or self._moved(atoms.positions, known[1]):
            pairs = neighbour_list(atoms.positions, atoms.cell.array, atoms.pbc, self.cutoff + self.skin)
            self._known = known = (key, atoms.positions.copy(), pairs)
            self.builds += 1
        return known[2]

    def _moved(self, positions: NDArray[np.float64], before: NDArray[np.float64]) -> bool:
        if not len(positions):
            return False
        distance = np.square(positions - before).sum(axis=1).max()
        return bool(distance > (0.5 * self.skin) ** 2)


def check_finite(atoms: Atoms) -> None:
    """Refuse positions or a cell that are NaN or infinite.

    Raises:
        InputError: for these.
    """
    if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell.array).all()):
        raise InputError("a position or the cell is NaN or infinite", key="positions")


def check_result(energy: float, forces: NDArray[Any], atoms: Atoms) -> None:
    """Refuse what a model makes of a structure that cannot be, before anybody goes on with it.

    Raises:
        InputError: where the energy (eV) or a force (eV/Å) is NaN or infinite, naming two atoms that are on one spot.
    """
    if np.isfinite(energy) and np.isfinite(forces).all():
        return
    from pimlip_zoo.datasets.readers.checks import coinciding_atoms

    pair = coinciding_atoms(atoms.positions, atoms.cell.array, np.asarray(atoms.pbc, dtype=bool))
    if pair is not None:
        raise InputError(f"atoms {pair[0]} and {pair[1]} are on one spot", key="positions")
    raise InputError("the energy or a force is NaN or infinite", hint="is this a structure that can be?")
