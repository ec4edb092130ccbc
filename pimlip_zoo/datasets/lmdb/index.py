"""What is known of each frame without opening it: sizes, composition, labels, energy, force scale.

Samplers, statistics, E0 fits and searches for duplicates use these 48 bytes a frame only.
"""

from __future__ import annotations

import math
from hashlib import blake2b

import numpy as np

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.lmdb.record import label_mask

__all__ = ["BLOCK", "ENTRY", "count_edges", "entry_of", "geometry_digest"]

ENTRY = np.dtype(
    [
        ("natoms", "<u4"),
        ("edges", "<u4"),
        ("composition", "<u4"),
        ("labels", "u1"),
        ("periodic", "u1"),
        ("reserved", "<u2"),
        ("energy", "<f8"),
        ("force_square", "<f8"),
        ("force_max", "<f4"),
        ("force_atoms", "<u4"),
        ("digest", "<u8"),
    ]
)
BLOCK = 8192
"""Entries per block of the index."""
_SMALL = 64
_GRID = 1e4


def entry_of(frame: Frame, composition: int, cutoff: float) -> tuple[object, ...]:
    """The index entry of a frame.

    Args:
        frame: the structure.
        composition: its number in the store's table.
        cutoff: Å, within which edges are counted.
    """
    force_square, force_max, force_atoms = 0.0, np.nan, 0
    if frame.forces is not None:
        labelled = np.einsum("ij,ij->i", frame.forces, frame.forces)
        if math.isnan(np.add.reduce(labelled)):
            labelled = labelled[~np.isnan(labelled)]
        force_atoms = len(labelled)
        if force_atoms:
            force_square, force_max = float(labelled.sum()), float(labelled.max()) ** 0.5
    return (
        len(frame.numbers),
        count_edges(frame, cutoff),
        composition,
        label_mask(frame),
        int(frame.pbc[0]) | int(frame.pbc[1]) << 1 | int(frame.pbc[2]) << 2,
        0,
        np.nan if frame.energy is None else frame.energy,
        force_square,
        force_max,
        force_atoms,
        geometry_digest(frame),
    )


def count_edges(frame: Frame, cutoff: float) -> int:
    """Directed pairs within the cutoff, as in the graph that a model of that cutoff would take."""
    n = len(frame.numbers)
    if n <= _SMALL and not frame.pbc.any():
        near = frame.positions - frame.positions[:1]
        square = np.einsum("ij,ij->i", near, near)
        return int(np.count_nonzero(square[:, None] + square - 2.0 * (near @ near.T) < cutoff * cutoff)) - n
    from pimlip_zoo.datasets.neighbours import neighbour_list

    return int(neighbour_list(frame.positions, frame.cell, frame.pbc, cutoff)[0].shape[1])


def geometry_digest(frame: Frame) -> int:
    """64 bits of the geometry on a grid of 1e-4 Å: equal for frames that are equal atom by atom."""
    content = blake2b(frame.numbers.astype(np.uint8).tobytes(), digest_size=8)
    content.update(np.rint(frame.positions * _GRID).astype(np.int64).tobytes())
    if frame.pbc.any():
        content.update(np.rint(frame.cell * _GRID).astype(np.int64).tobytes())
        content.update(np.asarray(frame.pbc, dtype=np.uint8).tobytes())
    return int.from_bytes(content.digest(), "little")
