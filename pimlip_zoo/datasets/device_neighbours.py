"""Neighbour lists of whole batches on the device that trains, by nvalchemi-toolkit-ops or torch-cluster.

The loader then hands out batches without edges, :class:`BatchWithoutEdges`, and the training links them where they have
arrived. Neither library may lose a neighbour: both are given room, told to say when it was too little, and given more.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.neighbours import complete_cell, frames_to_batch
from pimlip_zoo.errors import InputError, did_you_mean
from pimlip_zoo.graph import Batch, edge_vectors

_WIDER = 1.0 + 1e-6
"""Lists reach further than the cutoff, and are cut by distances in float64: libraries differ at the boundary."""
_ROOM = 64


class BatchWithoutEdges(NamedTuple):
    """A batch without edges, and what its neighbour lists need to know."""

    batch: Batch
    cell: Tensor
    """(M, 3, 3) Å, of full rank: directions that are not periodic have some vector, too."""
    periodic: Tensor
    """(M, 3) bool."""

    def weighted(self, factors: Tensor) -> BatchWithoutEdges:
        """See :class:`~pimlip_zoo.graph.Batch`."""
        return self._replace(batch=self.batch.weighted(factors))

    def linked(self, link: Callable[[BatchWithoutEdges], Batch]) -> Batch:
        """With the edges that :func:`link` makes, on the device where it has arrived."""
        return link(self)


def batch_without_edges(frames: Sequence[Frame], species: Sequence[str]) -> BatchWithoutEdges:
    """Frames as one batch without edges."""
    cells = np.array([complete_cell(frame.cell, frame.pbc) for frame in frames])
    periodic = np.array([frame.pbc for frame in frames], dtype=bool)
    batch = frames_to_batch(frames, species, None)
    return BatchWithoutEdges(batch, torch.as_tensor(cells), torch.as_tensor(periodic))


def link(batch: BatchWithoutEdges, cutoff: float, backend: str) -> Batch:
    """The batch with its edges, sorted by centre, on the device where it is.

    Args:
        batch: from :func:`batch_without_edges`.
        cutoff: Å.
        backend: one of :data:`LINKERS`.

    Raises:
        InputError: for periodic structures where the backend knows none.
    """
    graph = batch.batch.graph
    edge_index, shift = LINKERS[backend](batch, cutoff * _WIDER)
    order = torch.argsort(edge_index[0], stable=True)
    graph = graph._replace(
        edge_index=edge_index[:, order].to(torch.int64), edge_shift=shift[order].to(torch.float64)
    )
    near = edge_vectors(graph).square().sum(1) < cutoff * cutoff
    graph = graph._replace(edge_index=graph.edge_index[:, near], edge_shift=graph.edge_shift[near])
    return batch.batch._replace(graph=graph)


def check_linker(name: str) -> None:
    """Refuse a backend that is not installed.

    Raises:
        InputError: saying what to install.
    """
    packages = {
        "nvalchemi": ("nvalchemiops", "pip install nvalchemi-toolkit-ops"),
        "torch_cluster": ("torch_cluster", "pip install --no-build-isolation 'pimlip-zoo[pyg]'"),
    }
    if name not in packages:
        raise InputError(
            f"no neighbour list is called {name!r}",
            key="data.neighbours",
            hint=did_you_mean(name, ["workers", *packages]),
        )
    module, hint = packages[name]
    if importlib.util.find_spec(module) is None:
        raise InputError(f"needs {module}, which is not installed", key="data.neighbours", hint=hint)


def _nvalchemi(batch: BatchWithoutEdges, reach: float) -> tuple[Tensor, Tensor]:
    from nvalchemiops.torch.neighbors import neighbor_list
    from nvalchemiops.torch.neighbors.neighbor_utils import NeighborOverflowError

    graph, room = batch.batch.graph, _ROOM
    while True:
        try:
            edges, _, shift = neighbor_list(
                graph.positions,
                reach,
                cell=batch.cell,
                pbc=batch.periodic,
                batch_idx=graph.batch.to(torch.int32),
                max_neighbors=room,
                return_neighbor_list=True,
            )
        except NeighborOverflowError:
            room *= 2
        else:
            return edges, shift


def _torch_cluster(batch: BatchWithoutEdges, reach: float) -> tuple[Tensor, Tensor]:
    from torch_cluster import radius_graph

    if bool(batch.periodic.any()):
        raise InputError(
            "torch-cluster knows no periodic structures",
            key="data.neighbours",
            hint="workers or nvalchemi",
        )
    graph, room = batch.batch.graph, _ROOM
    while True:
        # flow: the centre comes first.
        edges = radius_graph(
            graph.positions, reach, graph.batch, max_num_neighbors=room, flow="target_to_source"
        )
        most = int(torch.bincount(edges[0], minlength=1).max()) if edges.shape[1] else 0
        if most < room:
            return edges, edges.new_zeros((edges.shape[1], 3))
        room *= 2


LINKERS: dict[str, Callable[[BatchWithoutEdges, float], tuple[Tensor, Tensor]]] = {
    "nvalchemi": _nvalchemi,
    "torch_cluster": _torch_cluster,
}
