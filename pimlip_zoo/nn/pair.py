"""What a model sees of a pair of atoms: distance and species, as scalars."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import AtomGraph
from pimlip_zoo.nn.electrons import ElectronEmbedding
from pimlip_zoo.nn.mlp import ScalarMLP


class PairEmbedding(nn.Module):
    """Radial functions of an edge, mixed, times an embedding of the species of its centre and its neighbour.

    Half of the channels belong to the centre, half to the neighbour.

    Args:
        num_species: S.
        num_basis: radial functions B.
        channels: D, even.
        electrons: add an embedding of charge and spin to that of the species.
    """

    def __init__(self, num_species: int, num_basis: int, channels: int, *, electrons: bool = False) -> None:
        super().__init__()
        if channels < 2 or channels % 2:
            raise InputError(
                f"an embedding of pairs of species cannot have {channels} channels: half belong to each",
                key="embed_channels",
                hint="give an even number >= 2",
            )
        self.centre = nn.Parameter(torch.randn(num_species, channels // 2))
        self.neighbour = nn.Parameter(torch.randn(num_species, channels // 2))
        self.electrons = ElectronEmbedding(channels) if electrons else None
        self.radial = ScalarMLP((num_basis, channels))

    def forward(self, radial: Tensor, graph: AtomGraph) -> Tensor:
        """(E, B) -> (E, D)."""
        centre, neighbour = graph.species[graph.edge_index[0]], graph.species[graph.edge_index[1]]
        species = torch.cat([self.centre[centre], self.neighbour[neighbour]], dim=1)
        electrons = self.electrons
        if electrons is not None:
            species = species + electrons(graph, species)[graph.edge_index[0]]
        out: Tensor = species * self.radial(radial)
        return out
