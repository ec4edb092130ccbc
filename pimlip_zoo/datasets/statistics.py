"""What a model takes from the training data: species, energy references, force scale, number of neighbours."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.summary import Facts, facts_of
from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import Batch

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


def species_of(*parts: Sequence[Frame]) -> tuple[str, ...]:
    """Chemical symbols of all frames of some sets, by atomic number."""
    from ase.data import chemical_symbols

    numbers = {int(z) for frames in parts for z in facts_of(frames).elements()}
    return tuple(chemical_symbols[z] for z in sorted(numbers))


def composition_matrix(frames: Sequence[Frame], species: Sequence[str]) -> NDArray[np.float64]:
    """(frames, S) how many atoms of each species a frame has."""
    facts = facts_of(frames)
    return _by_species(facts, species)[facts.composition]


def _by_species(facts: Facts, species: Sequence[str]) -> NDArray[np.float64]:
    """(compositions, S)."""
    from ase.data import atomic_numbers

    return facts.compositions[:, [atomic_numbers[symbol] for symbol in species]].astype(np.float64)


def fit_references(frames: Sequence[Frame], species: Sequence[str]) -> EnergyReferences:
    """Least squares of the energies against compositions, the shortest solution where it is not unique.

    Frames of one composition enter as their mean energy with the root of their number as weight, which has the same
    solution: the work does not grow with the number of frames.

    Raises:
        InputError: when no frame has an energy.
    """
    facts = facts_of(frames)
    labelled = ~np.isnan(facts.energy)
    if not labelled.any():
        raise InputError("no structure has an energy", key="energy")
    group, size = facts.composition[labelled], len(facts.compositions)
    number = np.bincount(group, minlength=size)
    # Differences to one energy first: sums of large totals lose digits.
    origin = facts.energy[labelled][0]
    total = np.bincount(group, facts.energy[labelled] - origin, minlength=size)
    there = number > 0
    weight = np.sqrt(number[there])
    mean = origin + total[there] / number[there]
    matrix = _by_species(facts, species)[there]
    solution, _, rank, _ = np.linalg.lstsq(weight[:, None] * matrix, weight * mean, rcond=1e-8)
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
            hint="give all species, or least_squares",
        )
    return EnergyReferences(np.array([float(energies[symbol]) for symbol in species]), source, len(species))


def check_references(frames: Sequence[Frame], species: Sequence[str], references: EnergyReferences) -> None:
    """Refuse references that cannot belong to these energies.

    Raises:
        InputError: naming the frame whose energy is more than 50 eV per atom away from them.
    """
    facts = facts_of(frames)
    expected = (_by_species(facts, species) @ references.energies)[facts.composition]
    error = (facts.energy - expected) / np.maximum(facts.natoms, 1)
    wrong = np.flatnonzero(np.abs(error) > MAX_REFERENCE_ERROR)  # NaN is not: no energy, no error
    if len(wrong):
        raise InputError(
            f"the energy is {error[wrong[0]]:.1f} eV per atom from the references ({references.source})",
            frame=int(wrong[0]),
            key="energy",
            hint="mend units or references, or set data.check_references=false",
        )


def force_rms(frames: Sequence[Frame]) -> float | None:
    """Root mean square of the force components in eV/Å, None where no frame has forces."""
    facts = facts_of(frames)
    total, count = float(facts.force_square.sum()), 3 * int(facts.force_atoms.sum())
    return math.sqrt(total / count) if count and total > 0 else None


def nearest_distance(frames: Sequence[Frame]) -> float:
    """Median over atoms of the distance to the nearest neighbour, Å; 0 where no structure has two atoms within 8 Å."""
    from pimlip_zoo.datasets.neighbour_list import neighbour_distances

    found: list[NDArray[np.float64]] = []
    for frame in frames:
        for reach in (4.0, 8.0):  # few atoms have to look further
            (centre, _), _, distance = neighbour_distances(frame, reach)
            if len(centre):
                nearest = np.full(len(frame.numbers), np.inf)
                np.minimum.at(nearest, centre, distance)
                found.append(nearest[np.isfinite(nearest)])
                break
    return float(np.median(np.concatenate(found))) if found else 0.0


def average_neighbours(samples: Iterable[Batch], cutoff: float) -> float:
    """Mean number of neighbours within the cutoff, over all atoms; at least 1."""
    from pimlip_zoo.graph import edge_vectors

    atoms = edges = 0
    for sample in samples:
        atoms += len(sample.graph.positions)
        edges += int((edge_vectors(sample.graph).norm(dim=1) < cutoff).sum())
    return max(edges / max(atoms, 1), 1.0)
