"""The few numbers of each frame that statistics work on, from frames in memory or from the index of a store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.lmdb.index import force_numbers

_ELEMENTS = 119


class Facts(NamedTuple):
    """What is known of M frames without opening them."""

    natoms: NDArray[np.int64]
    """(M,)."""
    composition: NDArray[np.int64]
    """(M,) row of :attr:`compositions`."""
    compositions: NDArray[np.int64]
    """(C, 119) atoms of each element, in lexical order."""
    energy: NDArray[np.float64]
    """(M,) eV; NaN where there is none."""
    force_square: NDArray[np.float64]
    """(M,) sum of the squares of all labelled force components, (eV/Å)²."""
    force_atoms: NDArray[np.int64]
    """(M,) atoms with forces."""
    stress: NDArray[np.bool_]
    """(M,) whether there is a stress."""
    periodic: NDArray[np.bool_]
    """(M,) whether any direction is periodic."""

    def elements(self) -> NDArray[np.int64]:
        """Atomic numbers that occur, ascending."""
        used = self.compositions[np.unique(self.composition)]
        return np.flatnonzero(used.sum(axis=0))

    def count(self, label: str) -> int:
        """How many frames have a label: energy, forces or stress."""
        known = {"energy": ~np.isnan(self.energy), "forces": self.force_atoms > 0, "stress": self.stress}
        return int(np.count_nonzero(known[label]))


def facts_of(frames: Sequence[Frame]) -> Facts:
    """The facts of frames; those of a store come from its index."""
    known: Facts | None = getattr(frames, "facts", None)
    if known is not None:
        return known
    counts = np.zeros((len(frames), _ELEMENTS), dtype=np.int64)
    square, atoms = np.zeros(len(frames)), np.zeros(len(frames), dtype=np.int64)
    for i, frame in enumerate(frames):
        counts[i] = np.bincount(frame.numbers, minlength=_ELEMENTS)
        square[i], _, atoms[i] = force_numbers(frame)
    compositions, composition = np.unique(counts, axis=0, return_inverse=True)
    return Facts(
        natoms=counts.sum(axis=1),
        composition=composition.reshape(-1),
        compositions=compositions,
        energy=np.array([np.nan if f.energy is None else f.energy for f in frames], dtype=np.float64),
        force_square=square,
        force_atoms=atoms,
        stress=np.array([f.stress is not None for f in frames], dtype=bool),
        periodic=np.array([bool(f.pbc.any()) for f in frames], dtype=bool),
    )
