"""What is known of each frame without opening it: sizes, composition, labels, energy, force scale.

Samplers, statistics, E0 fits and searches for duplicates use these 48 bytes a frame only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pimlip_zoo.datasets.electrons import CHARGE, MULTIPLICITY, stated
from pimlip_zoo.datasets.frame import EVEN, Frame
from pimlip_zoo.datasets.lmdb.record import ENERGY, FORCES, STRESS, label_mask
from pimlip_zoo.datasets.same_size import groups_of_alike

ENTRY = np.dtype(
    [
        ("natoms", "<u4"),
        ("edges", "<u4"),
        ("composition", "<u4"),
        ("labels", "u1"),
        ("periodic", "u1"),
        ("uncounted", "<u2"),
        ("energy", "<f8"),
        ("force_square", "<f8"),
        ("force_max", "<f4"),
        ("force_atoms", "<u4"),
        ("digest", "<u8"),
    ]
)
FRAME = 8
"""In ``uncounted``: the frame has weight 0; the other flags are those of the labels."""
BLOCK = 8192
"""Entries per block of the index."""
CHECKSUM = np.dtype("<u4")
"""Of a frame: the first bytes of its record, kept beside the index, too."""
_GRID = 1e4


def entry_of(frame: Frame, composition: int, cutoff: float) -> tuple[object, ...]:
    """The index entry of a frame.

    Args:
        frame: the structure.
        composition: its number in the store's table.
        cutoff: Å, within which edges are counted.
    """
    force_square, force_max, force_atoms = force_numbers(frame)
    return (
        len(frame.numbers),
        count_edges(frame, cutoff),
        composition,
        label_mask(frame),
        int(frame.pbc[0]) | int(frame.pbc[1]) << 1 | int(frame.pbc[2]) << 2,
        uncounted(frame),
        np.nan if frame.energy is None else frame.energy,
        force_square,
        force_max,
        force_atoms,
        geometry_digest(frame),
    )


def force_numbers(frame: Frame) -> tuple[float, float, int]:
    """Sum of squares, largest norm (NaN where there is none), and atoms, of labelled atoms."""
    if frame.forces is None:
        return 0.0, np.nan, 0
    labelled = np.einsum("ij,ij->i", frame.forces, frame.forces)
    if math.isnan(np.add.reduce(labelled)):
        labelled = labelled[~np.isnan(labelled)]
    return float(labelled.sum()), float(labelled.max()) ** 0.5 if len(labelled) else np.nan, len(labelled)


def uncounted(frame: Frame) -> int:
    """Flags of what has weight 0: the labels, and the frame itself."""
    if frame.weight > 0 and frame.label_weights == EVEN:
        return 0
    flags = zip((ENERGY, FORCES, STRESS), frame.label_weights, strict=True)
    return sum(flag for flag, weight in flags if not weight > 0) | (0 if frame.weight > 0 else FRAME)


def entries_of(frames: Sequence[Frame], compositions: Sequence[int], cutoff: float) -> NDArray[Any]:
    """The index entries of many frames: as :func:`entry_of` for each, in a fraction of the time for molecules."""
    entries = np.zeros(len(frames), ENTRY)
    groups, others = groups_of_alike(frames)
    for place in others:
        entries[place] = entry_of(frames[place], compositions[place], cutoff)
    for group in groups:
        count, n = group.positions.shape[:2]
        part = np.zeros(count, ENTRY)
        members = [frames[i] for i in group.places]
        part["natoms"] = n
        part["composition"] = [compositions[i] for i in group.places]
        part["edges"] = np.count_nonzero(group.squared_distances() < cutoff * cutoff, axis=(1, 2)) - n
        part["labels"] = [label_mask(frame) for frame in members]
        part["uncounted"] = [uncounted(frame) for frame in members]
        part["energy"] = [np.nan if frame.energy is None else frame.energy for frame in members]
        part["digest"] = _digests(members, group.positions)
        part["force_max"] = np.nan
        with_forces = [k for k, frame in enumerate(members) if frame.forces is not None]
        if with_forces:
            square, largest, atoms = force_sums(np.array([members[k].forces for k in with_forces]))
            part["force_square"][with_forces] = square
            part["force_max"][with_forces] = largest
            part["force_atoms"][with_forces] = atoms
        entries[group.places] = part
    return entries


def force_sums(
    forces: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """(B, N, 3) to (B,) sum of squares, largest norm (NaN where there is none), and atoms, of labelled atoms."""
    square = np.einsum("bij,bij->bi", forces, forces)
    unknown = np.isnan(square)
    atoms = square.shape[1] - np.count_nonzero(unknown, axis=1)
    square[unknown] = 0.0
    largest = np.sqrt(square.max(axis=1, initial=0.0))
    return square.sum(axis=1), np.where(atoms > 0, largest, np.nan), atoms


def _digests(frames: Sequence[Frame], positions: NDArray[np.float64]) -> list[int]:
    """:func:`geometry_digest` of open frames of one size."""
    grid = np.rint(positions * _GRID).astype(np.int64)
    size, content = grid[0].nbytes, grid.tobytes()
    return [
        int.from_bytes(
            blake2b(
                frame.numbers.astype(np.uint8).tobytes() + content[k * size : (k + 1) * size] + _ion(frame),
                digest_size=8,
            ).digest(),
            "little",
        )
        for k, frame in enumerate(frames)
    ]


def count_edges(frame: Frame, cutoff: float) -> int:
    """Directed pairs within the cutoff, as in the graph that a model of that cutoff would take."""
    for group in groups_of_alike([frame])[0]:
        near = np.count_nonzero(group.squared_distances() < cutoff * cutoff)
        return int(near) - group.positions.shape[1]
    from pimlip_zoo.datasets.neighbour_list import neighbour_list

    return int(neighbour_list(frame.positions, frame.cell, frame.pbc, cutoff)[0].shape[1])


def geometry_digest(frame: Frame) -> int:
    """64 bits of the geometry on a grid of 1e-4 Å: equal for frames that are equal atom by atom.

    Those of another charge or multiplicity are other frames.
    """
    content = blake2b(frame.numbers.astype(np.uint8).tobytes(), digest_size=8)
    content.update(np.rint(frame.positions * _GRID).astype(np.int64).tobytes())
    if frame.pbc.any():
        content.update(np.rint(frame.cell * _GRID).astype(np.int64).tobytes())
        content.update(np.asarray(frame.pbc, dtype=np.uint8).tobytes())
    content.update(_ion(frame))
    return int.from_bytes(content.digest(), "little")


def _ion(frame: Frame) -> bytes:
    """Charge and multiplicity where they are not the usual ones."""
    said = stated(frame)
    return (
        np.array([said.get(CHARGE, 0), said.get(MULTIPLICITY, 0)], dtype=np.int64).tobytes() if said else b""
    )
