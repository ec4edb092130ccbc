"""Structures that models have to cope with: molecules, crystals in awkward cells, single atoms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.neighbours import frame_to_sample
from pimlip_zoo.graph import AtomGraph

STRUCTURES = (
    "molecule",
    "crystal",
    "triclinic",
    "left_handed",
    "thin",
    "slab",
    "dimer",
    "atom",
)
"""Names that :func:`structure` knows."""


def structure(name: str, species: Sequence[str], *, seed: int = 0) -> Frame:
    """A structure of that kind with atoms of the given species, rattled so that nothing is symmetric.

    Args:
        name: one of :data:`STRUCTURES`. ``triclinic`` is skewed, ``thin`` is a cell thinner than any usual cutoff,
            ``slab`` is periodic in two directions without a third cell vector, ``atom`` is one atom alone.
        species: chemical symbols to choose from.
        seed: of the displacements.
    """
    from ase.data import atomic_numbers

    rng = np.random.default_rng(seed)
    numbers = np.array([atomic_numbers[symbol] for symbol in species], dtype=np.int64)
    cell, pbc = np.zeros((3, 3)), np.zeros(3, dtype=bool)
    if name == "molecule":
        positions = np.array([[0, 0, 0], [1.1, 0.2, 0], [-0.4, 1.2, 0.3], [0.1, -0.9, 1.0], [2.0, 1.1, -0.4]])
    elif name == "dimer":
        positions = np.array([[0.0, 0, 0], [0.7, 0.6, 0.5]])
    elif name == "atom":
        return Frame(numbers=numbers[:1], positions=np.array([[0.3, -0.2, 0.1]]))
    else:
        cell = {
            "crystal": np.diag([4.1, 4.2, 4.3]),
            "triclinic": np.array([[4.0, 0.1, 0], [2.1, 3.9, 0.2], [-1.3, 1.7, 4.4]]),
            "left_handed": np.array([[4.0, 0.1, 0], [2.1, -3.9, 0.2], [-1.3, 1.7, 4.4]]),
            "thin": np.array([[2.2, 0, 0], [0.3, 2.4, 0], [0, 0.2, 7.0]]),
            "slab": np.array([[3.9, 0, 0], [1.2, 4.1, 0], [0, 0, 0]]),
        }[name]
        pbc = np.array([True, True, name != "slab"])
        fractional = np.array([[0.0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
        if name == "thin":
            fractional = np.array([[0.0, 0, 0.1], [0.5, 0.5, 0.45]])
        full = cell if name != "slab" else np.array([*cell[:2], [0, 0, 4.5]])
        positions = fractional @ full
    positions = positions + rng.normal(scale=0.08, size=positions.shape)
    return Frame(
        numbers=numbers[np.arange(len(positions)) % len(numbers)], positions=positions, cell=cell, pbc=pbc
    )


def as_graph(frame: Frame, species: Sequence[str], cutoff: float) -> AtomGraph:
    """The graph of a frame."""
    return frame_to_sample(frame, species, cutoff).graph
