"""Neighbour lists with any periodicity, and species as numbers; without torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pimlip_zoo.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms

    from pimlip_zoo.datasets.frame import Frame

FEW_ATOMS = 48
"""Up to so many atoms without periodic images, all their distances are computed."""
_MOST_IMAGES, _MANY_IMAGES, _MOST_PAIRS = 1_000_000, 1_000, 2_000_000_000
"""Of a cell, within the cutoff: copper has 343 at 12 Å in its cell of one atom."""


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
        InputError: for a periodic direction without a cell vector, periodic vectors that are coplanar, or a cell so
            much thinner than the cutoff that its images would fill the memory.
    """
    if len(positions) <= FEW_ATOMS and not np.any(pbc):
        pairs = _all_pairs(np.asarray(positions, dtype=np.float64).reshape(-1, 3), cutoff)[0]
        return pairs, np.zeros((pairs.shape[1], 3))
    from vesin import NeighborList

    box = complete_cell(cell, pbc)
    _check_images(box, np.asarray(pbc, dtype=bool), cutoff, len(positions))
    calculator = NeighborList(cutoff=float(cutoff), full_list=True, sorted=True)
    i, j, shift = calculator.compute(
        points=np.ascontiguousarray(positions, dtype=np.float64),
        box=box,
        periodic=np.asarray(pbc, dtype=bool),
        quantities="ijS",
    )
    edge_index = np.stack([np.asarray(i, dtype=np.int64), np.asarray(j, dtype=np.int64)])
    return edge_index, np.asarray(shift, dtype=np.float64).reshape(-1, 3)


def neighbour_distances(
    structure: Frame | Atoms, reach: float
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Pairs within a distance, each twice: (2, E) atoms, (E, 3) vectors from the first to the second, their lengths."""
    positions, cell = structure.positions, np.asarray(structure.cell)
    if len(positions) <= FEW_ATOMS and not np.any(structure.pbc):
        pairs, delta, square = _all_pairs(positions, reach)
        place = pairs[0] * len(positions) + pairs[1]
        return pairs, delta.reshape(-1, 3).take(place, axis=0), np.sqrt(square.take(place))
    pairs, shift = neighbour_list(positions, cell, structure.pbc, reach)
    vectors = positions[pairs[1]] - positions[pairs[0]] + shift @ cell
    return pairs, vectors, np.sqrt(np.einsum("ij,ij->i", vectors, vectors))


def _check_images(box: NDArray[np.float64], pbc: NDArray[np.bool_], cutoff: float, count: int) -> None:
    """Refuse a cell of which too many images lie within the cutoff: it is skewed to nothing, or the cutoff is huge."""
    heights = 1.0 / np.linalg.norm(np.linalg.inv(box), axis=0)
    images = float(np.prod(2.0 * np.ceil(cutoff / heights[pbc]) + 1.0))
    if images > _MOST_IMAGES or (images > _MANY_IMAGES and images * count**2 > _MOST_PAIRS):
        raise InputError(
            f"{images:.1e} images of the cell lie within {cutoff:g} Å: its thinnest direction has "
            f"{heights[pbc].min():.2g} Å",
            key="cell",
            hint="is it the right cell, and the right unit? a reduced cell of the same lattice may be thicker",
        )


def near_pairs(square: NDArray[np.float64], cutoff: float) -> tuple[NDArray[np.int64], ...]:
    """(B, N, N) squared distances to the structure, centre and neighbour of all pairs within the cutoff, in order."""
    near = square < cutoff * cutoff
    np.einsum("bii->bi", near)[:] = False
    return near.nonzero()


def join_edges(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Edges of several structures, each part sorted by centre, as one list that is."""
    if len(parts) == 1:
        return parts[0]
    edges = np.concatenate(parts, axis=1)
    return edges[:, np.argsort(edges[0], kind="stable")]


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
            hint=f"it was trained on {', '.join(species)}",
        )
    return indices


@lru_cache(maxsize=64)
def _species_table(species: tuple[str, ...]) -> NDArray[np.int64]:
    """The index of each atomic number in the list of symbols, -1 where it lacks."""
    from ase.data import atomic_numbers, chemical_symbols

    table = np.full(len(chemical_symbols) + 1, -1, dtype=np.int64)
    for index, symbol in enumerate(species):
        number = atomic_numbers.get(symbol, 0)
        if number < 1 or table[number] >= 0:
            raise InputError(f"{symbol!r} is {'named twice' if number else 'no element'}", key="species")
        table[number] = index
    return table


def _all_pairs(
    positions: NDArray[np.float64], cutoff: float
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """The pairs of a small open system: all distances at once take a fraction of the set-up of a list.

    Returns:
        (2, E) pairs, and of all atoms (N, N, 3) differences and (N, N) their squares.
    """
    delta = positions[None] - positions[:, None]
    square = np.einsum("ijk,ijk->ij", delta, delta)
    near = square < cutoff * cutoff
    np.fill_diagonal(near, val=False)
    return np.array(near.nonzero(), dtype=np.int64), delta, square


def complete_cell(cell: NDArray[np.float64], pbc: NDArray[np.bool_]) -> NDArray[np.float64]:
    """A cell of full rank: vectors of directions that are not periodic are chosen orthogonal where missing."""
    box = np.array(cell, dtype=np.float64).reshape(3, 3).copy()
    lengths = np.linalg.norm(box, axis=1)
    for axis in range(3):
        if pbc[axis] and lengths[axis] < 1e-10:
            raise InputError(
                f"direction {'abc'[axis]} is periodic but has no cell vector",
                key="cell",
                hint="give the lattice vector or set pbc to F there",
            )
    periodic = [axis for axis in range(3) if pbc[axis]]
    if periodic and np.linalg.matrix_rank(box[periodic] / lengths[periodic, None], tol=1e-6) < len(periodic):
        raise InputError("the cell is singular: its periodic vectors are coplanar", key="cell")
    open_axes = [axis for axis in range(3) if not pbc[axis]]
    if open_axes and (not periodic or np.linalg.matrix_rank(box, tol=1e-8) < 3):
        # The null space of the periodic vectors gives directions orthogonal to all of them.
        basis = np.linalg.svd(box[periodic])[2][len(periodic) :] if periodic else np.eye(3)
        for axis, direction in zip(open_axes, basis, strict=True):
            box[axis] = direction
    return box
