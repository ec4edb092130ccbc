"""What a model takes from the training data: species, energy references, force scale, number of neighbours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import Batch

__all__ = [
    "EnergyReferences",
    "average_neighbours",
    "check_references",
    "composition_matrix",
    "fit_references",
    "force_rms",
    "references_from_atoms",
    "species_of",
]

MAX_REFERENCE_ERROR = 50.0
"""eV per atom: energies further from their references than this were given in another unit or wrongly."""


class EnergyReferences(NamedTuple):
    """The energy of each species apart, and where it comes from."""

    energies: NDArray[np.float64]
    """(S,) eV."""
    source: str
    """given, isolated atoms, or least squares."""
    rank: int
    """Rank of the composition matrix; S where the references are determined."""


def species_of(frames: Sequence[Frame]) -> tuple[str, ...]:
    """Chemical symbols of all frames, by atomic number."""
    from ase.data import chemical_symbols

    numbers: set[int] = set()
    for frame in frames:
        numbers.update(int(z) for z in np.unique(frame.numbers))
    return tuple(chemical_symbols[z] for z in sorted(numbers))


def composition_matrix(frames: Sequence[Frame], species: Sequence[str]) -> NDArray[np.float64]:
    """(frames, S) how many atoms of each species a frame has."""
    from ase.data import atomic_numbers

    numbers = [atomic_numbers[symbol] for symbol in species]
    return np.array([[np.count_nonzero(f.numbers == z) for z in numbers] for f in frames], dtype=np.float64)


def fit_references(frames: Sequence[Frame], species: Sequence[str]) -> EnergyReferences:
    """Least squares of the energies against compositions, the shortest solution where it is not unique.

    Raises:
        InputError: when no frame has an energy.
    """
    labelled = [frame for frame in frames if frame.energy is not None]
    if not labelled:
        raise InputError("no structure has an energy", key="energy")
    matrix = composition_matrix(labelled, species)
    energies = np.array([frame.energy for frame in labelled])
    solution, _, rank, _ = np.linalg.lstsq(matrix, energies, rcond=1e-8)
    return EnergyReferences(solution, "least squares", int(rank))


def references_from_atoms(
    energies: Mapping[str, float], species: Sequence[str], source: str
) -> EnergyReferences:
    """References from a table of isolated atoms' energies in eV.

    Raises:
        InputError: when a species is missing from it.
    """
    missing = [symbol for symbol in species if symbol not in energies]
    if missing:
        raise InputError(
            f"no energy reference for {', '.join(missing)}",
            key="energy_references",
            mend="give all species, or least_squares",
        )
    return EnergyReferences(np.array([float(energies[symbol]) for symbol in species]), source, len(species))


def check_references(frames: Sequence[Frame], species: Sequence[str], references: EnergyReferences) -> None:
    """Refuse references that cannot belong to these energies.

    Raises:
        InputError: naming the frame whose energy is more than 50 eV per atom away from them.
    """
    for index, (frame, counts) in enumerate(zip(frames, composition_matrix(frames, species), strict=True)):
        if frame.energy is None:
            continue
        error = (frame.energy - float(counts @ references.energies)) / max(len(frame.numbers), 1)
        if abs(error) > MAX_REFERENCE_ERROR:
            raise InputError(
                f"the energy is {error:.1f} eV per atom from the references ({references.source})",
                frame=index,
                key="energy",
                mend="mend units or references, or set data.check_references=false",
            )


def force_rms(frames: Sequence[Frame]) -> float | None:
    """Root mean square of the force components in eV/Å, None where no frame has forces."""
    total, count = 0.0, 0
    for frame in frames:
        if frame.forces is not None:
            known = frame.forces[~np.isnan(frame.forces).any(axis=1)]
            total += float(np.square(known).sum())
            count += known.size
    return math.sqrt(total / count) if count and total > 0 else None


def average_neighbours(samples: Sequence[Batch], cutoff: float) -> float:
    """Mean number of neighbours within the cutoff, over all atoms; at least 1."""
    from pimlip_zoo.graph import edge_vectors

    atoms = sum(len(sample.graph.positions) for sample in samples)
    edges = sum(int((edge_vectors(sample.graph).norm(dim=1) < cutoff).sum()) for sample in samples)
    return max(edges / max(atoms, 1), 1.0)
