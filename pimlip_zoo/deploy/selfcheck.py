"""Compares an exported file with the potential that it was made from, before anybody relies on it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pimlip_zoo.datasets.neighbour_list import neighbour_list
from pimlip_zoo.graph import AtomGraph, Predictions, edge_vectors

if TYPE_CHECKING:
    from pimlip_zoo.models.potential import Potential

Evaluate = Callable[[dict[str, Tensor]], dict[str, Tensor]]


class ExportError(RuntimeError):
    """The exported file does not compute what the potential computes; it was not written."""


def tolerance(dtype: torch.dtype) -> float:
    """Largest deviation, relative to the largest value of a quantity (and at least to 1 eV, 1 eV/Å)."""
    return 1e-10 if dtype == torch.float64 else 2e-4


def check_structures(cutoff: float, num_species: int) -> Iterator[tuple[str, AtomGraph]]:
    """Structures in which exports have been known to fail, with a name for each.

    One atom, atoms without edges, open and periodic ones of several sizes, a skewed cell, a cell thinner
    than the cutoff. Positions are a jittered grid, so that no two atoms are on top of each other.
    """
    spacing = max(0.5 * cutoff, min(1.2, 0.8 * cutoff))
    skew = np.array([[1.0, 0.0, 0.0], [0.3, 1.0, 0.0], [-0.2, 0.25, 1.0]])
    grid = functools.partial(_grid, cutoff=cutoff, num_species=num_species)
    yield "two atoms", grid((2, 1, 1), spacing, np.eye(3), False)
    yield "one atom", grid((1, 1, 1), spacing, np.eye(3), False)
    yield "atoms without edges", grid((3, 1, 1), 3.0 * cutoff, np.eye(3), False)
    yield "an open cluster", grid((2, 3, 2), spacing, np.eye(3), False)
    yield "one atom and its images", grid((1, 1, 1), spacing, skew, True)
    yield "a skewed cell thinner than the cutoff", grid((3, 2, 1), spacing, skew, True)
    yield "a periodic crystal", grid((3, 4, 3), spacing, np.eye(3), True)


def close_structures(cutoff: float, num_species: int) -> Iterator[tuple[str, AtomGraph]]:
    """Structures with distances as short as those of bonds: pairs of atoms of all species, a dense cluster."""
    shortest = max(0.7, 0.14 * cutoff)
    one, other = torch.meshgrid(torch.arange(num_species), torch.arange(num_species), indexing="ij")
    kept = (one <= other).reshape(-1)
    species = torch.stack([one.reshape(-1)[kept], other.reshape(-1)[kept]], 1)
    each = max(3, min(200, 6000 // len(species)))
    # Other distances for other pairs: together they are dense.
    place = torch.arange(each * len(species), dtype=torch.float64) / (each * len(species))
    lengths = shortest + (cutoff - shortest) * place.view(each, -1).T.reshape(-1)
    species = species.repeat_interleave(each, 0)
    positions = torch.zeros((len(species), 2, 3), dtype=torch.float64)
    positions[:, 1] = lengths[:, None] * torch.tensor([0.48, 0.6, -0.64], dtype=torch.float64)
    centre = torch.arange(2 * len(species))
    yield (
        "pairs of atoms",
        AtomGraph(
            positions=positions.view(-1, 3),
            species=species.reshape(-1),
            edge_index=torch.stack([centre, centre.view(-1, 2).flip(1).reshape(-1)]),
            edge_shift=torch.zeros((len(centre), 3), dtype=torch.float64),
            cell=torch.zeros((1, 3, 3), dtype=torch.float64),
            batch=torch.zeros_like(centre),
            num_graphs=1,
        ),
    )
    spacing = shortest / 0.8
    yield (
        "a dense cluster",
        _grid((3, 3, 3), spacing, np.eye(3), False, cutoff=cutoff, num_species=num_species),
    )


def _grid(
    shape: tuple[int, int, int],
    spacing: float,
    skew: NDArray[np.float64],
    periodic: bool,
    *,
    cutoff: float,
    num_species: int,
) -> AtomGraph:
    count = int(np.prod(shape))
    generator = np.random.default_rng(count)
    cell = np.diag([n * spacing for n in shape]) @ skew
    fractional = (
        np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1).reshape(-1, 3) / shape
    )
    positions = fractional @ cell + 0.08 * spacing * generator.uniform(-1.0, 1.0, size=(count, 3))
    edges, shift = neighbour_list(positions, cell, np.full(3, periodic), cutoff)
    return AtomGraph(
        positions=torch.as_tensor(positions),
        species=torch.as_tensor((np.arange(count) + generator.integers(num_species)) % num_species),
        edge_index=torch.as_tensor(edges),
        edge_shift=torch.as_tensor(shift),
        cell=torch.as_tensor(cell if periodic else np.zeros((3, 3))).reshape(1, 3, 3),
        batch=torch.zeros(count, dtype=torch.int64),
        num_graphs=1,
    )


def pair_style_inputs(graph: AtomGraph) -> dict[str, Tensor]:
    """A graph as ``pair_style pimlip`` on one rank hands it over."""
    return {
        "edge_vectors": edge_vectors(graph),
        "edge_index": graph.edge_index,
        "atom_types": graph.species,
        "is_local": torch.ones(len(graph.species), dtype=torch.float64),
    }


def position_inputs(graph: AtomGraph) -> dict[str, Tensor]:
    """A graph as ``pair_style nequip`` hands it over."""
    return {
        "pos": graph.positions,
        "edge_index": graph.edge_index,
        "atom_types": graph.species,
        "cell": graph.cell,
        "edge_cell_shift": graph.edge_shift,
    }


def compare(
    potential: Potential,
    evaluate: Evaluate,
    *,
    by_positions: bool = True,
    calls: int = 3,
    expected: Callable[[AtomGraph], Predictions] | None = None,
) -> float:
    """Evaluate every check structure several times in a row and compare with the potential.

    Args:
        potential: the reference, in the precision of the file.
        evaluate: the file, read back.
        by_positions: also try the inputs of ``pair_style nequip``.
        calls: evaluations of each structure; code that is compiled as it runs changes in the first ones.
        expected: what the file was made from, where that is not the potential itself.

    Returns:
        The largest relative deviation seen.

    Raises:
        ExportError: when a quantity deviates by more than the tolerance, or is not finite where it should be.
    """
    limit = tolerance(potential.model.dtype)
    worst = 0.0
    for name, graph in check_structures(potential.cutoff, len(potential.species)):
        with torch.no_grad():
            predicted = (expected or potential)(graph)
        for call in range(calls):
            found = {"pimlip": from_edges(graph, evaluate(pair_style_inputs(graph)))}
            if by_positions:
                found["nequip"] = _from_positions(evaluate(position_inputs(graph)))
            for contract, prediction in found.items():
                for quantity, value in prediction.items():
                    deviation = _deviation(getattr(predicted, quantity), value)
                    worst = max(worst, deviation)
                    if not deviation <= limit:
                        raise ExportError(
                            f"the exported model differs: {quantity} of {name}, call {call + 1}, called by "
                            f"pair_style {contract}, is off by {deviation:.1e} (allowed: {limit:.0e}); "
                            "nothing was written"
                        )
    return worst


def from_edges(graph: AtomGraph, out: dict[str, Tensor]) -> dict[str, Tensor]:
    """What ``pair_style pimlip`` makes of a module's answer."""
    gradient, (centre, neighbour) = out["edge_gradient"], graph.edge_index
    forces = out.get("forces")
    if forces is None:
        forces = torch.zeros_like(graph.positions)
        forces = forces.index_add(0, centre, gradient).index_add(0, neighbour, -gradient)
    virial = -edge_vectors(graph).T @ gradient
    energy = out["atomic_energy"].squeeze(1)
    return {
        "atomic_energy": energy,
        "energy": energy.sum().reshape(1),
        "forces": forces,
        "virial": 0.5 * (virial + virial.T).unsqueeze(0),
    }


def _from_positions(out: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        "atomic_energy": out["atomic_energy"].squeeze(1),
        "energy": out["total_energy"].reshape(1),
        "forces": out["forces"],
        "virial": out["virial"],
    }


def _deviation(expected: Tensor, value: Tensor) -> float:
    if expected.shape != value.shape or value.dtype != torch.float64:
        return float("inf")
    if expected.numel() == 0:
        return 0.0
    scale = max(1.0, float(expected.abs().max()))
    return float((expected - value.detach()).abs().max()) / scale
