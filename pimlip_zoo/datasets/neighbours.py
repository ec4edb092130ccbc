"""Frames as the graphs that a model takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pimlip_zoo.datasets.electrons import electrons_of, stated_at_all, unpaired_by_default
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.neighbour_list import (
    FEW_ATOMS,
    complete_cell,
    near_pairs,
    neighbour_list,
    species_indices,
)
from pimlip_zoo.datasets.same_size import groups_of_alike
from pimlip_zoo.graph import AtomGraph, Batch, Labels

__all__ = ["complete_cell", "frame_to_sample", "frames_to_batch", "neighbour_list", "species_indices"]


def frame_to_sample(frame: Frame, species: Sequence[str], cutoff: float) -> Batch:
    """A frame as a batch of one: the graph within the cutoff, labels with NaN where there is none.

    Args:
        frame: the structure.
        species: chemical symbols in the model's order.
        cutoff: Å; the model's cutoff, plus what displaced copies need.
    """
    n = len(frame.numbers)
    edge_index, edge_shift = neighbour_list(frame.positions, frame.cell, frame.pbc, cutoff)
    graph = AtomGraph(
        positions=torch.as_tensor(np.array(frame.positions, dtype=np.float64)),
        species=torch.as_tensor(species_indices(frame.numbers, species)),
        edge_index=torch.as_tensor(edge_index),
        edge_shift=torch.as_tensor(edge_shift),
        cell=torch.as_tensor(np.array(frame.cell, dtype=np.float64)).reshape(1, 3, 3),
        batch=torch.zeros(n, dtype=torch.int64),
        num_graphs=1,
        electrons=_electrons([frame], [n]),
    )
    nan = float("nan")
    labels = Labels(
        energy=torch.tensor([nan if frame.energy is None else frame.energy], dtype=torch.float64),
        forces=torch.full((n, 3), nan, dtype=torch.float64)
        if frame.forces is None
        else torch.as_tensor(np.array(frame.forces, dtype=np.float64)),
        stress=torch.full((1, 3, 3), nan, dtype=torch.float64)
        if frame.stress is None
        else torch.as_tensor(np.array(frame.stress, dtype=np.float64)).reshape(1, 3, 3),
        weight=torch.tensor([frame.weight], dtype=torch.float64),
        label_weights=torch.tensor([frame.label_weights], dtype=torch.float64),
    )
    return Batch(graph, labels)


def frames_to_batch(frames: Sequence[Frame], species: Sequence[str], cutoff: float | None) -> Batch:
    """Frames as one batch: what collating their samples gives, in a fraction of the time for molecules.

    Args:
        frames: at least one.
        species: chemical symbols in the model's order.
        cutoff: Å; None makes no edges.

    Raises:
        InputError: as :func:`frame_to_sample`, without saying which frame.
    """
    counts = np.array([len(frame.numbers) for frame in frames])
    batch = np.repeat(np.arange(len(frames)), counts)
    numbers = np.concatenate([frame.numbers for frame in frames])
    nan = np.nan
    edge_index, edge_shift = np.zeros((2, 0), dtype=np.int64), np.zeros((0, 3))
    if cutoff is not None:
        edge_index, edge_shift = _edges_of(frames, np.cumsum(counts) - counts, cutoff)
    graph = AtomGraph(
        positions=torch.as_tensor(np.concatenate([f.positions for f in frames], dtype=np.float64)),
        species=torch.as_tensor(species_indices(numbers, species)),
        edge_index=torch.as_tensor(edge_index),
        edge_shift=torch.as_tensor(edge_shift),
        cell=torch.as_tensor(np.array([frame.cell for frame in frames], dtype=np.float64)),
        batch=torch.as_tensor(batch),
        num_graphs=len(frames),
        electrons=_electrons(frames, counts.tolist()),
    )
    unknown = np.full((int(counts.max()), 3), nan)
    forces = [unknown[:n] if f.forces is None else f.forces for n, f in zip(counts, frames, strict=True)]
    stress = np.full((len(frames), 3, 3), nan)
    for place, frame in enumerate(frames):
        if frame.stress is not None:
            stress[place] = frame.stress
    energy = [nan if frame.energy is None else frame.energy for frame in frames]
    labels = Labels(
        energy=torch.tensor(energy, dtype=torch.float64),
        forces=torch.as_tensor(np.concatenate(forces, dtype=np.float64)),
        stress=torch.as_tensor(stress),
        weight=torch.tensor([frame.weight for frame in frames], dtype=torch.float64),
        label_weights=torch.tensor([frame.label_weights for frame in frames], dtype=torch.float64),
    )
    return Batch(graph, labels)


def batches_of(frames: Sequence[Frame], species: Sequence[str], cutoff: float, size: int) -> Iterator[Batch]:
    """Frames as batches of at most so many, in their order; see :func:`frames_to_batch`."""
    for start in range(0, len(frames), size):
        yield frames_to_batch(frames[start : start + size], species, cutoff)


def _electrons(frames: Sequence[Frame], natoms: Sequence[int]) -> torch.Tensor:
    """(M, 2) charges and numbers of unpaired electrons."""
    numbers = np.concatenate([frame.numbers for frame in frames])
    rows = unpaired_by_default(numbers, np.asarray(natoms))
    for place, frame in enumerate(frames):
        if stated_at_all(frame.info):
            found = electrons_of(frame.numbers, frame.info)
            rows[place] = found.charge, found.multiplicity - 1
    return torch.from_numpy(rows)


def _edges_of(
    frames: Sequence[Frame], first: NDArray[np.int64], cutoff: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Edges of all frames, whose atoms start at ``first``, sorted by centre."""
    groups, others = groups_of_alike(frames, FEW_ATOMS)
    pairs, shifts = [np.zeros((2, 0), dtype=np.int64)], [np.zeros((0, 3))]
    for group in groups:
        member, i, j = near_pairs(group.squared_distances(), cutoff)
        pairs.append(first[group.places][member] + np.stack([i, j]))
        shifts.append(np.zeros((len(i), 3)))
    for place in others:
        frame = frames[place]
        edge_index, shift = neighbour_list(frame.positions, frame.cell, frame.pbc, cutoff)
        pairs.append(edge_index + first[place])
        shifts.append(shift)
    edges, shift = np.concatenate(pairs, axis=1), np.concatenate(shifts)
    if len(pairs) == 2:
        return edges, shift
    order = np.argsort(edges[0], kind="stable")
    return edges[:, order], shift[order]
