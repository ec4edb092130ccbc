"""Frames as the graphs that a model takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pimlip_zoo.datasets.alike import groups_of_alike
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.pairs import FEW_ATOMS, neighbour_list, species_indices
from pimlip_zoo.graph import AtomGraph, Batch, Labels

__all__ = ["complete_cell", "frame_to_sample", "frames_to_batch", "neighbour_list", "species_indices"]

<<<<<<< HEAD
_FEW_ATOMS = 48


def neighbour_list(
    positions: NDArray[np.float64],
    cell: NDArray[np.float64],
    pbc: NDArray[np.bool_],
    cutoff: float,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The full list of pairs closer than the cutoff, sorted by centre.

    Periodic images of an atom with itself are pairs; the atom itself is not. The cell may be skewed,
    left-handed, thinner than the cutoff, or lack vectors in directions that are not periodic.

    Returns:
        ``edge_index`` (2, E) and the integer-valued ``edge_shift`` (E, 3).

    Raises:
        InputError: for a periodic direction without a cell vector, or periodic vectors that are coplanar.
    """
    if len(positions) <= _FEW_ATOMS and not np.any(pbc):
        return _all_pairs(np.asarray(positions, dtype=np.float64).reshape(-1, 3), cutoff)
    from vesin import NeighborList

    box = complete_cell(cell, pbc)
    calculator = NeighborList(cutoff=float(cutoff), full_list=True, sorted=True)
    i, j, shift = calculator.compute(
        points=np.ascontiguousarray(positions, dtype=np.float64),
        box=box,
        periodic=np.asarray(pbc, dtype=bool),
        quantities="ijS",
    )
    edge_index = np.stack([np.asarray(i, dtype=np.int64), np.asarray(j, dtype=np.int64)])
    return edge_index, np.asarray(shift, dtype=np.float64).reshape(-1, 3)


def species_indices(numbers: NDArray[np.int64], species: Sequence[str]) -> NDArray[np.int64]:
    """Atomic numbers as indices into the list of chemical symbols.

    Raises:
        InputError: for an element that the list lacks.
    """
    table = _species_table(tuple(species))
    known = (numbers >= 0) & (numbers < len(table))
    indices: NDArray[np.int64] = np.where(known, table[np.where(known, numbers, 0)], -1)
    if (indices < 0).any():
        from ase.data import chemical_symbols

        unknown = sorted({int(z) for z in numbers[indices < 0]})
        names = ", ".join(chemical_symbols[z] if 0 <= z < len(chemical_symbols) else str(z) for z in unknown)
        raise InputError(
            f"the model does not know {names}",
            key="species",
            mend=f"it was trained on {', '.join(species)}",
        )
    return indices

=======
>>>>>>> 294647f (export --format native, its ASE calculator without torch; checkpoint for what was called native)

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
    )
    unknown = np.full((int(counts.max()), 3), nan)
    forces = [unknown[:n] if f.forces is None else f.forces for n, f in zip(counts, frames, strict=True)]
    stress = [np.full((3, 3), nan) if frame.stress is None else frame.stress for frame in frames]
    energy = [nan if frame.energy is None else frame.energy for frame in frames]
    labels = Labels(
        energy=torch.tensor(energy, dtype=torch.float64),
        forces=torch.as_tensor(np.concatenate(forces, dtype=np.float64)),
        stress=torch.as_tensor(np.array(stress, dtype=np.float64)),
        weight=torch.tensor([frame.weight for frame in frames], dtype=torch.float64),
    )
    return Batch(graph, labels)


def _edges_of(
    frames: Sequence[Frame], first: NDArray[np.int64], cutoff: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Edges of all frames, whose atoms start at ``first``, sorted by centre."""
    groups, others = groups_of_alike(frames, FEW_ATOMS)
    pairs, shifts = [np.zeros((2, 0), dtype=np.int64)], [np.zeros((0, 3))]
    for group in groups:
        near = group.squared_distances() < cutoff * cutoff
        np.einsum("bii->bi", near)[:] = False
        member, i, j = near.nonzero()
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
<<<<<<< HEAD


@lru_cache(maxsize=64)
def _species_table(species: tuple[str, ...]) -> NDArray[np.int64]:
    """The index of each atomic number in the list of symbols, -1 where it lacks."""
    from ase.data import atomic_numbers, chemical_symbols

    table = np.full(len(chemical_symbols) + 1, -1, dtype=np.int64)
    for index, symbol in enumerate(species):
        table[atomic_numbers[symbol]] = index
    return table


def _all_pairs(
    positions: NDArray[np.float64], cutoff: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The pairs of a small open system: all distances at once take a fraction of the set-up of a list."""
    delta = positions[:, None] - positions[None]
    near = np.einsum("ijk,ijk->ij", delta, delta) < cutoff * cutoff
    np.fill_diagonal(near, val=False)
    edge_index = np.array(near.nonzero(), dtype=np.int64)
    return edge_index, np.zeros((edge_index.shape[1], 3))


def complete_cell(cell: NDArray[np.float64], pbc: NDArray[np.bool_]) -> NDArray[np.float64]:
    """A cell of full rank: vectors of directions that are not periodic are chosen orthogonal where missing."""
    box = np.array(cell, dtype=np.float64).reshape(3, 3).copy()
    lengths = np.linalg.norm(box, axis=1)
    for axis in range(3):
        if pbc[axis] and lengths[axis] < 1e-10:
            raise InputError(
                f"direction {'abc'[axis]} is periodic but has no cell vector",
                key="cell",
                mend="give the lattice vector or set pbc to F there",
            )
    periodic = [axis for axis in range(3) if pbc[axis]]
    if periodic and np.linalg.matrix_rank(box[periodic] / lengths[periodic, None], tol=1e-8) < len(periodic):
        raise InputError("the cell is singular: its periodic vectors are coplanar", key="cell")
    open_axes = [axis for axis in range(3) if not pbc[axis]]
    if open_axes and (not periodic or np.linalg.matrix_rank(box, tol=1e-8) < 3):
        # The null space of the periodic vectors gives directions orthogonal to all of them.
        basis = np.linalg.svd(box[periodic])[2][len(periodic) :] if periodic else np.eye(3)
        for axis, direction in zip(open_axes, basis, strict=True):
            box[axis] = direction
    return box
=======
>>>>>>> 294647f (export --format native, its ASE calculator without torch; checkpoint for what was called native)
