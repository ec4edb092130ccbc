"""The types that everything passes along: structures as graphs, their labels, what is predicted.

All of them are immutable tuples; a changed one is made with ``_replace``. Units and signs are those of
``docs/concepts/conventions.md``: Å, eV, eV/Å, stress ``dE/dε / V``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Optional

import numpy as np
import torch
from torch import Tensor


class AtomGraph(NamedTuple):
    """One structure, or a batch of them, as a directed neighbour graph.

    Shapes use N atoms, E edges, M structures. The list is full (both ``(i, j)`` and ``(j, i)``), has no
    self edge at zero shift, and is sorted by centre.
    """

    positions: Tensor
    """(N, 3) float64, Å."""
    species: Tensor
    """(N,) int64, index into the potential's list of species."""
    edge_index: Tensor
    """(2, E) int64, ``[centre, neighbour]``, sorted by centre."""
    edge_shift: Tensor
    """(E, 3) float64, integer-valued cell multiples added to the neighbour."""
    cell: Tensor
    """(M, 3, 3) float64, Å, rows are lattice vectors; zero where there is none."""
    batch: Tensor
    """(N,) int64, the structure that an atom belongs to, ascending."""
    num_graphs: int
    """M."""
    electrons: Optional[Tensor] = None  # noqa: UP045
    """(M, 2) float64, charge and number of unpaired electrons; None: all neutral, with none."""


class Labels(NamedTuple):
    """Reference values; never enter a model. NaN means: not labelled."""

    energy: Tensor
    """(M,) float64, eV."""
    forces: Tensor
    """(N, 3) float64, eV/Å."""
    stress: Tensor
    """(M, 3, 3) float64, eV/Å³."""
    weight: Tensor
    """(M,) float64, how much a structure counts in every loss."""
    label_weights: Tensor
    """(M, 3) float64, factors of the losses on its energy, forces and stress."""


class Batch(NamedTuple):
    """Structures with their labels; a single sample is a batch of one."""

    graph: AtomGraph
    labels: Labels

    def weighted(self, factors: Tensor) -> Batch:
        """The weights of the structures multiplied by (M,) factors."""
        return self._replace(labels=self.labels._replace(weight=self.labels.weight * factors))

    def linked(self, link: object) -> Batch:  # noqa: ARG002
        """Itself: what other forms of a batch become where it is trained on, with its neighbour lists."""
        return self


class Predictions(NamedTuple):
    """What a potential says about the structures of a graph."""

    energy: Tensor
    """(M,) float64, eV."""
    forces: Tensor
    """(N, 3) float64, eV/Å; empty (0, 3) where they were not asked for."""
    virial: Tensor
    """(M, 3, 3) float64, eV, ``-dE/dε``; empty (0, 3, 3) where it was not asked for."""
    atomic_energy: Tensor
    """(N,) float64, eV."""


def graph_to(graph: AtomGraph, device: torch.device | str) -> AtomGraph:
    """The same graph with its tensors on a device."""
    return AtomGraph(*(value.to(device) if isinstance(value, Tensor) else value for value in graph))  # type: ignore[arg-type]


def edge_vectors(graph: AtomGraph) -> Tensor:
    """``r_ij = positions[j] - positions[i] + edge_shift @ cell``.

    Returns:
        (E, 3) in Å, from the centre to the neighbour, in the dtype of the positions.
    """
    centre, neighbour = graph.edge_index[0], graph.edge_index[1]
    cell = graph.cell.index_select(0, graph.batch.index_select(0, centre))
    shift = torch.bmm(graph.edge_shift.to(cell.dtype).unsqueeze(1), cell).squeeze(1)
    ends = graph.positions.index_select(0, neighbour)
    return ends - graph.positions.index_select(0, centre) + shift


def sum_by_structure(values: Tensor, graph: AtomGraph) -> Tensor:
    """Sum per-atom values over the atoms of each structure: (N, ...) -> (M, ...)."""
    out = torch.zeros((graph.num_graphs, *values.shape[1:]), dtype=values.dtype, device=values.device)
    return out.index_add(0, graph.batch, values)


def cell_volume(cell: Tensor) -> Tensor:
    """(M, 3, 3) -> (M,) in Å³, positive for a left-handed cell, too; zero where there is no cell."""
    return torch.linalg.det(cell).abs()


def stress_from_virial(virial: Tensor, cell: Tensor) -> Tensor:
    """``-virial / |V|`` in eV/Å³, (M, 3, 3); NaN where a structure has no volume."""
    volume = cell_volume(cell)
    # Divide by a number first and mask after: a NaN divisor would put NaN into the gradient.
    known = (volume > 0)[:, None, None]
    stress = -virial / torch.where(volume > 0, volume, torch.ones_like(volume))[:, None, None]
    return torch.where(known, stress, torch.full_like(stress, float("nan")))


def collate(samples: Sequence[Batch]) -> Batch:
    """Join samples into one batch: atoms and edges concatenated, indices shifted.

    Raises:
        ValueError: when there is nothing to join.
    """
    if not samples:
        raise ValueError("cannot collate an empty list of samples")
    labels = Labels(*(torch.cat([getattr(s.labels, field) for s in samples]) for field in Labels._fields))
    return Batch(join([sample.graph for sample in samples]), labels)


def join(graphs: Sequence[AtomGraph]) -> AtomGraph:
    """Several graphs, at least one, as one in their order; a single one is handed back as it is."""
    if len(graphs) == 1:
        return graphs[0]
    atoms = [len(graph.positions) for graph in graphs]
    edges = [graph.edge_index.shape[1] for graph in graphs]
    structures, device = [graph.num_graphs for graph in graphs], graphs[0].positions.device
    return AtomGraph(
        positions=torch.cat([graph.positions for graph in graphs]),
        species=torch.cat([graph.species for graph in graphs]),
        edge_index=torch.cat([graph.edge_index for graph in graphs], dim=1).add_(
            _before(atoms, edges, device)
        ),
        edge_shift=torch.cat([graph.edge_shift for graph in graphs]),
        cell=torch.cat([graph.cell for graph in graphs]),
        batch=torch.cat([graph.batch for graph in graphs]).add_(_before(structures, atoms, device)),
        num_graphs=sum(structures),
        electrons=join_electrons(graphs),
    )


def join_electrons(graphs: Sequence[AtomGraph]) -> Tensor | None:
    """Charges and unpaired electrons of several graphs; None where none of them says any."""
    if all(graph.electrons is None for graph in graphs):
        return None
    return torch.cat(
        [
            graph.cell.new_zeros((graph.num_graphs, 2)) if graph.electrons is None else graph.electrons
            for graph in graphs
        ]
    )


def _before(sizes: Sequence[int], times: Sequence[int], device: torch.device) -> Tensor:
    """The sum of the sizes before each sample, as often as is said for it."""
    start = np.cumsum(sizes) - sizes
    return torch.from_numpy(np.repeat(start, times)).to(device)
