"""Energies of two levels of theory brought together, and their difference as labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.statistics import composition_matrix
from pimlip_zoo.errors import InputError


class EnergyOffset(NamedTuple):
    """What a species' atom adds to the cheap level to make the reference level."""

    energies: NDArray[np.float64]
    """(S,) eV."""
    species: tuple[str, ...]
    """Chemical symbols."""
    spread: float
    """Root mean square in eV per structure of what the offset leaves between the levels."""


def fit_offset(reference: Sequence[Frame], cheap: Sequence[Frame], species: Sequence[str]) -> EnergyOffset:
    """Least squares of ``E_reference - E_cheap`` against compositions, on the labelled structures.

    Fitted where both levels are known. A pool sampled hotter would put the difference of the two surfaces into the
    offset: half an eV on acetylacetone.

    Args:
        reference: structures with reference energies.
        cheap: the same structures with the cheap level's.
        species: chemical symbols.

    Raises:
        InputError: when no structure has both energies.
    """
    pairs = [
        (a, a.energy - b.energy)
        for a, b in zip(reference, cheap, strict=True)
        if a.energy is not None and b.energy is not None
    ]
    if not pairs:
        raise InputError("no structure has an energy at both levels", key="energy")
    matrix = composition_matrix([frame for frame, _ in pairs], species)
    differences = np.array([difference for _, difference in pairs])
    solution = np.linalg.lstsq(matrix, differences, rcond=1e-8)[0]
    left = differences - matrix @ solution
    return EnergyOffset(solution, tuple(species), float(np.sqrt(np.mean(np.square(left)))))


def shift_energies(frames: Sequence[Frame], offset: EnergyOffset) -> list[Frame]:
    """Cheap labels with their energies on the reference level."""
    shifts = composition_matrix(frames, offset.species) @ offset.energies
    return [
        replace(frame, energy=None if frame.energy is None else frame.energy + float(shift))
        for frame, shift in zip(frames, shifts, strict=True)
    ]


def subtract_labels(reference: Sequence[Frame], cheap: Sequence[Frame]) -> list[Frame]:
    """The difference of two levels as labels: what a correction learns; a label that one side lacks is missing."""
    return [_combine(a, b, -1.0) for a, b in zip(reference, cheap, strict=True)]


def add_labels(frames: Sequence[Frame], correction: Sequence[Frame]) -> list[Frame]:
    """Labels plus corrections; a label that one side lacks is missing."""
    return [_combine(a, b, 1.0) for a, b in zip(frames, correction, strict=True)]


def _combine(a: Frame, b: Frame, sign: float) -> Frame:
    if not np.array_equal(a.numbers, b.numbers) or not np.allclose(
        a.positions, b.positions, rtol=0, atol=1e-9
    ):
        raise InputError("labels of two different structures cannot be combined", key="positions")
    energy = None if a.energy is None or b.energy is None else a.energy + sign * b.energy
    forces = None if a.forces is None or b.forces is None else a.forces + sign * b.forces
    stress = None if a.stress is None or b.stress is None else a.stress + sign * b.stress
    return replace(a, energy=energy, forces=forces, stress=stress)
