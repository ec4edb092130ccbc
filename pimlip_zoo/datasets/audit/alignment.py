"""How one frame goes over into another of the same atoms: displacement, strain, and which frames are near."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pimlip_zoo.datasets.frame import Frame

_SMALL = 300
_DISTANCES = 2000
"""Features of a molecule: at most so many of its interatomic distances."""


@dataclass(frozen=True)
class Displacement:
    """From a to b. Rotations and translations are taken out; a change of the cell is a strain."""

    moved: NDArray[np.float64]
    """(N, 3) Å at fixed strain, in the orientation of a."""
    rotation: NDArray[np.float64]
    """(3, 3) that brings vectors of b into the orientation of a: ``v @ rotation``."""
    strain: NDArray[np.float64]
    """(3, 3), the symmetric logarithmic strain; zero for molecules."""

    @property
    def rms(self) -> float:
        """Å, root mean square; a strain counts by how far it moves an atom at 2 Å."""
        return self.atoms_rms + 2.0 * float(np.linalg.norm(self.strain))

    @property
    def atoms_rms(self) -> float:
        """Å, root mean square of what atoms move at fixed strain."""
        return float(np.sqrt(np.mean(np.sum(self.moved**2, axis=1))))


def displacement(a: Frame, b: Frame) -> Displacement | None:
    """The way from a to b; None for other atoms, another order, or another periodicity."""
    if not np.array_equal(a.numbers, b.numbers) or not np.array_equal(a.pbc, b.pbc):
        return None
    if not a.pbc.any():
        return _of_molecule(a.positions, b.positions)
    if not a.pbc.all():
        return _at_fixed_cell(a, b) if np.allclose(a.cell, b.cell, atol=1e-6) else None
    return _of_crystal(a, b)


def near_pairs(frames: Sequence[Frame]) -> list[tuple[int, int]]:
    """For each frame the nearest others; and the nearest of another cell, where cells differ.

    Of small sets each frame has several, so that there are pairs enough for statistics.

    Args:
        frames: of the same atoms in the same order, with the same periodicity.
    """
    several = 3 if len(frames) <= _SMALL else 1
    features, cells = _features(frames)
    square = np.sum(features**2, axis=1)
    distance = square[:, None] + square[None] - 2.0 * features @ features.T
    np.fill_diagonal(distance, np.inf)
    distance[distance < 1e-10] = np.inf  # equal frames say nothing
    pairs: set[tuple[int, int]] = set()
    differ = np.zeros(distance.shape, dtype=bool)
    if cells is not None:
        differ = np.abs(cells[:, None] - cells[None]).max(axis=-1) > 1e-9
    for allowed in (~differ, differ):
        masked = np.where(allowed, distance, np.inf)
        for i, row in enumerate(np.argsort(masked, axis=1)[:, :several]):
            pairs.update((min(i, int(j)), max(i, int(j))) for j in row if np.isfinite(masked[i, j]))
    return sorted(pairs)


def _features(frames: Sequence[Frame]) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Vectors whose distance is about that of the structures, and the cells."""
    positions = np.array([frame.positions for frame in frames])
    pbc = frames[0].pbc
    if not pbc.any():
        i, j = np.triu_indices(positions.shape[1], k=1)
        if len(i) > _DISTANCES:
            chosen = np.random.default_rng(0).choice(len(i), _DISTANCES, replace=False)
            i, j = i[chosen], j[chosen]
        delta = positions[:, i] - positions[:, j]
        return np.sqrt(np.einsum("mpk,mpk->mp", delta, delta)), None
    cells = np.array([frame.cell for frame in frames])
    inverse = np.linalg.pinv(np.where(pbc[:, None], cells, 0.0))
    angle = 2 * np.pi * positions @ inverse
    angle -= angle[:, :1]
    length = np.linalg.norm(cells, axis=2)[:, None] / (2 * np.pi)
    parts = [length * np.cos(angle), length * np.sin(angle), cells]
    flat = np.concatenate([part.reshape(len(frames), -1) for part in parts], axis=1)
    return flat, cells.reshape(len(frames), -1)


def _of_crystal(a: Frame, b: Frame) -> Displacement:
    # Rows transform as x_b = x_a @ deformation = x_a @ stretch @ turn.
    deformation = np.linalg.solve(a.cell, b.cell)
    w, sizes, vt = np.linalg.svd(deformation)
    turn = w @ vt
    strain = (w * np.log(np.maximum(sizes, 1e-12))) @ w.T
    fractional = b.positions @ np.linalg.inv(b.cell) - a.positions @ np.linalg.inv(a.cell)
    fractional -= np.rint(fractional)
    moved = fractional @ (0.5 * (a.cell + b.cell @ turn.T))
    if np.abs(strain).max() < 1e-9:
        strain = np.zeros((3, 3))
    return Displacement(moved - moved.mean(axis=0), turn.T, strain)


def _at_fixed_cell(a: Frame, b: Frame) -> Displacement:
    vectors = np.where(a.pbc[:, None], a.cell, 0.0)
    moved = b.positions - a.positions
    moved -= np.rint(moved @ np.linalg.pinv(vectors)) @ vectors
    return Displacement(moved - moved.mean(axis=0), np.eye(3), np.zeros((3, 3)))


def _of_molecule(a: NDArray[np.float64], b: NDArray[np.float64]) -> Displacement:
    """Kabsch (1976): the rotation that brings b closest to a."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    u, _, vt = np.linalg.svd(b.T @ a)
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt)) or 1.0])
    rotation = (u * sign) @ vt
    return Displacement(b @ rotation - a, rotation, np.zeros((3, 3)))
