"""A batch of small molecules from the bytes of a store, without a frame for each.

Where the training itself reads its data, most of the time is what numpy asks for each call: here records of one layout
are one array from the start, and the distances that make edges also tell whether two atoms coincide.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pimlip_zoo.datasets.electrons import unpaired_by_default
from pimlip_zoo.datasets.lmdb.record import KIND, decode_alike, is_molecule
from pimlip_zoo.datasets.neighbour_list import FEW_ATOMS, join_edges, near_pairs, species_indices
from pimlip_zoo.datasets.readers.checks import MAX_NUMBER, SAME_SPOT
from pimlip_zoo.datasets.same_size import squared_distances
from pimlip_zoo.graph import AtomGraph, Batch, Labels


def batch_of_records(
    records: Sequence[bytes], species: Sequence[str], cutoff: float, labels: Collection[str]
) -> Batch | None:
    """What collating the samples of the frames gives, bit by bit; None where they have to be looked at one by one.

    That is where a structure has a cell or more than 48 atoms, and where anything may be wrong with one: who reads it
    alone can say what.

    Args:
        records: the bytes of the frames, at least one.
        species: chemical symbols in the model's order.
        cutoff: Å.
        labels: which labels are wanted; the others are NaN.

    Raises:
        InputError: for an element that ``species`` lacks.
    """
    kinds: dict[bytes, list[int]] = {}
    for place, record in enumerate(records):
        kinds.setdefault(record[KIND], []).append(place)
    if not all(is_molecule(kind, FEW_ATOMS) for kind in kinds):
        return None
    if any(b"charge" in record or b"multiplicity" in record for record in records):
        return None  # their info says something of the electrons
    groups = []
    for places in kinds.values():
        rows = decode_alike([records[place] for place in places])
        if rows is None:
            return None
        group = _Group(np.array(places), rows, np.ascontiguousarray(rows["positions"], dtype=np.float64))
        square = squared_distances(group.positions)
        if not group.surely_usable(square):
            return None
        groups.append((group, near_pairs(square, cutoff)))
    return _joined(groups, species, labels)


class _Group(NamedTuple):
    """Records of one layout: B molecules of N atoms."""

    places: NDArray[np.int64]
    """Where they stand in the batch."""
    rows: NDArray[Any]
    positions: NDArray[np.float64]
    """(B, N, 3) Å."""

    def surely_usable(self, square: NDArray[np.float64]) -> bool:
        """Whether every check of a frame would pass; looks at squared distances, (B, N, N) Å²."""
        numbers = self.rows["numbers"]
        weight = self.rows["weight"]
        values = [self.positions, weight, *self.labels()]
        close = np.count_nonzero(square < SAME_SPOT * SAME_SPOT)
        return (
            all(np.isfinite(value.sum()) for value in values)
            and weight.min() >= 0
            and numbers.min() >= 1
            and numbers.max() <= MAX_NUMBER
            and close == numbers.size  # every atom with itself
        )

    def labels(self) -> Iterator[NDArray[np.float64]]:
        """Those that are there."""
        for name in ("energy", "forces"):
            if name in (self.rows.dtype.names or ()):
                yield self.rows[name]


def _joined(
    groups: Sequence[tuple[_Group, tuple[NDArray[np.int64], ...]]],
    species: Sequence[str],
    labels: Collection[str],
) -> Batch:
    count = sum(len(group.places) for group, _ in groups)
    size = np.empty(count, dtype=np.int64)
    for group, _ in groups:
        size[group.places] = group.positions.shape[1]
    first = np.cumsum(size) - size
    atoms = int(size.sum())
    positions, forces = np.empty((atoms, 3)), np.full((atoms, 3), np.nan)
    numbers = np.empty(atoms, dtype=np.int64)
    energy, weight = np.full(count, np.nan), np.empty(count)
    edges = []
    for group, (member, i, j) in groups:
        there = group.rows.dtype.names or ()
        start = first[group.places]
        where = start[:, None] + np.arange(group.positions.shape[1])
        positions[where], numbers[where] = group.positions, group.rows["numbers"]
        weight[group.places] = group.rows["weight"]
        if "energy" in there and "energy" in labels:
            energy[group.places] = group.rows["energy"]
        if "forces" in there and "forces" in labels:
            forces[where] = group.rows["forces"]
        edges.append(start[member] + np.stack([i, j]))
    edge_index = join_edges(edges)
    graph = AtomGraph(
        positions=torch.from_numpy(positions),
        species=torch.from_numpy(species_indices(numbers, species)),
        edge_index=torch.from_numpy(edge_index),
        edge_shift=torch.zeros((edge_index.shape[1], 3), dtype=torch.float64),
        cell=torch.zeros((count, 3, 3), dtype=torch.float64),
        batch=torch.from_numpy(np.repeat(np.arange(count), size)),
        num_graphs=count,
        electrons=torch.from_numpy(unpaired_by_default(numbers, size)),
    )
    return Batch(
        graph,
        Labels(
            energy=torch.from_numpy(energy),
            forces=torch.from_numpy(forces),
            stress=torch.full((count, 3, 3), torch.nan, dtype=torch.float64),
            weight=torch.from_numpy(weight),
            label_weights=torch.ones((count, 3), dtype=torch.float64),
        ),
    )
