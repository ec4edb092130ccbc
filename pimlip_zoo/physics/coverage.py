"""What the training data cover, so that an extrapolation is called one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.neighbour_list import neighbour_distances

if TYPE_CHECKING:
    from ase import Atoms

_MOST = 300
_REACH = 6.0  # Å
_MARGIN = 0.98
"""Distances that are shorter by less than 2 % are no extrapolation."""


@dataclass(frozen=True)
class Coverage:
    """The shortest distances that occur in the training data."""

    nearest: dict[tuple[int, int], float]
    """Å, by atomic numbers, the smaller one first."""

    def outside(self, atoms: Atoms) -> dict[tuple[int, int], float]:
        """What of a structure the data do not cover: the shortest distance in Å by pair of elements; empty: all is."""
        if not self.nearest or len(atoms) == 0:
            return {}
        edges, _, lengths = neighbour_distances(atoms, max(self.nearest.values()))
        numbers = atoms.numbers[edges]
        found: dict[tuple[int, int], float] = {}
        for (first, second), nearest in self.nearest.items():
            pairs = (numbers[0] == first) & (numbers[1] == second)
            shortest = float(lengths[pairs].min(initial=np.inf))
            if shortest < _MARGIN * nearest:
                found[first, second] = shortest
        return found

    def sentences(self, outside: Mapping[tuple[int, int], float]) -> list[str]:
        """What :meth:`outside` found, in words."""
        from ase.data import chemical_symbols

        return [
            f"{chemical_symbols[first]} and {chemical_symbols[second]} come as close as {shortest:.2f} Å, "
            f"in the training data only {self.nearest[first, second]:.2f} Å"
            for (first, second), shortest in outside.items()
        ]


def coverage_of(frames: Sequence[Frame]) -> Coverage:
    """The coverage of at most 300 of these structures, evenly chosen."""
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(_MOST, len(frames))).astype(int))
    nearest: dict[tuple[int, int], float] = {}
    for index in chosen:
        frame = frames[int(index)]
        edges, _, lengths = neighbour_distances(frame, _REACH)
        if len(lengths) == 0:
            continue
        numbers = np.sort(frame.numbers[edges], axis=0)
        for first, second in np.unique(numbers, axis=1).T.tolist():
            of_pair = (numbers[0] == first) & (numbers[1] == second)
            shortest = float(lengths[of_pair].min())
            nearest[first, second] = min(shortest, nearest.get((first, second), np.inf))
    return Coverage(nearest)
