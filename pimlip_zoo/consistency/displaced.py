"""Displaced and strained copies of structures, and the batches that they are evaluated in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pimlip_zoo.graph import AtomGraph, Batch, Labels, Predictions, edge_vectors


def displaced_copies(graph: AtomGraph, displacements: Sequence[Tensor | None]) -> AtomGraph:
    """Copies of a batch one after the other, each displaced, sharing the list of edges.

    Args:
        graph: M structures, N atoms, E edges; the list wide enough for the displaced copies.
        displacements: K of (N, 3) Å; None leaves a copy where it is.

    Returns:
        A graph of K M structures, K N atoms, K E edges, copy by copy.
    """
    copies, atoms = len(displacements), len(graph.positions)
    step = torch.arange(copies, device=graph.batch.device)
    index = (graph.edge_index.unsqueeze(1) + atoms * step[None, :, None]).flatten(1)
    return AtomGraph(
        positions=torch.cat([graph.positions if d is None else graph.positions + d for d in displacements]),
        species=torch.cat([graph.species] * copies),
        edge_index=index,
        edge_shift=torch.cat([graph.edge_shift] * copies),
        cell=torch.cat([graph.cell] * copies),
        batch=(graph.batch + graph.num_graphs * step.unsqueeze(1)).flatten(),
        num_graphs=copies * graph.num_graphs,
        electrons=None if graph.electrons is None else graph.electrons.repeat(copies, 1),
    )


def trim_edges(graph: AtomGraph, cutoff: float) -> AtomGraph:
    """Without the edges that are not shorter than the cutoff, which only cost time: same predictions.

    Args:
        graph: the structures, their list widened or not.
        cutoff: Å.
    """
    with torch.no_grad():
        if bool(graph.edge_shift.count_nonzero()):
            vectors = edge_vectors(graph)
        else:
            # In a batch of molecules no edge is shifted, and cells need not be looked at.
            centre, neighbour = graph.edge_index
            vectors = graph.positions.index_select(0, neighbour) - graph.positions.index_select(0, centre)
        kept = (torch.linalg.vector_norm(vectors, dim=1) < cutoff).nonzero().view(-1)
    if len(kept) == len(vectors):
        return graph
    return graph._replace(
        edge_index=graph.edge_index.index_select(1, kept), edge_shift=graph.edge_shift.index_select(0, kept)
    )


def strained(graph: AtomGraph, strain: Tensor) -> AtomGraph:
    """Positions and cell of each structure multiplied by ``1 + ε`` from the right; ε is (M, 3, 3)."""
    positions = graph.positions + torch.bmm(graph.positions.unsqueeze(1), strain[graph.batch]).squeeze(1)
    return graph._replace(positions=positions, cell=graph.cell + torch.bmm(graph.cell, strain))


def choose(
    batch: Batch, predictions: Predictions | None, structure: Tensor | None
) -> tuple[Batch, Predictions | None]:
    """Some structures of a batch, with their labels and predictions.

    Args:
        batch: M structures.
        predictions: of these; quantities that were not asked for are empty.
        structure: (M,) bool, those that are kept; None: all.
    """
    graph, labels = batch.graph, batch.labels
    if structure is None:
        return batch, predictions
    atom = structure[graph.batch]
    edge = atom[graph.edge_index[0]]
    new_atom, new_structure = atom.cumsum(0) - 1, structure.cumsum(0) - 1
    part = AtomGraph(
        positions=graph.positions[atom],
        species=graph.species[atom],
        edge_index=new_atom[graph.edge_index[:, edge]],
        edge_shift=graph.edge_shift[edge],
        cell=graph.cell[structure],
        batch=new_structure[graph.batch[atom]],
        num_graphs=int(structure.sum()),
        electrons=None if graph.electrons is None else graph.electrons[structure],
    )
    part_labels = Labels(
        labels.energy[structure],
        labels.forces[atom],
        labels.stress[structure],
        labels.weight[structure],
        labels.label_weights[structure],
    )
    if predictions is None:
        return Batch(part, part_labels), None
    part_predictions = Predictions(
        predictions.energy[structure],
        predictions.forces[atom] if len(predictions.forces) == len(atom) else predictions.forces,
        predictions.virial[structure] if len(predictions.virial) == len(structure) else predictions.virial,
        predictions.atomic_energy[atom],
    )
    return Batch(part, part_labels), part_predictions
